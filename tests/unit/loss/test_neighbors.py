"""Nearest neighbors across videos against plain loops in float64, and by hand."""

import math
from unittest import mock

import pytest
import torch

from cyclecontrast.loss import neighbors
from cyclecontrast.loss.neighbors import centered, mutual_neighbors, precision_by_margin, video_means


def draw(num=40, num_videos=7, dim=4, seed=0):
    """Draw vectors of any length and the videos they are of, in no order."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num, dim, generator=generator) * 3
    return vectors, torch.randint(num_videos, (num,), generator=generator) * 10


def cosine(a, b):
    """Return the cosine of two lists of numbers."""
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths


def test_neighbors_agree_with_loops():
    """Neighbor, similarity, margin over third videos, mutual pairs and closed cycles equal loops, block by block."""
    vectors, video = draw()
    rows, of = vectors.double().tolist(), video.tolist()
    everyone = range(len(rows))

    def nearest(i, *without):
        candidates = [j for j in everyone if of[j] not in (of[i], *without)]
        return max(candidates, key=lambda j: cosine(rows[i], rows[j]))

    with mock.patch.object(neighbors, "BLOCK", 40 * 3):
        found = mutual_neighbors(vectors, video)
    index = [nearest(i) for i in everyone]
    assert found.nearest.tolist() == index
    similarity = [cosine(rows[i], rows[index[i]]) for i in everyone]
    third = [nearest(i, of[index[i]]) for i in everyone]
    margin = [similarity[i] - cosine(rows[i], rows[third[i]]) for i in everyone]
    assert found.similarity.tolist() == pytest.approx(similarity, abs=1e-5)
    assert found.margin.tolist() == pytest.approx(margin, abs=1e-5)
    assert found.mutual.tolist() == [index[index[i]] == i for i in everyone]
    assert found.closed.tolist() == [of[index[index[i]]] == of[i] for i in everyone]
    pairs, smaller = found.pairs()
    expected = [[i, index[i]] for i in everyone if i < index[i] and index[index[i]] == i]
    assert pairs.tolist() == expected
    assert 0 < len(expected) < found.closed.sum() < len(rows)
    assert smaller.tolist() == pytest.approx([min(margin[i], margin[j]) for i, j in expected], abs=1e-5)


@pytest.mark.parametrize(("num_videos", "is_found"), [(1, False), (2, True)])
def test_few_videos(num_videos, is_found):
    """One video has no neighbors; among two there is no third one, so the margin is infinite and all cycles close."""
    vectors = draw(6)[0]
    found = mutual_neighbors(vectors, torch.arange(6) % num_videos)
    assert bool(found.mutual.any()) == bool(found.closed.all()) == is_found
    assert len(found.pairs()[0]) > 0 or not is_found
    assert not found.margin.isfinite().any()


def test_centering_and_means_of_videos():
    """Means are taken per video in the order of the numbers; centering removes the mean of the unit vectors."""
    vectors, video = torch.tensor([[2.0, 0], [0, 4], [6, 0]]), torch.tensor([5, 3, 5])
    means, numbers = video_means(vectors, video)
    assert (means.tolist(), numbers.tolist()) == ([[0, 4], [4, 0]], [3, 5])
    assert centered(vectors).flatten().tolist() == pytest.approx([1 / 3, -1 / 3, -2 / 3, 2 / 3, 1 / 3, -1 / 3])
    halves = vectors.bfloat16()
    assert centered(halves).dtype == video_means(halves, video)[0].dtype == torch.float32


def test_precision_by_margin_by_hand():
    """The surest pairs come first; each part gives the share of pairs with the same label, nan without pairs."""
    pairs, label = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]]), torch.tensor([0, 0, 1, 1, 2, 0, 3, 0])
    margin = torch.tensor([0.1, 0.9, 0.2, 0.8])
    assert precision_by_margin(pairs, margin, label, 2) == [0.5, 0.5]
    assert precision_by_margin(pairs, margin, label) == [1, 0, 0, 1]
    few = precision_by_margin(pairs[:1], margin[:1], label)
    assert few[0] == 1
    assert all(math.isnan(part) for part in few[1:])
