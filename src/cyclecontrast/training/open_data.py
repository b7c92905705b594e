"""What a training learns from: DATA of any kind → frames → pairs of views."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cyclecontrast.config import PrepareConfig, PretrainConfig
from cyclecontrast.data.folders import find_videos
from cyclecontrast.data.further_views import no_further
from cyclecontrast.data.pairs import FramePairs, random_stream
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.training.own import NOTHING_OWN, Own, objective_of, recipe_of
from cyclecontrast.training.presets import DataSize, num_held_out
from cyclecontrast.training.progress import console

SAMPLED_VIDEOS = 32
OF_HEALTH = 2**32
"""Seed of what health is measured on, which no training can have: it is the same for all that are to be compared."""


class VideoSplit(NamedTuple):
    """Numbers of the videos, in order, that are trained on, and of those that are held out."""

    trained: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]


def count_videos(config: PretrainConfig) -> int:
    """Return how many video files must be prepared first: none where the data are frames, or absent."""
    data = config.data
    if isinstance(data, str):
        return 0
    try:
        return len(find_videos(data)) if data.is_dir() and not (data / "store.json").exists() else 0
    except OSError as error:
        raise UserError(f"data: {data}: cannot be listed ({error.strerror}); mend it or name another") from error


def prepare_videos(config: PretrainConfig) -> None:
    """Prepare a folder of videos into the run's `frames`; a resumed run keeps the frames that it began with."""
    frames = config.out / "frames"
    if config.resume is None or not (frames / "frames.parquet").exists():
        summary = prepare(checked(PrepareConfig, {"videos": config.data, "out": frames, "workers": config.workers}))
        console.print(f"{summary}\nthe frames are in {frames}: name that folder as DATA to train on them again")


def frames_folder(config: PretrainConfig, num_videos: int) -> Path | str:
    """Return the folder or the URL of frames: DATA, or where that is or was one of videos, what was prepared of them.

    Raises UserError where the data of a run that is resumed are gone, or are other videos.
    """
    data, frames = config.data, config.out / "frames"
    if isinstance(data, str):
        return data
    is_prepared = config.resume is not None and (frames / "frames.parquet").exists()
    if config.resume is None or data.exists():
        if is_prepared and num_videos:
            _check_same_videos(config, data, frames)
        return frames if num_videos else data
    if not is_prepared:
        how = f"cyclecontrast pretrain DATA --resume {config.resume}"
        raise UserError(f"data: {data}, which the run was trained on, is gone; name where it lies now: {how}")
    return frames


def _check_same_videos(config: PretrainConfig, data: Path, frames: Path) -> None:
    found = {video.id for video in find_videos(data)}
    store = FrameStore.open(frames)
    lost = [video_id for video_id in store.video_ids.to_pylist() if video_id not in found]
    if lost:
        raise UserError(
            f"resume: {data} is not the data that {config.resume} began with: {len(lost):,} of its "
            f"{store.num_videos:,} videos are not there, such as {lost[0]}; name {frames}, which holds their frames"
        )


def size_of(store: FrameStore) -> DataSize:
    """Return what `auto` needs to know of the data; frames are looked at in some of the videos only."""
    some = np.linspace(0, store.num_videos - 1, min(SAMPLED_VIDEOS, store.num_videos)).astype(int)
    problems: list[str] = []
    images = [attempt(partial(store.image, int(video), 0), problems) for video in some]
    sides = [min(image.shape[:2]) for image in images if image is not None]
    if not sides:
        raise UserError(*problems[:3])
    return DataSize(store.num_videos, int(np.median(sides)))


def split_videos(num_videos: int, holdout: float) -> VideoSplit:
    """Hold out a part of the videos, drawn by chance, the same whatever the run's seed."""
    number = num_held_out(num_videos, holdout)
    order = random_stream(OF_HEALTH, 0, 0, 0).permutation(num_videos)
    return VideoSplit(np.sort(order[number:]), np.sort(order[:number]))


def check_number(config: PretrainConfig, num_videos: int) -> None:
    """Raise UserError where the videos are too few to be contrasted, or too few remain beside those held out."""
    held_out = num_held_out(num_videos, config.holdout)
    if num_videos < 2:
        raise UserError(f"data: {config.data}: holds {num_videos} video; contrasting needs two at least")
    if num_videos - held_out < 2:
        raise UserError(
            f"holdout: holding out {held_out} of {num_videos} videos, two at least, leaves {num_videos - held_out} to "
            "train on, and contrasting needs two at least; set --holdout 0, or add videos"
        )


def make_pairs(config: PretrainConfig, store: FrameStore, own: Own = NOTHING_OWN) -> FramePairs:
    """Return the pairs that the objective needs; raises UserError where the data cannot give them."""
    needs = objective_of(config, own).needs
    problems: list[str] = []
    if not needs.is_of_one_frame and store.layout == "flat folder of images":
        problems.append(
            f"{config.data}: a flat folder of images, each its own video: only --objective intra-image, simclr, "
            "simsiam and byol can learn from it; put the frames of each video into a folder of their own"
        )
    attempt(lambda: check_number(config, store.num_videos), problems)
    if problems:
        raise UserError(*problems)
    trained, held_out = split_videos(store.num_videos, config.holdout)
    recipe = recipe_of(config, own)
    views = needs.same_frame, config.distinct_frames, needs.further
    return FramePairs(store, recipe, config.image_size, config.seed, *views, trained if len(held_out) else None)


def make_health_pairs(config: PretrainConfig, pairs: FramePairs) -> FramePairs:
    """Return the pairs that health is measured on: of the videos held out, or without any of those trained on.

    Whatever the objective and its options, these are two frames of a video, so that runs may be compared.
    """
    held_out = split_videos(pairs.store.num_videos, config.holdout).held_out
    return replace(
        pairs,
        seed=OF_HEALTH,
        same_frame=False,
        distinct=True,
        further=no_further,
        videos=held_out if len(held_out) else None,
        cut_only=False,
    )
