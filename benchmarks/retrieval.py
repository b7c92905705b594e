"""Exact nearest neighbors against numpy's blocked matmul with argpartition: time of ours / time of numpy's.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py                  # 10,000 queries, 100,000 items, 512 numbers each
    OMP_NUM_THREADS=1 python benchmarks/retrieval.py --queries 1000   # the same per query, in a tenth of the time

Ours orders the neighbors and settles ties, which argpartition does not. Turns alternate, so that both see the same
machine. The aim is at most 1.2.
"""

from functools import partial

import numpy as np
from _turns import Row, parser_of, present, ratios, take_turns, timed

from cyclecontrast.evaluation.metrics import Floats, Integers, nearest_neighbors, unit_vectors

ROWS_OF_NUMPY = (128, 256, 512, 1024)


def plain(gallery: Floats, queries: Floats, k: int, rows: int) -> Integers:
    """Find the k nearest as numpy does it in two lines, in no order."""
    blocks = (queries[start : start + rows] @ gallery.T for start in range(0, len(queries), rows))
    return np.concatenate([np.argpartition(block, -k, axis=1)[:, -k:] for block in blocks])


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = parser_of(__doc__, repetitions=5)
    for name, default in (("queries", 10_000), ("gallery", 100_000), ("dim", 512), ("k", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    gallery, queries = (
        unit_vectors(rng.standard_normal((num, asked.dim), dtype=np.float32)) for num in (asked.gallery, asked.queries)
    )
    some = queries[: min(len(queries), max(ROWS_OF_NUMPY))]
    rows = min(ROWS_OF_NUMPY, key=lambda rows: timed(partial(plain, gallery, some, asked.k, rows))())
    print(f"{asked.queries:,} queries, {asked.gallery:,} x {asked.dim}, k={asked.k}; numpy in blocks of {rows}\n")
    works = {
        "numpy": timed(partial(plain, gallery, queries, asked.k, rows)),
        "ours": timed(partial(nearest_neighbors, gallery, queries, asked.k)),
    }
    costs = take_turns(works, asked.repetitions)
    present(
        [Row("exact nearest neighbors / numpy's product and argpartition", ratios(costs, "ours", "numpy"), 1.2)], asked
    )


if __name__ == "__main__":
    main()
