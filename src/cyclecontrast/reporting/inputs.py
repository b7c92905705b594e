"""The data of the runs on the page: a contact sheet of the videos, skipped videos, and the first augmented views."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np

from cyclecontrast.config.types import is_user_defined
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.methods import METHODS
from cyclecontrast.reporting.runs import RunReport
from cyclecontrast.reporting.sprites import Sprite, SpriteSheet, jpeg_url, shortened
from cyclecontrast.training.setup import make_dataset

NUM_SHOWN = 60
NUM_EXTREMES = 5
MAX_SKIPPED = 200
NUM_PAIRS = 10
MAX_VIEW_SIDE = 112


def list_inputs(runs: list[RunReport], sheet: SpriteSheet, seed: int) -> dict[str, Any]:
    """Describe the data that these runs share; `extremes` are the shortest and longest videos with their lengths."""
    store, skipped = runs[0].store, runs[0].skipped
    sprites, meaning = contact_sheet(store, sheet, seed) if store else ([], "")
    return {
        "data": str(runs[0].config.data),
        "runs": [run.name for run in runs],
        "facts": list(_facts(runs[0])),
        "meaning": meaning,
        "sprites": sprites,
        "extremes": extremes(store) if store else [],
        "skipped": [(shortened(video), reason) for video, reason in skipped[:MAX_SKIPPED]],
        "num_skipped": len(skipped),
        "problem": runs[0].store_problem,
    }


def _facts(run: RunReport) -> Iterator[tuple[str, str]]:
    about = run.about
    yield "Videos", f"{about['num_videos']:,}"
    yield "Held out", f"{about['num_held_out']:,} videos" if about.get("num_held_out") else "none"
    yield "Frames", f"{about['num_frames']:,}"
    yield "Single-frame", f"{about['num_single_frame_videos']:,} videos"
    if run.store:
        yield "Skipped", f"{len(run.skipped):,}"
        counts = np.diff(run.store.starts)
        spread = f"{counts.min():,} to {counts.max():,}, median {np.median(counts):,.0f}"
        yield "Frames per video", spread if counts.min() < counts.max() else f"{counts.min():,}"


def contact_sheet(store: FrameStore, sheet: SpriteSheet, seed: int) -> tuple[list[Sprite], str]:
    """Return a random frame of a random video from each of NUM_SHOWN equal parts of the store, and a sentence."""
    rng = np.random.default_rng(seed)
    bounds = np.linspace(0, store.num_videos, min(NUM_SHOWN, store.num_videos) + 1).astype(np.int64)
    sprites, num_unreadable = [], 0
    for video in rng.integers(bounds[:-1], bounds[1:]).tolist():
        read = partial(store.image, video, int(rng.integers(store.frames_in(video))))
        try:
            sprites.append(sheet.sprite(video, store.video_id(video), read))
        except UserError:
            num_unreadable += 1
    which = "every video" if store.num_videos <= NUM_SHOWN else "random videos from all parts of the data"
    lost = f" {num_unreadable} of the frames cannot be read." if num_unreadable else ""
    shown = f"{len(sprites)} of {store.num_videos:,}"
    return sprites, f"One random frame of {which}, cropped to a square: {shown} videos.{lost}"


def extremes(store: FrameStore) -> list[tuple[str, str]]:
    """Return the videos with fewest and with most frames, with their numbers; none if all have the same number."""
    counts = np.diff(store.starts)
    if counts.min() == counts.max():
        return []
    order = np.argsort(counts, kind="stable")
    ends = order if len(order) <= 2 * NUM_EXTREMES else np.concatenate([order[:NUM_EXTREMES], order[-NUM_EXTREMES:]])
    return [(shortened(store.video_id(int(video))), f"{counts[video]:,}") for video in ends]


def view_pairs(run: RunReport) -> dict[str, Any]:
    """Make the first pairs of views of the run's first epoch again: a URL and a text alternative of each view."""
    config, store = run.config, run.store
    shown: dict[str, Any] = {"run": run.name, "meaning": "", "pairs": [], "problem": run.store_problem}
    if user_parts := [name for name in (config.augmentation, config.method) if is_user_defined(name)]:
        missing = " and ".join(user_parts)
        return shown | {
            "problem": f"The views cannot be shown: the files of a run do not contain the user's {missing}."
        }
    same_frame, _ = METHODS[config.method].frames(config)
    views = "Two views of one frame" if same_frame else "Views of two frames of one video"
    size = f"{config.image_size} × {config.image_size} pixels"
    shown["meaning"] = f"{views}, augmented by {config.augmentation}, {size}."
    if store is None:
        return shown
    try:
        dataset = make_dataset(config, store)
        for sample in (dataset.sample(position) for position in range(min(NUM_PAIRS, store.num_videos))):
            video = shortened(store.video_id(sample.video))
            query, positive = _view_url(sample.views[0]), _view_url(sample.views[1])
            shown["pairs"].append(((query, f"query: a view of {video}"), (positive, f"positive: a view of {video}")))
    except UserError as error:
        return shown | {"pairs": [], "problem": f"The views of this run cannot be shown: {error}"}
    return shown | {"problem": ""}


def _view_url(view: Pixels) -> str:
    side = min(len(view), MAX_VIEW_SIDE)
    return jpeg_url(view if side == len(view) else cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA))
