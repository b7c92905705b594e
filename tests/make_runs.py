"""Small trainings for tests: their settings, what they write, and trainings in other processes."""

import json
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.training.pretrain import pretrain

TINY = {
    "backbone": "resnet10-small-w8",
    "image_size": 16,
    "batch_size": 8,
    "queue_size": 32,
    "cycle_queue_size": 32,
    "support_size": 8,
    "bn_groups": 2,
    "workers": 0,
    "log_every": 1,
    "seed": 3,
    "device": "cpu",
    "report": False,
}
"""Settings with which a step takes milliseconds."""
SPEEDS = ("images_per_second", "data_wait")
"""Metrics that depend on the clock."""

# The server imports PyTorch once and forks each process in milliseconds; a fork of pytest would inherit its threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["cyclecontrast.training.pretrain", "cyclecontrast.reporting.page", "torch._dynamo"])


def run(data, out, **changes):
    """Train for four steps; returns the run."""
    return pretrain(PretrainConfig(data=data, out=out, **(TINY | {"steps": 4} | changes)))


def rows_of(folder):
    """Return the rows of metrics.jsonl without speeds."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in SPEEDS} for row in rows]


def about_of(folder):
    """Return the content of run.json."""
    return json.loads((folder / "run.json").read_text())


def state_path(folder, step):
    """Return the path of the state in the checkpoint of a step."""
    return folder / "checkpoints" / f"step-{step:08d}" / "state.safetensors"


def assert_same_run(one, two, step):
    """Compare two runs: the state after the last step, the backbone that remains, metrics and verdict."""
    assert rows_of(one) == rows_of(two)
    for first, second in ((state_path(folder, step) for folder in (one, two)), (weights_path(one), weights_path(two))):
        assert_same_tensors(load_file(first), load_file(second))
    first, second = about_of(one), about_of(two)
    for name in ("verdict", "reason", "selected_step", "status", "data_fingerprint"):
        assert first.get(name) == second.get(name)


def assert_same_tensors(first, second):
    """Compare two dictionaries of tensors bit by bit."""
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not value.equal(second[name])] == []


def weights_path(folder):
    """Return the path of the backbone that remains of a run."""
    return folder / "backbone.safetensors"


def copy_until(folder, to, step):
    """Copy a run as if it had been killed after the checkpoint of a step, and before that of a later one."""
    shutil.copytree(folder, to)
    for path in (to / "checkpoints").iterdir():
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    weights_path(to).unlink()
    return to


def files_of(folder):
    """Return the content of all files below a folder, except the lock."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def refusal(**options):
    """Return the problems that `cc.pretrain` reports, which writes nothing."""
    try:
        cc.pretrain(**options)
    except cc.UserError as error:
        assert "out" not in options or not Path(options["out"]).exists()
        return list(error.problems)
    raise AssertionError("not refused")


def words_of(data, out, **changes):
    """Return the arguments of the command `pretrain` for a tiny training."""
    options = {name: value for name, value in (TINY | changes).items() if name != "report"}
    return [str(data), f"--out={out}", "--no-report", *(f"--{k.replace('_', '-')}={v}" for k, v in options.items())]


class Started:
    """A process that trains; `end` waits for it."""

    def __init__(self, words, environment=None, prepare=None):
        """Call `prepare` and run `cyclecontrast pretrain WORDS`, unless they are None, in a new process group."""
        self._folder = tempfile.TemporaryDirectory()
        log = f"{self._folder.name}/stderr"
        self.process = PROCESSES.Process(target=_run_command, args=(words, environment or {}, prepare, log))
        self.process.start()

    @property
    def pid(self):
        """The number of the process, and of its group."""
        return self.process.pid

    def end(self):
        """Return the exit code and what the process wrote to stderr."""
        self.process.join(120)
        assert self.process.exitcode is not None, "hangs"
        with self._folder as folder:
            return self.process.exitcode, Path(folder, "stderr").read_text()


def _run_command(words, environment, prepare, log):
    from cyclecontrast.__main__ import run as run_command

    multiprocessing.set_start_method("fork", force=True)  # as for a command that a shell starts
    os.setsid()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:  # the service of wandb that pytest has
        del os.environ[name]
    os.environ.update(environment)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if prepare is not None:
        prepare()
    if words is not None:
        sys.argv = ["cyclecontrast", "pretrain", *words]
        sys.exit(run_command())


def start_many(*words, prepare=None):
    """Start the processes of one training, each with its own words, as torchrun does, without its supervision."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(len(words)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Started(each, place | {"RANK": str(rank)}, prepare) for rank, each in enumerate(words)]


def train_with_two(words):
    """Train with two processes, which must succeed."""
    ends = [process.end() for process in start_many(words, words)]
    assert [code for code, _ in ends] == [0, 0], ends


def wait_for_step(folder, step):
    """Wait until metrics.jsonl has so many rows."""
    path, until = folder / "metrics.jsonl", time.monotonic() + 120
    while not (path.exists() and len(path.read_text().splitlines()) >= step):
        assert time.monotonic() < until, "no step in two minutes"
        time.sleep(0.01)
