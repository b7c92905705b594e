"""The inputs of the recordings, made once, and the runs that several tests look at."""

import pytest

from tests.golden import inputs, trainings


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    """Return a tree of 24 videos of four frames."""
    return inputs.write_frames(tmp_path_factory.mktemp("golden") / "tree")


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Return a folder of three videos and a file that is not one."""
    return inputs.write_videos(tmp_path_factory.mktemp("golden") / "videos")


@pytest.fixture(scope="session")
def run_of(frames, tmp_path_factory):
    """Return a function that trains the run of a name, once."""
    root, done = tmp_path_factory.mktemp("golden"), {}

    def run(name):
        if name not in done:
            done[name] = trainings.train(frames, root / name.replace(" ", "-"), name)
        return done[name]

    return run
