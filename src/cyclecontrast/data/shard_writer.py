"""One shard: the frames of its videos in a tar whose bytes depend on names and frames only, and its two tables."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

import cv2

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.decode import DecodedFrame, open_video
from cyclecontrast.data.policies import policy_of
from cyclecontrast.data.store_files import FrameRow, VideoRow, shard_path, write_frames, write_videos
from cyclecontrast.data.upright import Image
from cyclecontrast.data.video import VideoError
from cyclecontrast.files import replacing

FRAMES_PER_MESSAGE = 32


class Progress(NamedTuple):
    """What has been done since the last report."""

    num_videos: int
    num_frames: int
    num_bytes: int


Report = Callable[[Progress], object]


class ShardJob(NamedTuple):
    """The unit of work: the rows of one shard, all pending; a row with a reason is not to be decoded."""

    config: PrepareConfig
    shard: int
    rows: tuple[VideoRow, ...]

    @property
    def is_done(self) -> bool:
        """Whether the table of videos, which is written last, is there."""
        return shard_path(self.config.out, self.shard, "videos.parquet").exists()


class _Written(NamedTuple):
    row: VideoRow
    frames: list[FrameRow]


def write_shard(job: ShardJob, report: Report) -> None:
    """Writes the shard's tar and its two tables; the table of videos, written last, says that it is done."""
    out = job.config.out
    with replacing(shard_path(out, job.shard)) as aside, open(aside, "wb") as file:
        written = [_write_video(job, row, file, report) for row in job.rows]
        file.write(bytes(2 * tarfile.BLOCKSIZE))
    frames = [frame for video in written for frame in video.frames]
    write_frames(shard_path(out, job.shard, "frames.parquet"), frames)
    write_videos(shard_path(out, job.shard, "videos.parquet"), [video.row for video in written])


def try_shard(job: ShardJob) -> None:
    """Does the work without keeping anything, to see whether the process survives it."""
    with open(os.devnull, "wb") as file:
        for row in job.rows:
            _write_video(job, row, file, lambda progress: None)


def _write_video(job: ShardJob, row: VideoRow, file: BinaryIO, report: Report) -> _Written:
    """Appends the frames of one video; its row says what came of it."""
    config, frames = job.config, list[FrameRow]()
    path = config.videos / row.path
    try:
        if row.reason:
            raise VideoError(row.reason)
        row = row._replace(size_bytes=_size_bytes(path))
        with open_video(path, config.max_pixels) as video:
            for frame in video.frames(policy_of(config), config.size):
                frames.append(_write_frame(job, row.id, len(frames), frame, file))
                if len(frames) % FRAMES_PER_MESSAGE == 0:
                    report(Progress(0, FRAMES_PER_MESSAGE, 0))
    except VideoError as error:
        report(Progress(1, 0, row.size_bytes))
        return _Written(row._replace(status="skipped", reason=str(error)), [])
    report(Progress(1, len(frames) % FRAMES_PER_MESSAGE, row.size_bytes))
    done = row._replace(status="ok", reason=video.notice, num_frames=len(frames), duration=video.duration)
    return _Written(done._replace(width=video.width, height=video.height), frames)


def _size_bytes(path: Path) -> int:
    """Size of a file, 0 where it cannot be read: so it counts as changed once it can."""
    return path.stat().st_size if os.access(path, os.R_OK) else 0


def _write_frame(job: ShardJob, video_id: str, index: int, frame: DecodedFrame, file: BinaryIO) -> FrameRow:
    data = _jpeg(frame.image, job.config.quality)
    member = tarfile.TarInfo(member_name(video_id, index))
    member.size = len(data)
    file.write(member.tobuf(tarfile.PAX_FORMAT))
    offset = file.tell()
    file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
    height, width = frame.image.shape[:2]
    return FrameRow(video_id, index, frame.time, job.shard, offset, len(data), width, height)


def member_name(video_id: str, index: int) -> str:
    """Name of a frame in its shard: a WebDataset key holds no dot, and a tar path no foreign slash."""
    return f"{quote(video_id, safe='').replace('.', '%2E')}/{index:06d}.jpg"


def _jpeg(image: Image, quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data)
