"""A frame is found by (video, index) with one read; where the bytes lie is known only here.

One interface over a prepared store (tar shards and Parquet), a tree of folders of images, the R2V2 layout and
a flat folder of images. Columns are arrays, never Python lists: millions of frames cost megabytes.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.frame_bytes import Bytes, Shards
from cyclecontrast.data.image_folders import open_images
from cyclecontrast.data.images import Pixels, decode_image
from cyclecontrast.data.prepared_store import open_prepared
from cyclecontrast.errors import UserError


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
        return FrameStore(root, *(open_prepared(root) if (root / "store.json").exists() else open_images(root)))

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
