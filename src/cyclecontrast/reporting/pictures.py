"""Pixels → pictures inside the page, and the views of frames as the network saw them."""

import base64
from typing import NamedTuple

import cv2

from cyclecontrast.config.types import is_user_defined
from cyclecontrast.data.dataset import ViewDataset
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError
from cyclecontrast.methods import METHODS
from cyclecontrast.reporting.runs import RunReport
from cyclecontrast.training.setup import make_dataset

NUM_PAIRS = 10
LARGEST_VIEW = 112
QUALITY = 85
LONGEST_NAME = 120


class Picture(NamedTuple):
    """An image as a data address, and what it is in words."""

    source: str
    alt: str


class Pair(NamedTuple):
    """Two views of one video, the query and its positive."""

    query: Picture
    positive: Picture


class PairSheet(NamedTuple):
    """The first views of a run; `problem` says why there are none."""

    run: str
    meaning: str
    pairs: tuple[Pair, ...]
    problem: str


def shortened(name: str) -> str:
    """Return a name with its middle left out where it is long: what tells names apart is at their ends, mostly."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"


def frame_name(video: str, index: int) -> str:
    """Return what a frame is called; the name of a video that may run from right to left is isolated."""
    name = shortened(video)
    return f"{name}, frame {index}" if name.isascii() else f"\u2068{name}\u2069, frame {index}"


def data_address(image: Pixels, quality: int = QUALITY) -> str:
    """Return an RGB image as a JPEG in a data address."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be written as JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def view_pairs(run: RunReport) -> PairSheet:
    """Make the pairs of views that began the run's first epoch."""
    config, store = run.config, run.frames.store
    if own := [name for name in (config.augmentation, config.method) if is_user_defined(name)]:
        problem = f"The views of this run cannot be shown: no file says how the user's {' and '.join(own)} makes them."
        return PairSheet(run.name, "", (), problem)
    same_frame, _ = METHODS[config.method].frames(config)
    seen = "One frame twice" if same_frame else "Two frames of one video"
    meaning = f"{seen}, augmented by {config.augmentation}, {config.image_size} × {config.image_size} pixels."
    if store is None:
        return PairSheet(run.name, meaning, (), run.frames.problem)
    try:
        pairs = make_dataset(config, store)
        made = tuple(_pair(pairs, store, position) for position in range(min(NUM_PAIRS, store.num_videos)))
    except UserError as error:
        return PairSheet(run.name, meaning, (), f"The views of this run cannot be shown: {error}")
    return PairSheet(run.name, meaning, made, "")


def _pair(pairs: ViewDataset, store: FrameStore, position: int) -> Pair:
    sample = pairs.sample(position)
    video = shortened(store.video_id(sample.video))
    return Pair(
        Picture(data_address(_shrunk(sample.views[0])), f"query: a view of {video}"),
        Picture(data_address(_shrunk(sample.views[1])), f"positive: a view of {video}"),
    )


def _shrunk(view: Pixels) -> Pixels:
    if len(view) <= LARGEST_VIEW:
        return view
    return cv2.resize(view, (LARGEST_VIEW, LARGEST_VIEW), interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]
