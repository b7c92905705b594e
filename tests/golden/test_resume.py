"""A training that was stopped or killed ends to the bit as one that was not, by the same machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cyclecontrast as cc
from tests.golden import trainings

ROOT = Path(__file__).parents[2]
PLACES = os.pathsep.join((str(ROOT), str(Path(cc.__file__).parents[1])))


def resume(run, name):
    """Train what remains of a run."""
    settings = trainings.settings_of(name)
    cc.pretrain(resume=run, backbone=settings["backbone"], workers=0, report=False)


def check_same(run, whole):
    """Compare the weights by their bytes and every line of metrics, apart from speeds."""
    assert (run / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()
    assert trainings.trace_of(run) == trainings.trace_of(whole)


@pytest.mark.parametrize("name", ["cycle", "seco", "byol", "health"])
def test_a_stopped_training_resumes_exactly(run_of, frames, tmp_path, name):
    """After a signal in the middle, resuming gives the backbone and the metrics of a run without a stop."""
    thread = trainings.end_when_lines(tmp_path / "run", 10, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainings.train(frames, tmp_path / "run", name)
    thread.join()
    assert 10 <= len(trainings.lines_of(tmp_path / "run")) < 20
    resume(tmp_path / "run", name)
    check_same(tmp_path / "run", run_of(name))


def test_a_killed_training_resumes_exactly(run_of, frames, tmp_path):
    """After kill -9 behind a checkpoint, resuming gives the backbone and the metrics of a run without a stop."""
    words = ("-m", "tests.golden.trainings", "kill", str(frames), str(tmp_path / "run"), "cycle")
    environment = os.environ | {"PYTHONPATH": PLACES, "OMP_NUM_THREADS": "1"}
    done = subprocess.run((sys.executable, *words), env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resume(tmp_path / "run", "cycle")
    check_same(tmp_path / "run", run_of("cycle"))
