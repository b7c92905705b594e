"""Reading that fails: damaged and missing frames are replaced and named, a storage that fails is retried."""

import errno
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from cyclecontrast.data import dataset as dataset_module
from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.dataset import ReadError, ViewDataset
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.data.store import PAUSES, FrameStore
from cyclecontrast.data.store_format import shard_path
from cyclecontrast.errors import UserError
from tests.unit.data.test_storage import NUM_VIDEOS, Failing, no_sleep, one_line, write_store, write_tree

RECIPE = RECIPES["moco-v2"]


@dataclass
class Acting:
    """A source of bytes that does something before it reads a frame."""

    source: object
    act: object

    def read(self, frame):
        """Act, then return the bytes."""
        self.act(frame)
        return self.source.read(frame)


def test_a_read_that_fails_on_ends_in_a_line(tmp_path):
    """After the last pause the file, the error and the attempts are reported; nothing is replaced."""
    store, slept = FrameStore.open(write_tree(tmp_path / "data")), []
    error = OSError(errno.EIO, os.strerror(errno.EIO), "/far/v1/2.png")
    dataset = ViewDataset(replace(store, source=Failing(store.source, [error] * 99)), RECIPE, 8, 0, sleep=slept.append)
    with pytest.raises(UserError) as caught:
        dataset.sample(0)
    assert (
        one_line(caught)
        == "/far/v1/2.png: cannot be read (Input/output error; tried 6 times in 34 s); check the storage"
    )
    assert slept == list(PAUSES)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_shard_that_is_lost_ends_in_a_line(tmp_path, workers, harm):
    """A missing or shortened shard is an error that names it, also from a worker; no frame is replaced."""
    dataset = ViewDataset(FrameStore.open(write_store(tmp_path / "store")), RECIPE, 8, 0, sleep=lambda seconds: None)
    shard = shard_path(dataset.store.root, 1)
    shard.unlink() if harm == "removed" else os.truncate(shard, 10)
    with pytest.raises(UserError, match=r"000001\.tar") as caught:
        list(load_batches(dataset, StepSampler(range(8), 4), workers))
    assert "tried 6 times" in one_line(caught)


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_shard_that_comes_back_is_read_on(tmp_path, harm):
    """What a shard loses for less time than the pauses take is not missed."""
    dataset = ViewDataset(FrameStore.open(write_store(tmp_path / "store")), RECIPE, 8, 0)
    store = FrameStore.open(tmp_path / "store")
    whole = [dataset[position] for position in range(16)]
    shards = [shard_path(dataset.store.root, number) for number in range(2)]
    kept = [shard.read_bytes() for shard in shards]

    def restore(seconds):
        for shard, data in zip(shards, kept, strict=True):
            shard.write_bytes(data)

    for shard in shards:
        if harm == "removed":
            shard.unlink()
        else:
            os.truncate(shard, 10)
    again = ViewDataset(store, RECIPE, 8, 0, sleep=restore)
    for position, sample in enumerate(whole):
        assert all(map(np.array_equal, again[position].views, sample.views))
        assert again[position][1:] == sample[1:]


def test_a_file_that_is_gone_is_a_frame_to_replace(tmp_path):
    """A single image that was deleted, or a video's folder, is replaced at once, and named."""
    root = write_tree(tmp_path / "data")
    dataset = ViewDataset(FrameStore.open(root), RECIPE, 8, 0, sleep=no_sleep)
    (root / "v3" / "1.png").unlink()
    for path in (root / "v5").iterdir():
        path.unlink()
    (root / "v5").rmdir()
    named = {frame for position in range(160) for frame in dataset[position].read_errors}
    assert named == {ReadError(video, frame, "the file is gone") for video, frame in ((3, 1), (5, 0), (5, 1), (5, 2))}


@pytest.mark.parametrize("harm", ["removed", "emptied"])
def test_a_tree_that_is_gone_is_not_replaced(tmp_path, harm):
    """Where the whole folder is unmounted, the line says so; no other frame is looked for."""
    root = write_tree(tmp_path / "data")
    dataset = ViewDataset(FrameStore.open(root), RECIPE, 8, 0, sleep=lambda seconds: None)
    root.rename(tmp_path / "elsewhere")
    if harm == "emptied":
        root.mkdir()
    with pytest.raises(UserError, match=r"data/v\d/\d\.png: cannot be read \(No such file or directory; tried 6 times"):
        dataset.sample(0)


def more_frames(rng, query, num_frames):
    """Draw two further frames."""
    return tuple(int(frame) for frame in rng.integers(num_frames, size=2))


def test_broken_frames_are_the_same_in_any_process(tmp_path):
    """With frames that do not decode, batches, counts and names are equal with 0 and with 2 workers."""
    broken = {(0, 1), (2, 0), (2, 1), (2, 2), (6, 0), (6, 1)}
    store = FrameStore.open(write_tree(tmp_path / "data", broken))
    dataset = ViewDataset(store, RECIPE, 8, 1, further=more_frames)
    here, there = (list(load_batches(dataset, StepSampler(range(6), 8), workers)) for workers in (0, 2))
    for one, two in zip(here, there, strict=True):
        assert all(map(torch.equal, (*one.views, one.video, one.frames), (*two.views, two.video, two.frames)))
        assert (one.num_replaced, one.read_errors) == (two.num_replaced, two.read_errors)
    named = {frame[:2] for batch in here for frame in batch.read_errors}
    assert named == broken
    assert all(len(set(batch.read_errors)) == len(batch.read_errors) for batch in here)


def test_a_frame_is_decoded_once(tmp_path, monkeypatch):
    """To know that a frame decodes costs no second decoding of it."""
    decoded, decode = [], dataset_module.decode_image
    monkeypatch.setattr(dataset_module, "decode_image", lambda data, _: decoded.append(data) or decode(data))
    dataset = ViewDataset(FrameStore.open(write_tree(tmp_path / "data")), RECIPE, 8, 0)
    for position in range(NUM_VIDEOS):
        dataset[position]
    assert len(decoded) == len(set(decoded)) == 2 * NUM_VIDEOS
