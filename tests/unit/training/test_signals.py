"""Signals end a training between two steps, with a checkpoint, whoever still listens to what it says."""

import os
import signal
import threading

import pytest

import cyclecontrast as cc
from cyclecontrast.training.signals import stop_signals
from cyclecontrast.training.trainer import Trainer
from tests.make_runs import (
    Started,
    about_of,
    assert_same_run,
    rows_of,
    run,
    wait_for_step,
    words_of,
)


@pytest.fixture(scope="module")
def whole(stripes, tmp_path_factory):
    """A run without any interruption."""
    return run(stripes, tmp_path_factory.mktemp("whole") / "run", checkpoint_every=4).folder


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 0), (signal.SIGTERM, 2)])
def test_a_signal_ends_a_training_between_two_steps(stripes, whole, tmp_path, monkeypatch, capfd, number, step):
    """A signal within any step keeps that step; the last line says how to resume, which gives the same run."""
    train_step = Trainer.train_step

    def signalled(self, batch, info):
        if info.step == step:
            os.kill(os.getpid(), number)
        return train_step(self, batch, info)

    monkeypatch.setattr(Trainer, "train_step", signalled)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
        run(stripes, tmp_path / "run", checkpoint_every=4)
    monkeypatch.undo()
    text = str(ended.value) if number == signal.SIGINT else capfd.readouterr().err
    assert f"step-{step + 1:08d}; --resume {tmp_path / 'run'} continues from it" in text.replace("\n", " ")
    assert number == signal.SIGINT or ended.value.code == 128 + number
    assert about_of(tmp_path / "run")["status"].startswith("stopped: ")
    cc.pretrain(resume=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole, 4)


def test_a_signal_in_the_last_step_lets_the_run_end(stripes, whole, tmp_path, monkeypatch):
    """Nothing remains to be stopped then: the run is finished."""
    train_step = Trainer.train_step

    def signalled(self, batch, info):
        if info.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, batch, info)

    monkeypatch.setattr(Trainer, "train_step", signalled)
    run(stripes, tmp_path / "run", checkpoint_every=4)
    assert_same_run(tmp_path / "run", whole, 4)


def test_a_second_signal_is_not_caught(capfd):
    """After the first signal the handlers are those from before, so a second one ends at once."""
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    assert (
        capfd.readouterr().err
        == "terminated: writing a checkpoint after this step; repeat the signal to stop immediately\n"
    )


def test_the_echo_of_a_signal_is_no_second_one(monkeypatch):
    """Slurm sends SIGTERM to every process, and torchrun to its own once more; later, a second one ends at once."""
    monkeypatch.setenv("RANK", "0")
    ended, before, now = [], signal.getsignal(signal.SIGTERM), [100.0]
    monkeypatch.setattr("cyclecontrast.training.signals.time.monotonic", lambda: now[0])
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        with stop_signals() as stop:
            for seconds in (0, 1, 8):
                now[0] += seconds
                os.kill(os.getpid(), signal.SIGTERM)
                assert (stop.signal, ended) == (signal.SIGTERM, [])
            now[0] += 2
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ignored_signals_stay_ignored():
    """A signal that nohup or a shell ignores does not stop a training."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert stop.signal == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_trains_without_signals():
    """Outside of the main thread, which alone may handle signals, a training runs all the same."""
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_signals() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGTERM) == before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, True)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_ends_it_quietly(stripes, tmp_path, number, code):
    """A signal to the command and its workers ends it with 128 + the signal, after a checkpoint and without traces."""
    out = tmp_path / "run"
    process = Started(words_of(stripes, out, workers=2, steps=100_000))
    wait_for_step(out, 3)
    os.killpg(process.pid, number)
    found, text = process.end()
    assert found == code, text
    assert "Traceback" not in text
    assert "continues from it" in text
    (kept,) = (out / "checkpoints").iterdir()
    assert int(kept.name[5:]) == rows_of(out)[-1]["step"]


def lose_the_reader():
    """Make stderr a pipe whose reader is gone, as tee is after Ctrl-C."""
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(reader)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_needs_no_reader(stripes, tmp_path, number, code):
    """If nobody reads stderr, a checkpoint is written and the exit code is the same."""
    out = tmp_path / "run"
    process = Started(words_of(stripes, out, steps=100_000), prepare=lose_the_reader)
    wait_for_step(out, 3)
    os.kill(process.pid, number)
    assert process.end()[0] == code
    assert len(list((out / "checkpoints").iterdir())) == 1


def fill_stderr():
    """Make stderr a device that is full."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def close_all():
    """Close stdin, stdout and stderr."""
    for number in (0, 1, 2):
        os.close(number)


@pytest.mark.parametrize("prepare", [fill_stderr, close_all])
def test_a_training_needs_no_reader(stripes, tmp_path, prepare):
    """If stderr cannot be written or is closed, a training ends as well as any."""
    assert Started(words_of(stripes, tmp_path / "run", steps=1), prepare=prepare).end()[0] == 0
    assert about_of(tmp_path / "run")["status"] == "finished"
