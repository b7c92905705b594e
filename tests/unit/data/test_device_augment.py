"""Views that a device finishes are those that OpenCV makes, to rounding, and a training on them is a training."""

import colorsys
import itertools
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from cyclecontrast.data.further_views import three_pairs
from cyclecontrast.data.pairs import FramePairs

import cyclecontrast as cc
from cyclecontrast.data.augment import RECIPES, Jitter, View, apply_view, cut_view, draw_view
from cyclecontrast.data.dataset import collate
from cyclecontrast.data.device_augment import finish_views, numbers_of
from cyclecontrast.data.loader import load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.evaluation.image_batches import Crop
from cyclecontrast.models.hardware import pick_executor
from cyclecontrast.reporting.inputs import view_pairs
from cyclecontrast.reporting.runs import read_run
from tests import make_videos as make
from tests.unit.training.test_pretrain import lines_of, run

SIZE = 40
LUMA = np.array([0.299, 0.587, 0.114])
WHOLE = View(Crop(0, 0, SIZE, SIZE), False, None, False, 0.0)
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
MOST = 2.0
"""Mean absolute difference of a view between the executors, in steps of 255."""


def scene(seed, height=90, width=120):
    """Draw a picture with large patches, soft shades, hard edges and fine texture."""
    rng = np.random.default_rng(seed)
    coarse, fine = (rng.integers(0, 256, (height // side, width // side, 3), np.uint8) for side in (30, 3))
    layers = [cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) for noise in (coarse, fine)]
    image = cv2.addWeighted(layers[0], 0.85, layers[1], 0.15, 0)
    for colour in rng.integers(0, 256, (3, 3)).tolist():
        cv2.circle(image, tuple(rng.integers(0, 90, 2).tolist()), int(rng.integers(5, 20)), colour, -1)
    return image


def finished(cut, views):
    """Finish cut views (batch, height, width, 3) and return them so."""
    pixels = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)
    done = finish_views(pixels, torch.tensor([numbers_of(view) for view in views]))
    assert (done.dtype, done.shape) == (torch.uint8, pixels.shape)
    assert done.is_contiguous(memory_format=torch.channels_last)
    return done.permute(0, 2, 3, 1).numpy()


def differences(images, views, size):
    """Return the mean absolute difference of each view between the two executors."""
    ours = finished([cut_view(image, view, size) for image, view in zip(images, views, strict=True)], views)
    theirs = np.stack([apply_view(image, view, size) for image, view in zip(images, views, strict=True)])
    return np.abs(ours.astype(float) - theirs).mean((1, 2, 3))


def draws(images, name, seed):
    """Draw a view of each image."""
    rng = np.random.default_rng(seed)
    return [draw_view(rng, *image.shape[:2], RECIPES[name]) for image in images]


# --- against the executor of the workers


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("size", [16, 64])
def test_every_view_is_that_of_opencv(name, size):
    """500 views of pictures differ from OpenCV's by 2 of 255 at most, each in its mean, and by .2 all together."""
    images = [scene(seed) for seed in range(50)]
    found = np.concatenate([differences(images, draws(images, name, seed), size) for seed in range(10)])
    assert found.max() <= MOST
    assert found.mean() <= 0.2


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_view_of_real_frames_is_that_of_opencv(name, shared):
    """The same on frames of traffic signs and of films, at 64 and at 224 px."""
    for folder, size in (("video_frames/gtsrb/frames", 64), ("tracking/got10k/val", 224)):
        store = FrameStore.open(shared / folder)
        images = [store.image(number % store.num_videos, number // store.num_videos) for number in range(20)]
        assert differences(images, draws(images, name, 0), size).max() <= MOST


def test_a_pair_is_the_same_whoever_finishes_it(tmp_path):
    """Cut only, a sample has the same frames, and what is left of each view, further ones too, gives the same view."""
    store = FrameStore.open(make.write_stripes(tmp_path))
    done = FramePairs(store, RECIPES["moco-v2"], 16, seed=3, further=three_pairs)
    cut = replace(done, cut_only=True)
    whole, part = (next(load_batches(pairs, range(1), 12, 0, 1, 1)) for pairs in (done, cut))
    assert whole.left.numel() == 0
    assert part.left.shape == (12, 8, 10)
    assert torch.equal(whole.frames, part.frames)
    assert torch.equal(whole.video, part.video)
    views = zip((whole.query, whole.positive, *whole.more), (part.query, part.positive, *part.more), strict=True)
    for number, (wanted, left) in enumerate(views):
        apart = (finish_views(left, part.left[:, number]).float() - wanted.float()).abs().mean((1, 2, 3))
        assert apart.max() <= MOST
        assert (left.float() - wanted.float()).abs().mean() > MOST, "something was left to do"


# --- against definitions


def chain(image, jitter):
    """Restate the changes of colour in float64, pixel by pixel for the hue, each rounded to bytes."""
    pixels = image.astype(float)
    for change in jitter.order:
        factor = jitter[change]
        if change == 0:
            pixels = pixels * factor
        elif change == 1:
            pixels = pixels * factor + (1 - factor) * (pixels @ LUMA).mean()
        elif change == 2:
            pixels = pixels * factor + (1 - factor) * (pixels @ LUMA)[..., None]
        elif factor:
            pixels = turned(pixels, factor)
        pixels = np.clip(np.rint(pixels), 0, 255)
    return pixels


def turned(pixels, turns):
    """Turn the hue of each pixel by the standard library."""
    out = np.empty(pixels.shape)
    for place in np.ndindex(pixels.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[place] / 255))
        out[place] = np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)) * 255
    return out


def jittered(order=(0, 1, 2, 3), **factors):
    """A view of the whole image that only changes colours."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    return WHOLE._replace(jitter=Jitter(**{**neutral, **factors}, order=order))


ONE_CHANGE = [
    *(jittered(**{name: factor}) for name in ("brightness", "contrast", "saturation") for factor in (0.6, 0.93, 1.4)),
    *(jittered(hue=turns) for turns in (-0.4, -0.1, 0.003, 0.25, 0.4, 0.5)),
]


def test_each_change_of_colour_is_what_it_is_called():
    """Brightness, contrast, saturation and hue, each alone, are their float64 definitions to one step."""
    done = finished([IMAGE] * len(ONE_CHANGE), ONE_CHANGE)
    for pixels, view in zip(done, ONE_CHANGE, strict=True):
        assert np.abs(pixels - chain(IMAGE, view.jitter)).max() <= 1
        assert (pixels != IMAGE).mean() > 0.1


def test_the_order_of_changes_is_kept():
    """Each of the 24 orders, side by side in one batch, gives what the definitions give one after the other."""
    factors = {"brightness": 1.4, "contrast": 0.6, "saturation": 1.3, "hue": 0.3}
    views = [jittered(order, **factors) for order in itertools.permutations(range(4))]
    image = scene(1)[:SIZE, :SIZE]
    done = finished([image] * 24, views)
    for pixels, view in zip(done, views, strict=True):
        apart = np.abs(pixels - chain(image, view.jitter))
        assert apart.mean() < 0.3
        assert np.quantile(apart, 0.999) <= 3
    assert len({pixels.tobytes() for pixels in done}) == 24


def test_gray_is_the_luma_behind_the_jitter():
    """Gray has three equal channels: the luma of the jittered colours."""
    plain, changed = WHOLE._replace(gray=True), jittered(saturation=1.4, brightness=1.2)._replace(gray=True)
    first, second = finished([IMAGE] * 2, [plain, changed])
    for pixels, colours in ((first, IMAGE), (second, chain(IMAGE, changed.jitter))):
        assert (pixels == pixels[..., :1]).all()
        assert np.abs(pixels[..., 0] - colours @ LUMA).max() <= 1


@pytest.mark.parametrize("size", [8, SIZE, 224])
def test_the_blur_is_a_gaussian_that_sees_mirrored_borders(size):
    """Each image is blurred by its own σ of pixels at a side of 224: a loop over the taps, in float64."""
    sigmas = (0.1, 0.5, 1.0, 1.7, 2.0)
    image = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
    views = [WHOLE._replace(blur=sigma) for sigma in sigmas]
    reach = size - 1
    for pixels, sigma in zip(finished([image] * 5, views), sigmas, strict=True):
        taps = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * (sigma * size / 224) ** 2))
        expected = image.astype(float)
        for axis in (0, 1):
            padded = np.pad(expected, [(reach, reach) if axis == at else (0, 0) for at in range(3)], mode="reflect")
            shifted = (np.take(padded, range(at, at + size), axis) * tap for at, tap in enumerate(taps / taps.sum()))
            expected = sum(shifted)
        assert np.abs(pixels - expected).max() <= 0.51


def test_nothing_drawn_changes_nothing():
    """A view without jitter, gray and blur, or with changes by nothing, is the cut view itself."""
    done = finished([IMAGE] * 3, [WHOLE, jittered(), jittered((3, 2, 1, 0))])
    assert (done == IMAGE).all()


def test_views_of_a_batch_know_nothing_of_each_other():
    """A view alone is what it is in a batch, wherever it lies there."""
    images = [scene(seed) for seed in range(12)]
    views = draws(images, "moco-v2", 5)
    cut = [cut_view(image, view, 32) for image, view in zip(images, views, strict=True)]
    together, backwards = finished(cut, views), finished(cut[::-1], views[::-1])[::-1]
    alone = np.concatenate([finished([pixels], [view]) for pixels, view in zip(cut, views, strict=True)])
    for other in (backwards, alone):
        assert np.abs(together.astype(int) - other).max() <= 1
        assert (together != other).mean() < 1e-3


def test_the_pixels_may_lie_elsewhere():
    """All tensors that meet the pixels are brought to their device first; what is drawn stays on the host."""
    views = draws([scene(0)] * 8, "moco-v2", 2)
    assert any(view.blur for view in views)
    numbers = torch.tensor([numbers_of(view) for view in views])
    done = finish_views(torch.zeros((8, 3, 32, 32), dtype=torch.uint8, device="meta"), numbers)
    assert (done.device.type, done.dtype, done.shape) == ("meta", torch.uint8, (8, 3, 32, 32))


# --- in a training


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames: stripes of one width and direction each, which move."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


LINEAR = {"projector": "linear", "precision": "fp32", "cycle_start": 0.0, "learning_rate": 0.003}
LINEAR |= {"holdout": 0.2, "health_every": 2}


@pytest.fixture(scope="module")
def on_device(tree, tmp_path_factory):
    """A run whose views the device finishes."""
    return run(tree, tmp_path_factory.mktemp("runs") / "device", augment_on="device", checkpoint_every=2, **LINEAR)


def test_losses_are_close_to_those_of_the_workers_views(tree, on_device, tmp_path):
    """Step by step the losses differ by rounding only, and health is measured on the very same views."""
    by_workers = run(tree, tmp_path / "cpu", **LINEAR)
    ours, theirs = ([row["loss"] for row in lines_of(done.folder)] for done in (on_device, by_workers))
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours != theirs
    untrained = [json.loads((done.folder / "run.json").read_text())["health"] for done in (on_device, by_workers)]
    assert untrained[0]["at_start"] == untrained[1]["at_start"]
    settings = [(done.folder / "config.toml").read_text() for done in (on_device, by_workers)]
    assert 'augment_on = "device"' in settings[0]
    assert 'augment_on = "cpu"' in settings[1], "what auto is on a CPU"


def test_it_resumes_to_the_bit(on_device, tmp_path):
    """Taken up at step 2, the rest of the run is the same, bit for bit; its views are finished where they were."""
    again = tmp_path / "again"
    shutil.copytree(on_device.folder, again)
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    cc.pretrain(resume=again)
    assert lines_of(again) == lines_of(on_device.folder)
    for name in ("backbone.safetensors", "checkpoints/step-00000004/state.safetensors"):
        assert (again / name).read_bytes() == (on_device.folder / name).read_bytes()


def test_a_resumed_run_may_be_augmented_elsewhere(on_device, tmp_path):
    """Where the run goes on, on another machine perhaps, its workers may do it all: only rounding changes."""
    again = tmp_path / "again"
    shutil.copytree(on_device.folder, again)
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    cc.pretrain(resume=again, augment_on="cpu")
    ours, theirs = ([row["loss"] for row in lines_of(folder)] for folder in (again, on_device.folder))
    assert ours[:2] == theirs[:2]
    assert ours[2:] == pytest.approx(theirs[2:], rel=0.02)
    assert ours[2:] != theirs[2:]


def test_the_report_shows_finished_views(on_device):
    """The pictures of a run's views are those of a run that the workers augment."""
    report = read_run(on_device.folder, "run")
    assert report.config.augment_on == "device"
    by_workers = replace(report, config=report.config.model_copy(update={"augment_on": "cpu"}))
    shown, wanted = view_pairs(report)["pairs"], view_pairs(by_workers)["pairs"]
    assert shown
    assert shown == wanted


def test_an_objective_of_many_views_trains(tree, tmp_path):
    """VINCE's eight views are finished, each with its own numbers: its loss is that of the workers' views, nearly."""
    settings = LINEAR | {"method": "vince", "steps": 1, "health_every": 0}
    first, second = (run(tree, tmp_path / name, augment_on=name, **settings).metrics for name in ("cpu", "device"))
    assert first["loss"] == pytest.approx(second["loss"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "device", "chosen"),
    [
        *(("auto", "cuda:1", "device"), ("auto", "cpu", "cpu"), ("auto", "mps", "cpu")),
        *(("cpu", "cuda", "cpu"), ("device", "cpu", "device")),
    ],
)
def test_auto_is_the_device_of_cuda(name, device, chosen):
    """Only on a GPU of CUDA views are finished there unasked; what is asked is done."""
    assert pick_executor(name, torch.device(device)) == chosen


def test_collating_keeps_what_is_left_of_each_view(tmp_path):
    """Row by row and view by view the numbers are those that were drawn for it."""
    store = FrameStore.open(make.write_stripes(tmp_path))
    pairs = FramePairs(store, RECIPES["moco-v2"], 16, seed=3, cut_only=True)
    samples = [pairs[position] for position in range(5)]
    batch = collate(samples)
    assert batch.left.tolist() == [[pytest.approx(left) for left in sample.left] for sample in samples]
    assert len({tuple(left) for sample in samples for left in sample.left}) == 10
