"""Views: what is drawn and how often, and that OpenCV executes it like a slow reference in float."""

import colorsys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cyclecontrast.data.augment import RECIPES, Jitter, View, apply_view, draw_view, smallest_crop
from cyclecontrast.models.backbone import import_torchvision

PLAIN = View((0, 0, 48, 48), False, None, False, 0.0)
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])
NUM_DRAWS = 4000
sides = st.one_of(st.integers(1, 8), st.integers(1, 500))


def draws(recipe, number=NUM_DRAWS, height=60, width=80):
    """Draw many views of one frame."""
    rng = np.random.default_rng(1)
    return [draw_view(rng, height, width, recipe) for _ in range(number)]


def jittered(order, **factors):
    """Return a view of the whole image that only changes colors."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    return PLAIN._replace(jitter=Jitter(**{**neutral, **factors}, order=order))


def difference(view, expected, image=IMAGE):
    """Return the largest difference to the reference, in steps of 255."""
    return np.abs(apply_view(image, view, 48).astype(float) - np.clip(expected, 0, 255)).max()


def gray_of(image):
    """Return the luma in float (ITU-R 601)."""
    return (image @ LUMA)[..., None]


# --- what is drawn


@given(st.integers(0, 2**32), sides, sides, st.sampled_from(sorted(RECIPES)))
@settings(max_examples=100, deadline=None)
def test_a_view_is_a_function_of_the_generator(seed, height, width, name):
    """The same state gives the same view; drawing touches no other source of randomness."""
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, second = (draw_view(np.random.default_rng(seed), height, width, RECIPES[name]) for _ in range(2))
    assert first == second
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


@given(st.integers(0, 2**32), sides, sides, st.floats(0.05, 1))
@settings(max_examples=300, deadline=None)
def test_crops_lie_inside(seed, height, width, min_crop):
    """A crop has at least one pixel and lies inside the frame, whatever its shape."""
    recipe = RECIPES["moco-v1"]._replace(min_crop=min_crop)
    left, top, w, h = draw_view(np.random.default_rng(seed), height, width, recipe).crop
    assert 0 <= left < left + w <= width
    assert 0 <= top < top + h <= height


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 1), st.integers(0, 2**32))
def test_no_crop_is_smaller_than_the_smallest(height, width, min_crop, seed):
    """A crop has the shortest side that the recipe allows, so a frame decoded at a fraction of its size suffices."""
    recipe = RECIPES["moco-v2"]._replace(min_crop=min_crop)
    _, _, crop_width, crop_height = draw_view(np.random.default_rng(seed), height, width, recipe).crop
    assert min(crop_width, crop_height) + 0.5 >= smallest_crop(recipe) * min(height, width)


@pytest.mark.parametrize(("height", "width"), [(1, 500), (500, 1), (1, 1), (3, 400)])
def test_thin_frames_are_cropped_in_their_middle(height, width):
    """If no aspect ratio fits, the crop is the largest allowed one in the middle, as in torchvision."""
    recipe = RECIPES["moco-v1"]._replace(min_crop=1.0)
    left, top, crop_width, crop_height = draw_view(np.random.default_rng(0), height, width, recipe).crop
    assert max(crop_width, crop_height) <= max(1, round(min(height, width) * 4 / 3))
    assert abs(2 * left + crop_width - width) <= 1
    assert abs(2 * top + crop_height - height) <= 1


def test_crops_cover_the_area_and_aspect_of_the_recipe():
    """Area is uniform in [0.2, 1], the logarithm of the aspect uniform between 3/4 and 4/3, up to rounding."""
    crops = [view.crop for view in draws(RECIPES["moco-v1"], height=1000, width=1000)]
    area = np.array([w * h for _, _, w, h in crops]) / 1e6
    aspect = np.array([w / h for _, _, w, h in crops])
    assert 0.199 < area.min() < 0.21
    assert 0.98 < area.max() <= 1
    assert 0.748 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.336
    small = np.array([w * h for _, _, w, h in crops if w * h < 500_000]) / 1e6
    assert abs(small.mean() - 0.35) < 0.01, "uniform where no shape is rejected"
    assert abs(np.log(aspect).mean()) < 0.01
    corners = [(left / (1000 - w), top / (1000 - h)) for left, top, w, h in crops if w < 900 and h < 900]
    assert np.abs(np.mean(corners, axis=0) - 0.5).max() < 0.03


@pytest.mark.parametrize(("name", "jitter", "blur"), [("moco-v1", 1.0, 0.0), ("moco-v2", 0.8, 0.5)])
def test_probabilities_are_those_of_moco(name, jitter, blur):
    """Flip 0.5, gray 0.2, jitter 1 or 0.8, blur 0 or 0.5, each within five standard deviations."""
    views = draws(RECIPES[name])
    for expected, happened in (
        (0.5, [view.flip for view in views]),
        (0.2, [view.gray for view in views]),
        (jitter, [view.jitter is not None for view in views]),
        (blur, [view.blur > 0 for view in views]),
    ):
        bound = 5 * (expected * (1 - expected) / NUM_DRAWS) ** 0.5
        assert abs(np.mean(happened) - expected) <= bound


@pytest.mark.parametrize(("name", "hue"), [("moco-v1", 0.4), ("moco-v2", 0.1)])
def test_strengths_are_those_of_moco(name, hue):
    """Factors fill 0.6 to 1.4, hue its own range, σ 0.1 to 2; each order of the four changes occurs."""
    views = draws(RECIPES[name])
    factors = np.array([view.jitter[:4] for view in views if view.jitter is not None])
    for column in range(3):
        assert 0.6 <= factors[:, column].min() < 0.61
        assert 1.39 < factors[:, column].max() <= 1.4
    assert -hue <= factors[:, 3].min() < -0.98 * hue
    assert 0.98 * hue < factors[:, 3].max() <= hue
    assert len({view.jitter.order for view in views if view.jitter is not None}) == 24
    blurs = [view.blur for view in views if view.blur]
    assert name == "moco-v1" or (0.1 <= min(blurs) < 0.11 and 1.98 < max(blurs) <= 2)


def test_flip_can_be_switched_off():
    """Without flip nothing else changes."""
    recipe = RECIPES["moco-v2"]
    never = draws(recipe._replace(flip=False), 100)
    assert never == [view._replace(flip=False) for view in draws(recipe, 100)]


# --- how it is executed


@given(st.integers(0, 2**32), sides, sides, st.sampled_from([1, 7, 32]))
@settings(max_examples=60, deadline=None)
def test_every_view_is_a_square_of_bytes(seed, height, width, size):
    """Whatever frame and view: (size, size, 3) uint8, contiguous, and never the frame's own memory."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    before = image.copy()
    pixels = apply_view(image, draw_view(np.random.default_rng(seed), height, width, RECIPES["moco-v2"]), size)
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
    assert pixels.flags.c_contiguous
    assert not np.shares_memory(pixels, image)
    assert (image == before).all()


def test_nothing_drawn_changes_nothing():
    """Without any change, a view of the whole frame at its own size is the frame."""
    assert (apply_view(IMAGE, PLAIN, 48) == IMAGE).all()


def test_the_crop_is_cut_then_mirrored():
    """The box selects columns left to left + width; the flip mirrors them."""
    view = PLAIN._replace(crop=(5, 9, 20, 20))
    assert (apply_view(IMAGE, view, 20) == IMAGE[9:29, 5:25]).all()
    assert (apply_view(IMAGE, view._replace(flip=True), 20) == IMAGE[9:29, 5:25][:, ::-1]).all()


def test_shrinking_averages():
    """Half the size is the mean of four pixels."""
    expected = IMAGE.reshape(24, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(apply_view(IMAGE, PLAIN, 24) - expected).max() <= 1


def overlaps(number, size):
    """Return the weight (size, number) of each source pixel in each target pixel."""
    edges = np.arange(size + 1) * number / size
    low, high = np.maximum(edges[:-1, None], np.arange(number)), np.minimum(edges[1:, None], np.arange(1, number + 1))
    return np.clip(high - low, 0, None) * size / number


@pytest.mark.parametrize("size", [16, 32, 100])
@pytest.mark.parametrize(("height", "width"), [(101, 135), (250, 190), (135, 380)])
def test_shrinking_is_nearly_the_mean_of_areas(height, width, size):
    """At any ratio a pixel is the mean of the area that it covers, to 0.6 of 255 in the mean of a picture."""
    rng = np.random.default_rng(size)
    coarse, fine = (rng.integers(0, 256, (height // side, width // side, 3), np.uint8) for side in (25, 4))
    layers = [cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) for noise in (coarse, fine)]
    image = cv2.addWeighted(layers[0], 0.6, layers[1], 0.4, 0)
    view = PLAIN._replace(crop=(0, 0, width, height))
    of_rows, of_columns = overlaps(height, size), overlaps(width, size)
    expected = np.einsum("ih,hwc,jw->ijc", of_rows, image.astype(float), of_columns, optimize=True)
    assert np.abs(apply_view(image, view, size) - expected).mean() <= 0.6


@pytest.mark.parametrize("factor", [0.6, 0.93, 1.0, 1.4])
def test_brightness_contrast_and_saturation(factor):
    """Each change blends the image with black, its mean luma, or its luma, as torchvision defines them."""
    image = IMAGE.astype(float)
    order = (0, 1, 2, 3)
    assert difference(jittered(order, brightness=factor), image * factor) <= 1
    assert difference(jittered(order, contrast=factor), image * factor + (1 - factor) * gray_of(image).mean()) <= 1
    assert difference(jittered(order, saturation=factor), image * factor + (1 - factor) * gray_of(image)) <= 1.5


@pytest.mark.parametrize("factor", [0.6, 1.3])
def test_factors_equal_torchvision(factor):
    """The same three changes by torchvision's own functions, which truncate."""
    import_torchvision()
    from torchvision.transforms.v2 import functional

    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)
    for name in ("brightness", "contrast", "saturation"):
        expected = getattr(functional, f"adjust_{name}")(pixels, factor).permute(1, 2, 0).numpy()
        assert difference(jittered((3, 2, 1, 0), **{name: factor}), expected) <= 2


@pytest.mark.parametrize("turns", [-0.4, -0.1, 0.003, 0.25, 0.4])
def test_hue_turns_the_color_circle(turns):
    """Hue moves by a fraction of a turn while saturation and value stay (colorsys, pixel by pixel)."""
    expected = np.empty(IMAGE.shape)
    for place in np.ndindex(IMAGE.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(IMAGE[place] / 255))
        expected[place] = np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)) * 255
    assert difference(jittered((0, 1, 2, 3), hue=turns), expected) <= 1


def test_no_turn_is_the_identity():
    """A hue change of zero, or of almost zero, keeps every color."""
    levels = np.linspace(0, 255, 13).astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 13, 3)
    view = jittered((3, 0, 1, 2))._replace
    for turns in (0.0, 1e-9, -1e-9):
        jitter = Jitter(1.0, 1.0, 1.0, turns, (3, 0, 1, 2))
        whole = view(crop=(0, 0, 13, 169), jitter=jitter)
        assert (
            np.abs(
                apply_view(colors, whole, 13).astype(int) - apply_view(colors, whole._replace(jitter=None), 13)
            ).max()
            <= 1
        )


def test_the_order_of_changes_is_kept():
    """The order of contrast and brightness matters, and each order equals its own reference."""
    image, factor = IMAGE.astype(float), 1.4
    bright = np.clip(np.rint(image * factor), 0, 255)
    first = bright * 0.6 + 0.4 * gray_of(bright).mean()
    last = np.clip(image * 0.6 + 0.4 * gray_of(image).mean(), 0, 255) * factor
    assert difference(jittered((0, 1, 2, 3), brightness=factor, contrast=0.6), first) <= 2
    assert difference(jittered((3, 2, 1, 0), brightness=factor, contrast=0.6), last) <= 2
    assert np.abs(first - np.clip(last, 0, 255)).max() > 10


def test_gray_has_equal_channels():
    """Gray is the luma in all three channels."""
    pixels = apply_view(IMAGE, PLAIN._replace(gray=True), 48)
    assert (pixels == pixels[..., :1]).all()
    assert difference(PLAIN._replace(gray=True), gray_of(IMAGE).repeat(3, 2)) <= 1


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("size", [48, 224])
def test_blur_scales_with_the_side(sigma, size):
    """The blur is a Gaussian of σ pixels at a side of 224, and of proportionally less at a smaller side."""
    image = np.zeros((size, size, 3), np.uint8)
    image[size // 2, size // 2] = 255
    pixels = apply_view(image, View((0, 0, size, size), False, None, False, sigma), size)
    places = np.arange(size) - size // 2
    kernel = np.exp(-(places**2) / (2 * (sigma * size / 224) ** 2))
    kernel /= kernel.sum()
    assert np.abs(pixels[..., 0] - 255 * np.outer(kernel, kernel)).max() <= 2
