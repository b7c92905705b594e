"""Exact nearest neighbors against numpy's blocked matmul with argpartition: time of ours / time of numpy's.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py                  # 10,000 queries, 100,000 items, 512 numbers each
    OMP_NUM_THREADS=1 python benchmarks/retrieval.py --queries 1000   # the same per query, in a tenth of the time

Ours orders the neighbors and settles ties, which argpartition does not. Turns alternate, so that both see the same
machine. The aim is at most 1.2.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from cyclecontrast.evaluation.metrics import Floats, Integers, nearest_neighbors, unit_vectors

ROWS_OF_NUMPY = (128, 256, 512, 1024)


def plain(gallery: Floats, queries: Floats, k: int, rows: int) -> Integers:
    """Find the k nearest as numpy does it in two lines, in no order."""
    blocks = (queries[start : start + rows] @ gallery.T for start in range(0, len(queries), rows))
    return np.concatenate([np.argpartition(block, -k, axis=1)[:, -k:] for block in blocks])


def seconds(function: Callable[..., object], *arguments: object) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("queries", 10_000), ("gallery", 100_000), ("dim", 512), ("k", 50), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    gallery, queries = (
        unit_vectors(rng.standard_normal((num, asked.dim), dtype=np.float32)) for num in (asked.gallery, asked.queries)
    )
    some = queries[: min(len(queries), max(ROWS_OF_NUMPY))]
    rows = min(ROWS_OF_NUMPY, key=lambda rows: seconds(plain, gallery, some, asked.k, rows))
    print(
        f"{asked.queries:,} queries x {asked.gallery:,} x {asked.dim}, k={asked.k}; numpy in blocks of {rows}, its best"
    )
    times: dict[str, list[float]] = {"numpy": [], "ours": []}
    for _ in range(asked.repeats):
        times["numpy"].append(seconds(plain, gallery, queries, asked.k, rows))
        times["ours"].append(seconds(nearest_neighbors, gallery, queries, asked.k))
    for name, values in times.items():
        print(f"{name:>6} {statistics.median(values):7.2f} s   ({min(values):.2f} to {max(values):.2f})")
    ratios = [ours / numpy for ours, numpy in zip(times["ours"], times["numpy"], strict=True)]
    print(f" ratio {statistics.median(ratios):7.2f}")


if __name__ == "__main__":
    main()
