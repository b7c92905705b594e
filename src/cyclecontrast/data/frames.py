"""A frame is found by (video, index) with one read; where the bytes lie is known only here.

One interface over a prepared store (tar shards and Parquet), a tree of folders of images, the R2V2 layout and
a flat folder of images. Columns are arrays, never Python lists: millions of frames cost megabytes.
"""

import ctypes
import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cyclecontrast.config.types import is_url
from cyclecontrast.data.frame_bytes import Bytes, FoundFrames, pieces_of
from cyclecontrast.data.image_folders import open_images
from cyclecontrast.data.images import Pixels, decode_image
from cyclecontrast.data.prepared_store import open_prepared, open_remote
from cyclecontrast.data.shared_arrays import SharedArrays
from cyclecontrast.errors import UserError


@dataclass(frozen=True)
class FrameStore:
    """Videos and their frames, by number: `starts[v]` is the first frame of video v."""

    root: Path | str
    layout: str
    columns: SharedArrays
    source: Bytes

    @staticmethod
    def open(path: str | Path) -> "FrameStore":
        """Open a prepared store, a tree of frames, the R2V2 layout or a folder of images; raises UserError.

        Text with `://` in it is the URL of a prepared store.
        """
        root = path if is_url(path) else Path(path)
        found = open_remote(root) if isinstance(root, str) else _open_local(root)
        store = FrameStore(root, found.layout, _shared(found), found.source)
        del found
        _give_back_memory()
        return store

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first frame of each video, and behind the last video the number of all."""
        return self.columns["starts"]

    @property
    def video_ids(self) -> pa.StringArray:
        """The id of each video."""
        ends, text = (pa.py_buffer(self.columns[name]) for name in ("ends", "text"))
        return pa.StringArray.from_buffers(self.num_videos, ends, text)

    @property
    def num_videos(self) -> int:
        """Number of videos that hold at least one frame."""
        return len(self.starts) - 1

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
        """Return the number of the video with this id, after a look at all of them; raises KeyError."""
        number = pc.index(self.video_ids, video_id).as_py()
        if number < 0:
            raise KeyError(video_id)
        return int(number)

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
        return self.source.time(self._frame(video, index))

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: videos, their numbers of frames, and where the frames lie."""
        digest = hashlib.sha256(self.starts.data)
        for piece in chain(pieces_of(self.video_ids), self.source.pieces()):
            digest.update(piece)
        return digest.hexdigest()[:16]

    def _frame(self, video: int, index: int) -> int:
        if not 0 <= index < self.frames_in(video):
            raise IndexError(f"{self.video_id(video)} has {self.frames_in(video)} frames, no index {index}")
        return int(self.starts[video]) + index


def _open_local(root: Path) -> FoundFrames:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name a prepared store or a folder of frames")
    return open_prepared(root) if (root / "store.json").exists() else open_images(root)


def _shared(found: FoundFrames) -> SharedArrays:
    """Copy what all frames have in common; the id of a video is the text between two ends, as Arrow has it."""
    ids = found.video_ids
    _, ends, text = ids.buffers()
    ends = np.frombuffer(ends, np.int32, len(ids) + 1, ids.offset * np.int32().nbytes)
    return SharedArrays.of({"starts": found.starts, "ends": ends, "text": np.frombuffer(text or b"", np.uint8)})


def _give_back_memory() -> None:
    """Tell Arrow and the C library that what opening a store took is not needed again, or they keep half of it."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
