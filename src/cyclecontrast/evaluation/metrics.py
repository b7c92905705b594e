"""Metrics of predictions, and exact nearest neighbors, as pure functions of arrays.

Ties go to the lower index, so that results are reproducible. Masks of single objects are scored by region and boundary
as in DAVIS; masks of classes over the pixels of all images together. Boxes are x, y, w, h.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]
Masks = npt.NDArray[np.bool_]
Block = tuple[Floats, Floats]
"""Some queries, and their dot products with the gallery."""

SIMILARITIES_AT_ONCE = 2**24
NUMBERS_AT_ONCE = 2**18
GROUPS, GROUPS_PER_NEIGHBOR = 1024, 16
BOUNDARY_TOLERANCE = 0.008
IGNORE = 255
MAX_CENTER_ERROR = 50
"""Largest distance of the precision curve, in pixels."""


# Classification.


def rank_classes(scores: Floats, num: int) -> Integers:
    """Return the `num` classes of highest score (num_items, num), best first, of scores (num_items, num_classes).

    A class whose score is -inf has no rank: there is -1 in its place.
    """
    if not 1 <= num <= scores.shape[1]:
        raise ValueError(f"{num} classes of {scores.shape[1]}")
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :num]
    return np.where(np.isneginf(np.take_along_axis(scores, ranked, axis=1)), -1, ranked)


def top_k_accuracy(scores: Floats, labels: Integers, k: int) -> float:
    """Return the fraction of items whose label (num_items,) is among the k classes of highest score."""
    return hit_at_k(rank_classes(scores, k), labels, k)


def confusion_matrix(predicted: Integers, labels: Integers, num_classes: int) -> npt.NDArray[np.int64]:
    """Count items by label (rows) and predicted class (columns)."""
    cells: npt.NDArray[np.int64] = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def per_class_accuracy(predicted: Integers, labels: Integers, num_classes: int) -> npt.NDArray[np.float64]:
    """Return the accuracy of each class (num_classes,); nan for a class without items."""
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    accuracy: npt.NDArray[np.float64] = np.divide(right, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return accuracy


# Nearest neighbors.


class Neighbors(NamedTuple):
    """Most similar gallery items of each query, nearest first; both (num_queries, k)."""

    similarities: Floats
    indices: Integers


def unit_vectors(vectors: Floats) -> Floats:
    """Scale each row to length 1; zero rows stay zero and have similarity 0 to all others."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def dot_products(left: Floats, right: Floats) -> Floats:
    """Return left @ right. The vectors must be finite.

    OpenBLAS may read beyond the end of a row and set the flag of an invalid operation although every product is right
    (numpy issues 13173 and 24067), so NumPy's warning is switched off.
    """
    with np.errstate(invalid="ignore"):
        products: Floats = left @ right
    return products


def video_means(vectors: Floats, videos: Integers, num_videos: int) -> Floats:
    """Average the vectors (num_images, dim) of each video, numbered by `videos` (num_images,) → (num_videos, dim)."""
    counts = np.bincount(videos, minlength=num_videos)
    if len(counts) != num_videos or not counts.all():
        raise ValueError(f"{num_videos} videos, but vectors of {np.count_nonzero(counts)}")
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(vectors[np.argsort(videos, kind="stable")], starts, axis=0, dtype=np.float64)
    means: Floats = (sums / counts[:, None]).astype(vectors.dtype)
    return means


def nearest_neighbors(
    gallery: Floats,
    queries: Floats,
    k: int,
    similarities_at_once: int = SIMILARITIES_AT_ONCE,
    show: Callable[[Iterator[Block], int], Iterator[Block]] = lambda blocks, _: blocks,
) -> Neighbors:
    """Find the k rows of the gallery with the largest dot product with each query, in blocks of bounded memory.

    `show` gets the blocks and their number; it yields the blocks, and may show how far they are.
    """
    num_blocks = math.ceil(len(queries) / max(1, similarities_at_once // len(gallery)))
    blocks = show(similarity_blocks(gallery, queries, similarities_at_once), num_blocks)
    found = [nearest_in_block(gallery, rows, similarities, k) for rows, similarities in blocks]
    return Neighbors(*(np.concatenate(column) for column in zip(*found, strict=True)))


def reduced_k_notes(ks: Iterable[int], size: int, what: str) -> list[str]:
    """Return a note if there are fewer items than some k of nearest neighbors."""
    large = [str(k) for k in ks if k > size]
    verb = "is" if len(large) == 1 else "are"
    return [f"k={', '.join(large)} {verb} more than the {size} {what} items: {size} used"] if large else []


def similarity_blocks(
    gallery: Floats, queries: Floats, similarities_at_once: int = SIMILARITIES_AT_ONCE
) -> Iterator[Block]:
    """Yield some queries at a time, with their dot products with the gallery (num_queries, num_gallery)."""
    num_rows = max(1, similarities_at_once // len(gallery))
    for start in range(0, max(len(queries), 1), num_rows):
        rows = queries[start : start + num_rows]
        yield rows, dot_products(rows, gallery.T)


def nearest_in_block(gallery: Floats, queries: Floats, similarities: Floats, k: int) -> Neighbors:
    """Return the k nearest neighbors of the queries of a block.

    BLAS rounds equal items differently depending on their position. All candidates for the k nearest are therefore
    recomputed in double precision, so that order and ties do not depend on blocks, threads or BLAS.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"{k} neighbors of a gallery of {len(gallery)}")
    bounds = _lower_bounds(similarities, k) - 2 * rounding_errors(gallery, queries)
    rows, indices = np.divmod(np.flatnonzero(similarities >= bounds[:, None]), len(gallery))
    exact = _products(gallery, queries, rows, indices)
    order = np.lexsort((indices, -exact, rows))
    firsts = np.searchsorted(rows, np.arange(len(bounds)))
    chosen = order[firsts[:, None] + np.arange(k)]
    return Neighbors(exact[chosen].astype(similarities.dtype), indices[chosen])


def rounding_errors(gallery: Floats, queries: Floats) -> Floats:
    """Return a bound on the rounding error of each query's dot products with the gallery (num_queries,).

    The error of a dot product of n terms, in any order, is at most n·eps/2 times the product of the vectors' lengths.
    """
    longest = np.sqrt(np.einsum("id,id->i", gallery, gallery).max())
    errors: Floats = (
        gallery.shape[1]
        * np.finfo(np.result_type(gallery, queries)).eps
        / 2
        * longest
        * np.linalg.norm(queries, axis=1)
    )
    return errors


def _lower_bounds(similarities: Floats, k: int) -> Floats:
    """Return a lower bound (num_queries,) on the similarity of each query's k-th nearest item.

    The k-th largest of the maxima of groups is never above the k-th largest of all, and takes one pass to find.
    Adjacent items, often frames of one video, fall into different groups.
    """
    num_queries, num_items = similarities.shape
    num_groups = min(num_items, max(GROUPS, GROUPS_PER_NEIGHBOR * k))
    group_size = num_items // num_groups
    groups = similarities[:, : group_size * num_groups].reshape(num_queries, group_size, num_groups)
    bounds: Floats = np.partition(groups.max(axis=1), num_groups - k, axis=1)[:, num_groups - k]
    return bounds


def _products(gallery: Floats, queries: Floats, rows: Integers, indices: Integers) -> Floats:
    """Return the dot products of these pairs (num_pairs,): equal pairs give equal bits."""
    at_once = max(1, NUMBERS_AT_ONCE // gallery.shape[1])
    products = np.empty(len(rows))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        pairs = gallery[indices[part]].astype(np.float64)
        pairs *= queries[rows[part]]
        products[part] = pairs.sum(axis=1)
    return products


def vote(neighbors: Neighbors, labels: Integers, k: int, temperature: float, num_classes: int) -> Floats:
    """Sum exp(similarity / temperature) of the first k neighbors by their class → (num_queries, num_classes).

    Votes are relative to that of the nearest neighbor, which keeps small temperatures from overflowing. A score of 0 is
    that of a class without a vote.
    """
    similarities = neighbors.similarities[:, :k].astype(np.float64)
    weights = np.exp((similarities - similarities[:, :1]) / temperature).clip(np.finfo(np.float64).tiny)
    cells = np.arange(len(weights))[:, None] * num_classes + labels[neighbors.indices[:, :k]]
    scores = np.zeros((len(weights), num_classes))
    scores.ravel()[:] = np.bincount(cells.ravel(), weights.ravel(), minlength=scores.size)
    return scores


def knn_scores(
    train: Floats, train_labels: Integers, queries: Floats, k: int, temperature: float, num_classes: int
) -> Floats:
    """Classify unit vectors by weighted voting of the k nearest → (num_queries, num_classes)."""
    return vote(nearest_neighbors(train, queries, k), train_labels, k, temperature, num_classes)


def hit_at_k(ranked: Integers, labels: Integers, k: int) -> float:
    """Return the fraction of items whose label (num_items,) is among the first k of its ranked ones.

    `ranked` (num_items, num_ranked) are classes, or the labels of the nearest neighbors, best first.
    """
    if not 1 <= k <= ranked.shape[1]:
        raise ValueError(f"hit@{k} of {ranked.shape[1]}")
    return float((ranked[:, :k] == labels[:, None]).any(axis=1).mean())


def average_precision(
    similarities: Floats, gallery_labels: Integers, query_labels: Integers
) -> npt.NDArray[np.float64]:
    """Return the average precision of each query (num_queries,) over the whole gallery; nan without any of its class.

    `similarities` are (num_queries, num_gallery). Equal ones count as one step, as in scikit-learn: so the value does
    not depend on the gallery's order.
    """
    values = np.full(len(query_labels), np.nan)
    for number, (row, label) in enumerate(zip(similarities, query_labels, strict=True)):
        relevant = np.sort(row[gallery_labels == label])
        if len(relevant):
            num_found = len(relevant) - np.searchsorted(relevant, relevant)
            num_seen = len(row) - np.searchsorted(np.sort(row), relevant)
            values[number] = (num_found / num_seen).mean()
    return values


# Masks.


def region_similarity(predicted: Masks, truth: Masks) -> float:
    """Return J, the intersection over the union of two masks (height, width); 1 where both are empty."""
    _check(predicted, truth)
    union = np.count_nonzero(predicted | truth)
    return float(np.count_nonzero(predicted & truth) / union) if union else 1.0


def boundary_f(predicted: Masks, truth: Masks, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """Return F, the harmonic mean of precision and recall of boundary pixels of two masks (height, width).

    A pixel is right where the other boundary passes within the tolerance: a fraction of the image's diagonal, rounded
    up to pixels, or from 1 on a number of pixels. F is 1 where neither mask has a boundary, 0 where one has none.
    """
    _check(predicted, truth)
    radius = math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(*truth.shape))
    ours, theirs = boundary(predicted), boundary(truth)
    if not (ours.any() and theirs.any()):
        return float(ours.any() == theirs.any())
    precision = np.count_nonzero(ours & _dilated(theirs, radius)) / np.count_nonzero(ours)
    recall = np.count_nonzero(theirs & _dilated(ours, radius)) / np.count_nonzero(theirs)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: Masks) -> Masks:
    """Return the pixels (height, width) that differ from their neighbor to the right, below, or right below.

    Beyond the image its last row and column are repeated.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    found: Masks = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    return found


def _dilated(mask: Masks, radius: int) -> Masks:
    """Return the pixels (height, width) within the radius, that of a disk, of a pixel of the mask."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    return cv2.dilate(mask.astype(np.uint8), disk).astype(np.bool_)  # type: ignore[no-any-return]


def _check(predicted: Masks, truth: Masks) -> None:
    if predicted.shape != truth.shape or predicted.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ValueError(f"masks of {predicted.dtype} {predicted.shape} and {truth.dtype} {truth.shape}")


def pixel_confusion(
    predicted: Integers, truth: Integers, num_classes: int, ignore: int = IGNORE
) -> npt.NDArray[np.int64]:
    """Count pixels by true class (rows) and predicted class (columns); both arrays have one shape, any.

    Raises ValueError for a class outside 0..num_classes - 1 on a pixel that is not ignored.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {truth.shape} differ in shape")
    counted = truth != ignore
    predicted, truth = predicted[counted].astype(np.int64), truth[counted].astype(np.int64)
    for name, values in (("predicted", predicted), ("true", truth)):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(f"{name} classes {values.min()}..{values.max()} of {num_classes}")
    return confusion_matrix(predicted, truth, num_classes)


def iou_per_class(confusion: Integers) -> npt.NDArray[np.float64]:
    """Return intersection over union of each class (num_classes,); nan for one that is neither true nor predicted."""
    both = np.diag(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    iou: npt.NDArray[np.float64] = np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)
    return iou


def mean_iou(predicted: Integers, truth: Integers, num_classes: int, ignore: int = IGNORE) -> float:
    """Return the mean over classes of intersection over union, pixels counted together over all images.

    A class that is neither true nor predicted anywhere is left out of the mean; one that is predicted but never true
    counts as 0. Raises ValueError where no pixel counts.
    """
    confusion = pixel_confusion(predicted, truth, num_classes, ignore)
    if not confusion.any():
        raise ValueError("every pixel is ignored")
    return float(np.nanmean(iou_per_class(confusion)))


def pixel_accuracy(confusion: Integers) -> float:
    """Return the fraction of the counted pixels that is predicted right."""
    return float(np.trace(confusion) / confusion.sum())


# Boxes of trackers; `predicted` and `truth` are (num_frames, 4).


def overlaps(predicted: Floats, truth: Floats, image_sizes: Floats | None = None) -> Floats:
    """Return intersection over union (num_frames,) of boxes with continuous coordinates, as in the GOT-10k toolkit.

    With the images' width and height (num_frames, 2), boxes are first clipped as the toolkit clips them: a corner
    outside the image is moved to the edge, then the size is cut.
    """
    if image_sizes is not None:
        predicted, truth = _clip(predicted, image_sizes), _clip(truth, image_sizes)
    shared, union = _areas(predicted, truth)
    return np.clip(shared / (union + np.finfo(np.float64).eps), 0, 1)


def official_overlaps(predicted: Floats, truth: Floats) -> Floats:
    """Return intersection over union (num_frames,) as the authors of OTB do: -1 where the true box is not positive.

    They count whole pixels, a box ending at x + w - 1, and add 1 to each side, which gives the same area.
    """
    shared, union = _areas(predicted, truth)
    overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union != 0)
    return np.where((truth > 0).all(axis=1), overlap, -1)


def center_errors(predicted: Floats, truth: Floats) -> Floats:
    """Return the distance between the boxes' centers in pixels (num_frames,); a center is x + (w - 1) / 2."""
    centers = (boxes[:, :2] + (boxes[:, 2:] - 1) / 2 for boxes in (predicted, truth))
    errors: Floats = np.linalg.norm(np.subtract(*centers), axis=1)
    return errors


def official_center_errors(predicted: Floats, truth: Floats) -> Floats:
    """Return the distance between centers as the authors of OTB do: rounded to 4 digits, -1 without a positive box.

    A distance of -1 is a hit at every threshold.
    """
    return np.where((truth > 0).all(axis=1), center_errors(predicted, truth).round(4), -1)


def success_curve(overlap: Floats, num_bins: int = 21) -> Floats:
    """Return the fraction of frames whose overlap is above each of `num_bins` thresholds from 0 to 1 (num_bins,).

    No overlap is above 1: the mean of a perfect curve is 20/21.
    """
    curve: Floats = (overlap[:, None] > np.linspace(0, 1, num_bins)).mean(axis=0)
    return curve


def precision_curve(errors: Floats) -> Floats:
    """Return the fraction of frames whose center error is at most 0, 1, ... 50 pixels (51,)."""
    curve: Floats = (errors[:, None] <= np.arange(MAX_CENTER_ERROR + 1)).mean(axis=0)
    return curve


def _areas(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Return the areas (num_frames,) of the intersection and of the union."""
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[:, 0] * sides[:, 1]
    return shared, first[:, 2] * first[:, 3] + second[:, 2] * second[:, 3] - shared


def _clip(boxes: Floats, image_sizes: Floats) -> Floats:
    corners = np.clip(boxes[:, :2], 0, image_sizes)
    return np.hstack([corners, np.clip(boxes[:, 2:], 0, image_sizes - corners)])
