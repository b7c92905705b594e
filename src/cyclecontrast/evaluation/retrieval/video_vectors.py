"""Videos → vectors of their frames, clips or themselves (protocols.md §d); each frame is decoded and embedded once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cyclecontrast.config import RetrievalConfig
from cyclecontrast.data.clips import measure, read_frames
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.labeled_images import Numbers
from cyclecontrast.data.labeled_videos import VideoSplit
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embeddings import IMAGES_PER_PART, Loading, encode, frozen
from cyclecontrast.evaluation.image_batches import CROP_MARGIN, CenterCrops, ImageBatch, load_image_batches
from cyclecontrast.evaluation.shares import Part
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished
from cyclecontrast.models.backbone import Backbone


class VideoItems(NamedTuple):
    """Frames, clips or videos of a split: vectors (num_items, dim), not scaled, and labels (num_items,).

    `numbers` count the items of all listed videos; `problems` has a line for each video that has none here.
    """

    vectors: npt.NDArray[np.float32]
    labels: Numbers
    numbers: Numbers
    problems: tuple[str, ...]


@dataclass(frozen=True)
class WantedFrames:
    """Videos by position, each as the frames asked for, no larger than the crop needs them."""

    split: VideoSplit
    frames: dict[int, Numbers]
    short_side: int

    def __len__(self) -> int:
        return len(self.split)

    def image(self, position: int) -> Pixels:
        """Return the video's frames, RGB (num_frames, height, width, 3); raises UserError naming the file."""
        return read_frames(self.split.path(position), self.frames[position].tolist(), self.short_side)


def items_per_video(config: RetrievalConfig) -> int:
    """Return how many items of the level asked for a video has."""
    return 1 if config.level == "video" else config.per_video


def frame_indices(num_frames: int, num: int) -> Numbers:
    """Return the numbers of `num` frames from the first to the last (num,); short videos repeat some."""
    return np.linspace(0, num_frames - 1, num).astype(np.int64)


def clip_indices(num_frames: int, num: int, length: int) -> Numbers:
    """Return the numbers of the frames of `num` clips, spread evenly (num, length).

    In a video shorter than a clip, all clips are the video with its last frame repeated.
    """
    half = length / 2
    centers = np.linspace(half, num_frames - half, num)
    starts = np.maximum((centers - half).astype(np.int64), 0)
    indices: Numbers = np.minimum(starts[:, None] + np.arange(length), num_frames - 1)
    return indices


def embed_videos(
    backbone: Backbone, split: VideoSplit, config: RetrievalConfig, name: str, unfinished: Unfinished
) -> VideoItems:
    """Embed the frames, clips or videos of a split; what was embedded before a stop is not embedded again.

    Videos that cannot be read are left out, and told of. Raises UserError where none can be read.
    """
    asked = parts_of_videos(backbone, split, config, name)
    parts = [unfinished.arrays(part.name, part.whole) for part in asked]
    vectors, videos_read, problems = (
        np.concatenate([part[column] for part in parts]) for column in ("vectors", "videos", "problems")
    )
    if len(videos_read) == 0:
        raise UserError(f"embedding {name}: none of the {len(split):,} videos can be read", *problems[:3].tolist())
    num = items_per_video(config)
    numbers = (videos_read[:, None] * num + np.arange(num)).ravel()
    return VideoItems(vectors, split.labels[videos_read].repeat(num), numbers, tuple(problems.tolist()))


def parts_of_videos(backbone: Backbone, split: VideoSplit, config: RetrievalConfig, name: str) -> list[Part]:
    """Return the videos of a split, in order, as the parts that a process embeds at once."""
    loading, per_part = Loading.of(config, backbone), max(1, IMAGES_PER_PART // _indices(1, config).size)
    asked = [range(start, min(start + per_part, len(split))) for start in range(0, len(split), per_part)]

    def make(videos: Sequence[int]) -> Arrays:
        return _embed_part(backbone, split, videos, config, loading, name)

    return [Part(f"embedding {name}-{videos[0]}-{videos[-1]}", videos, make) for videos in asked]


def _indices(num_frames: int, config: RetrievalConfig) -> Numbers:
    """Return the frames of a video's items before they are averaged (num, frames of each)."""
    if config.level == "frame":
        return frame_indices(num_frames, config.per_video)[:, None]
    return clip_indices(num_frames, config.per_video, config.clip_length)


def _embed_part(
    backbone: Backbone, split: VideoSplit, videos: Sequence[int], config: RetrievalConfig, loading: Loading, name: str
) -> Arrays:
    problems: list[str] = []
    indices = {video: _indices(num, config) for video, num in _lengths(split, videos, problems)}
    wanted = WantedFrames(split, {v: np.unique(x) for v, x in indices.items()}, round(loading.image_size * CROP_MARGIN))
    batches = [[video] for video in indices]
    crop = CenterCrops(loading.image_size)
    read: list[int] = []

    def pixels() -> Iterator[Tensor]:
        loaded = load_image_batches(wanted, crop, batches, loading.workers, f"embedding {name}") if batches else ()
        for batch in loaded:
            problems.extend(batch.problems)
            read.extend(batch.positions.tolist())
            yield from batch.pixels if len(batch.positions) else ()

    vectors = _encode_all(backbone, pixels(), loading)
    ends = np.cumsum([len(wanted.frames[video]) for video in read], dtype=np.int64)
    items = [vectors[:0]]
    for video, end in zip(read, ends, strict=True):
        own = wanted.frames[video]
        items.append(_averaged(vectors[end - len(own) : end], np.searchsorted(own, indices[video]), config))
    return {
        "vectors": np.concatenate(items),
        "videos": np.array(read, np.int64),
        "problems": np.array(problems, dtype=str),
    }


def _lengths(split: VideoSplit, videos: Iterable[int], problems: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the videos that can be opened, and their number of frames."""
    for video in videos:
        try:
            yield video, measure(split.path(video)).num_frames
        except UserError as error:
            problems.extend(error.problems)


def _encode_all(backbone: Backbone, videos: Iterable[Tensor], loading: Loading) -> npt.NDArray[np.float32]:
    """Embed the frames of videos (num_frames, 3, h, w), in batches of the size asked for whatever they are part of."""
    vectors = [torch.empty(0, backbone.dim)]
    with frozen(backbone, loading.device):
        for pixels in _regrouped(videos, loading.batch_size):
            batch = ImageBatch(torch.arange(len(pixels)), pixels, ())
            vectors.append(encode(backbone, batch, loading.device).cpu())
    found: npt.NDArray[np.float32] = torch.cat(vectors).numpy()
    return found


def _regrouped(videos: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Join and cut, so that each but the last has `size` frames, and none is dropped."""
    waiting: list[Tensor] = []
    for video in videos:
        waiting.append(video)
        if sum(map(len, waiting)) >= size:
            joined = torch.cat(waiting)
            whole = len(joined) // size * size
            yield from (joined[start : start + size] for start in range(0, whole, size))
            waiting = [joined[whole:]]
    if sum(map(len, waiting)):
        yield torch.cat(waiting)


def _averaged(vectors: npt.NDArray[np.float32], places: Numbers, config: RetrievalConfig) -> npt.NDArray[np.float32]:
    """Return a video's items (num_items, dim): means over frames, and at level video over clips."""
    clips = vectors[places].mean(axis=1, dtype=np.float64)
    if config.level == "video":
        clips = clips.mean(axis=0, keepdims=True)
    items: npt.NDArray[np.float32] = clips.astype(np.float32)
    return items
