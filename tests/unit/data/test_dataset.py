"""Views of one video for each position: the same in any process, and replaced where a frame cannot be read."""

import errno
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data import dataset as module
from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.dataset import ReadError, ViewDataset, collate, no_extra_frames
from cyclecontrast.data.images import decode_image
from cyclecontrast.data.random_streams import shuffled
from cyclecontrast.data.storage import PAUSES
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import shard_path
from cyclecontrast.errors import UserError
from cyclecontrast.methods import METHODS
from tests.unit.data.test_images import write_smooth
from tests.unit.data.test_storage import NUM_VIDEOS, Failing, no_sleep, one_line, write_store, write_tree

RECIPE = RECIPES["moco-v2"]
STILL = RECIPE._replace(min_crop=1.0, flip=False, jitter_probability=0, gray_probability=0, blur_probability=0)
SIZE = 8
NUM_FRAMES = (1, 2, 3, 4, 2, 5, 1)


def further_of(method, **options):
    """Return the function that draws a method's further frames."""
    return METHODS[method].frames(PretrainConfig(data="d", out="o", method=method, **options))[1]


AGAIN = further_of("cycle-only", query_frame_in_support=True)
THREE_PAIRS, OTHER_HALF = further_of("vince"), further_of("seco")
EXTRA_VIEWS = [(no_extra_frames, 0), (AGAIN, 1), (OTHER_HALF, 2), (THREE_PAIRS, 6)]


def write_video(folder, num_frames, video):
    """Write square frames of one color each, which is the number of the video and that of the frame."""
    folder.mkdir(parents=True)
    for index in range(num_frames):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((12, 12, 3), (index, 0, video), np.uint8))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Seven videos of one to five frames."""
    root = tmp_path_factory.mktemp("frames")
    for video, num_frames in enumerate(NUM_FRAMES):
        write_video(root / f"v{video}", num_frames, video)
    return FrameStore.open(root)


@pytest.fixture
def spoiled(tmp_path):
    """A video of which only frame 2 of 4 can be read, and one of which none can."""
    for video in range(2):
        write_video(tmp_path / f"v{video}", 4, video)
    for name in ("v0/0", "v0/1", "v0/3", "v1/0", "v1/1", "v1/2", "v1/3"):
        (tmp_path / f"{name}.png").write_bytes(b"broken")
    return FrameStore.open(tmp_path)


def shown(sample):
    """Return the video that all still views show, and the frame of each."""
    pixels = [tuple(int(value) for value in view[0, 0]) for view in sample.views]
    assert {video for video, _, _ in pixels} == {sample.video}
    return sample.video, *(frame for _, _, frame in pixels)


def samples_of(dataset, video, num_epochs=40):
    """Return the samples at the positions whose video, by the random order, is this one."""
    num = dataset.num_videos
    places = [divmod(position, num) for position in range(num_epochs * num)]
    return [
        dataset.sample(epoch * num + place)
        for epoch, place in places
        if shuffled(dataset.seed, epoch, place, num) == video
    ]


# --- which frames


def test_an_epoch_has_each_video_once_in_another_order(store):
    """Seven positions are seven videos, the next seven the same in another order, and a seed has its own orders."""
    dataset = ViewDataset(store, STILL, SIZE, seed=3)
    epochs = [[dataset.sample(7 * epoch + place).video for place in range(7)] for epoch in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert epochs[0] != [ViewDataset(store, STILL, SIZE, seed=4).sample(place).video for place in range(7)]


def test_some_videos_can_take_part_alone(store):
    """With `videos` an epoch has these only."""
    dataset = ViewDataset(store, STILL, SIZE, seed=3, videos=np.array([1, 2, 5]))
    assert dataset.num_videos == 3
    assert sorted(dataset.sample(position).video for position in range(6)) == [1, 1, 2, 2, 5, 5]


@given(st.integers(0, 2**63), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_distinct_frames_are_distinct(store, seed, position):
    """Query and positive are two frames wherever the video has two; else both show the one."""
    video, first, second = shown(ViewDataset(store, STILL, SIZE, seed).sample(position))
    assert (first != second) == (NUM_FRAMES[video] > 1)
    assert max(first, second) < NUM_FRAMES[video]


def test_every_pair_of_frames_is_equally_likely(store):
    """All ordered pairs of distinct frames of a video occur equally often."""
    only = ViewDataset(store, STILL, SIZE, seed=0, videos=np.array([2]))
    counts = np.unique([shown(only.sample(position))[1:] for position in range(600)], axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert np.abs(counts - 100).max() < 5 * (600 * (1 / 6) * (5 / 6)) ** 0.5


@pytest.mark.parametrize("video", [0, 2, 5])
def test_independent_frames_are_the_same_by_chance(store, video):
    """Frames drawn independently, as in the release, are the same with probability 1 / num_frames."""
    dataset = ViewDataset(store, STILL, SIZE, seed=0, distinct=False, videos=np.array([video]))
    samples = [shown(dataset.sample(position)) for position in range(300)]
    p = 1 / NUM_FRAMES[video]
    assert abs(np.mean([first == second for _, first, second in samples]) - p) <= 5 * (p * (1 - p) / 300) ** 0.5


def test_same_frame_gives_two_views_of_one_frame(store):
    """With `same_frame` query and positive show one frame, and over the epochs each."""
    dataset = ViewDataset(store, STILL, SIZE, seed=0, same_frame=True, videos=np.array([5]))
    found = {shown(dataset.sample(position)) for position in range(60)}
    assert found == {(5, frame, frame) for frame in range(5)}


def test_views_of_one_frame_differ(tmp_path):
    """A video of one frame gives different views of it, other ones in every epoch."""
    (tmp_path / "v").mkdir()
    cv2.imwrite(str(tmp_path / "v" / "1.png"), np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    dataset = ViewDataset(FrameStore.open(tmp_path / "v"), RECIPE, SIZE, seed=0, extra_frames=THREE_PAIRS)
    assert len({view.tobytes() for position in range(5) for view in dataset.sample(position).views}) == 40


@pytest.mark.parametrize(("extra_frames", "number"), EXTRA_VIEWS)
@pytest.mark.parametrize("recipe", [STILL, RECIPE])
def test_further_views_leave_the_first_two_as_they_are(store, extra_frames, number, recipe):
    """Query and positive are the same to the bit whatever other views there are."""
    two = ViewDataset(store, recipe, SIZE, seed=5)
    more = replace(two, extra_frames=extra_frames)
    for position in range(10):
        first, second = two.sample(position), more.sample(position)
        assert (len(first.views), len(second.views)) == (2, 2 + number)
        assert all(map(np.array_equal, first.views, second.views))
        assert first[1:] == (second.video, second.frames[:2], 0, (), ())


@pytest.mark.parametrize(("extra_frames", "number"), EXTRA_VIEWS)
def test_frames_are_the_numbers_of_what_is_shown(store, extra_frames, number):
    """`frames` has the number of the frame in each view, in a sample and in a batch."""
    dataset = ViewDataset(store, STILL, SIZE, seed=1, extra_frames=extra_frames)
    samples = [dataset.sample(position) for position in range(14)]
    assert [shown(sample) for sample in samples] == [(sample.video, *sample.frames) for sample in samples]
    batch = collate(samples)
    assert batch.frames.tolist() == [list(sample.frames) for sample in samples]
    assert [tuple(view.shape) for view in batch.views] == [(14, 3, SIZE, SIZE)] * (2 + number)


def test_reading_draws_from_no_global_generator(store):
    """A sample is a function of its position, and the global generators stay as they are."""
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    dataset = ViewDataset(store, RECIPE, SIZE, seed=1)
    first, again = dataset.sample(3), dataset[3]
    assert all(map(np.array_equal, first.views, again.views))
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


# --- batches


def test_batches_are_channels_last_bytes_without_a_second_copy(store, monkeypatch):
    """Images are uint8 (batch, 3, size, size), channels-last, in the memory of the arrays that were stacked."""
    stacked, stack = [], np.stack
    monkeypatch.setattr(np, "stack", lambda views: stacked.append(stack(views)) or stacked[-1])
    dataset = ViewDataset(store, RECIPE, SIZE, seed=1)
    samples = [dataset.sample(position) for position in range(4)]
    batch = collate(samples)
    assert [images.data_ptr() for images in batch.views] == [array.ctypes.data for array in stacked]
    for images, views in zip(batch.views, zip(*(sample.views for sample in samples), strict=True), strict=True):
        assert (images.shape, images.dtype) == ((4, 3, SIZE, SIZE), torch.uint8)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), stack(views))
    assert (batch.video.tolist(), batch.video.dtype) == ([sample.video for sample in samples], torch.int64)
    assert (batch.num_replaced, batch.read_errors, batch.device_params.numel()) == (0, (), 0)


def test_micro_batches_are_consecutive_parts(store):
    """Micro-batches have equal sizes, and together are the batch in its order."""
    dataset = ViewDataset(store, RECIPE, SIZE, seed=1, finish_on_device=True)
    batch = collate([dataset.sample(position) for position in range(6)])
    parts = list(batch.micro_batches(3))
    assert [len(part.video) for part in parts] == [2, 2, 2]
    for name in ("video", "frames", "device_params"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    for view, *split in zip(batch.views, *(part.views for part in parts), strict=True):
        assert torch.equal(torch.cat(split), view)


def test_views_of_large_frames_show_the_same(tmp_path, monkeypatch):
    """Decoding a fraction of a frame's size changes views by less than 2 of 255 on average."""
    (tmp_path / "v").mkdir()
    for number in range(3):
        write_smooth(tmp_path / "v" / f"{number}.jpg", 480, 640)
    dataset = ViewDataset(FrameStore.open(tmp_path), STILL._replace(min_crop=0.2, flip=True), 32, 0)
    sizes = []
    monkeypatch.setattr(
        module, "decode_image", lambda *args: sizes.append(decode_image(*args).shape) or decode_image(*args)
    )
    parts = [dataset.sample(position).views for position in range(8)]
    assert set(sizes) == {(120, 160, 3)}
    monkeypatch.setattr(module, "decode_image", lambda data, _: decode_image(data))
    for part, position in zip(parts, range(8), strict=True):
        for one, other in zip(part, dataset.sample(position).views, strict=True):
            assert np.abs(one.astype(int) - other).mean() < 2


def test_a_users_augmentation_gets_the_whole_frame(tmp_path):
    """For a user's function a frame is not decoded at a fraction of its size."""
    (tmp_path / "v").mkdir()
    write_smooth(tmp_path / "v" / "0.jpg", 480, 640)
    seen = []

    def augment(image, rng, size):
        seen.append(image.shape)
        return np.zeros((size, size, 3), np.uint8)

    ViewDataset(FrameStore.open(tmp_path), augment, 16, seed=0).sample(0)
    assert set(seen) == {(480, 640, 3)}


def test_a_frame_is_decoded_once(tmp_path, monkeypatch):
    """To know whether a frame decodes takes no second decoding."""
    decoded = []
    monkeypatch.setattr(module, "decode_image", lambda data, _: decoded.append(data) or decode_image(data))
    dataset = ViewDataset(FrameStore.open(write_tree(tmp_path / "data")), RECIPE, SIZE, 0)
    for position in range(NUM_VIDEOS):
        dataset.sample(position)
    assert len(decoded) == len(set(decoded)) == 2 * NUM_VIDEOS


# --- frames that cannot be read


def test_an_unreadable_frame_is_replaced_and_counted(spoiled):
    """Another frame of the video takes its place, and each view that shows another frame than drawn is counted."""
    samples = samples_of(ViewDataset(spoiled, STILL, SIZE, seed=0), video=0)
    assert all(shown(sample) == (0, 2, 2) for sample in samples)
    assert {sample.num_replaced for sample in samples} == {1, 2}


def test_a_video_without_a_readable_frame_is_replaced(spoiled):
    """The next video takes its place, and all its views count as replaced."""
    samples = samples_of(ViewDataset(spoiled, STILL, SIZE, seed=0), video=1)
    assert {(sample.video, sample.num_replaced) for sample in samples} == {(0, 2)}
    batch = collate(samples)
    assert (batch.video.unique().tolist(), batch.num_replaced) == ([0], 2 * len(samples))


def test_further_views_are_replaced_and_counted(spoiled):
    """All eight views of a video show its one readable frame; of a video without any, those of the next."""
    dataset = ViewDataset(spoiled, STILL, SIZE, seed=0, extra_frames=THREE_PAIRS)
    samples = samples_of(dataset, video=0)
    assert {sample.frames for sample in samples} == {(2,) * 8}
    assert 4 < np.mean([sample.num_replaced for sample in samples]) < 8
    assert {sample.num_replaced for sample in samples_of(dataset, video=1)} == {8}


def test_each_unreadable_frame_is_named_once(spoiled):
    """Frames tried in vain are named with their reason, once in a sample and once in a batch."""
    dataset = ViewDataset(spoiled, STILL, SIZE, seed=0, extra_frames=THREE_PAIRS)
    samples = [dataset.sample(position) for position in range(60)]
    for sample in samples:
        assert len(set(sample.read_errors)) == len(sample.read_errors)
        assert all("the image does not decode" in error.reason for error in sample.read_errors)
    batch = collate(samples)
    assert len(batch.read_errors) == 7
    named = {error[:2] for error in batch.read_errors}
    assert named == {(0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)}


def test_replaced_frames_stay_distinct(tmp_path):
    """Where two readable frames remain, the replacement is not the frame of the other view."""
    write_video(tmp_path / "v0", 5, 0)
    write_video(tmp_path / "v1", 2, 1)
    for index in (0, 2, 3):
        (tmp_path / "v0" / f"{index}.png").write_bytes(b"")
    samples = samples_of(ViewDataset(FrameStore.open(tmp_path), STILL, SIZE, seed=0), video=0)
    assert {shown(sample)[1:] for sample in samples} == {(1, 4), (4, 1)}
    assert {sample.num_replaced for sample in samples} == {0, 1, 2}


def test_data_without_a_readable_frame_are_an_error(tmp_path, monkeypatch):
    """After MAX_UNREADABLE_VIDEOS videos without a readable frame one line names the last; as an item it is a value."""
    monkeypatch.setattr(module, "MAX_UNREADABLE_VIDEOS", 3)
    broken = {(video, frame) for video in range(NUM_VIDEOS) for frame in range(3)}
    dataset = ViewDataset(FrameStore.open(write_tree(tmp_path / "data", broken)), RECIPE, SIZE, 0)
    words = r"data: no frame of 3 videos can be read, the last is frame \d of v\d: the image does not decode"
    with pytest.raises(UserError, match=words) as caught:
        dataset.sample(0)
    assert one_line(caught) == one_line_of(dataset[0])
    assert collate([dataset[0], dataset[1]]).problems == dataset[0].problems


def one_line_of(error):
    """Return the only line of an error that was returned."""
    (line,) = error.problems
    return line


def test_a_file_that_is_gone_is_a_frame_to_replace(tmp_path):
    """A single image that was deleted, or a video's folder, is replaced at once, and named."""
    root = write_tree(tmp_path / "data")
    dataset = ViewDataset(FrameStore.open(root), RECIPE, SIZE, 0, sleep=no_sleep)
    (root / "v3" / "1.png").unlink()
    for path in (root / "v5").iterdir():
        path.unlink()
    (root / "v5").rmdir()
    named = {error for position in range(80) for error in dataset.sample(position).read_errors}
    assert named == {
        ReadError(video, frame, "the file no longer exists") for video, frame in ((3, 1), (5, 0), (5, 1), (5, 2))
    }


# --- a storage that fails


def test_a_read_that_fails_again_and_again_is_an_error(tmp_path):
    """After the last pause one line has the file, the error and the attempts; nothing is replaced."""
    store, slept = FrameStore.open(write_tree(tmp_path / "data")), []
    failing = Failing(store.source, [OSError(errno.EIO, os.strerror(errno.EIO), "/far/v1/2.png")] * 99)
    with pytest.raises(UserError) as caught:
        ViewDataset(replace(store, source=failing), RECIPE, SIZE, 0, sleep=slept.append).sample(0)
    line = "/far/v1/2.png: cannot be read (Input/output error; tried 6 times in 34 s); check the storage"
    assert one_line(caught) == line
    assert slept == list(PAUSES)


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_shard_that_comes_back_is_read_again(tmp_path, harm):
    """A shard that is missing or short for less time than the pauses take has no effect."""
    store = FrameStore.open(write_store(tmp_path / "store"))
    whole = [ViewDataset(store, RECIPE, SIZE, 0).sample(position) for position in range(16)]
    kept = {path: path.read_bytes() for path in (shard_path(store.root, number) for number in range(2))}
    fresh = FrameStore.open(tmp_path / "store")
    for path in kept:
        path.unlink() if harm == "removed" else os.truncate(path, 10)
    again = ViewDataset(fresh, RECIPE, SIZE, 0, sleep=lambda _: [path.write_bytes(data) for path, data in kept.items()])
    for position, sample in enumerate(whole):
        found = again.sample(position)
        assert all(map(np.array_equal, found.views, sample.views))
        assert found[1:] == sample[1:]


@pytest.mark.parametrize("harm", ["removed", "emptied"])
def test_a_tree_that_is_gone_is_not_replaced(tmp_path, harm):
    """Where the whole folder is unmounted one line names it, and no other frame is tried."""
    root = write_tree(tmp_path / "data")
    dataset = ViewDataset(FrameStore.open(root), RECIPE, SIZE, 0, sleep=lambda seconds: None)
    root.rename(tmp_path / "elsewhere")
    if harm == "emptied":
        root.mkdir()
    with pytest.raises(UserError, match=r"data/v\d/\d\.png: cannot be read \(No such file or directory; tried 6 times"):
        dataset.sample(0)
