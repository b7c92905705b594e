"""Label propagation: context, softmax and neighborhood against plain loops, and squares followed to the cell."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cyclecontrast.evaluation import label_propagation
from cyclecontrast.evaluation.label_propagation import (
    PRESETS,
    LabelPropagation,
    context_frames,
    labels_of_mask,
    mask_of_labels,
    preset_for,
    propagate,
)
from cyclecontrast.models.backbone import make_backbone


def unit_features(num_frames, height, width, seed=0, dim=5):
    """Random unit vectors in single precision."""
    features = torch.from_numpy(np.random.default_rng(seed).normal(size=(num_frames, height, width, dim))).float()
    return torch.nn.functional.normalize(features, dim=3)


def plain_propagation(query, keys, values, preset):
    """Propagate with loops over cells, in double precision."""
    query, keys, values = (np.asarray(x, dtype=float) for x in (query, keys, values))
    height, width, _ = query.shape
    found = np.zeros((height, width, values.shape[-1]))
    for y, x in np.ndindex(height, width):
        candidates = []
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            for v, u in np.ndindex(height, width):
                if preset.neighborhood == "circle":
                    is_near = ((v - y) ** 2 + (u - x) ** 2) ** 0.5 < preset.radius
                else:
                    is_near = abs(v - y) <= preset.radius and abs(u - x) <= preset.radius
                if is_near or (number == 0 and preset.first_everywhere):
                    candidates.append((float(query[y, x] @ key[v, u]), value[v, u]))
        best = sorted(candidates, key=lambda pair: -pair[0])[: preset.top_k]
        weights = [np.exp(similarity / preset.temperature) for similarity, _ in best]
        found[y, x] = sum(w * value for w, (_, value) in zip(weights, best, strict=True)) / sum(weights)
    return found


def test_presets_are_those_of_the_papers():
    """Frames of context, top-k, temperature, shape and radius of the neighborhood."""
    found = {
        name: (p.num_preceding, p.top_k, p.temperature, p.neighborhood, p.radius, p.bottleneck_radius)
        for name, p in PRESETS.items()
    }
    assert found == {
        "crw": (20, 10, 0.05, "circle", 12, 12),
        "vfs": (20, 10, 0.07, "circle", 12, 18),
        "dino": (7, 5, 0.1, "square", 12, 12),
    }
    assert [name for name, preset in PRESETS.items() if preset.first_everywhere] == ["crw"]


@pytest.mark.parametrize(("name", "radius"), [("resnet10-w8", 12), ("resnet18-w8", 12), ("resnet50-w8", 18)])
def test_bottlenecks_search_further(name, radius):
    """VFS has a radius of 12 cells for ResNet-18 and 18 for ResNet-50; CRW has 12 for all."""
    backbone = make_backbone(name)
    assert preset_for("vfs", backbone).radius == radius
    assert preset_for("crw", backbone).radius == 12


@pytest.mark.parametrize(
    ("name", "frame", "expected"),
    [
        ("crw", 1, [0] * 21),
        ("crw", 5, [0] * 17 + [1, 2, 3, 4]),
        ("crw", 30, [0, *range(10, 30)]),
        ("vfs", 1, [0, 0]),
        ("vfs", 5, [0, 0, 1, 2, 3, 4]),
        ("vfs", 20, [0, *range(20)]),
        ("vfs", 21, [0, *range(1, 21)]),
        ("vfs", 30, [0, *range(10, 30)]),
        ("dino", 1, [0]),
        ("dino", 5, [0, 1, 2, 3, 4]),
        ("dino", 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("dino", 30, [0, *range(23, 30)]),
    ],
)
def test_the_context_is_that_of_the_paper(name, frame, expected):
    """CRW repeats the first frame in place of frames before it, VFS counts it twice, DINO once."""
    assert context_frames(PRESETS[name], frame) == expected


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("radius", [3, 6])
def test_labels_propagate_as_in_plain_loops(name, radius):
    """The softmax is over the top k of the neighborhood; tiles and their windows change nothing."""
    preset = PRESETS[name]._replace(radius=radius)
    height, width = 9, 17
    query, *keys = unit_features(4, height, width)
    values = torch.from_numpy(np.random.default_rng(1).dirichlet((1, 1, 1), (3, height, width))).float()
    found = propagate(query, keys, list(values), preset).numpy()
    expected = plain_propagation(query, torch.stack(keys), values, preset)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    other = plain_propagation(
        query, torch.stack(keys), values, preset._replace(radius=radius - 1, first_everywhere=False)
    )
    assert np.abs(found - other).max() > 0.1


def test_tiles_of_any_size_give_the_same(monkeypatch):
    """The side of the tiles bounds the memory, and does not change the result."""
    query, *keys = unit_features(3, 13, 11)
    values = list(unit_features(2, 13, 11, seed=1))
    whole = propagate(query, keys, values, PRESETS["vfs"])
    monkeypatch.setattr(label_propagation, "TILE", 3)
    torch.testing.assert_close(propagate(query, keys, values, PRESETS["vfs"]), whole)


def test_fewer_cells_than_top_k_are_enough():
    """On a map of two by two cells the softmax is over all of them."""
    query, key = unit_features(2, 2, 2)
    values = unit_features(1, 2, 2, seed=1, dim=3)[0]
    found = propagate(query, [key], [values], PRESETS["vfs"])
    np.testing.assert_allclose(found, plain_propagation(query, [key], [values], PRESETS["vfs"]), atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_squares_with_distinct_features_are_followed_to_the_cell(name):
    """Features that separate two squares and the background carry the first labels through 24 frames exactly."""
    frames = torch.zeros(25, 12, 39, dtype=torch.long)
    for t in range(25):
        frames[t, 2:6, 1 + t : 5 + t] = 1
        frames[t, 7:11, 32 - t : 36 - t] = 2
    features = torch.eye(3)[frames]
    propagation = LabelPropagation(PRESETS[name], features[0], features[0].clone())
    for t in range(1, 25):
        torch.testing.assert_close(propagation.advance(features[t]), features[t])


@pytest.mark.parametrize("name", PRESETS)
def test_only_the_frames_of_the_context_are_stored(name):
    """After 30 frames only the first and those of the window are stored; each step takes the right ones."""
    preset = PRESETS[name]
    features = unit_features(31, 3, 4)
    first = torch.eye(12).reshape(3, 4, 12)
    propagation = LabelPropagation(preset, features[0], first)
    labels = [first]
    for frame in range(1, 31):
        labels.append(propagation.advance(features[frame]))
        context = context_frames(preset, frame)
        expected = propagate(features[frame], [features[i] for i in context], [labels[i] for i in context], preset)
        assert torch.equal(labels[frame], expected)
    assert sorted(propagation.memory) == [0, *range(31 - preset.num_preceding, 31)]


@pytest.mark.parametrize("size", [(96, 128), (97, 131), (50, 33)])
def test_the_first_mask_is_resized_to_the_map(size):
    """`nearest` equals Pillow's, `bilinear` equals OpenCV's of each object's mask."""
    mask = np.random.default_rng(0).integers(0, 3, size).astype(np.uint8)
    height, width = (-(-side // 8) for side in size)
    grid = torch.empty(height, width, 1)
    nearest = labels_of_mask(torch.from_numpy(mask), grid, "nearest").numpy()
    assert np.array_equal(nearest.argmax(axis=2), np.asarray(Image.fromarray(mask).resize((width, height), 0)))
    assert np.array_equal(np.unique(nearest), [0, 1])
    bilinear = labels_of_mask(torch.from_numpy(mask), grid, "bilinear")
    one_hot = (mask[..., None] == np.arange(3)).astype(np.float32)
    expected = cv2.resize(one_hot, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(bilinear, expected, atol=1e-4)


def test_labels_are_stretched_before_they_compete():
    """A weak object wins where it is strongest in the frame; without stretching it never does."""
    faint = torch.zeros(4, 6)
    faint[1:3, 2:4] = 0.3
    labels = torch.stack([1 - faint, faint, torch.zeros(4, 6)], dim=2)
    assert mask_of_labels(labels, 4, 6, stretch=True).tolist() == (faint > 0).long().tolist()
    assert not mask_of_labels(labels, 4, 6, stretch=False).any()
    assert mask_of_labels(labels, 40, 61, stretch=True).shape == (40, 61)
    assert not mask_of_labels(torch.eye(3)[torch.zeros(4, 6, dtype=int)], 4, 6, stretch=True).any()
