"""The cycle explorer of the report: shows the cycles of selected queries at several training steps as images."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

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
"""Queries in each group."""
MAX_STAGES = 8
NUM_WEIGHTS, NUM_ENDS = 8, 5
SIDE = 80
MIN_SHOWN = 0.001


class CyclePaths(NamedTuple):
    """All cycles of one health measurement; N is the number of pairs of views (one cycle per query).

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


class CycleSheet(NamedTuple):
    """The explorer of a run, or why it has none: queries by group, and the share of closed cycles by step."""

    run: str
    meaning: str = ""
    groups: Mapping[str, list[dict[str, Any]]] = {}
    rates: Sequence[tuple[str, str]] = ()
    sheet: SpriteSheet | None = None
    problem: str = ""


def explore(run: RunReport, name: str) -> CycleSheet:
    """Make the explorer of a run from the cycles that its health measurements saved; `name` is of its sprite sheet."""
    try:
        saved = read_cycles(run.folder) if run.store else {}
        if run.store and saved:
            return _explore(run, run.store, saved, SpriteSheet(name, SIDE))
        problem = run.store_problem
    except UserError as error:
        problem = f"The cycles cannot be shown: {error}"
    if not problem and not run.config.health_every:
        problem = "No cycles were saved, because health was not measured (health_every 0)."
    elif not problem:
        problem = (
            "No cycles were saved: there are fewer than four videos to measure them on, or nothing was measured yet."
        )
    return CycleSheet(run.name, problem=problem)


def _explore(run: RunReport, store: FrameStore, saved: dict[int, Cycles], sheet: SpriteSheet) -> CycleSheet:
    steps = sorted(saved)
    cycles = saved[steps[0]]
    video, frames = cycles.video.numpy(), cycles.frames.numpy()
    if video.max() >= store.num_videos or (frames.max(axis=1) >= np.diff(store.starts)[video]).any():
        raise UserError("their videos or frames no longer exist in the data")
    places = np.linspace(0, len(steps) - 1, min(MAX_STAGES, len(steps)))
    paths = {steps[place]: follow(saved[steps[place]], run.config.temperature) for place in places.round().astype(int)}
    groups = {
        title: [_query(store, cycles, sheet, query, paths) for query in queries]
        for title, queries in choose(paths[min(paths)], paths[max(paths)], video, NUM_QUERIES).items()
        if queries
    }
    rates = [(f"{step:,}", _percent(float(path.closed.mean()))) for step, path in paths.items()]
    return CycleSheet(run.name, _meaning(run, cycles), groups, rates, sheet)


def follow(cycles: Cycles, temperature: float) -> CyclePaths:
    """Return all cycles, computed at the temperature of the training run."""
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
) -> dict[str, Any]:
    """Return the sprite of a query and its cycle at every step: its `stages`.

    A stage has the frames with the largest weights in the soft nearest neighbor, the `rest` of the weights as text, and
    as `ends` of the cycle the positive and the nearest negatives with their cosine similarities, most similar first.
    """

    def sprite(pair: int, view: int) -> Sprite:
        video, index = int(cycles.video[pair]), int(cycles.frames[pair, view])
        name = frame_name(store.video_id(video), index)
        return sheet.sprite((video, index), name, partial(store.image, video, index))

    stages: list[dict[str, Any]] = []
    for step, path in paths.items():
        weights, back = path.weights[query], path.back[query]
        largest = [int(pair) for pair in np.argsort(-weights, kind="stable")[:NUM_WEIGHTS] if weights[pair] > 0]
        nearest = [int(pair) for pair in np.argsort(-back, kind="stable")[:NUM_ENDS] if np.isfinite(back[pair])]
        positive = float(path.positive[query])
        ends = [(sprite(query, 1), positive, True), *((sprite(pair, 1), float(back[pair]), False) for pair in nearest)]
        rest = 1 - sum(round(float(weights[pair]), 3) for pair in largest)
        stages.append(
            {
                "step": step,
                "closed": bool(path.closed[query]),
                "margin": float(path.margin[query]),
                "positive": positive,
                "weights": [(sprite(pair, 1), float(weights[pair])) for pair in largest],
                "rest": _percent(rest) if rest >= MIN_SHOWN else "",
                "ends": sorted(ends, key=lambda end: -end[1]),
            }
        )
    largest_weight = max(weight for stage in stages for _, weight in stage["weights"])
    return {"sprite": sprite(query, 0), "stages": stages, "largest_weight": largest_weight}


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
