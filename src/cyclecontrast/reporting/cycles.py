"""The cycle explorer: a query's way through other videos and back, from checkpoint to checkpoint, in pictures."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from cyclecontrast.data.frames import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.reporting.atlas import Atlas, Tile
from cyclecontrast.reporting.cycle_paths import Chosen, CyclePaths, choose, follow
from cyclecontrast.reporting.pictures import frame_name
from cyclecontrast.reporting.runs import RunReport
from cyclecontrast.training.health import Cycles, is_support
from cyclecontrast.training.run_folder import read_cycles

NUM_QUERIES = 12
"""Of each kind."""
MOST_STAGES = 8
NUM_PARTS, NUM_ENDS = 8, 5
SIDE = 80
LEAST_SHOWN = 0.001


class Part(NamedTuple):
    """A frame of another video, and its weight in the soft nearest neighbor."""

    tile: Tile
    weight: float

    @property
    def percent(self) -> str:
        """The weight as it is shown."""
        return _percent(self.weight)


class End(NamedTuple):
    """A frame where the way back may end, and the cosine of the soft nearest neighbor and it."""

    tile: Tile
    similarity: float
    is_home: bool


class Stage(NamedTuple):
    """A query's cycle after so many steps; `rest` is the weight of all that is not among the parts, or nothing."""

    step: int
    closed: bool
    margin: float
    parts: tuple[Part, ...]
    rest: str
    ends: tuple[End, ...]


class CycleQuery(NamedTuple):
    """A query and its cycle at every stage."""

    tile: Tile
    stages: tuple[Stage, ...]

    @property
    def largest_weight(self) -> float:
        """The largest weight of a frame at any stage."""
        return max(part.weight for stage in self.stages for part in stage.parts)


class Kind(NamedTuple):
    """Queries that are telling in the same way."""

    title: str
    queries: tuple[CycleQuery, ...]


class CycleSheet(NamedTuple):
    """The explorer of a run; `problem` says why it has none. `rates` tells how many cycles closed at each stage."""

    run: str
    meaning: str
    kinds: tuple[Kind, ...]
    rates: tuple[tuple[str, str], ...]
    atlas: Atlas | None
    problem: str


class _Frames(NamedTuple):
    """Frames as tiles, each read once, by the number of the pair."""

    store: FrameStore
    cycles: Cycles
    atlas: Atlas

    def tile(self, pair: int, role: int) -> Tile:
        """Return the tile of a query (role 0) or a positive (role 1); raises UserError where it cannot be read."""
        key = video, index = int(self.cycles.video[pair]), int(self.cycles.frames[pair, role])
        known = self.atlas.find(key)
        number = self.atlas.place(key, self.store.image(video, index)) if known is None else known
        return Tile(self.atlas, number, frame_name(self.store.video_id(video), index))


def explore(run: RunReport, name: str) -> CycleSheet:
    """Make the explorer of a run from the cycles that its measurements of health kept, with an atlas of this name."""
    store, nothing = run.frames.store, ((), (), None)
    if store is None:
        return CycleSheet(run.name, "", *nothing, run.frames.problem)
    try:
        kept = read_cycles(run.folder)
        if not kept:
            return CycleSheet(run.name, "", *nothing, _why_none(run))
        _check_same(store, kept)
        return _explore(run, store, {step: kept[step] for step in _spread_out(sorted(kept))}, Atlas(name, SIDE))
    except UserError as error:
        return CycleSheet(run.name, "", *nothing, f"The cycles cannot be shown: {error}")


def _why_none(run: RunReport) -> str:
    if not run.config.health_every:
        return "No cycles were kept, for no health was measured (health_every is 0)."
    return "No cycles were kept: there are fewer than four videos to measure them on, or nothing was measured yet."


def _check_same(store: FrameStore, kept: Mapping[int, Cycles]) -> None:
    """Raise UserError where not all measurements are of the same frames, or where the data have none such."""
    first = next(iter(kept.values()))
    for cycles in kept.values():
        if not _equal(cycles.video, first.video) or not _equal(cycles.frames, first.frames):
            raise UserError("they were not measured on the same frames throughout")
    video, frames = first.video.numpy(), first.frames.numpy()
    if video.min() < 0 or video.max() >= store.num_videos or frames.min() < 0:
        raise UserError("they are of other videos than those that lie there now")
    if (frames.max(axis=1) >= np.diff(store.starts)[video]).any():
        raise UserError("they are of other frames than those that lie there now")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _spread_out(steps: Sequence[int]) -> list[int]:
    """Return at most so many steps as there is room for, first and last among them."""
    places = np.linspace(0, len(steps) - 1, min(MOST_STAGES, len(steps)))
    return [steps[place] for place in sorted({round(place) for place in places})]


def _explore(run: RunReport, store: FrameStore, kept: Mapping[int, Cycles], atlas: Atlas) -> CycleSheet:
    paths = {step: follow(cycles, run.config.temperature) for step, cycles in kept.items()}
    first, last = paths[min(paths)], paths[max(paths)]
    cycles = next(iter(kept.values()))
    frames = _Frames(store, cycles, atlas)
    chosen = choose(first, last, cycles.video.numpy(), NUM_QUERIES)
    kinds = tuple(
        Kind(title, tuple(_query(frames, query, paths) for query in queries))
        for title, queries in _titles(chosen).items()
        if queries
    )
    rates = tuple((f"{step:,}", _percent(float(path.closed.mean()))) for step, path in paths.items())
    return CycleSheet(run.name, _meaning(run, cycles), kinds, rates, frames.atlas, "")


def _titles(chosen: Chosen) -> dict[str, tuple[int, ...]]:
    return {
        "Closed by the widest margin": chosen.confident,
        "Failed by the widest margin": chosen.failed,
        "Most improved": chosen.improved,
    }


def _meaning(run: RunReport, cycles: Cycles) -> str:
    kept = "held-out videos" if run.health.get("held_out") else "the videos of the training"
    through = int(is_support(cycles.video).sum())
    return (
        f"{len(cycles.video):,} cycles on {kept}. Each goes from a query to its soft nearest neighbor in {through:,} "
        "frames, taken from half of the videos but the query's own, and from there back: it closes where another frame "
        "of the query's own video (framed in green) is nearer than every frame of the other half. Below the ways back "
        "are cosines. Shown are whole frames; the network saw crops of them, and both weights and cosines are those of "
        f"its projector, at the temperature {run.config.temperature:g}."
    )


def _query(frames: _Frames, query: int, paths: Mapping[int, CyclePaths]) -> CycleQuery:
    stages = tuple(_stage(frames, query, step, path) for step, path in paths.items())
    return CycleQuery(frames.tile(query, 0), stages)


def _stage(frames: _Frames, query: int, step: int, path: CyclePaths) -> Stage:
    weights, back = path.weights[query], path.back[query]
    best = [int(pair) for pair in np.argsort(-weights, kind="stable")[:NUM_PARTS] if weights[pair] > 0]
    rivals = [int(pair) for pair in np.argsort(-back, kind="stable")[:NUM_ENDS] if np.isfinite(back[pair])]
    ends = [End(frames.tile(query, 1), float(path.home[query]), True)]
    ends += [End(frames.tile(pair, 1), float(back[pair]), False) for pair in rivals]
    return Stage(
        step,
        bool(path.closed[query]),
        float(path.margin[query]),
        tuple(Part(frames.tile(pair, 1), float(weights[pair])) for pair in best),
        _percent(rest) if (rest := 1 - sum(round(float(weights[pair]), 3) for pair in best)) >= LEAST_SHOWN else "",
        tuple(sorted(ends, key=lambda end: -end.similarity)),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
