"""Scores of predictions against brute force, scikit-learn and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.neighbors import KNeighborsClassifier

from cyclecontrast.evaluation.metrics import (
    Neighbors,
    confusion_matrix,
    hit_at_k,
    knn_scores,
    nearest_neighbors,
    per_class_accuracy,
    rank_classes,
    top_k_accuracy,
    unit_vectors,
    video_means,
    vote,
)

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, num, dim):
    """Draw unit vectors."""
    return unit_vectors(np.random.default_rng(seed).normal(size=(num, dim)))


def loop_knn(train, labels, queries, k, temperature, num_classes):
    """Vote as protocols.md §b says, one query and one neighbor at a time."""
    scores = np.zeros((len(queries), num_classes))
    for number, query in enumerate(queries):
        similarity = [sum(a * b for a, b in zip(query, item, strict=True)) for item in train]
        nearest = sorted(range(len(train)), key=lambda i: (-similarity[i], i))[:k]
        for item in nearest:
            scores[number, labels[item]] += np.exp(similarity[item] / temperature)
    return scores


def relative(scores):
    """Scale the scores of each query to a sum of 1."""
    return scores / scores.sum(axis=1, keepdims=True)


@given(SEEDS, st.integers(1, 30), st.integers(1, 12), st.sampled_from([0.07, 0.5, 5.0]))
def test_votes_equal_those_counted_one_by_one(seed, num_train, num_queries, temperature):
    """Scores equal the plain loop's up to a factor per query, at any k and any number of queries."""
    rng = np.random.default_rng(seed)
    train, queries = drawn(seed, num_train, 4), drawn(seed + 1, num_queries, 4)
    labels, k = rng.integers(0, 5, num_train), int(rng.integers(1, num_train + 1))
    ours = knn_scores(train, labels, queries, k, temperature, 5)
    np.testing.assert_allclose(relative(ours), relative(loop_knn(train, labels, queries, k, temperature, 5)), atol=1e-9)


@pytest.mark.parametrize("num_queries", [1, 7, 99, 250])
def test_classes_equal_those_of_scikit_learn(num_queries):
    """The winner is that of KNeighborsClassifier with the same weights, below 100 queries too."""
    train, queries = drawn(0, 400, 16), drawn(1, num_queries, 16)
    labels = np.random.default_rng(2).integers(0, 7, 400)
    oracle = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    scores = knn_scores(train, labels, queries, 20, 0.07, 7)
    assert (rank_classes(scores, 1)[:, 0] == oracle.fit(train, labels).predict(queries)).all()


@pytest.mark.parametrize("num_queries", [1, 99, 101])
@pytest.mark.parametrize("k", [10, 20, 100, 200])
def test_the_protocols_numbers_of_neighbors_equal_a_float64_loop(k, num_queries):
    """Each k of protocols.md §b, also below the 100 queries at which its authors' code divides by zero."""
    train, queries = drawn(0, 220, 3).astype(np.float32), drawn(1, num_queries, 3).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 6, 220)
    ours = knn_scores(train, labels, queries, k, 0.07, 6)
    expected = loop_knn(train.astype(float), labels, queries.astype(float), k, 0.07, 6)
    np.testing.assert_allclose(relative(ours), relative(expected), rtol=1e-4, atol=1e-6)
    assert (rank_classes(ours, 1) == rank_classes(expected, 1)).all()


@given(SEEDS, st.integers(1, 25), st.integers(0, 9), st.integers(1, 60))
def test_neighbors_do_not_depend_on_the_size_of_blocks(seed, num_gallery, num_queries, at_once):
    """Whole numbers give many exact ties: the nearest come first, equal ones by index, whatever the block size."""
    rng = np.random.default_rng(seed)
    gallery, queries = rng.integers(-1, 2, (num_gallery, 3)) * 1.0, rng.integers(-1, 2, (num_queries, 3)) * 1.0
    k = int(rng.integers(1, num_gallery + 1))
    found = nearest_neighbors(gallery, queries, k, at_once)
    similarities = queries @ gallery.T
    expected = [sorted(range(num_gallery), key=lambda i: (-row[i], i))[:k] for row in similarities]
    assert found.indices.tolist() == expected
    assert (found.similarities == np.take_along_axis(similarities, found.indices, 1)).all()


def test_more_neighbors_than_the_gallery_has_are_refused():
    """The caller decides what a k beyond the gallery means; here it is an error."""
    with pytest.raises(ValueError, match="4 neighbors of a gallery of 3"):
        nearest_neighbors(np.eye(3), np.eye(3), 4)


def test_small_temperatures_do_not_overflow():
    """At a temperature of 0.0001 exp(similarity / temperature) is beyond float64; the nearest simply wins."""
    scores = knn_scores(np.eye(3), np.array([0, 1, 1]), np.array([[0.9, 0.5, 0.5]]), 3, 1e-4, 2)
    assert np.isfinite(scores).all()
    assert scores.argmax() == 0


def test_one_search_serves_every_k():
    """Voting with the first k of a longer search equals a search for k."""
    train, queries, labels = drawn(0, 50, 8), drawn(1, 10, 8), np.arange(50) % 4
    neighbors = nearest_neighbors(train, queries, 30)
    for k in (1, 5, 30):
        assert (vote(neighbors, labels, k, 0.07, 4) == knn_scores(train, labels, queries, k, 0.07, 4)).all()


def test_accuracies_of_a_case_done_by_hand():
    """Four items of three classes, one class never seen: each number can be counted on paper."""
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2], [0.0, 0.9, 0.1]])
    labels = np.array([0, 1, 1, 1])
    assert [top_k_accuracy(scores, labels, k) for k in (1, 2, 3)] == [0.5, 1.0, 1.0]
    predicted = rank_classes(scores, 1)[:, 0]
    assert predicted.tolist() == [0, 2, 0, 1]
    assert per_class_accuracy(predicted, labels, 3)[:2].tolist() == [1.0, 1 / 3]
    assert np.isnan(per_class_accuracy(predicted, labels, 3)[2])
    assert confusion_matrix(predicted, labels, 3).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_a_class_without_a_vote_has_no_rank():
    """Three neighbors of two classes rank two of four, even where one vote is too small for a float64."""
    neighbors = Neighbors(np.array([[0.9, 0.5, 0.4], [0.9, -0.9, -0.9]]), np.array([[0, 1, 2], [2, 0, 1]]))
    for temperature in (0.07, 1e-4):
        scores = vote(neighbors, np.array([3, 3, 1]), 3, temperature, 4)
        assert ((scores > 0) == [[False, True, False, True]] * 2).all()
        assert rank_classes(np.where(scores > 0, scores, -np.inf), 3).tolist() == [[3, 1, -1], [1, 3, -1]]


def test_equal_scores_go_to_the_lower_class():
    """A network that knows nothing is right only where class 0 is."""
    assert rank_classes(np.zeros((2, 4)), 3).tolist() == [[0, 1, 2]] * 2
    assert top_k_accuracy(np.zeros((4, 4)), np.arange(4), 1) == 0.25


@given(SEEDS, st.integers(1, 20), st.integers(2, 8))
def test_accuracy_behaves_as_accuracy_does(seed, num, num_classes):
    """It grows with k to 1, does not depend on the order of items, and equals scikit-learn's."""
    rng = np.random.default_rng(seed)
    scores, labels, order = rng.normal(size=(num, num_classes)), rng.integers(0, num_classes, num), rng.permutation(num)
    values = [top_k_accuracy(scores, labels, k) for k in range(1, num_classes + 1)]
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert values == [top_k_accuracy(scores[order], labels[order], k) for k in range(1, num_classes + 1)]
    predicted = rank_classes(scores, 1)[:, 0]
    assert values[0] == pytest.approx(reference.accuracy_score(labels, predicted))
    names = np.arange(num_classes)
    confusion = confusion_matrix(predicted, labels, num_classes)
    assert (confusion == reference.confusion_matrix(labels, predicted, labels=names)).all()
    recall = reference.recall_score(labels, predicted, labels=names, average=None, zero_division=np.nan)
    np.testing.assert_allclose(per_class_accuracy(predicted, labels, num_classes), recall)


def test_impossible_ranks_are_refused():
    """Top-0 and top-4 of three classes are mistakes of the caller."""
    for k in (0, 4):
        with pytest.raises(ValueError, match="of 3"):
            rank_classes(np.zeros((1, 3)), k)
        with pytest.raises(ValueError, match="of 3"):
            hit_at_k(np.zeros((1, 3), int), np.zeros(1, int), k)


@given(SEEDS, st.integers(1, 6), st.integers(0, 20))
def test_means_over_videos_equal_a_loop(seed, num_videos, extra):
    """Frames may come in any order; each video's mean is that of its own frames."""
    rng = np.random.default_rng(seed)
    videos = rng.permutation(np.concatenate([np.arange(num_videos), rng.integers(0, num_videos, extra)]))
    vectors = rng.normal(size=(len(videos), 3)).astype(np.float32)
    means = video_means(vectors, videos, num_videos)
    expected = [vectors[videos == video].astype(float).mean(axis=0) for video in range(num_videos)]
    np.testing.assert_allclose(means, expected, rtol=1e-6, atol=1e-7)
    assert means.dtype == np.float32


def test_a_video_without_vectors_is_refused():
    """A mean over nothing would be nan."""
    with pytest.raises(ValueError, match="3 videos, but vectors of 2"):
        video_means(np.ones((2, 2)), np.array([0, 2]), 3)


def test_a_vector_of_zeros_stays_zero():
    """It has no direction, and is similar to nothing."""
    assert unit_vectors(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0.0, 0.0], [0.6, 0.8]]
