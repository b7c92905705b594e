"""`cyclecontrast prepare` against plain decoding of the same files by as many processes: seconds of ours / plain.

    python benchmarks/prepare.py                    # videos of ../shared/data, else of moving patterns; two processes
    python benchmarks/prepare.py VIDEOS --workers 8

Plain: a pool of processes takes file after file; PyAV decodes all its frames, FFmpeg's scaler makes those that are
wanted RGB with a short side of 256 px (bilinear, its default), and, in the second comparison, OpenCV encodes them as
JPEG of the same quality, which are written to one file per video. Ours also notes each frame's time and place, looks
for damage and can go on where it was stopped. The aim is at most 1.1 of the same work.
"""

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
from _turns import Row, parser_of, present, ratios, take_turns, timed

from cyclecontrast.config import PrepareConfig
from cyclecontrast.data.folders import find_videos
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.prepare import prepare

SIZE, QUALITY, DEFAULT_FPS = 256, 90, 2.0


class Case(NamedTuple):
    """Which frames are wanted: the option of ours, and a test of (number, seconds) for the plain way."""

    name: str
    option: dict[str, Any]
    every_second: float | None


CASES = (Case("every frame", {"every": 1}, None), Case("two per second, the default", {}, DEFAULT_FPS))


def plain_frames(path: Path, fps: float | None) -> Iterator[Pixels]:
    """Decode a file from its first frame to its last, scaling all or the first of each tick."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        last_tick = -1
        for frame in container.decode(stream):
            if fps is not None:
                if int((frame.time or 0) * fps) <= last_tick:
                    continue
                last_tick = int((frame.time or 0) * fps)
            scale = min(1.0, SIZE / min(frame.width, frame.height))
            width, height = round(frame.width * scale), round(frame.height * scale)
            yield frame.reformat(width, height, format="rgb24", threads=1).to_ndarray()


def decode(fps: float | None, path: Path) -> int:
    """Decode and scale; return how many frames that gave."""
    return sum(1 for _ in plain_frames(path, fps))


def decode_and_write(fps: float | None, folder: Path, path: Path) -> int:
    """Decode, scale and write JPEG, all frames into a file beside the others'."""
    num_frames = 0
    with open(folder / f"{path.name}.jpegs", "wb") as file:
        for image in plain_frames(path, fps):
            _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            file.write(data.tobytes())
            num_frames += 1
    return num_frames


def measure(case: Case, videos: Path, paths: list[Path], workers: int, repetitions: int, scratch: Path) -> list[Row]:
    """Return the rows of one policy."""

    def plain(work: Callable[[Path], int]) -> None:
        with multiprocessing.Pool(workers, cv2.setNumThreads, (1,)) as pool:
            sum(pool.imap_unordered(work, paths))

    def ours() -> None:
        options = {"workers": workers, "keep_duplicates": True, **case.option}
        prepare(PrepareConfig(videos=videos, out=scratch / "store", **options))
        shutil.rmtree(scratch / "store")

    works = {
        "ours": timed(ours),
        "decoding": timed(partial(plain, partial(decode, case.every_second))),
        "the same": timed(partial(plain, partial(decode_and_write, case.every_second, scratch))),
    }
    costs = take_turns(works, repetitions)
    return [
        Row(f"prepare / PyAV by hand, {case.name}", ratios(costs, "ours", "the same"), 1.1),
        Row(f"prepare / decoding and scaling alone, {case.name}", ratios(costs, "ours", "decoding")),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure both policies and print the table."""
    parser = parser_of(__doc__, repetitions=3)
    parser.add_argument("videos", nargs="?", type=Path, help="a folder of videos without damage")
    parser.add_argument("--num-clips", type=int, default=30, help="made beside the real files, where none are named")
    parser.add_argument("--copies", type=int, default=3, help="of each, so that the start of processes does not count")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        videos = asked.videos or scratch / "videos"
        if asked.videos is None:
            from _ours import make_videos  # it needs PyTorch, which the pool's processes are not to inherit

            make_videos(videos, asked.num_clips, 40)
            for path in list(videos.iterdir()):
                for number in range(1, asked.copies):
                    os.link(path, path.with_name(f"{path.stem}-{number}{path.suffix}"))
        paths = [video.path for video in find_videos(videos)]
        print(f"{len(paths)} videos, {sum(path.stat().st_size for path in paths):,} bytes, {asked.workers} workers\n")
        rows = (measure(case, videos, paths, asked.workers, asked.repetitions, scratch) for case in CASES)
        present(chain.from_iterable(rows), asked)


if __name__ == "__main__":
    main()
