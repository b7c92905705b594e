"""Copies of the metrics for TensorBoard and Weights & Biases: complete after any stop, and no effect on the run."""

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
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.reporting.runs import read_runs
from cyclecontrast.training import loggers as module
from tests.make_runs import (
    TINY,
    Started,
    about_of,
    copy_until,
    rows_of,
    run,
    wait_for_step,
    weights_path,
    words_of,
)

BOTH = ("tensorboard", "wandb")
HEALTHY = {"checkpoint_every": 2, "holdout": 0.2, "health_every": 2}


@pytest.fixture(scope="module")
def plain(stripes, tmp_path_factory):
    """A run without other loggers."""
    return run(stripes, tmp_path_factory.mktemp("plain") / "run", **HEALTHY).folder


@pytest.fixture(scope="module")
def logged(stripes, tmp_path_factory):
    """The same run, logged to both."""
    return run(stripes, tmp_path_factory.mktemp("logged") / "run", log_to=BOTH, **HEALTHY).folder


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
    """Read the event files as TensorBoard does; returns {name: [(step, value)]}, the texts by tag, and all events."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    return scalars, texts, events


def records_in(folder):
    """Read the records of an offline run, which the service of wandb may still be writing."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 60
    while not (found := parse(path.read_bytes())) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < until, f"{path} has no end: {len(found)} records"
        time.sleep(0.05)
    return found


def parse(content):
    """Parse the file of an offline run: a header, then messages in the log format of LevelDB."""
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
    """Compare both copies with metrics.jsonl: every number once, in order, and no others."""
    measured = measured_in(folder)
    scalars, _, _ = events_in(folder)
    rounded = {name: [(step, float(np.float32(v))) for step, v in by.items()] for name, by in measured.items()}
    assert scalars == rounded
    assert history_in(folder) == {name: list(by.items()) for name, by in measured.items()}


def failures_in(text):
    """Return the lines that report a failed logger."""
    return [line for line in text.splitlines() if "logging failed" in line]


# --- what they have


def test_logging_does_not_change_the_run(plain, logged):
    """Metrics, verdict and backbone are those of a run without; its folder has the two copies besides."""
    assert rows_of(logged) == rows_of(plain)
    one, two = about_of(plain), about_of(logged)
    assert (one["verdict"], one["reason"]) == (two["verdict"], two["reason"])
    assert weights_path(plain).read_bytes() == weights_path(logged).read_bytes()
    assert {path.name for path in logged.iterdir()} - {path.name for path in plain.iterdir()} == set(BOTH)
    assert len({one.method for one in read_runs([plain, logged], with_data=False)}) == 1


def test_both_have_every_metric(logged):
    """Each number of metrics.jsonl is in both under its name and step, with the settings and the verdict."""
    check_copies(logged)
    about = about_of(logged)
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


def test_nothing_of_the_machine_is_logged(logged):
    """The copy, which others may see, has settings and metrics, and no code, packages, output or machine."""
    (offline,) = logged.glob("wandb/offline-run-*")
    assert not list((offline / "files").iterdir())
    kinds = {record.WhichOneof("record_type") for record in records_in(logged)}
    assert kinds <= {"header", "run", "telemetry", "history", "summary", "exit", "config"}


def test_a_run_may_be_copied_afterwards(plain, tmp_path):
    """A run that ended without loggers has all its steps in them once it is resumed with them."""
    folder = shutil.copytree(plain, tmp_path / "run")
    cc.pretrain(resume=folder, log_to=BOTH)
    assert rows_of(folder) == rows_of(plain)
    check_copies(folder)


# --- disturbances


@pytest.fixture
def server():
    """A server in place of that of W&B, and of any proxy: it lets nobody in and notes every request."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            requests.append(self.requestline)
            self.send_error(401)

        do_GET = do_POST = do_PUT = do_CONNECT = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        names = ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        yield requests, dict.fromkeys(names, url) | {"WANDB_API_KEY": "0" * 40}
        server.shutdown()


def test_a_killed_and_resumed_run_has_every_step_once(stripes, tmp_path, monkeypatch, server):
    """Killed after a checkpoint, a resumed run is copied again: no step comes twice, none from before the kill stays.

    Although a key and a server of W&B are at hand, nothing is sent.
    """
    requests, environment = server
    out = tmp_path / "run"
    process = Started([*words_of(stripes, out, **HEALTHY, steps=400), "--log-to", *BOTH], environment)
    wait_for_step(out, 5)
    process.process.kill()
    process.end()
    run_id = (out / "wandb" / "run-id.txt").read_text()
    kept = int(sorted((out / "checkpoints").glob("step-*[0-9]"))[-1].name[5:])
    shutil.rmtree(out / "checkpoints" / f"step-{kept:08d}")
    log = module.Loggers.log

    def interrupted(self, row):
        log(self, row)
        if row["step"] == kept + 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module.Loggers, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cc.pretrain(resume=out)
    check_copies(out)
    assert list(measured_in(out)["loss"]) == list(range(1, kept + 2))
    assert not requests
    assert (out / "wandb" / "run-id.txt").read_text() == run_id
    assert all(record.run.run_id in ("", run_id) for record in records_in(out))


def test_online_a_server_that_refuses_stops_nothing(stripes, plain, tmp_path, server):
    """In mode online the server is asked, which shows that the test above would see it; its refusal is one line."""
    requests, environment = server
    words = [*words_of(stripes, tmp_path / "run", **HEALTHY, steps=4), "--log-to", "wandb"]
    code, text = Started(words, environment | {"WANDB_MODE": "online"}).end()
    assert code == 0, text
    assert requests
    assert len(failures_in(text)) == 1
    assert rows_of(tmp_path / "run") == rows_of(plain)


def kill_the_service():
    """Kill the process that writes for W&B before the second row is logged."""
    log = module.Loggers.log

    def killing(self, row):
        if row["step"] == 2:
            words = ["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())]
            listed = subprocess.run(words, capture_output=True, text=True).stdout
            (service,) = (line.split()[0] for line in listed.splitlines() if "wandb-core" in line)
            os.kill(int(service), signal.SIGKILL)
            time.sleep(0.2)
        log(self, row)

    module.Loggers.log = killing


def test_the_service_of_wandb_may_die(stripes, plain, tmp_path):
    """If the process that writes for W&B is killed, the training neither hangs nor ends."""
    words = [*words_of(stripes, tmp_path / "run", **HEALTHY, steps=4), "--log-to", "wandb"]
    code, text = Started(words, prepare=kill_the_service).end()
    assert code == 0, text
    assert len(failures_in(text)) == 1
    assert rows_of(tmp_path / "run") == rows_of(plain)


@pytest.mark.parametrize("name", BOTH)
def test_a_copy_that_cannot_be_written_stops_nothing(plain, tmp_path, capsys, name):
    """If the folder of a logger cannot be made a line says so, the other has all, and the run is the same."""
    folder = copy_until(plain, tmp_path / "run", 2)
    (folder / name).write_text("in the way")
    cc.pretrain(resume=folder, log_to=BOTH)
    (line,) = failures_in(capsys.readouterr().err)
    assert line.startswith(f"{name}: logging failed (")
    assert rows_of(folder) == rows_of(plain)


def test_a_logger_that_fails_later_is_reported_once(stripes, plain, tmp_path, monkeypatch, capsys):
    """A logger that fails in the middle of the training gets no more rows, and is reported in one line."""
    calls = itertools.count()

    class Failing:
        place = "nowhere"

        def log(self, row):
            if next(calls) == 2:
                raise RuntimeError("the service is gone\nat line 7")

    monkeypatch.setitem(module.OPENERS, "wandb", lambda config: Failing())
    folder = run(stripes, tmp_path / "run", log_to=BOTH, **HEALTHY).folder
    assert failures_in(capsys.readouterr().err) == [
        "wandb: logging failed (the service is gone); the training continues, metrics.jsonl has every row"
    ]
    assert next(calls) == 3
    assert rows_of(folder) == rows_of(plain)
    assert [step for step, _ in events_in(folder)[0]["loss"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("text", ["/../../../victim", "*", "", "one two"])
def test_an_id_that_is_not_a_word_is_reported(tmp_path, monkeypatch, text):
    """From a damaged id no pattern or path is made: nothing is removed, and the error says what to do."""
    folder, victim = tmp_path / "run" / "wandb", tmp_path / "victim"
    (folder / "offline-run-1-").mkdir(parents=True)
    victim.mkdir()
    (folder / "run-id.txt").write_text(text)
    monkeypatch.setattr(wandb, "init", lambda **given: SimpleNamespace(step=0, id=given["id"]))
    with pytest.raises(ValueError, match=r"run-id\.txt has no id of letters and digits; remove it"):
        module.WeightsAndBiases(PretrainConfig(data=tmp_path, out=tmp_path / "run"))
    assert victim.is_dir()
    assert (folder / "offline-run-1-").is_dir()


# --- packages


@pytest.mark.parametrize("name", BOTH)
def test_a_missing_package_is_reported_first(stripes, tmp_path, monkeypatch, capsys, name):
    """If a package is not installed a line names the extra, before anything is written."""
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["pretrain", *words_of(stripes, tmp_path / "run", steps=1), "--log-to", name]) == 2
    assert capsys.readouterr().err == f"error: log_to: {name} is not installed; pip install 'cyclecontrast[{name}]'\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_taken_for_a_package(tmp_path, monkeypatch):
    """A folder called wandb in the current folder, as W&B itself makes, is not the package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="wandb is not installed"):
        module.check_loggers(["wandb"])


def test_an_unknown_logger_is_refused():
    """Only TensorBoard and W&B can be set."""
    with pytest.raises(UserError, match=r"log_to: input should be 'tensorboard' or 'wandb'"):
        cc.pretrain("d", out="o", log_to=["mlflow"])
