"""Where the videos lie that the frames were taken from, so that they can be played."""

import os
import stat
import tomllib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cyclecontrast.data.storage import read_regular
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import read_videos
from cyclecontrast.errors import UserError
from cyclecontrast.searching.index import FrameIndex

KINDS = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/webm",
    ".ogv": "video/ogg",
    ".ogm": "video/ogg",
}
"""Containers that browsers may play; what is inside may still be foreign to one."""
MOST_CONFIG_BYTES = 1_000_000


class SourceVideo(NamedTuple):
    """A video file, and its size when its frames were taken."""

    path: Path
    size_bytes: int

    @property
    def kind(self) -> str:
        """Its media type, "" where no browser plays it."""
        return KINDS.get(self.path.suffix.lower(), "")

    @property
    def problem(self) -> str:
        """Why it cannot be played, "" where it may be."""
        try:
            about = self.path.stat()
        except (OSError, ValueError):
            return "the video is gone"
        if not stat.S_ISREG(about.st_mode) or about.st_size != self.size_bytes:
            return "the video has changed"
        return "" if self.kind else f"browsers do not play {self.path.suffix}"

    def open(self) -> BinaryIO:
        """Open it for reading without waiting for a pipe; raises OSError."""
        return open(self.path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))


class SourceVideos(NamedTuple):
    """The videos of an index by their number there; `problem` says what to do where none is known."""

    videos: dict[int, SourceVideo]
    problem: str


def find_sources(index: FrameIndex, store: FrameStore, named: Path | None) -> SourceVideos:
    """Find the videos that a store was prepared from; raises UserError where none of them is in a named folder."""
    root = store.root
    if isinstance(root, str) or not (root / "videos.parquet").is_file():
        if named is not None:
            raise UserError(f"videos: {root} is no store that was prepared from videos here; leave out --videos")
        return SourceVideos({}, "")
    folder = named or _videos_of_run(root)
    if folder is None:
        return SourceVideos({}, "To play the videos, name their folder: --videos FOLDER")
    rows = {row.id: row for row in read_videos(root / "videos.parquet")}
    known = [(number, rows[video_id]) for number, video_id in enumerate(index.video_ids) if video_id in rows]
    videos = {number: SourceVideo(folder / row.path, row.size_bytes) for number, row in known}
    if named is not None and not any(video.path.is_file() for video in videos.values()):
        raise UserError(f"videos: {named} holds none of the {len(videos):,} videos that {root} was prepared from")
    return SourceVideos(videos, "")


def _videos_of_run(root: Path) -> Path | None:
    """Return the folder that a run prepared these frames from, None where they are no run's."""
    try:
        folder = tomllib.loads(read_regular(root.absolute().parent / "config.toml", MOST_CONFIG_BYTES).decode())["data"]
        return Path(folder) if root.name == "frames" and Path(folder).is_dir() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
