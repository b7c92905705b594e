"""Copies of metrics.jsonl for TensorBoard and W&B are exact after interruptions; training survives their failure."""

import http.server
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import PretrainConfig, SweepConfig
from cyclecontrast.errors import UserError
from cyclecontrast.reporting.runs import read_runs
from cyclecontrast.sweeping.command import make_plan
from cyclecontrast.training import loggers as module
from tests import make_videos as make
from tests.make_runs import TINY, rows_of, run, words_of
from tests.unit.sweeping.test_sweep import TINY as SMALL_SWEEP
from tests.unit.sweeping.test_sweep import make_tracks

BOTH = ("tensorboard", "wandb")
HEALTHY = {"steps": 6, "checkpoint_every": 2, "holdout": 0.2, "health_every": 3}
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
"""What other processes see: not the service of wandb that this one has."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames: stripes of one width and direction each, which move."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def plain(tree, tmp_path_factory):
    """A run that logs nowhere else."""
    return run(tree, tmp_path_factory.mktemp("plain") / "run", **HEALTHY).folder


@pytest.fixture(scope="module")
def logged(tree, tmp_path_factory):
    """The same run, logged to both viewers."""
    return run(tree, tmp_path_factory.mktemp("logged") / "run", log_to=BOTH, **HEALTHY).folder


def command(tree, out, **changes):
    """Return the arguments that train the same run."""
    return ["pretrain", *words_of(tree, out, **HEALTHY | changes)]


def measured_in(folder):
    """Return {name: {step: value}} of what metrics.jsonl has."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name in row.keys() - {"step"}:
            if row[name] is not None:
                found.setdefault(name, {})[row["step"]] = row[name]
    return found


def events_in(folder):
    """Read the event files as TensorBoard does; returns {name: [(step, value)]} and the settings and texts by tag."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    return scalars, texts, events


def records_in(folder):
    """Read the records of an offline run, which another process still writes a moment after the training has ended."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 60
    while not (found := parse(path.read_bytes())) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < until, f"{path} has no end: {len(found)} records"
        time.sleep(0.05)
    return found


def parse(content):
    """Parse the file of an offline run: a header, then messages in LevelDB's log format."""
    place, part, found = 7, b"", []
    assert content[:4] in (b"", b":W&B")
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            found.append(Record.FromString(part))
            part = b""
    return found


def history_in(folder):
    """Return {name: [(step, value)]} of an offline run."""
    found = {}
    for record in records_in(folder):
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                if name != "step" and not name.startswith("_"):
                    found.setdefault(name, []).append((row["_step"], value))
    return found


def check_copies(folder):
    """Hold both copies against metrics.jsonl: every number once, in order, and no others."""
    measured = measured_in(folder)
    scalars, _, _ = events_in(folder)
    rounded = {name: [(step, float(np.float32(v))) for step, v in by.items()] for name, by in measured.items()}
    assert scalars == rounded
    assert history_in(folder) == {name: list(by.items()) for name, by in measured.items()}


def test_the_run_is_the_same_with_and_without(plain, logged):
    """Logging changes no number: metrics and verdict are those of a run without, and so is every other file."""
    assert rows_of(logged) == rows_of(plain)
    one, two = (json.loads((folder / "run.json").read_text()) for folder in (plain, logged))
    assert (one["verdict"], one["reason"]) == (two["verdict"], two["reason"])
    assert (plain / "backbone.safetensors").read_bytes() == (logged / "backbone.safetensors").read_bytes()
    assert {path.name for path in logged.iterdir()} - {path.name for path in plain.iterdir()} == set(BOTH)
    assert len({one.method for one in read_runs([plain, logged], with_data=False)}) == 1


def test_both_have_what_the_metrics_have(logged):
    """TensorBoard and W&B have each number of metrics.jsonl under its name and step, the settings and the verdict."""
    check_copies(logged)
    about = json.loads((logged / "run.json").read_text())
    _, texts, events = events_in(logged)
    assert texts["verdict/text_summary"] == f"{about['verdict']}: {about['reason']}"
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"temperature" in content
    assert b"resnet10-small-w8" in content
    records = records_in(logged)
    (begun,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    settings = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (settings["backbone"], settings["seed"]) == ("resnet10-small-w8", TINY["seed"])
    summary = {
        item.key or item.nested_key[0]: item.value_json
        for record in records
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert json.loads(summary["verdict"]) == about["verdict"]
    assert json.loads(summary["reason"]) == about["reason"]


def test_no_facts_about_the_machine_are_logged(logged):
    """The copy that is meant for others holds settings and metrics, and no code, packages, output or machine."""
    (offline,) = logged.glob("wandb/offline-run-*")
    assert not list((offline / "files").iterdir())
    kinds = {record.WhichOneof("record_type") for record in records_in(logged)}
    assert kinds <= {"header", "run", "telemetry", "history", "summary", "exit", "config"}


@pytest.mark.parametrize("content", [b"/../../../victim", b"*", b"", b"\xff", b"one\ntwo"], ids=repr)
def test_a_damaged_run_id_removes_nothing(tmp_path, content):
    """An id that is not plain letters and digits is refused: old copies are removed by a pattern made of it."""
    folder, victim = tmp_path / "run" / "wandb", tmp_path / "victim"
    (folder / "offline-run-1-").mkdir(parents=True)
    victim.mkdir()
    (folder / "run-id.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"run-id.txt has no id of letters and digits|decode"):
        module.WeightsAndBiases(PretrainConfig(data=tmp_path, out=tmp_path / "run"))
    assert victim.is_dir()
    assert (folder / "offline-run-1-").is_dir()


@pytest.fixture
def server():
    """Stand in for W&B's server, and for any proxy: it refuses every request and keeps its first line."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            asked.append(self.requestline)
            self.send_error(401)

        do_GET = do_POST = do_PUT = do_CONNECT = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        names = ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        yield asked, ALONE | dict.fromkeys(names, url) | {"WANDB_API_KEY": "0" * 40}
        server.shutdown()


def test_a_killed_and_resumed_run_has_every_step_once(tree, tmp_path, monkeypatch, server):
    """Killed behind a checkpoint, a resumed run is copied anew: no step is twice, none of before the fork remains.

    With a key and a server of W&B at hand, nothing is sent to it.
    """
    sent, environment = server
    asked = [*command(tree, tmp_path / "run", steps=400), "--log-to", *BOTH]
    metrics = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "cyclecontrast", *asked], stderr=subprocess.DEVNULL, env=environment
    ) as process:
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 4):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    identity = (tmp_path / "run" / "wandb" / "run-id.txt").read_text()
    kept = int(sorted((tmp_path / "run" / "checkpoints").glob("step-*[0-9]"))[-1].name[5:])
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{kept:08d}")
    original = module.Loggers.log

    def interrupted(self, row):
        original(self, row)
        if row["step"] == kept + 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module.Loggers, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cc.pretrain(resume=tmp_path / "run")
    check_copies(tmp_path / "run")
    assert list(measured_in(tmp_path / "run")["loss"]) == list(range(1, kept + 2))
    assert not sent
    assert (tmp_path / "run" / "wandb" / "run-id.txt").read_text() == identity
    assert all(record.run.run_id in ("", identity) for record in records_in(tmp_path / "run"))


def test_a_run_may_be_copied_afterwards(plain, tmp_path):
    """A run that ended without them is resumed with viewers, and they have all of it from its first step."""
    shutil.copytree(plain, tmp_path / "run")
    cc.pretrain(resume=tmp_path / "run", log_to=BOTH)
    assert rows_of(tmp_path / "run") == rows_of(plain)
    check_copies(tmp_path / "run")


@pytest.mark.parametrize("name", BOTH)
def test_a_missing_package_is_reported_before_anything_is_written(tree, tmp_path, monkeypatch, capsys, name):
    """Where a package is not installed, an error names the extra, and no run is created."""
    monkeypatch.setitem(sys.modules, name, None)
    assert main([*command(tree, tmp_path / "run"), "--log-to", name]) == 2
    assert capsys.readouterr().err == f"error: log_to: {name} is not installed; pip install 'cyclecontrast[{name}]'\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_taken_for_a_package(tmp_path, monkeypatch):
    """A folder wandb where the command is called, as W&B itself makes, is not the package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="wandb is not installed"):
        module.check_loggers(["wandb"])


def test_an_unknown_viewer_is_refused():
    """An unknown name in log_to is refused."""
    with pytest.raises(UserError, match=r"log_to: input should be 'tensorboard' or 'wandb'"):
        cc.pretrain("d", out="o", log_to=["mlflow"])


@pytest.mark.parametrize("name", BOTH)
def test_a_training_goes_on_where_its_copy_cannot_be_written(plain, tmp_path, capsys, name):
    """A viewer whose folder cannot be made is reported in a line, the other has all rows, and the run is as without."""
    shutil.copytree(plain, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    (tmp_path / "run" / name).write_text("in the way")
    cc.pretrain(resume=tmp_path / "run", log_to=BOTH)
    lines = [line for line in capsys.readouterr().err.splitlines() if "logging failed" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}: logging failed (")
    assert rows_of(tmp_path / "run") == rows_of(plain)


def test_a_logger_that_fails_later_is_reported_once(tree, plain, tmp_path, monkeypatch, capsys):
    """A viewer that fails in the middle of the training is left out from there on, with one line."""
    calls = itertools.count()

    class Failing:
        place = "nowhere"

        def log(self, row):
            if next(calls) == 2:
                raise RuntimeError("the service is gone\nat line 7")

    monkeypatch.setitem(module.OPENERS, "wandb", lambda config: Failing())
    done = run(tree, tmp_path / "run", log_to=BOTH, **HEALTHY).folder
    lines = [line for line in capsys.readouterr().err.splitlines() if "logging failed" in line]
    assert lines == ["wandb: logging failed (the service is gone); the training continues, metrics.jsonl has every row"]
    assert next(calls) == 3
    assert rows_of(done) == rows_of(plain)
    scalars, _, _ = events_in(done)
    assert [step for step, _ in scalars["loss"]] == [1, 2, 3, 4, 5, 6]


def test_the_server_is_contacted_only_in_mode_online(tree, plain, tmp_path, server):
    """In mode online the server is contacted, so the test above would notice it; one that refuses ends nothing."""
    asked, environment = server
    done = subprocess.run(
        [sys.executable, "-m", "cyclecontrast", *command(tree, tmp_path / "run"), "--log-to", "wandb"],
        env=environment | {"WANDB_MODE": "online"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert asked
    assert done.stderr.count("wandb: logging failed (") == 1
    assert rows_of(tmp_path / "run") == rows_of(plain)


KILLING = """
import os, signal, subprocess, sys, time
from cyclecontrast.cli import main
from cyclecontrast.training.loggers import Loggers
original = Loggers.log
def killing(self, row):
    if row["step"] == 3:
        listed = ["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())]
        children = subprocess.run(listed, capture_output=True, text=True)
        (service,) = (line.split()[0] for line in children.stdout.splitlines() if "wandb-core" in line)
        os.kill(int(service), signal.SIGKILL)
        time.sleep(0.2)
    original(self, row)
Loggers.log = killing
sys.exit(main(sys.argv[1:]))
"""


def test_the_service_of_wandb_may_die(tree, plain, tmp_path):
    """If the process that writes for W&B is killed, the training neither hangs nor ends."""
    done = subprocess.run(
        [sys.executable, "-c", KILLING, *command(tree, tmp_path / "run"), "--log-to", "wandb"],
        env=ALONE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert done.stderr.count("wandb: logging failed (") == 1
    assert rows_of(tmp_path / "run") == rows_of(plain)


def test_a_sweep_hands_it_on_to_its_trainings(tmp_path, monkeypatch):
    """Each training of a sweep logs as requested, with otherwise equal settings; a missing package ends it first."""
    options = {"table": "table4", "data": make_tracks(tmp_path / "tracks"), "out": tmp_path / "out", **SMALL_SWEEP}
    plan = make_plan(SweepConfig(**options, log_to=BOTH))
    assert {trial.pretraining.log_to for trial in plan.trials} == {BOTH}
    assert [trial.settings for trial in plan.trials] == [
        trial.settings for trial in make_plan(SweepConfig(**options)).trials
    ]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="log_to: wandb is not installed"):
        make_plan(SweepConfig(**options, log_to=BOTH))
    assert not (tmp_path / "out").exists()
