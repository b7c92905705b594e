"""What went in: a contact sheet of frames of many videos, how many there are, and what was skipped."""

from typing import NamedTuple

import numpy as np

from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.reporting.atlas import Atlas, Tile
from cyclecontrast.reporting.pictures import shortened
from cyclecontrast.reporting.runs import DataGroup, SkippedVideo

NUM_SHOWN = 60
NUM_EXTREMES = 5
MOST_SKIPPED = 200


class Fact(NamedTuple):
    """A short thing to know."""

    name: str
    value: str


class InputSheet(NamedTuple):
    """The data of some runs: facts, frames of as many videos, and the videos with fewest and most frames.

    `problem` says what cannot be shown or is not as it was.
    """

    data: str
    runs: tuple[str, ...]
    facts: tuple[Fact, ...]
    meaning: str
    tiles: tuple[Tile, ...]
    extremes: tuple[tuple[str, str], ...]
    skipped: tuple[SkippedVideo, ...]
    num_skipped: int
    problem: str


class _Shown(NamedTuple):
    tiles: tuple[Tile, ...]
    num_unreadable: int


def list_inputs(group: DataGroup, atlas: Atlas, seed: int) -> InputSheet:
    """Tell and show what the runs on one data set learned from."""
    store, skipped = group.frames.store, group.frames.skipped
    shown = _shown(store, atlas, seed) if store else _Shown((), 0)
    return InputSheet(
        group.data,
        tuple(run.name for run in group.runs),
        tuple(_facts(group)),
        _meaning(store, shown) if store else "",
        shown.tiles,
        extremes(store) if store else (),
        tuple(SkippedVideo(shortened(video.id), video.reason) for video in skipped[:MOST_SKIPPED]),
        len(skipped),
        group.frames.problem,
    )


def _facts(group: DataGroup) -> list[Fact]:
    about, store = group.runs[0].about, group.frames.store
    facts = [
        Fact("Videos", f"{about['num_videos']:,}"),
        Fact("Held out", f"{about['num_held_out']:,} videos" if about.get("num_held_out") else "none"),
        Fact("Frames", f"{about['num_frames']:,}"),
        Fact("Single-frame", f"{about['num_single_frame_videos']:,} videos"),
    ]
    if store:
        facts.append(Fact("Skipped", f"{len(group.frames.skipped):,}"))
        counts = np.diff(store.starts)
        spread = f"{counts.min():,} to {counts.max():,}, median {np.median(counts):,.0f}"
        facts.append(Fact("Frames per video", spread if counts.min() < counts.max() else f"{counts.min():,}"))
    return facts


def _shown(store: FrameStore, atlas: Atlas, seed: int) -> _Shown:
    """Place a random frame of a random video of each of NUM_SHOWN equal parts of the store."""
    rng = np.random.default_rng(seed)
    bounds = np.linspace(0, store.num_videos, min(NUM_SHOWN, store.num_videos) + 1).astype(np.int64)
    tiles, num_unreadable = [], 0
    for video in rng.integers(bounds[:-1], bounds[1:]).tolist():
        index = int(rng.integers(store.frames_in(video)))
        try:
            number = atlas.place(video, store.image(video, index))
        except UserError:
            num_unreadable += 1
        else:
            tiles.append(Tile(atlas, number, store.video_id(video)))
    return _Shown(tuple(tiles), num_unreadable)


def _meaning(store: FrameStore, shown: _Shown) -> str:
    spread = "every video" if store.num_videos <= NUM_SHOWN else "random videos from the first to the last"
    lost = f" {shown.num_unreadable} drawn frames cannot be read." if shown.num_unreadable else ""
    return f"One random frame, cut to a square, of {spread}: {len(shown.tiles)} of {store.num_videos:,}.{lost}"


def extremes(store: FrameStore) -> tuple[tuple[str, str], ...]:
    """Return the videos with fewest and those with most frames, with their numbers; none where all have as many."""
    counts = np.diff(store.starts)
    if counts.min() == counts.max():
        return ()
    order = np.argsort(counts, kind="stable")
    ends = order if len(order) <= 2 * NUM_EXTREMES else np.concatenate([order[:NUM_EXTREMES], order[-NUM_EXTREMES:]])
    return tuple((shortened(store.video_id(int(video))), f"{counts[video]:,}") for video in ends)
