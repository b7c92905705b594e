"""What a search costs: seconds and memory to find the frames most like one of 500,000.

    OMP_NUM_THREADS=2 python benchmarks/search.py
    OMP_NUM_THREADS=2 python benchmarks/search.py --frames 50000     # a tenth, in less than a minute

Vectors are random, of 512 numbers, on the disk as `embed` writes them. Once the server has loaded them, the ratio is to
the least that numpy can do: one product with all vectors, and argpartition, which orders nothing and settles no ties.
The command is a process of its own, which reads the file; what it reads lies in the system's cache. The aim is less
than a second for a query of the server. With faiss installed, its search is measured too.
"""

import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _turns import Row, Work, parser_of, present, ratios, take_turns, timed

from cyclecontrast.evaluation.embed import ROWS_PER_GROUP
from cyclecontrast.evaluation.metrics import Floats, Integers, unit_vectors
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.nearest import LoadedVectors, allowed_rows, load_vectors

FRAMES_PER_VIDEO, TOP = 100, 24
NUMPY, EXACT, SPREAD, FAISS = "numpy, unordered", "exact", "exact, 2 of each video at most", "faiss"


def write_index(path: Path, num_frames: int, dim: int) -> Path:
    """Write random unit vectors as `embed` does."""
    rng = np.random.default_rng(0)
    columns = [("video", pa.string()), ("index", pa.int32()), ("time", pa.float64())]
    schema = pa.schema([*columns, ("vector", pa.list_(pa.float32(), dim))])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_frames, ROWS_PER_GROUP):
            rows = np.arange(start, min(start + ROWS_PER_GROUP, num_frames))
            index = (rows % FRAMES_PER_VIDEO).astype(np.int32)
            vectors = unit_vectors(rng.standard_normal((len(rows), dim), dtype=np.float32))
            videos = pa.array([f"videos/{row // FRAMES_PER_VIDEO:06d}.mp4" for row in rows])
            lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            writer.write_table(pa.table([videos, index, index / 2.0, lists], schema=schema))
    return path


def plain(vectors: Floats, query: Floats) -> object:
    """Find the nearest as numpy does it, in no order."""
    return np.argpartition(vectors @ query, -TOP)[-TOP:]


def search(loaded: LoadedVectors, row: int, per_video: int | None = None) -> Integers:
    """Find the frames most similar to one, as the server does."""
    return loaded.search(loaded.vectors[row], allowed_rows(loaded.videos, row, False), TOP, per_video)[0]


def of_any(rows: Iterator[int], action: Callable[[int], object]) -> Work:
    """Return the search by another row each time, as work that costs seconds."""
    return timed(lambda: action(next(rows)))


def recall(exact: LoadedVectors, other: LoadedVectors, rows: Iterator[int]) -> float:
    """Return the fraction of the nearest that another search finds."""
    queries = [next(rows) for _ in range(20)]
    return statistics.mean(float(np.isin(search(exact, row), search(other, row)).mean()) for row in queries)


def run_command(path: Path) -> None:
    """Search once as a person does, for a frame in the middle."""
    words = [str(path), "--video", "videos/000001.mp4", "--frame", "7", "--top", str(TOP)]
    subprocess.run([sys.executable, "-m", "cyclecontrast", "search", *words], check=True, stdout=subprocess.DEVNULL)


def own_mb() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = parser_of(__doc__, repetitions=9)
    parser.add_argument("--frames", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=512)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = write_index(Path(folder) / "frames.parquet", asked.frames, asked.dim)
        size = path.stat().st_size / 2**20
        print(f"{asked.frames:,} frames, {asked.dim} numbers each, {size:,.0f} MB on the disk\n")
        seconds = [timed(partial(run_command, path))() for _ in range(min(3, asked.repetitions))]
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        before, began = own_mb(), time.perf_counter()
        exact = load_vectors(FrameIndex.open(path), use_faiss=False)
        loading = time.perf_counter() - began
    found = [
        Row("the search command, s", seconds),
        Row("the search command, memory, MB", [most]),
        Row("the server loads the vectors, s", [loading]),
        Row("the server loads the vectors, memory, MB", [own_mb() - before]),
    ]
    rows = iter(np.random.default_rng(1).integers(0, asked.frames, 10_000).tolist())
    works = {
        NUMPY: of_any(rows, lambda row: plain(exact.vectors, exact.vectors[row])),
        EXACT: of_any(rows, lambda row: search(exact, row)),
        SPREAD: of_any(rows, lambda row: search(exact, row, per_video=2)),
    }
    if importlib.util.find_spec("faiss") is not None:
        from cyclecontrast.evaluation.retrieval import make_faiss_index

        approximate = LoadedVectors(exact.vectors, exact.videos, make_faiss_index(exact.vectors))
        works[FAISS] = of_any(rows, lambda row: search(approximate, row))
        share = 100 * recall(exact, approximate, rows)
        found.append(Row(f"faiss finds of the {TOP} nearest, %", [share], better="higher"))
    costs = take_turns(works, asked.repetitions)
    for name in works:
        if name != NUMPY:
            of_numpy = ratios(costs, name, NUMPY)
            found.append(Row(f"a query / numpy's product, {name}", of_numpy, 1.2 if name == EXACT else None))
        found.append(Row(f"a query, {name}, s", costs[name], None if name == NUMPY else 1.0))
    present(found, asked)


if __name__ == "__main__":
    main()
