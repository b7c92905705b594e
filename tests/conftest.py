"""Every test runs with one thread, or with as many as OMP_NUM_THREADS says, and finds the real data where it is."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import pytest
import torch
from hypothesis import settings

from tests.make_videos import write_stripes

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
cv2.setNumThreads(0)
# In the background, or below nohup, signals are ignored that tests send to the commands, which inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data beside the project; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside the project")
    return SHARED


@pytest.fixture(scope="session")
def stripes(tmp_path_factory) -> Path:
    """Return twelve videos of four frames of moving stripes, which no test changes."""
    return write_stripes(tmp_path_factory.mktemp("stripes"))
