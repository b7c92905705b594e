"""The cycle explorer: a query's path through other videos and back, from checkpoint to checkpoint, in images."""

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import Floats, Integers
from cyclecontrast.reporting.runs import RunReport
from cyclecontrast.reporting.sprites import Sprite, SpriteSheet, frame_name
from cyclecontrast.training.health import Cycles, is_support
from cyclecontrast.training.run_folder import read_cycles

NUM_QUERIES = 12
"""Of each group."""
MAX_STAGES = 8
NUM_WEIGHTS, NUM_ENDS = 8, 5
SIDE = 80
MIN_SHOWN = 0.001


class CyclePaths(NamedTuple):
    """All cycles of one measurement; N is the number of pairs of views, and each query has one cycle.

    weights (N, N): of each positive in a query's soft nearest neighbor (Eq. 3), 0 outside the support.
    back (N, N): cosine similarity of that neighbor and each negative, -inf for what is not a negative.
    positive (N,): cosine similarity of that neighbor and the query's positive. closed (N,): whether that is highest.
    """

    weights: Floats
    back: Floats
    positive: Floats
    closed: npt.NDArray[np.bool_]

    @property
    def margin(self) -> Floats:
        """Similarity of the positive minus that of the nearest negative (N,); the cycle fails below 0."""
        return np.asarray(self.positive - self.back.max(axis=1))


class Stage(NamedTuple):
    """A query's cycle at a training step.

    weights: the frames with the largest weights in the soft nearest neighbor; `rest` is the weight of all others as
    text, empty if there is none. ends: the query's positive and the nearest negatives with their cosine similarities,
    most similar first, and whether each is the positive.
    """

    step: int
    closed: bool
    margin: float
    positive: float
    weights: list[tuple[Sprite, float]]
    rest: str
    ends: list[tuple[Sprite, float, bool]]


class CycleQuery(NamedTuple):
    """A query and its cycle at every stage."""

    sprite: Sprite
    stages: list[Stage]

    @property
    def largest_weight(self) -> float:
        """The largest weight of a frame at any stage."""
        return max(weight for stage in self.stages for _, weight in stage.weights)


class CycleSheet(NamedTuple):
    """The explorer of a run, or the problem why it has none.

    groups: queries by title. rates: the share of closed cycles by step.
    """

    run: str
    meaning: str = ""
    groups: tuple[tuple[str, list[CycleQuery]], ...] = ()
    rates: tuple[tuple[str, str], ...] = ()
    sheet: SpriteSheet | None = None
    problem: str = ""


def explore(run: RunReport, name: str) -> CycleSheet:
    """Make the explorer of a run from the cycles that its health measurements saved; `name` is of its sprite sheet."""
    if run.store is None:
        return CycleSheet(run.name, problem=run.store_problem)
    try:
        saved = read_cycles(run.folder)
        if saved:
            _check_frames(saved[min(saved)], run.store)
            return _explore(run, run.store, saved, SpriteSheet(name, SIDE))
    except UserError as error:
        return CycleSheet(run.name, problem=f"The cycles cannot be shown: {error}")
    if not run.config.health_every:
        return CycleSheet(run.name, problem="No cycles were saved, because health was not measured (health_every 0).")
    reason = "there are fewer than four videos to measure them on, or nothing was measured yet"
    return CycleSheet(run.name, problem=f"No cycles were saved: {reason}.")


def _check_frames(cycles: Cycles, store: FrameStore) -> None:
    """Raise UserError if the data do not have the frames of the cycles: they have changed since the run."""
    video, frames = cycles.video.numpy(), cycles.frames.numpy()
    if video.max() >= store.num_videos or (frames.max(axis=1) >= np.diff(store.starts)[video]).any():
        raise UserError("they are of videos or frames that the data no longer have")


def _explore(run: RunReport, store: FrameStore, saved: dict[int, Cycles], sheet: SpriteSheet) -> CycleSheet:
    steps = sorted(saved)
    places = np.linspace(0, len(steps) - 1, min(MAX_STAGES, len(steps)))
    paths = {steps[place]: follow(saved[steps[place]], run.config.temperature) for place in places.round().astype(int)}
    cycles = saved[steps[0]]
    groups = []
    for title, queries in choose(paths[min(paths)], paths[max(paths)], cycles.video.numpy(), NUM_QUERIES).items():
        shown = [_query(store, cycles, sheet, query, paths) for query in queries]
        groups += [(title, shown)] if shown else []
    rates = tuple((f"{step:,}", _percent(float(path.closed.mean()))) for step, path in paths.items())
    return CycleSheet(run.name, _meaning(run, cycles), tuple(groups), rates, sheet)


def follow(cycles: Cycles, temperature: float) -> CyclePaths:
    """Follow every cycle from its query to its soft nearest neighbor and back, at the temperature of the training."""
    same_video = cycles.video[:, None] == cycles.video
    in_support = is_support(cycles.video)
    neighbor = cycles.neighbors(temperature)  # NxD
    logits = (cycles.query @ cycles.positive.T / temperature).masked_fill(same_video | ~in_support, -torch.inf)  # NxN
    back = (neighbor @ cycles.positive.T).masked_fill(same_video | in_support, -torch.inf)  # NxN
    return CyclePaths(
        logits.softmax(dim=1).numpy(),
        back.numpy(),
        (neighbor * cycles.positive).sum(dim=1).numpy(),
        cycles.closed(temperature).numpy(),
    )


def choose(first: CyclePaths, last: CyclePaths, video: Integers, number: int) -> dict[str, list[int]]:
    """Choose up to `number` queries for each group; all are of different videos.

    They close or fail by the widest margin at the last step, or failed at the first step, close at the last and have
    gained most.
    """
    gained = last.margin - first.margin
    groups = {
        "Closed by the widest margin": (last.closed, last.margin),
        "Failed by the widest margin": (~last.closed, -last.margin),
        "Most improved": (~first.closed & last.closed, gained),
    }
    waiting = {
        title: [int(query) for query in np.argsort(-merit, kind="stable") if fits[query]]
        for title, (fits, merit) in groups.items()
    }
    chosen: dict[str, list[int]] = {title: [] for title in groups}
    taken: set[int] = set()
    for title in list(groups) * number:  # in turns, so that no group takes all the videos
        free = [query for query in waiting[title] if int(video[query]) not in taken]
        chosen[title] += free[:1]
        taken.update(int(video[query]) for query in free[:1])
        waiting[title] = free[1:]
    return chosen


def _meaning(run: RunReport, cycles: Cycles) -> str:
    which = "held-out videos" if run.health.get("held_out") else "training videos"
    return (
        f"{len(cycles.video):,} cycles on {which}. Each goes from a query to its soft nearest neighbor in a support of "
        f"{int(is_support(cycles.video).sum()):,} frames from half of the other videos, and from there back: it closes "
        "if the query's positive, another frame of its video (green frame), is nearer than every frame of the other "
        "half. Weights and cosine similarities are those of the projector at temperature "
        f"{run.config.temperature:g}. The network saw crops of the frames shown."
    )


def _query(
    store: FrameStore, cycles: Cycles, sheet: SpriteSheet, query: int, paths: dict[int, CyclePaths]
) -> CycleQuery:
    def sprite(pair: int, view: int) -> Sprite:
        video, index = int(cycles.video[pair]), int(cycles.frames[pair, view])
        name = frame_name(store.video_id(video), index)
        return sheet.sprite((video, index), name, partial(store.image, video, index))

    stages = []
    for step, path in paths.items():
        weights, back = path.weights[query], path.back[query]
        largest = [int(pair) for pair in np.argsort(-weights, kind="stable")[:NUM_WEIGHTS] if weights[pair] > 0]
        nearest = [int(pair) for pair in np.argsort(-back, kind="stable")[:NUM_ENDS] if np.isfinite(back[pair])]
        positive = float(path.positive[query])
        ends = [(sprite(query, 1), positive, True), *((sprite(pair, 1), float(back[pair]), False) for pair in nearest)]
        rest = 1 - sum(round(float(weights[pair]), 3) for pair in largest)
        stages.append(
            Stage(
                step,
                bool(path.closed[query]),
                float(path.margin[query]),
                positive,
                [(sprite(pair, 1), float(weights[pair])) for pair in largest],
                _percent(rest) if rest >= MIN_SHOWN else "",
                sorted(ends, key=lambda end: -end[1]),
            )
        )
    return CycleQuery(sprite(query, 0), stages)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
