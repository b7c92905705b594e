"""What lies nearest to each query, found exactly or by faiss, and how far up the whole gallery its class lies."""

import importlib
import importlib.util
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import (
    Floats,
    Integers,
    average_precision,
    first_copies,
    first_equals,
    nearest_in_block,
    nearest_neighbors,
    similarity_blocks,
)
from cyclecontrast.evaluation.retrieval.video_vectors import VideoItems
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished

QUERIES_PER_PART = 2**11
CELLS_PER_ROOT = 4
MIN_ITEMS_PER_CELL = 39
"""Fewer training items per cell than this and faiss warns."""
PART_SEARCHED, MIN_SEARCHED = 1 / 8, 16
QUERIES_CHECKED = 100


def rank(gallery: VideoItems, queries: VideoItems, k: int, unfinished: Unfinished) -> Arrays:
    """Find the k nearest of each query (num_queries, k), and its average precision; what was found before stays."""
    starts = range(0, len(queries.vectors), QUERIES_PER_PART)
    console = Console(stderr=True)
    watched = track(starts, "ranking", console=console, disable=not console.is_terminal, transient=True)
    firsts = first_equals(gallery.vectors)
    parts = [
        unfinished.arrays(f"ranking-{x}-{k}", lambda x=x: _rank_part(gallery, firsts, queries, x, k))  # type: ignore[misc]
        for x in watched
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rank_part(gallery: VideoItems, firsts: Integers, queries: VideoItems, start: int, k: int) -> Arrays:
    part = slice(start, start + QUERIES_PER_PART)
    rivals = first_copies(firsts, k)
    distinct = bool((firsts == np.arange(len(firsts))).all())
    indices, precisions = [], []
    first = start
    for block in similarity_blocks(gallery.vectors, queries.vectors[part]):
        labels = queries.labels[first : first + len(block.queries)]
        first += len(block.queries)
        indices.append(nearest_in_block(gallery.vectors, block, k, rivals).indices)
        # Rounding must not part what is equal: short videos have equal clips, and their order would be chance.
        similarities = block.similarities if distinct else block.similarities[:, firsts]
        precisions.append(average_precision(similarities, gallery.labels, labels))
    return {"indices": np.concatenate(indices), "average_precision": np.concatenate(precisions)}


def check_faiss() -> None:
    """Raise UserError where faiss is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise UserError("ann: faiss is not installed; pip install 'cyclecontrast[faiss]', or leave ann at exact")


def rank_by_faiss(gallery: Floats, queries: Floats, k: int) -> tuple[Arrays, str]:
    """Find most of the k nearest by looking into a part of the gallery's cells; -1 where too few lie there.

    Returns the neighbors (num_queries, k), and a line that says how many of them an exact search finds, too.
    """
    index = cells_of(gallery)
    found = index.search(queries, k)[1]
    recall = _recall(gallery, queries, found)
    line = (
        f"ann=faiss looks into {index.nprobe} of {index.nlist} cells and finds {recall:.1%} of the {k} nearest; no mAP"
    )
    return {"indices": found}, line


def cells_of(gallery: Floats) -> Any:
    """Return faiss's index of a gallery, which looks into a part of its cells."""
    faiss: Any = importlib.import_module("faiss")
    num_items, dim = gallery.shape
    num_cells = max(1, min(round(CELLS_PER_ROOT * num_items**0.5), num_items // MIN_ITEMS_PER_CELL))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_cells, faiss.METRIC_INNER_PRODUCT)
    index.train(gallery)
    index.add(gallery)
    index.nprobe = min(num_cells, max(MIN_SEARCHED, round(num_cells * PART_SEARCHED)))
    return index


def _recall(gallery: Floats, queries: Floats, found: Integers) -> float:
    """Return the part of the nearest items that were found, for queries spread over all."""
    some = slice(None, None, max(1, len(queries) // QUERIES_CHECKED))
    exact = nearest_neighbors(gallery, queries[some], found.shape[1]).indices
    return float(np.mean([np.isin(true, ours).mean() for true, ours in zip(exact, found[some], strict=True)]))
