"""What a training learns from: DATA of any kind → frames → pairs of views."""

from functools import partial

import numpy as np

from cyclecontrast.config import PrepareConfig, PretrainConfig
from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.pairs import FramePairs
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.video import find_videos
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.loss.objectives import pick_objective
from cyclecontrast.train.presets import DataSize
from cyclecontrast.train.progress import console

SAMPLED_VIDEOS = 32


def count_videos(config: PretrainConfig) -> int:
    """Return how many video files must be prepared first: none where the data are frames, or absent."""
    data = config.data
    return len(find_videos(data)) if data.is_dir() and not (data / "store.json").exists() else 0


def prepare_videos(config: PretrainConfig) -> None:
    """Prepare a folder of videos into the run's `frames`; a resumed run keeps the frames that it began with."""
    frames = config.out / "frames"
    if config.resume is None or not (frames / "frames.parquet").exists():
        summary = prepare(checked(PrepareConfig, {"videos": config.data, "out": frames, "workers": config.workers}))
        console.print(f"{summary}\nthe frames are in {frames}: name that folder as DATA to train on them again")


def size_of(store: FrameStore) -> DataSize:
    """Return what `auto` needs to know of the data; frames are looked at in some of the videos only."""
    some = np.linspace(0, store.num_videos - 1, min(SAMPLED_VIDEOS, store.num_videos)).astype(int)
    problems: list[str] = []
    images = [attempt(partial(store.image, int(video), 0), problems) for video in some]
    sides = [min(image.shape[:2]) for image in images if image is not None]
    if not sides:
        raise UserError(*problems[:3])
    return DataSize(store.num_videos, int(np.median(sides)))


def make_pairs(config: PretrainConfig, store: FrameStore) -> FramePairs:
    """Return the pairs that the objective needs; raises UserError where the data cannot give them."""
    needs = pick_objective(config.objective, config.positives, config.own_key_in_support).needs
    if not needs.is_of_one_frame and store.layout == "flat folder of images":
        raise UserError(
            f"{config.data}: a flat folder of images, each its own video: only --objective intra-image, simclr, "
            "simsiam and byol can learn from it; put the frames of each video into a folder of their own"
        )
    if store.num_videos < 2:
        raise UserError(f"{config.data}: holds {store.num_videos} video; contrasting needs two at least")
    recipe = RECIPES[config.augmentation]._replace(min_crop=config.min_crop, flip=config.flip)
    views = needs.same_frame, config.distinct_frames, needs.further
    return FramePairs(store, recipe, config.image_size, config.seed, *views)
