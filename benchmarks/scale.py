"""What the size of R2V2 costs, 10.8 million frames of 2.7 million videos: opening the store, memory, drawing positions.

    python benchmarks/scale.py                  # a made index with shards of zeros, which take no room
    python benchmarks/scale.py --data FRAMES    # a prepared store

Memory is what a process shares with no other (`/proc/self/smaps_rollup`), beyond what it has with a store of ten
videos, once it has looked at the places of all frames. The aims: less than 5 s; less than 200 MB, and none of them
again for a worker; less than 10 µs for a position of an epoch, however many videos there are.
"""

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import timeit
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from _turns import Row, parser_of, present
from torch.utils.data import DataLoader, Dataset

from cyclecontrast.data.random_streams import shuffled
from cyclecontrast.data.store import FrameStore

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.make_index import make_index

MB = 1_000_000
SIZES = (10**3, 2_700_000, 10**9)


def own_mb() -> float:
    """Return the memory that this process shares with no other."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()]
    return sum(1024 * int(words[1]) / MB for words in lines if words[0] in ("Private_Clean:", "Private_Dirty:"))


def use(store: FrameStore) -> None:
    """Look at every frame's place, and read some frames."""
    for place in range(200):
        video = shuffled(0, 0, place % store.num_videos, store.num_videos)
        store.read(video, store.frames_in(video) - 1)
    for _ in store.source.pieces():
        pass
    store.starts.max()
    store.find(store.video_id(store.num_videos - 1))


@dataclass(frozen=True)
class Used(Dataset[float]):
    """What a worker is given."""

    store: FrameStore

    def __getitem__(self, _: int) -> float:
        use(self.store)
        return own_mb()


def tell_opening(pipe: Connection, small: Path, large: Path) -> None:
    """In a new process: send the seconds, the memory, and how much more there was at once."""
    use(FrameStore.open(small))
    own, most = own_mb(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    store = FrameStore.open(large)
    seconds = time.perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * 1024 / MB
    use(store)
    pipe.send((seconds, own_mb() - own, peak))


def openings(small: Path, large: Path, repetitions: int) -> Iterator[tuple[float, float, float]]:
    """Yield what each opening costs."""
    context = multiprocessing.get_context("spawn")
    for _ in range(repetitions):
        here, there = context.Pipe()
        process = context.Process(target=tell_opening, args=(there, small, large))
        process.start()
        yield here.recv()
        process.join()


def memory_of_workers(store: FrameStore, workers: int, method: str) -> float:
    """Return the mean memory of a loader's workers once all of them have used the store."""
    context = multiprocessing.get_context(method)
    items = range(3 * workers)
    loader = DataLoader(
        Used(store), batch_size=None, sampler=items, num_workers=workers, multiprocessing_context=context
    )
    return statistics.mean(list(loader)[-workers:])


def rows_of_workers(small: FrameStore, large: FrameStore, numbers: list[int]) -> Iterator[Row]:
    """Yield a row for each way to start so many workers: what each has more with the large store."""
    for workers in numbers:
        for method in ("fork", "spawn"):
            of_small, of_large = (memory_of_workers(store, workers, method) for store in (small, large))
            yield Row(f"memory of each of {workers} workers, by {method}, MB", [of_large - of_small], 10.0)


def rows_of_positions(repetitions: int) -> Iterator[Row]:
    """Yield a row for each number of videos."""
    for num_videos in SIZES:
        each = timeit.repeat(lambda n=num_videos: shuffled(0, 0, 7, n), number=1000, repeat=repetitions)
        yield Row(f"a position of an epoch of {num_videos:,} videos, µs", [1000 * seconds for seconds in each], 10.0)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = parser_of(__doc__, repetitions=5)
    parser.add_argument("--data", type=Path, help="a prepared store to open instead of one that is made")
    parser.add_argument("--num-videos", type=int, default=2_700_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    asked = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
    with tempfile.TemporaryDirectory() as folder:
        small = make_index(Path(folder) / "small", 10, num_shards=2)
        large = asked.data or make_index(Path(folder) / "large", asked.num_videos, num_shards=asked.shards)
        store = FrameStore.open(large)
        print(f"{store.num_frames:,} frames of {store.num_videos:,} videos in {asked.shards:,} shards\n")

        def rows() -> Iterator[Row]:
            seconds, own, peak = zip(*openings(small, large, asked.repetitions), strict=True)
            yield Row("opening the store, s", seconds, 5.0)
            yield Row("memory of a process without workers, MB", own, 200.0)
            yield Row("memory more while the store opens, MB", peak)
            use(store)
            yield from rows_of_workers(FrameStore.open(small), store, [w for w in asked.workers if w])
            yield from rows_of_positions(asked.repetitions)

        present(rows(), asked)


if __name__ == "__main__":
    main()
