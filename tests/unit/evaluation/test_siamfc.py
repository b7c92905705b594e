"""SiamFC: crops and correlation against plain loops, sizes of the published code, and that the tracker follows."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.tracking.siamfc import (
    RELEASE,
    SIAMFC,
    VINCE,
    WINDOW,
    DenseFeatures,
    Head,
    SiamFC,
    Target,
    correlate,
    crop_squares,
    find_peak,
    head_shape,
    make_head,
)
from cyclecontrast.models.backbone import make_backbone
from tests.make_sequences import moving_square

CPU = torch.device("cpu")


def features_of(name="resnet10-w8"):
    """Return the dense features of a random backbone."""
    return DenseFeatures(make_backbone(name), CPU)


def smooth_noise(height=60, width=80, seed=0):
    """Return noise that is smooth enough to be compared after resampling."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def bilinear(image, y, x):
    """Interpolate between the four pixels around a point; those at the border are repeated."""
    height, width = image.shape[:2]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    rows = [image[row, left] * (1 - x + left) + image[row, right] * (x - left) for row in (top, bottom)]
    return rows[0] * (1 - y + top) + rows[1] * (y - top)


def slow_crop(image, y, x, side, size):
    """Crop pixel by pixel in double precision."""
    image = image.astype(float)
    side = max(side, 2.0)
    top, left, bottom, right = (round(value) for value in (y - side / 2, x - side / 2, y + side / 2, x + side / 2))
    inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if 0 in inside.shape:
        return np.zeros((size, size, 3))
    height, width = (
        max(1, round(size * part / whole))
        for part, whole in zip(inside.shape, (bottom - top, right - left), strict=False)
    )
    skip_y, skip_x = int(max(0.0, -top * size / (bottom - top))), int(max(0.0, -left * size / (right - left)))
    crop = np.empty((size, size, 3))
    for row in range(size):
        for column in range(size):
            in_y = (row - skip_y + 0.5) * inside.shape[0] / height - 0.5
            in_x = (column - skip_x + 0.5) * inside.shape[1] / width - 0.5
            is_inside = 0 <= row - skip_y < height and 0 <= column - skip_x < width
            crop[row, column] = bilinear(inside, in_y, in_x) if is_inside else image.mean(axis=(0, 1))
    return crop


@pytest.mark.parametrize(
    ("y", "x", "side"),
    [
        (30, 40, 32),
        (30.2, 40.7, 23.4),
        (30.5, 40.5, 25),
        (5, 40, 37.3),
        (58, 78.9, 41),
        (30, -9, 50.2),
        (30, 40, 200),
        (30, 40, 0.1),
        (-30, 40, 20),
        (30, 110.5, 61),
        (30, 120.6, 61),
    ],
)
def test_a_crop_equals_a_plain_loop(y, x, side):
    """Inside, partly and wholly outside, a crop equals the loop to within one level."""
    image = smooth_noise()
    made = crop_squares(image, y, x, [side], 24)[0]
    assert np.abs(made - slow_crop(image, y, x, side, 24)).max() <= 1.01


def test_several_crops_equal_single_ones():
    """One call cuts a crop inside the image, one beyond its edges and one outside, which is black."""
    image = smooth_noise()
    sides = [10.0, 70.0, 3.0]
    together = crop_squares(image, 4, 40, sides, 16)
    assert all((crop_squares(image, 4, 40, sides[:2], 16)[place] == together[place]).all() for place in (0, 1))
    assert all((crop_squares(image, 4, 40, [sides[place]], 16)[0] == together[place]).all() for place in (0, 1, 2))
    assert (together[1][0] == np.rint(image.mean(axis=(0, 1)))).all()
    assert not crop_squares(image, -50, 40, sides, 16)[0].any()


def test_a_crop_of_its_own_size_is_not_resampled():
    """An even side around a half is a copy of the image's pixels."""
    image = smooth_noise()
    assert (crop_squares(image, 30, 40, [20], 20)[0] == image[20:40, 30:50]).all()


def test_a_target_converts_boxes_whose_first_pixel_is_1():
    """Box to target and back gives the same box; context and sides are those of SiamFC."""
    assert Target.of(np.array([1.0, 1, 3, 5])) == (2, 1, 5, 3)
    box = np.array([10.5, 20.25, 33, 17])
    np.testing.assert_allclose(Target.of(box).box(), box)
    assert Target.of(np.array([0.0, 0, 10, 30])).exemplar_side() == pytest.approx((30 * 50) ** 0.5)


@pytest.mark.parametrize("name", ["resnet10-w8", "resnet18-w8", "resnet10-small-w8"])
def test_map_sizes_are_the_published_ones(name):
    """120, 239 and 255 pixels give 15, 30 and 32 cells at stride 8, and responses 16 (train) and 18 (test) wide."""
    features = features_of(name)
    maps = {size: features(torch.zeros(1, 3, size, size, dtype=torch.uint8)) for size in (120, 127, 239, 247, 255)}
    assert {size: made.shape[-1] for size, made in maps.items()} == {120: 15, 127: 16, 239: 30, 247: 31, 255: 32}
    widths = [correlate(maps[z], maps[x]).shape[-1] for z, x in ((120, 239), (120, 255), (120, 247), (127, 255))]
    assert widths == [16, 18, 17, 17]


def test_the_head_has_the_published_width_and_scale():
    """2048 gives 1024 and 1e-5, 512 gives 512 and 1e-3, VINCE has 256 and 1e-3 for all."""
    assert head_shape(2048, RELEASE) == (1024, pytest.approx(1e-5))
    assert head_shape(512, SIAMFC) == (512, pytest.approx(1e-3))
    assert head_shape(2048, VINCE) == (256, 1e-3)


def test_correlation_equals_a_plain_loop():
    """Each kernel slides over its own map; a single kernel slides over all maps."""
    rng = np.random.default_rng(0)
    kernels, maps = rng.normal(size=(2, 3, 2, 4)), rng.normal(size=(2, 3, 5, 6))

    def slide(kernel, image):
        return [[(kernel * image[:, y : y + 2, x : x + 4]).sum() for x in range(3)] for y in range(4)]

    both, one = (correlate(torch.from_numpy(kernels[:n]), torch.from_numpy(maps)).numpy() for n in (2, 1))
    np.testing.assert_allclose(both, [slide(kernels[0], maps[0]), slide(kernels[1], maps[1])])
    np.testing.assert_allclose(one, [slide(kernels[0], maps[0]), slide(kernels[0], maps[1])])


def test_correlation_has_the_gradients_of_a_convolution():
    """Kernels and maps get the gradients of torch's grouped convolution."""
    torch.manual_seed(0)
    kernels, maps = torch.randn(2, 3, 2, 2, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 3)
    expected = torch.autograd.grad(
        (nn.functional.conv2d(maps.reshape(1, 6, 4, 4), kernels, groups=2)[0] * weight).sum(), (kernels, maps)
    )
    made = torch.autograd.grad((correlate(kernels, maps) * weight).sum(), (kernels, maps))
    assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(made, expected, strict=True))


def test_the_two_convolutions_are_separate_and_scaled():
    """Exemplar and search crop have their own weights, from the seed; the response is scaled."""
    head = make_head(6, RELEASE, 3)
    assert not torch.equal(head.exemplar.weight, head.search.weight)
    assert torch.equal(make_head(6, RELEASE, 3).search.weight, head.search.weight)
    generator = torch.Generator().manual_seed(0)
    z, x = torch.randn(2, 6, 3, 3, generator=generator), torch.randn(2, 6, 5, 5, generator=generator)
    torch.testing.assert_close(head(z, x), correlate(head.exemplar(z), head.search(x)) * 0.512 / 6)
    torch.testing.assert_close(make_head(6, RELEASE, None)(z, x), correlate(z, x) * 0.512 / 6)


def test_the_window_sums_to_one():
    """It is a Hann window of 272 x 272, highest in the middle."""
    assert WINDOW.shape == (272, 272)
    assert WINDOW.sum() == pytest.approx(1, abs=1e-5)
    assert np.unravel_index(WINDOW.argmax(), WINDOW.shape)[0] in (135, 136)


def bump(height, y=8.5, x=8.5):
    """Return a response of 18 x 18 with a peak of this height."""
    places = np.arange(18)
    distance = (places[:, None] - y) ** 2 + (places[None] - x) ** 2
    return (height - 1 + np.exp(-distance / 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("heights", "fixed", "scale"),
    [
        ((1.0, 1.0, 1.02), False, 1),
        ((1.0, 1.0, 1.04), False, 2),
        ((1.04, 1.0, 1.0), False, 0),
        ((-1.02, -1.0, -1.01), False, 2),
        ((-1.02, -1.0, -1.01), True, 1),
        ((-1.0, -1.0, -0.9), True, 2),
    ],
)
def test_a_change_of_scale_is_penalized(heights, fixed, scale):
    """The factor 0.9745 keeps the scale; on negative peaks it changes it, unless `fix_scale_penalty`."""
    assert find_peak(np.stack([bump(height) for height in heights]), fixed)[0] == scale


def test_the_peak_is_found_at_its_place():
    """A response two cells down and one left is 2·272/18 and 272/18 pixels from the middle of the upsampled one."""
    _, dy, dx = find_peak(np.stack([bump(1, 10.5, 7.5)] * 3))
    # The window draws the peak towards the middle by a few pixels.
    np.testing.assert_allclose([dy, dx], [2 * 272 / 18, -272 / 18], atol=4)


class KnownFeatures:
    """Features with a known response: all search crops give one map with one peak, the exemplar is that cell."""

    backbone = None

    device = CPU

    def __init__(self, y, x):
        self.y, self.x = y, x

    def __call__(self, pixels):
        """Return a map of 32 cells whose correlation with the exemplar's 15 peaks at (y, x) of 18."""
        cells = pixels.shape[-1] // 8 + (pixels.shape[-1] % 8 > 0)
        maps = torch.zeros(len(pixels), 1, cells, cells)
        if cells == 15:
            maps[:, 0, 7, 7] = 1
        else:
            maps[:, 0, 7 + self.y - 1 : 7 + self.y + 2, 7 + self.x - 1 : 7 + self.x + 2] = 0.5
            maps[:, 0, 7 + self.y, 7 + self.x] = 1
        return maps


def tracker_of(y, x, **options):
    """Return a tracker on known features."""
    return SiamFC(KnownFeatures(y, x), Head(nn.Identity(), nn.Identity(), 1.0), 120, **options)


def test_a_cell_has_the_pixels_of_the_geometry():
    """The release moves by 8/16 = 0.5 pixels per upsampled pixel, `exact_geometry` by 18·8/272 = 0.529."""
    image, box = np.zeros((300, 300, 3), np.uint8), np.array([101.0, 121, 40, 20])
    moves = []
    for exact in (False, True):
        tracker = tracker_of(12, 6, exact_geometry=exact)
        tracker.init(image, box)
        moves.append(tracker.update(image) - box)
    np.testing.assert_allclose(moves[1][:2] / moves[0][:2], 18 * 8 / 272 / 0.5)
    # The search side is sqrt((40 + 30)(20 + 30)) · 255/120 for 255 pixels, the peak is 2.5 and 3.5 cells off.
    cell = 0.5 * 272 / 18 * math.sqrt(70 * 50) / 120
    np.testing.assert_allclose(moves[0], [-2.5 * cell, 3.5 * cell, 0, 0], atol=0.25 * cell)


def test_a_step_is_measured_in_the_crop_of_its_scale():
    """The same place in the response of a larger crop is 1.0375 times as far away."""
    image, box, moves = np.zeros((300, 300, 3), np.uint8), np.array([101.0, 121, 41, 41]), []
    for heights in ((1.0, 1.0, 1.0), (1.0, 1.0, 1.5)):
        tracker = tracker_of(9, 9)
        tracker.init(image, box)
        responses = torch.from_numpy(np.stack([bump(height, 12.5, 8.5) for height in heights]))
        tracker._head.respond = lambda kernels, maps, responses=responses: responses
        moved = tracker.update(image)
        moves.append(moved[1] + (moved[3] - 1) / 2 - (121 + 20))
    assert moves[0] > 5
    assert moves[1] / moves[0] == pytest.approx(1.0375)


def test_the_size_follows_the_scale():
    """A larger scale that fits best grows the target, and the search region with it, by 0.41 + 0.59 · 1.0375."""
    tracker = tracker_of(9, 9)
    image = np.zeros((300, 300, 3), np.uint8)
    tracker.init(image, np.array([101.0, 121, 40, 20]))
    tracker._head.respond = lambda kernels, maps: torch.from_numpy(np.stack([bump(1.0), bump(1.0), bump(1.5)]))
    side = tracker._side
    box = tracker.update(image)
    growth = 0.41 + 0.59 * 1.0375
    assert box[2:] == pytest.approx([40 * growth, 20 * growth])
    assert tracker._side == pytest.approx(side * growth)


def overlap(a, b):
    """Return the intersection over union of two boxes."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    common = np.prod(np.maximum(sides, 0))
    return common / (np.prod(a[2:]) + np.prod(b[2:]) - common)


@pytest.mark.parametrize(("growth", "least"), [(1.0, 0.7), (0.97, 0.5)])
def test_a_moving_square_is_followed(growth, least):
    """Raw features of a random backbone follow a square that moves, or shrinks too; the first box loses it."""
    features = features_of("resnet18-w8")
    tracker = SiamFC(features, make_head(features.backbone.dim, RELEASE, None), 120, exact_geometry=True)
    (first, start), *frames = moving_square(12, growth)
    tracker.init(first, start)
    followed = [overlap(tracker.update(frame), box) for frame, box in frames]
    identity = [overlap(start, box) for _, box in frames]
    assert np.mean(followed) > least > np.mean(identity) + 0.2
    assert min(followed[-3:]) > 0.3 > max(identity[-3:])


def test_init_forgets_the_previous_target():
    """A tracker that followed another target gives the same boxes as a new one."""
    (first, start), *frames = moving_square(3)
    other = np.array([150.0, 60, 60, 30])
    boxes = []
    for starts in ((start,), (other, start)):
        features = features_of()
        tracker = SiamFC(features, make_head(features.backbone.dim, RELEASE, None), 120)
        for begin in starts:
            tracker.init(first, begin)
            followed = [tracker.update(frame) for frame, _ in frames]
        boxes.append(followed)
    assert np.array_equal(*boxes)


def test_broken_weights_are_named():
    """Features that are not finite give an error of one line, not a box of nan."""
    backbone = make_backbone("resnet10-w8")
    backbone.network.layer4[0].bn2.bias.data[0] = float("nan")
    tracker = SiamFC(DenseFeatures(backbone, CPU), make_head(backbone.dim, RELEASE, None), 120)
    (first, start), (second, _) = moving_square(2)
    tracker.init(first, start)
    with pytest.raises(UserError, match="non-finite values; its weights are invalid"):
        tracker.update(second)
