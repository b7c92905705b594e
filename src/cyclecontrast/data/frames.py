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

from cyclecontrast.data.store_files import STORE_FORMAT, STORE_VERSION, shard_path
from cyclecontrast.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
R2V2_NAME = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{6}\.jpg")
FRAME_COLUMNS = {
    "video": pa.dictionary(pa.int32(), pa.string()),
    "index": pa.int32(),
    "time": pa.float64(),
    "shard": pa.int32(),
    "offset": pa.int64(),
    "size": pa.int32(),
}
MOST_HANDLES = 256
MOST_PROBLEMS = 10

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
    """Each frame is a run of bytes in a tar file; the handles of the shards last opened stay open.

    A read names its place, so processes that were forked may share handles; threads may not.
    """

    root: Path
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    handles: dict[int, int] = field(default_factory=dict, compare=False)

    def read(self, frame: int) -> bytes:
        """Return the frame's bytes with one positioned read."""
        shard = int(self.shard[frame])
        if shard not in self.handles:
            while len(self.handles) >= MOST_HANDLES:
                os.close(self.handles.pop(next(iter(self.handles))))
            self.handles[shard] = os.open(shard_path(self.root, shard), os.O_RDONLY)
        size = int(self.size[frame])
        data = os.pread(self.handles[shard], size, int(self.offset[frame]))
        if len(data) != size:
            raise UserError(f"{shard_path(self.root, shard)} is shorter than frames.parquet says; prepare it again")
        return data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "handles": {}}

    def __del__(self) -> None:
        for handle in self.handles.values():
            os.close(handle)


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
        for column in (self.video_ids, getattr(self.source, "names", pa.array([], pa.string()))):
            for start in range(0, len(column), 65_536):
                digest.update("\n".join([*column[start : start + 65_536].to_pylist(), ""]).encode())
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
    _check_version(root / "store.json")
    path = root / "frames.parquet"
    if not path.exists():
        raise UserError(f"{root} is not finished; run the same `cyclecontrast prepare` again, it goes on")
    try:
        video, index, times, shard, offset, size = _read_columns(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); prepare the videos again") from error
    codes = video.indices.to_numpy()
    first = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    starts = np.r_[first, len(codes)].astype(np.int64)
    in_order = np.arange(len(codes)) - np.repeat(first, np.diff(starts))
    if np.bincount(codes[first]).max() > 1 or not np.array_equal(index.to_numpy(), in_order):
        raise UserError(f"{path}: its rows are not in order (video after video, index 0, 1, ...); prepare again")
    shards = Shards(root, shard.to_numpy(), offset.to_numpy(), size.to_numpy())
    _check_shards(shards)
    return FrameStore(root, "store", video.dictionary.take(pa.array(codes[first])), starts, times.to_numpy(), shards)


def _check_version(path: Path) -> None:
    try:
        about = json.loads(path.read_bytes())
    except ValueError:
        about = None
    found = (about.get("format"), about.get("version")) if isinstance(about, dict) else None
    if found != (STORE_FORMAT, STORE_VERSION):
        raise UserError(f"{path}: is not of a frame store of version {STORE_VERSION}; prepare the videos again")


def _read_columns(path: Path) -> list[pa.Array]:
    missing = [name for name in FRAME_COLUMNS if name not in pq.read_schema(path).names]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; prepare the videos again")
    table = pq.read_table(path, columns=list(FRAME_COLUMNS), read_dictionary=["video"])
    if not len(table):
        raise UserError(f"{path.parent} holds no frames; prepare a folder of videos that can be read")
    if gaps := [name for name in FRAME_COLUMNS if table[name].null_count]:
        raise UserError(f"{path}: has gaps in {', '.join(gaps)}; prepare the videos again")
    return [table[name].cast(kind).unify_dictionaries().combine_chunks() for name, kind in FRAME_COLUMNS.items()]


def _check_shards(shards: Shards) -> None:
    numbers, which = np.unique(shards.shard, return_inverse=True)
    lowest, end = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    np.minimum.at(lowest, which, np.minimum(shards.offset, shards.size))
    np.maximum.at(end, which, shards.offset + shards.size)
    problems = []
    for number, low, needed in zip(numbers.tolist(), lowest.tolist(), end.tolist(), strict=True):
        path = shard_path(shards.root, number)
        if not path.exists():
            problems.append(f"{path}: is missing; prepare the videos again")
        elif low < 0 or path.stat().st_size < needed:
            place = f"byte {low or needed:,} of {path.stat().st_size:,}"
            problems.append(f"{path}: frames.parquet points outside of it ({place}); prepare the videos again")
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"{shards.root}: so are {len(problems) - MOST_PROBLEMS:,} other shards"]
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
        raise UserError(
            f"{root}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and no store.json; "
            "videos must be prepared first: cyclecontrast prepare"
        )
    starts = np.cumsum([0, *(len(video.frames) for video in videos)], dtype=np.int64)
    layout = "flat folder of images" if flat else "tree of frames"
    try:
        names = pa.array([name for video in videos for name in video.frames], pa.large_string())
        ids = pa.array([video.id for video in videos], pa.string())
    except UnicodeEncodeError as error:
        raise UserError(f"{root}: the name {error.object!r} is not UTF-8; rename it") from error
    return FrameStore(root, layout, ids, starts, None, ImageFiles(root, names))


def _folders_of_images(root: Path) -> Iterator[_Video]:
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
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


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); mend it or take it away") from error


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which frame_2 comes before frame_10; no two names are equal."""
    parts = re.split(r"([0-9]+)", name)
    key = ((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part)
    return (*key, (-1, 0, name))


def _videos_of(folder: _Video) -> list[_Video]:
    parent, _, prefix = f"/{folder.id}".rpartition("/")
    videos: dict[str, list[str]] = {}
    for path in folder.frames:
        name = path.rpartition("/")[2]
        # A file system that ignores case keeps AB and ab in one folder.
        in_r2v2 = R2V2_NAME.fullmatch(name) and name[:2].lower() == prefix.lower()
        videos.setdefault(f"{parent}/{name[:11]}"[1:] if in_r2v2 else folder.id, []).append(path)
    return [_Video(video_id, frames) for video_id, frames in videos.items()]
