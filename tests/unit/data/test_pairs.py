"""Two views of one video for each position: the same in any process, and never a crash for one bad frame."""

import math

import cv2
import numpy as np
import pytest
import torch
from cyclecontrast.data.further_views import no_further, other_half, query_again, three_pairs
from cyclecontrast.data.pairs import FramePairs, video_at
from hypothesis import given, settings
from hypothesis import strategies as st

from cyclecontrast.data import pairs as module
from cyclecontrast.data.augment import RECIPES, draw_view, smallest_crop
from cyclecontrast.data.dataset import Batch, collate
from cyclecontrast.data.images import decode_image
from cyclecontrast.data.loader import load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError

RECIPE = RECIPES["moco-v2"]
STILL = RECIPE._replace(min_crop=1.0, flip=False, jitter_probability=0, gray_probability=0, blur_probability=0)
SIZE = 8
NUM_FRAMES = (1, 2, 3, 4, 2, 5, 1)


def write_video(folder, num_frames, video):
    """Write square frames of one colour each, which tells the video and the frame."""
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
    return tmp_path


def shown(sample):
    """The video and the two frames that a sample of still views shows."""
    query, positive = (tuple(int(v) for v in view[0, 0]) for view in sample[:2])
    assert query[0] == positive[0] == sample.video
    return sample.video, query[2], positive[2]


def equal(first, second):
    """Whether two batches are the same to the bit."""
    tensors = all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    return tensors and first.replaced == second.replaced and [*first.unreadable] == [*second.unreadable]


def batches(pairs, steps, batch_size=3, rank=0, world=1, workers=0):
    """All batches of these steps."""
    return list(load_batches(pairs, steps, batch_size, rank, world, workers))


def positions_of(pairs, video):
    """Positions of 80 epochs that show this video."""
    n = pairs.store.num_videos
    return [position for position in range(80 * n) if video_at(pairs.seed, *divmod(position, n), n) == video]


# --- which frames


def test_an_epoch_visits_every_video_once_in_another_order(store):
    """Seven positions are seven videos, and the next seven are the same in another order."""
    pairs = FramePairs(store, STILL, SIZE, seed=3)
    epochs = [[pairs[7 * epoch + place].video for place in range(7)] for epoch in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert epochs[0] != [FramePairs(store, STILL, SIZE, seed=4)[place].video for place in range(7)]


@given(st.integers(0, 2**63), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_distinct_frames_are_distinct(store, seed, position):
    """Wherever the video has two frames or more, query and positive are two; else both show the one."""
    video, first, second = shown(FramePairs(store, STILL, SIZE, seed)[position])
    assert (first != second) == (NUM_FRAMES[video] > 1)
    assert max(first, second) < NUM_FRAMES[video]


def test_every_pair_of_frames_is_as_likely(store):
    """All ordered pairs of distinct frames of a video occur equally often."""
    pairs = FramePairs(store, STILL, SIZE, seed=0)
    seen = [shown(pairs[position])[1:] for position in range(7 * 600) if pairs[position].video == 2]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert np.abs(counts - 100).max() < 5 * (600 * (1 / 6) * (5 / 6)) ** 0.5


def test_independent_frames_meet_by_chance(store):
    """Frames drawn independently, as in the release, are the same with probability 1 / num_frames."""
    pairs = FramePairs(store, STILL, SIZE, seed=0, distinct=False)
    samples = [shown(pairs[position]) for position in range(7 * 300)]
    for video, num_frames in enumerate(NUM_FRAMES):
        same = np.mean([first == second for v, first, second in samples if v == video])
        p = 1 / num_frames
        assert abs(same - p) <= 5 * (p * (1 - p) / 300) ** 0.5


def test_same_frame_gives_two_views_of_one_frame(store):
    """With `same_frame` both views show one frame, and the views differ."""
    still = FramePairs(store, STILL, SIZE, seed=0, same_frame=True)
    assert all(first == second for _, first, second in (shown(still[position]) for position in range(70)))
    assert {shown(still[position])[1] for position in range(210) if still[position].video == 5} == set(range(5))


def test_views_of_one_frame_differ(tmp_path):
    """A video of one frame takes part with two different views of it, other ones in every epoch."""
    (tmp_path / "v").mkdir()
    cv2.imwrite(str(tmp_path / "v" / "1.png"), np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    pairs = FramePairs(FrameStore.open(tmp_path / "v"), RECIPE, SIZE, seed=0)
    views = [view for position in range(5) for view in pairs[position][:2]]
    assert len({view.tobytes() for view in views}) == 10
    more = FramePairs(pairs.store, RECIPE, SIZE, seed=0, further=three_pairs)
    assert len({view.tobytes() for position in range(5) for view in more[position].more}) == 30


# --- further views


def numbers(view):
    """The video and the frame that a still view shows."""
    return int(view[0, 0, 0]), int(view[0, 0, 2])


@pytest.mark.parametrize("further", [query_again, three_pairs, other_half])
@pytest.mark.parametrize("recipe", [STILL, RECIPE])
def test_further_views_leave_the_first_two_as_they_are(store, further, recipe):
    """Query and positive are the same to the bit whatever is shown beside them."""
    two = FramePairs(store, recipe, SIZE, seed=5)
    more = FramePairs(store, recipe, SIZE, seed=5, further=further)
    for position in range(21):
        assert all(np.array_equal(a, b) for a, b in zip(two[position][:2], more[position][:2], strict=True))
        assert two[position][2:5] == (two[position].video, 0, ())


@pytest.mark.parametrize(("further", "number"), [(no_further, 0), (query_again, 1), (three_pairs, 6), (other_half, 2)])
def test_frames_number_what_each_view_shows(store, further, number):
    """The numbers beside the views are those of the frames in the pictures, in a sample and in a batch."""
    pairs = FramePairs(store, STILL, SIZE, seed=1, further=further)
    for position in range(28):
        sample = pairs[position]
        seen = [numbers(view) for view in (sample.query, sample.positive, *sample.more)]
        assert seen == [(sample.video, frame) for frame in sample.frames]
        assert len(sample.more) == number
    batch = collate([pairs[position] for position in range(7)])
    assert batch.frames.tolist() == [list(pairs[position].frames) for position in range(7)]
    assert [tuple(view.shape) for view in batch.more] == [(7, 3, SIZE, SIZE)] * number


def test_the_query_again_is_its_frame(store):
    """k++ shows the query's frame, of another video frame the positive."""
    pairs = FramePairs(store, STILL, SIZE, seed=1, further=query_again)
    assert all(pairs[position].frames[2] == pairs[position].frames[0] for position in range(70))


def test_three_pairs_are_of_any_frames(store):
    """VINCE's six further views show every frame of the video equally often, short videos more than once."""
    pairs = FramePairs(store, STILL, SIZE, seed=1, further=three_pairs)
    samples = [pairs[position] for position in range(7 * 150)]
    for video, num_frames in enumerate(NUM_FRAMES):
        frames = [frame for sample in samples if sample.video == video for frame in sample.frames[2:]]
        counts, p = np.bincount(frames, minlength=num_frames), 1 / num_frames
        assert len(counts) == num_frames
        assert np.abs(counts - 900 * p).max() <= 5 * (900 * p * (1 - p)) ** 0.5
        again = sum(sample.frames[2] == sample.frames[0] for sample in samples if sample.video == video)
        assert abs(again - 150 * p) <= 5 * (150 * p * (1 - p)) ** 0.5, "the draws know nothing of the query's"


def test_the_other_half_is_before_or_after(store):
    """SeCo's two further frames are sorted, both on the other side of the middle; one frame stands for itself."""
    pairs = FramePairs(store, STILL, SIZE, seed=1, same_frame=True, further=other_half)
    sides = set()
    for position in range(210):
        sample = pairs[position]
        half, (query, again, second, third) = NUM_FRAMES[sample.video] // 2, sample.frames
        assert query == again
        assert second <= third
        if half:
            assert {second < half, third < half} == {query >= half}
            sides.add(query < half)
        else:
            assert second == third == query
    assert sides == {True, False}


def test_further_views_are_the_same_in_any_process(store):
    """Workers, starts and shares change nothing of further views and of frame numbers."""
    pairs = FramePairs(store, RECIPE, SIZE, seed=1, further=three_pairs)
    here, there = batches(pairs, range(4)), batches(pairs, range(4), workers=2)
    for one, two in zip(here, there, strict=True):
        assert torch.equal(one.frames, two.frames)
        assert all(torch.equal(a, b) for a, b in zip(one.more, two.more, strict=True))
    assert torch.equal(batches(pairs, range(2, 4))[1].more[5], here[3].more[5])


def test_further_views_are_replaced_and_counted(spoiled):
    """All eight views of a video show its one readable frame; of a video without any, the next one's, all counted."""
    pairs = FramePairs(FrameStore.open(spoiled), STILL, SIZE, seed=0, further=three_pairs)
    samples = [pairs[position] for position in positions_of(pairs, 0)]
    assert {sample.frames for sample in samples} == {(2,) * 8}
    assert 4 < np.mean([sample.replaced for sample in samples]) < 8
    stand_ins = [pairs[position] for position in positions_of(pairs, 1)]
    assert {sample.replaced for sample in stand_ins} == {8}


# --- in any process


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(store, workers):
    """Batches from worker processes equal those made here, over the border of an epoch."""
    pairs = FramePairs(store, RECIPE, SIZE, seed=1)
    here, there = batches(pairs, range(6)), batches(pairs, range(6), workers=workers)
    assert len(here) == len(there) == 6
    assert all(map(equal, here, there))


def test_any_start_gives_the_same_data(store):
    """A run that goes on at a step gets what an uninterrupted run would have got there."""
    pairs = FramePairs(store, RECIPE, SIZE, seed=1)
    whole = batches(pairs, range(8))
    for start in range(8):
        assert all(map(equal, whole[start:], batches(FramePairs(store, RECIPE, SIZE, seed=1), range(start, 8))))
    assert batches(pairs, range(3, 3)) == []


def test_ranks_share_the_batch(store):
    """The shares of two processes, one behind the other, are the batch of one process."""
    pairs = FramePairs(store, RECIPE, SIZE, seed=1)
    whole = batches(pairs, range(4), batch_size=6)
    shares = [batches(pairs, range(4), batch_size=6, rank=rank, world=2) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        joined = (torch.cat(column) for column in zip(*(part[:3] for part in parts), strict=True))
        assert equal(batch, Batch(*joined, replaced=sum(part.replaced for part in parts)))


def test_a_batch_that_cannot_be_shared_is_told(store):
    """A batch of seven on two processes is a mistake at once, not a sample less."""
    with pytest.raises(UserError, match="batch_size: 7 cannot be shared by 2 processes; name a multiple of 2"):
        load_batches(FramePairs(store, RECIPE, SIZE, seed=1), range(1), 7, 0, 2, 0)


def test_batches_are_channels_last_bytes(store):
    """Images come as uint8 (batch, 3, size, size) in channels-last memory, views of what was stacked."""
    pairs = FramePairs(store, RECIPE, SIZE, seed=1)
    samples = [pairs[position] for position in range(4)]
    for batch in (collate(samples), next(load_batches(pairs, range(1), 4, 0, 1, 1))):
        for images, views in zip(batch[:2], zip(*(sample[:2] for sample in samples), strict=True), strict=True):
            assert (images.shape, images.dtype) == ((4, 3, SIZE, SIZE), torch.uint8)
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(views))
        assert batch.video.tolist() == [sample.video for sample in samples]
        assert (batch.video.dtype, batch.replaced) == (torch.int64, 0)


def test_collate_copies_once(store, monkeypatch):
    """Stacking is the only copy: the tensors lie in the stacked arrays' own memory."""
    stacked = []
    stack = np.stack
    monkeypatch.setattr(np, "stack", lambda views: stacked.append(stack(views)) or stacked[-1])
    pairs = FramePairs(store, RECIPE, SIZE, seed=1)
    batch = collate([pairs[0], pairs[1]])
    assert [images.data_ptr() for images in batch[:2]] == [array.ctypes.data for array in stacked]


def write_smooth(path, height, width):
    """Write a photograph-like image: large patches of colour with soft transitions."""
    colours = np.random.default_rng(height).integers(64, 192, (height // 120, width // 120, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC))
    return path.read_bytes()


@pytest.mark.parametrize(("enough", "times"), [(None, 1), (241, 1), (240, 2), (121, 2), (120, 4), (60, 8), (1, 8)])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(tmp_path, enough, times):
    """Its short side stays as long as asked, and it shows what the whole image shows, scaled by averaging."""
    data = write_smooth(tmp_path / "large.jpg", 481, 643)
    part = decode_image(data, enough)
    assert part.shape == (math.ceil(481 / times), math.ceil(643 / times), 3)
    whole = cv2.resize(decode_image(data), part.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(part.astype(int) - whole).mean() < 2
    data = write_smooth(tmp_path / "large.png", 481, 643)
    assert np.array_equal(decode_image(data, enough), decode_image(data))


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 1), st.integers(0, 2**32))
def test_no_crop_is_smaller_than_the_smallest(height, width, min_crop, seed):
    """So that a frame of which a part is decoded never has to be enlarged for it."""
    recipe = RECIPE._replace(min_crop=min_crop)
    crop = draw_view(np.random.default_rng(seed), height, width, recipe).crop
    assert min(crop.width, crop.height) + 0.5 >= smallest_crop(recipe) * min(height, width)


def test_views_of_large_frames_show_the_same(tmp_path, monkeypatch):
    """Decoding a part of a frame's size changes views by less than 2 of 255."""
    for number in range(4):
        (tmp_path / "v").mkdir(exist_ok=True)
        write_smooth(tmp_path / "v" / f"{number}.jpg", 480, 640)
    pairs = FramePairs(FrameStore.open(tmp_path), STILL._replace(min_crop=0.2, flip=True), 32, 0)
    sizes = []
    decode = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda *args: sizes.append(decode(*args).shape) or decode(*args))
    parts = [pairs[position] for position in range(20)]
    assert set(sizes) == {(120, 160, 3)}
    monkeypatch.setattr(module, "decode_image", lambda data, _: decode(data))
    for part, whole in zip(parts, (pairs[position] for position in range(20)), strict=True):
        for one, other in zip(part[:2], whole[:2], strict=True):
            assert np.abs(one.astype(int) - other).mean() < 2


def test_reading_touches_no_global_random_numbers(store):
    """Samples come from their own generators."""
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    FramePairs(store, RECIPE, SIZE, seed=1)[3]
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


# --- frames that cannot be read


def test_an_unreadable_frame_is_replaced_and_counted(spoiled):
    """Another frame of the same video stands in, and every replaced view is counted."""
    pairs = FramePairs(FrameStore.open(spoiled), STILL, SIZE, seed=0)
    samples = [pairs[position] for position in positions_of(pairs, 0)]
    assert all(shown(sample) == (0, 2, 2) for sample in samples)
    assert {sample.replaced for sample in samples} == {1, 2}


def test_what_was_tried_in_vain_is_named_once(spoiled):
    """Each unreadable frame on the way to a readable one is named with its reason, in a sample and in a batch once."""
    pairs = FramePairs(FrameStore.open(spoiled), STILL, SIZE, seed=0, further=three_pairs)
    samples = [pairs[position] for position in range(80)]
    for sample in samples:
        assert len(set(sample.unreadable)) == len(sample.unreadable)
        assert all("the image does not decode" in frame.reason for frame in sample.unreadable)
    named = {frame[:2] for sample in samples for frame in sample.unreadable}
    assert named == {(0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)}
    batch = collate(samples)
    assert len(batch.unreadable) == 7
    assert {frame[:2] for frame in batch.unreadable} == named


def test_replacing_keeps_frames_distinct(tmp_path):
    """Where two readable frames are left, a stand-in is not the frame that the other view shows."""
    write_video(tmp_path / "v0", 5, 0)
    write_video(tmp_path / "v1", 2, 1)
    for index in (0, 2, 3):
        (tmp_path / "v0" / f"{index}.png").write_bytes(b"")
    pairs = FramePairs(FrameStore.open(tmp_path), STILL, SIZE, seed=0)
    samples = [pairs[position] for position in positions_of(pairs, 0)]
    assert {shown(sample)[1:] for sample in samples} == {(1, 4), (4, 1)}
    assert {sample.replaced for sample in samples} == {0, 1, 2}


def test_a_video_without_a_readable_frame_is_replaced(spoiled):
    """The next video stands in for one that cannot be read at all, and both its views count as replaced."""
    pairs = FramePairs(FrameStore.open(spoiled), STILL, SIZE, seed=0)
    batches = list(load_batches(pairs, range(2), 2, 0, 1, 0))
    assert all(batch.video.tolist() == [0, 0] for batch in batches)
    assert all(batch.replaced >= 2 for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_readable_frame_are_told(spoiled, workers):
    """The user gets one line, also from a worker process, and not the worker's traceback."""
    for path in spoiled.rglob("*.png"):
        path.write_bytes(b"")
    pairs = FramePairs(FrameStore.open(spoiled), STILL, SIZE, seed=0)
    with pytest.raises(UserError) as caught:
        list(load_batches(pairs, range(2), 2, 0, 1, workers))
    (line,) = caught.value.problems
    assert line.startswith(f"{spoiled}: no frame of 2 videos can be read, the last is frame ")
    assert "\n" not in line
    assert "Traceback" not in line
