"""The index of a large store: opened in seconds, in memory that workers share.

`benchmarks/scale.py` measures the size of R2V2, four times as many videos.
"""

import ctypes
import gc
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from cyclecontrast.data.store import FrameStore
from tests.make_index import make_index

SMAPS = Path("/proc/self/smaps")
NUM_VIDEOS = 675_000
MB = 1_000_000
pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="no /proc that shows which memory is private")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A store of ten videos, which loads all libraries that a large one needs."""
    return make_index(tmp_path_factory.mktemp("small") / "store", 10, num_shards=2)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store of 2.7 million frames."""
    return make_index(tmp_path_factory.mktemp("large") / "store", NUM_VIDEOS)


@pytest.fixture(scope="module")
def stores(small, large):
    """Both, opened and looked at."""
    opened = FrameStore.open(small), FrameStore.open(large)
    for store in opened:
        use(store)
    return opened


def own_bytes(kinds):
    """How many bytes of memory only this process looks at, of mappings that are private (p), shared (s), or either."""
    total, counts = 0, False
    for words in map(str.split, SMAPS.read_text().splitlines()):
        if not words[0].endswith(":"):
            counts = words[1][-1] in kinds
        elif counts and words[0] in ("Private_Clean:", "Private_Dirty:"):
            total += 1024 * int(words[1])
    return total


def use(store):
    """Read some frames, and look at all that is known of all."""
    rng = np.random.default_rng(0)
    for video in rng.integers(store.num_videos, size=500).tolist():
        assert len(store.read(video, store.frames_in(video) - 1)) >= 10_000
    assert store.find(store.video_id(store.num_videos - 1)) == store.num_videos - 1
    assert store.starts.max() == store.num_frames
    assert sum(map(len, store.source.pieces())) == 16 * store.num_frames


def open_large(pipe, small, large):
    """In a process of its own: what opening the store costs."""
    use(FrameStore.open(small))
    own, began = own_bytes("ps"), time.process_time()
    store = FrameStore.open(large)
    seconds = time.process_time() - began
    use(store)
    pipe.send((store.num_videos, store.num_frames, seconds, own_bytes("ps") - own))


def use_and_tell(pipe, store):
    """In a worker: what memory is its own once it has used the store."""
    gc.disable()  # by looking at what a forked process has from its parent, it would make that its own
    use(store)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and is kept for later is not the store's
    pipe.send(own_bytes("p"))  # a page of shared memory seems its own where others have not looked at it


def in_process(method, function, *arguments):
    """Return what the function sends from a new process."""
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=function, args=(there, *arguments))
    process.start()
    assert here.poll(120)
    answer = here.recv()
    process.join()
    return answer


def test_a_large_store_opens(small, large):
    """Opening takes seconds of one core, and the index of all frames less than 100 MB."""
    num_videos, num_frames, seconds, added = in_process("spawn", open_large, small, large)
    assert (num_videos, num_frames) == (NUM_VIDEOS, 4 * NUM_VIDEOS)
    assert seconds < 5
    assert 25 * MB < added < 100 * MB


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.long)])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_have_no_copy_of_the_index(stores, method):
    """A worker that has looked at every frame's place owns no more memory than one of a store of ten videos."""
    of_small, of_large = (in_process(method, use_and_tell, store) for store in stores)
    assert of_large - of_small < 10 * MB
