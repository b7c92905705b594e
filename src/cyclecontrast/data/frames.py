"""A frame is found by (video, index) with one read; where the bytes lie is known only here.

One interface over a prepared store (tar shards and Parquet), a tree of folders of images, the R2V2 layout and
a flat folder of images. Columns are arrays, never Python lists: millions of frames cost megabytes.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cyclecontrast.errors import UserError

STORE_FORMAT = "cyclecontrast-frames"
STORE_VERSION = 1
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
R2V2_NAME = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{6}\.jpg")
FRAME_COLUMNS = ("video", "index", "time", "shard", "offset", "size", "width", "height")

Pixels = npt.NDArray[np.uint8]


class Bytes(Protocol):
    """Where the encoded frames lie."""

    def read(self, frame: int) -> bytes:
        """Return the encoded image of the store's frame number `frame`."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Each frame is a file below the root."""

    root: Path
    names: pa.StringArray

    def read(self, frame: int) -> bytes:
        """Return the file's bytes."""
        return (self.root / str(self.names[frame])).read_bytes()


@dataclass(frozen=True)
class Shards:
    """Each frame is a run of bytes in a tar file; one handle per shard and process stays open."""

    root: Path
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    handles: dict[tuple[int, int], int] = field(default_factory=dict, compare=False)

    def read(self, frame: int) -> bytes:
        """Return the frame's bytes with one positioned read."""
        shard = int(self.shard[frame])
        key = (os.getpid(), shard)
        if key not in self.handles:
            self.handles[key] = os.open(shard_path(self.root, shard), os.O_RDONLY)
        size = int(self.size[frame])
        data = os.pread(self.handles[key], size, int(self.offset[frame]))
        if len(data) != size:
            raise UserError(f"{shard_path(self.root, shard)} is shorter than frames.parquet says; prepare it again")
        return data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "handles": {}}


@dataclass(frozen=True)
class FrameStore:
    """Videos and their frames, by number: `starts[v]` is the first frame of video v."""

    root: Path
    layout: str
    video_ids: pa.StringArray
    starts: npt.NDArray[np.int64]
    times: npt.NDArray[np.float64] | None
    source: Bytes

    @staticmethod
    def open(path: str | Path) -> "FrameStore":
        """Open a prepared store, a tree of frames, the R2V2 layout or a folder of images; raises UserError."""
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; name a prepared store or a folder of frames")
        return _open_prepared(root) if (root / "store.json").exists() else _open_images(root)

    @property
    def num_videos(self) -> int:
        """Number of videos that hold at least one frame."""
        return len(self.video_ids)

    @property
    def num_frames(self) -> int:
        """Number of frames of all videos."""
        return int(self.starts[-1])

    def frames_in(self, video: int) -> int:
        """Return the number of frames of a video."""
        return int(self.starts[video + 1] - self.starts[video])

    def video_id(self, video: int) -> str:
        """Return the id of a video: its path below the root, or its YouTube id in the R2V2 layout."""
        return str(self.video_ids[video])

    def find(self, video_id: str) -> int:
        """Return the number of the video with this id; raises KeyError."""
        return self._numbers[video_id]

    def read(self, video: int, index: int) -> bytes:
        """Return the encoded image; raises IndexError for an index that the video does not have."""
        return self.source.read(self._frame(video, index))

    def image(self, video: int, index: int) -> Pixels:
        """Return the decoded frame, RGB (height, width, 3); raises UserError naming the frame."""
        try:
            return decode_image(self.read(video, index))
        except (ValueError, OSError) as error:
            raise UserError(f"{self.root}: frame {index} of {self.video_id(video)}: {error}") from error

    def time(self, video: int, index: int) -> float:
        """Return the frame's time in seconds, nan where the layout does not tell."""
        return float("nan") if self.times is None else float(self.times[self._frame(video, index)])

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: videos, their numbers of frames, and where the frames lie."""
        digest = hashlib.sha256(self.starts.tobytes())
        for column in (self.video_ids, getattr(self.source, "names", None)):
            if column is not None:
                digest.update("\n".join(column.to_pylist()).encode())
        if isinstance(self.source, Shards):
            for numbers in (self.source.shard, self.source.offset, self.source.size):
                digest.update(numbers.tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {video_id: video for video, video_id in enumerate(self.video_ids.to_pylist())}

    def _frame(self, video: int, index: int) -> int:
        if not 0 <= index < self.frames_in(video):
            raise IndexError(f"{self.video_id(video)} has {self.frames_in(video)} frames, no index {index}")
        return int(self.starts[video]) + index


def shard_path(root: Path, shard: int) -> Path:
    """Return the path of a shard of a prepared store."""
    return root / "shards" / f"{shard:06d}.tar"


def decode_image(data: bytes) -> Pixels:
    """Return RGB (height, width, 3); raises ValueError where the bytes are no image."""
    if not data:
        raise ValueError("the image is empty")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ValueError(f"the image does not decode ({error.err})") from error
    if image is None:
        raise ValueError("the image does not decode")
    return image  # type: ignore[no-any-return]


def resize_short_side(image: Pixels, size: int) -> Pixels:
    """Scale so that the short side is `size`: averaging when shrinking, linear when enlarging."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale == 1:
        return image
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, target, interpolation=method)  # type: ignore[no-any-return]


def _open_prepared(root: Path) -> FrameStore:
    about = json.loads((root / "store.json").read_text())
    if about.get("format") != STORE_FORMAT or about.get("version") != STORE_VERSION:
        raise UserError(f"{root / 'store.json'}: not a frame store of version {STORE_VERSION}")
    if not (root / "frames.parquet").exists():
        raise UserError(f"{root} is not finished; run the same `cyclecontrast prepare` again, it goes on")
    table = pq.read_table(root / "frames.parquet", columns=list(FRAME_COLUMNS[:6]))
    video = table["video"].combine_chunks().dictionary_encode() if len(table) else None
    if video is None:
        raise UserError(f"{root} holds no frames")
    codes = video.indices.to_numpy()
    first = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    shards = Shards(
        root,
        table["shard"].to_numpy().astype(np.int32),
        table["offset"].to_numpy().astype(np.int64),
        table["size"].to_numpy().astype(np.int32),
    )
    _check_shards(shards)
    starts = np.r_[first, len(codes)].astype(np.int64)
    return FrameStore(root, "store", video.dictionary, starts, table["time"].to_numpy(), shards)


def _check_shards(shards: Shards) -> None:
    ends = shards.offset + shards.size
    problems = []
    for shard in np.unique(shards.shard):
        path = shard_path(shards.root, int(shard))
        needed = int(ends[shards.shard == shard].max())
        if not path.exists():
            problems.append(f"{path} is missing")
        elif path.stat().st_size < needed or shards.offset.min() < 0:
            problems.append(f"{path}: frames.parquet points outside of it (byte {needed:,} of {path.stat().st_size:,})")
    if problems:
        raise UserError(*problems)


class _Video(NamedTuple):
    id: str
    frames: list[str]


def _open_images(root: Path) -> FrameStore:
    folders = list(_folders_of_images(root))
    flat = len(folders) == 1 and folders[0].id == "."
    if flat:
        videos = [_Video(name, [name]) for name in folders[0].frames]
    else:
        videos = [video for folder in folders if folder.id != "." for video in _videos_of(folder)]
    if not videos:
        raise UserError(f"{root}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and no store.json")
    starts = np.cumsum([0, *(len(video.frames) for video in videos)], dtype=np.int64)
    names = pa.array([name for video in videos for name in video.frames], pa.large_string())
    layout = "flat folder of images" if flat else "tree of frames"
    ids = pa.array([video.id for video in videos], pa.string())
    return FrameStore(root, layout, ids, starts, None, ImageFiles(root, names))


def _folders_of_images(root: Path) -> Iterator[_Video]:
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted((name for name in subfolders if not name.startswith(".")), key=natural_order)
        relative = Path(folder).relative_to(root)
        images = [name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES and name[0] != "."]
        if images:
            images.sort(key=natural_order)
            yield _Video(relative.as_posix(), [(relative / name).as_posix() for name in images])


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which frame_2 comes before frame_10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part)


def _videos_of(folder: _Video) -> list[_Video]:
    parent, _, prefix = f"/{folder.id}".rpartition("/")
    names = [name.rpartition("/")[2] for name in folder.frames]
    if len(prefix) != 2 or not all(R2V2_NAME.fullmatch(n) and n.startswith(prefix) for n in names):
        return [folder]
    videos: dict[str, list[str]] = {}
    for name, path in sorted(zip(names, folder.frames, strict=True)):
        videos.setdefault(f"{parent}/{name[:11]}".lstrip("/"), []).append(path)
    return [_Video(video_id, frames) for video_id, frames in videos.items()]
