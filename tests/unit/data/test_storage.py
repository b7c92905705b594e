"""Reads from storage that fails for a while: what is retried, with which pauses, and what is reported at the end."""

import errno
import os
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest

from cyclecontrast.data.storage import PAUSES, same_content
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import FRAME_SCHEMA, FRAMES, shard_path, write_rows, write_settings
from cyclecontrast.errors import UserError

NUM_VIDEOS, NUM_FRAMES = 8, 3


def png(video, index):
    """The bytes of a small image of noise."""
    noise = np.random.default_rng([video, index]).integers(0, 256, (20, 20, 3), np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def write_tree(root, broken=()):
    """Eight videos of three frames each; the broken ones hold other bytes."""
    for video in range(NUM_VIDEOS):
        (root / f"v{video}").mkdir(parents=True)
        for index in range(NUM_FRAMES):
            data = b"broken" if (video, index) in broken else png(video, index)
            (root / f"v{video}" / f"{index}.png").write_bytes(data)
    return root


def write_store(root):
    """The same videos as a prepared store of two shards."""
    (root / "shards").mkdir(parents=True)
    rows = []
    for shard in range(2):
        data = b""
        for video in range(4 * shard, 4 * shard + 4):
            for index in range(NUM_FRAMES):
                image = png(video, index)
                place = {"shard": shard, "offset": len(data), "size": len(image)}
                rows.append({"video": f"v{video}", "index": index, "time": 0.0, **place, "width": 20, "height": 20})
                data += image
        shard_path(root, shard).write_bytes(data)
    write_rows(root / FRAMES, rows, FRAME_SCHEMA)
    write_settings(root, {})
    return root


def no_sleep(seconds):
    """A pause that nobody makes, for no read fails."""
    raise AssertionError(f"a pause of {seconds} s")


@dataclass
class Failing:
    """A source of bytes that fails with these errors before each frame's read succeeds; None never succeeds."""

    source: object
    errors: list
    failed: int = 0

    def reopen(self):
        """Count nothing: there is nothing to open."""

    def read(self, frame):
        """Return the bytes, once the errors are used up."""
        if self.failed < len(self.errors):
            self.failed += 1
            raise self.errors[self.failed - 1]
        return self.source.read(frame)


def one_line(caught):
    """The single line of the error."""
    (line,) = caught.value.problems
    assert "\n" not in line
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES])
def test_a_read_that_fails_for_a_while_is_tried_again(tmp_path, number):
    """Errors of a file system are waited out, with growing pauses, and the bytes are the right ones."""
    store, slept = FrameStore.open(write_tree(tmp_path / "data")), []
    failing = replace(store, source=Failing(store.source, [OSError(number, os.strerror(number), "f")] * len(PAUSES)))
    assert failing.read_with_retry(1, 2, slept.append) == png(1, 2)
    assert slept == [0.1, 0.4, 1.6, 6.4, 25.6]
    assert failing.read_with_retry(1, 2, no_sleep) == png(1, 2)


def test_a_shard_is_opened_anew_after_an_error(tmp_path, monkeypatch):
    """A handle that a file server has forgotten is not used again."""
    store, pread, asked = FrameStore.open(write_store(tmp_path / "store")), os.pread, []
    store.read_with_retry(0, 0, no_sleep)
    stale = set(store.source.files.handles.values())
    held = os.open(os.devnull, os.O_RDONLY)  # so that the new handle cannot have the number of the old one

    def forgetful(handle, size, offset):
        asked.append(handle)
        if handle in stale:
            os.dup2(held, handle)
            stale.clear()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(handle, size, offset)

    monkeypatch.setattr(os, "pread", forgetful)
    opened = []
    monkeypatch.setattr(os, "close", lambda handle, close=os.close: opened.append(handle) or close(handle))
    assert store.read_with_retry(0, 1, lambda seconds: None) == png(0, 1)
    assert opened == asked[:1]
    os.close(held)


def test_an_error_without_a_name_names_the_shard(tmp_path, monkeypatch):
    """A positioned read does not say which file failed; the error does."""
    store = FrameStore.open(write_store(tmp_path / "store"))

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(UserError, match=r"000001\.tar: cannot be read \(Input/output error; tried"):
        store.read_with_retry(5, 0, lambda seconds: None)


def test_files_of_the_same_content_are_found_whatever_their_names(tmp_path):
    """Files of one size, of one end, and empty or missing ones are not taken for each other; all equal ones are."""
    end = bytes(2000)
    contents = {"a": b"1" + end, "b": b"2" + end, "c": b"3", "d": b"1" + end, "e": b"", "x": b"1" + end, "y": b"4"}
    paths = {name: str(tmp_path / name) for name in "abcdefxyz"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths["z"] = str(tmp_path / "e2")
    (tmp_path / "e2").write_bytes(b"")
    found = same_content([paths[name] for name in "abcdef"], [paths[name] for name in "xyz"])
    assert found == {paths["a"]: paths["x"], paths["d"]: paths["x"]}
    assert same_content([paths["a"], paths["b"]], [paths["b"]]) == {paths["b"]: paths["b"]}
