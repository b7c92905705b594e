"""Views that are finished on a device equal those of OpenCV, up to rounding, and a training on them works."""

import colorsys
import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import cyclecontrast as cc
from cyclecontrast.data.augment import RECIPES, Jitter, View, apply_view, crop_view, draw_view
from cyclecontrast.data.dataset import ViewDataset, collate
from cyclecontrast.data.device_augment import augment_on_device, augmentation_params
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.models.hardware import pick_augment_on
from cyclecontrast.reporting.inputs import view_pairs
from cyclecontrast.reporting.runs import read_run
from tests.make_runs import about_of, assert_same_run, copy_until, rows_of, run
from tests.unit.data.test_dataset import THREE_PAIRS

SIZE = 40
LUMA = np.array([0.299, 0.587, 0.114])
WHOLE = View((0, 0, SIZE, SIZE), False, None, False, 0.0)
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
MOST = 2.0
"""Mean absolute difference of a view between the executors, in steps of 255."""


def scene(seed, height=90, width=120):
    """Draw a picture with large patches, soft shades, hard edges and fine texture."""
    rng = np.random.default_rng(seed)
    coarse, fine = (rng.integers(0, 256, (height // side, width // side, 3), np.uint8) for side in (30, 3))
    layers = [cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) for noise in (coarse, fine)]
    image = cv2.addWeighted(layers[0], 0.85, layers[1], 0.15, 0)
    for color in rng.integers(0, 256, (3, 3)).tolist():
        cv2.circle(image, tuple(rng.integers(0, 90, 2).tolist()), int(rng.integers(5, 20)), color, -1)
    return image


def finished(cut, views):
    """Return cut views (batch, height, width, 3) finished, in the same layout."""
    pixels = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)
    done = augment_on_device(pixels, torch.tensor([augmentation_params(view) for view in views]))
    assert (done.dtype, done.shape) == (torch.uint8, pixels.shape)
    assert done.is_contiguous(memory_format=torch.channels_last)
    return done.permute(0, 2, 3, 1).numpy()


def differences(images, views, size):
    """Return the mean absolute difference of each view between the two executors."""
    ours = finished([crop_view(image, view, size) for image, view in zip(images, views, strict=True)], views)
    theirs = np.stack([apply_view(image, view, size) for image, view in zip(images, views, strict=True)])
    return np.abs(ours.astype(float) - theirs).mean((1, 2, 3))


def draws(images, name, seed):
    """Draw a view of each image."""
    rng = np.random.default_rng(seed)
    return [draw_view(rng, *image.shape[:2], RECIPES[name]) for image in images]


# --- against the executor of the workers


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("size", [16, 64])
def test_every_view_equals_opencvs(name, size):
    """300 views of pictures differ from OpenCV's by at most 2 of 255, each in its mean, and by 0.2 on average."""
    images = [scene(seed) for seed in range(50)]
    found = np.concatenate([differences(images, draws(images, name, seed), size) for seed in range(6)])
    assert found.max() <= MOST
    assert found.mean() <= 0.2


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_view_of_real_frames_equals_opencvs(name, shared):
    """The same on frames of traffic signs and of films, at 64 and at 224 px."""
    for folder, size in (("video_frames/gtsrb/frames", 64), ("tracking/got10k/val", 224)):
        store = FrameStore.open(shared / folder)
        images = [store.image(number % store.num_videos, number // store.num_videos) for number in range(20)]
        assert differences(images, draws(images, name, 0), size).max() <= MOST


def test_a_batch_is_the_same_whether_workers_or_the_device_finish_it(stripes):
    """With `finish_on_device` a batch has the same frames, and its finished views, further ones too, are the same."""
    store = FrameStore.open(stripes)
    by_workers = ViewDataset(store, RECIPES["moco-v2"], 16, seed=3, extra_frames=THREE_PAIRS)
    datasets = by_workers, replace(by_workers, finish_on_device=True)
    whole, cut = (next(load_batches(dataset, StepSampler(range(1), 12), 1)) for dataset in datasets)
    assert whole.device_params.numel() == 0
    assert cut.device_params.shape == (12, 8, 10)
    assert torch.equal(whole.frames, cut.frames)
    assert torch.equal(whole.video, cut.video)
    for number, (expected, view) in enumerate(zip(whole.views, cut.views, strict=True)):
        found = augment_on_device(view, cut.device_params[:, number])
        assert (found.float() - expected.float()).abs().mean((1, 2, 3)).max() <= MOST
        assert (view.float() - expected.float()).abs().mean() > MOST, "not finished before"


# --- against definitions


def chain(image, jitter):
    """Apply the changes of color in float64, the hue pixel by pixel, each rounded to bytes."""
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
    """Turn the hue of each pixel with the standard library."""
    out = np.empty(pixels.shape)
    for place in np.ndindex(pixels.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[place] / 255))
        out[place] = np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)) * 255
    return out


def jittered(order=(0, 1, 2, 3), **factors):
    """Return a view of the whole image that only changes colors."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    return WHOLE._replace(jitter=Jitter(**{**neutral, **factors}, order=order))


ONE_CHANGE = [
    *(jittered(**{name: factor}) for name in ("brightness", "contrast", "saturation") for factor in (0.6, 0.93, 1.4)),
    *(jittered(hue=turns) for turns in (-0.4, -0.1, 0.003, 0.25, 0.4, 0.5)),
]


def test_each_change_of_color_equals_its_definition():
    """Brightness, contrast, saturation and hue, each alone, equal their definitions in float64 to one step of 255."""
    done = finished([IMAGE] * len(ONE_CHANGE), ONE_CHANGE)
    for pixels, view in zip(done, ONE_CHANGE, strict=True):
        assert np.abs(pixels - chain(IMAGE, view.jitter)).max() <= 1
        assert (pixels != IMAGE).mean() > 0.1


def test_the_order_of_changes_is_kept():
    """Each of the 24 orders, in one batch, equals the definitions applied one after the other."""
    factors = {"brightness": 1.4, "contrast": 0.6, "saturation": 1.3, "hue": 0.3}
    views = [jittered(order, **factors) for order in itertools.permutations(range(4))]
    image = scene(1)[:SIZE, :SIZE]
    done = finished([image] * 24, views)
    for pixels, view in zip(done, views, strict=True):
        apart = np.abs(pixels - chain(image, view.jitter))
        assert apart.mean() < 0.3
        assert np.quantile(apart, 0.999) <= 3
    assert len({pixels.tobytes() for pixels in done}) == 24


def test_gray_is_the_luma_of_the_jittered_colors():
    """Gray comes after the jitter and has three equal channels."""
    plain, changed = WHOLE._replace(gray=True), jittered(saturation=1.4, brightness=1.2)._replace(gray=True)
    first, second = finished([IMAGE] * 2, [plain, changed])
    for pixels, colors in ((first, IMAGE), (second, chain(IMAGE, changed.jitter))):
        assert (pixels == pixels[..., :1]).all()
        assert np.abs(pixels[..., 0] - colors @ LUMA).max() <= 1


@pytest.mark.parametrize("size", [8, SIZE, 112])
def test_the_blur_is_a_gaussian_with_mirrored_borders(size):
    """Each image is blurred by its own σ, in pixels at a side of 224: compared with a loop over the taps in float64."""
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
    """A view without jitter, gray and blur, or with neutral factors, is the cut view itself."""
    done = finished([IMAGE] * 3, [WHOLE, jittered(), jittered((3, 2, 1, 0))])
    assert (done == IMAGE).all()


def test_views_of_a_batch_are_independent():
    """A view alone equals the same view in a batch, at any place."""
    images = [scene(seed) for seed in range(12)]
    views = draws(images, "moco-v2", 5)
    cut = [crop_view(image, view, 32) for image, view in zip(images, views, strict=True)]
    together, backwards = finished(cut, views), finished(cut[::-1], views[::-1])[::-1]
    alone = np.concatenate([finished([pixels], [view]) for pixels, view in zip(cut, views, strict=True)])
    for other in (backwards, alone):
        assert np.abs(together.astype(int) - other).max() <= 1
        assert (together != other).mean() < 1e-3


def test_all_work_is_on_the_device_of_the_pixels():
    """Tensors that meet the pixels are moved to their device first; the drawn numbers stay on the host."""
    views = draws([scene(0)] * 8, "moco-v2", 2)
    assert any(view.blur for view in views)
    numbers = torch.tensor([augmentation_params(view) for view in views])
    done = augment_on_device(torch.zeros((8, 3, 32, 32), dtype=torch.uint8, device="meta"), numbers)
    assert (done.device.type, done.dtype, done.shape) == ("meta", torch.uint8, (8, 3, 32, 32))


# --- in a training


LINEAR = {"projector": "linear", "precision": "fp32", "cycle_start": 0.0, "learning_rate": 0.003}
LINEAR |= {"holdout": 0.2, "health_every": 2}


@pytest.fixture(scope="module")
def on_device(stripes, tmp_path_factory):
    """A run whose views are finished on the device."""
    return run(stripes, tmp_path_factory.mktemp("runs") / "device", augment_on="device", checkpoint_every=2, **LINEAR)


def test_losses_are_close_to_those_of_views_made_by_workers(stripes, on_device, tmp_path):
    """Step by step the losses differ by rounding only, and health is measured on identical views."""
    by_workers = run(stripes, tmp_path / "cpu", **LINEAR)
    found, expected = ([row["loss"] for row in rows_of(done.folder)] for done in (on_device, by_workers))
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected
    untrained = [about_of(done.folder)["health"]["at_start"] for done in (on_device, by_workers)]
    assert untrained[0] == untrained[1]
    settings = [(done.folder / "config.toml").read_text() for done in (on_device, by_workers)]
    assert 'augment_on = "device"' in settings[0]
    assert 'augment_on = "cpu"' in settings[1], "what auto is on a CPU"


def test_a_resumed_run_is_the_same_run(on_device, tmp_path):
    """Resumed at step 2, the rest of the run is the same, bit for bit."""
    again = copy_until(on_device.folder, tmp_path / "again", 2)
    cc.pretrain(resume=again)
    assert_same_run(again, on_device.folder, 4)


def test_a_resumed_run_may_be_augmented_by_workers(on_device, tmp_path):
    """A run may be resumed with the views made by its workers, as on a machine without a GPU: only rounding changes."""
    again = copy_until(on_device.folder, tmp_path / "again", 2)
    cc.pretrain(resume=again, augment_on="cpu")
    found, expected = ([row["loss"] for row in rows_of(folder)] for folder in (again, on_device.folder))
    assert found[:2] == expected[:2]
    assert found[2:] == pytest.approx(expected[2:], rel=0.02)
    assert found[2:] != expected[2:]


def test_the_report_shows_finished_views(on_device):
    """The pictures of a run's views are those of a run that the workers augment."""
    report = read_run(on_device.folder, "run")
    assert report.config.augment_on == "device"
    by_workers = replace(report, config=report.config.model_copy(update={"augment_on": "cpu"}))
    shown, expected = (view_pairs(each)["pairs"] for each in (report, by_workers))
    assert shown
    assert shown == expected


def test_a_method_of_many_views_trains(stripes, tmp_path):
    """VINCE's eight views are finished, each with its own numbers: the loss is nearly that of the workers' views."""
    settings = LINEAR | {"method": "vince", "steps": 1, "health_every": 0}
    first, second = (run(stripes, tmp_path / name, augment_on=name, **settings).metrics for name in ("cpu", "device"))
    assert first["loss"] == pytest.approx(second["loss"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "device", "chosen"),
    [
        *(("auto", "cuda:1", "device"), ("auto", "cpu", "cpu"), ("auto", "mps", "cpu")),
        *(("cpu", "cuda", "cpu"), ("device", "cpu", "device")),
    ],
)
def test_auto_is_the_device_for_cuda_alone(name, device, chosen):
    """Left open, views are finished on the device only if it is a CUDA GPU; what is set is used."""
    assert pick_augment_on(name, torch.device(device)) == chosen


def test_collating_keeps_the_numbers_of_each_view(stripes):
    """`device_params` of a batch has, sample by sample and view by view, the numbers drawn for it."""
    dataset = ViewDataset(FrameStore.open(stripes), RECIPES["moco-v2"], 16, seed=3, finish_on_device=True)
    samples = [dataset.sample(position) for position in range(5)]
    batch = collate(samples)
    expected = [[pytest.approx(numbers) for numbers in sample.device_params] for sample in samples]
    assert batch.device_params.tolist() == expected
    assert len({numbers for sample in samples for numbers in sample.device_params}) == 10
