"""Video files: which there are below a folder, and the opening of one; it decodes nothing."""

import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import av

from cyclecontrast.data.folder_walk import walk

VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".apng", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".ivf", ".m1v", ".m2ts"),
    *(".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m"),
)
# Only containers that hold their own pictures: a playlist named .mp4 must not open other files or addresses.
DEMUXERS = (
    "mov,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,live_flv,ogg,gif,apng,mxf,dv,ivf,nut,rm,wtv,m4v,mjpeg,"
    "h261,h263,h264,hevc,obu,av1,vc1,yuv4mpegpipe"
)


class VideoError(Exception):
    """A video of which no frame can be had; the text is a short reason for the user."""


class FoundVideo(NamedTuple):
    """A file with the suffix of a video; `reason` says why it cannot be decoded, "" where it may be."""

    id: str
    path: Path
    size_bytes: int
    reason: str


def find_videos(root: Path) -> list[FoundVideo]:
    """All files below root that are named like videos, sorted by id: the posix path relative to root.

    Links are followed, but no folder is searched twice; names that begin with a dot are passed over.
    Raises OSError if root itself cannot be listed.
    """
    found: list[FoundVideo] = []

    def note(folder: Path, error: OSError) -> None:
        if folder == root:
            raise error
        found.append(FoundVideo(_video_id(root, folder), folder, 0, f"folder not readable: {reason_of(error)}"))

    for folder in walk(root, note):
        videos = (entry for entry in folder.entries if os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES)
        found += [_found(root, Path(entry.path)) for entry in videos]
    found.sort(key=lambda video: (video.id, video.reason))
    # A name made readable can meet a real one; the real one, whose reason sorts first, is kept.
    return [video for i, video in enumerate(found) if i == 0 or video.id != found[i - 1].id]


def _video_id(root: Path, path: Path) -> str:
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def _found(root: Path, path: Path) -> FoundVideo:
    video_id = _video_id(root, path)
    try:
        status = path.stat()
    except OSError as error:
        return FoundVideo(video_id, path, 0, reason_of(error))
    if not stat.S_ISREG(status.st_mode):
        return FoundVideo(video_id, path, 0, "not a regular file")
    if video_id != path.relative_to(root).as_posix():
        return FoundVideo(video_id, path, status.st_size, "the name is not valid UTF-8")
    if not os.access(path, os.R_OK):
        return FoundVideo(video_id, path, 0, "permission denied")
    return FoundVideo(video_id, path, status.st_size, "")


def open_container(path: Path) -> Any:
    """The file opened by FFmpeg; raises VideoError with the reason where that is impossible."""
    try:
        if not path.is_dir() and path.stat().st_size == 0:
            raise VideoError("empty file")
        return av.open(
            f"file:{path}",
            container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except av.ArgumentError as error:
        raise VideoError("not a video format") from error
    except (OSError, av.FFmpegError) as error:
        raise VideoError(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """What FFmpeg or the system has against a file, in a few words."""
    match error:
        case FileNotFoundError():
            return "no such file"
        case PermissionError():
            return "permission denied"
        case IsADirectoryError():
            return "a folder, not a file"
        case av.InvalidDataError() | EOFError():
            return "invalid data"
        case IndexError():
            return "a stream that the header does not name"
        case av.PatchWelcomeError():
            return "not supported by FFmpeg"
    return (getattr(error, "strerror", None) or str(error)).lower()
