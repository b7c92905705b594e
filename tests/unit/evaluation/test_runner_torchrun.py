"""Two processes of torchrun embed, evaluate and sweep together: the numbers are those of one, rank 0 alone prints."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from cyclecontrast.cli import main
from cyclecontrast.evaluation.predictions import Result
from tests.unit.evaluation.test_retrieval import make_data
from tests.unit.sweeping.test_sweep import make_tracks

MODEL = "random:resnet10-small-w8"
SMALL = ["--image-size=16", "--workers=0", "--device=cpu"]
TINY_SWEEP = {"small": True, "seeds": 1, "steps": 10, "backbone": "resnet10-small-w8", "image_size": 16}
TINY_SWEEP |= {"batch_size": 4, "workers": 0, "device": "cpu"}

SCRIPT = """
import contextlib, io, json, os, sys
from cyclecontrast import cli
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import embed, retrieval
from cyclecontrast.sweeping import trials

rank, encode, encoded, pretrain = int(os.environ["RANK"]), embed.encode, [], trials.pretrain
ports, commands, faults = json.loads(sys.stdin.read())

def counted(backbone, batch, device):
    encoded.append(len(batch.positions))
    if fault and rank == fault["rank"] and sum(encoded) > fault["after"]:
        if fault["kind"] == "dies":
            os._exit(9)
        if fault["kind"] == "is wrong":
            raise ValueError("a bug")
        raise UserError("the images of process 1 are gone")
    return encode(backbone, batch, device)

def trained(config, **rest):
    encoded.append(config.method)
    return pretrain(config, **rest)

embed.encode = retrieval.encode = counted
trials.pretrain = trained
trials._run_in_process = lambda trial, at_once: trials.run_trial(trial)
for port, command, fault in zip(ports, commands, faults):
    os.environ["MASTER_PORT"] = str(port)
    out, err = io.StringIO(), io.StringIO()
    encoded.clear()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(command[rank] if isinstance(command[0], list) else command)
    except ValueError:
        code = "traceback"
    print(json.dumps([code, out.getvalue(), err.getvalue(), encoded]), flush=True)
"""
"""Run commands one after the other, and report how each ended, what it printed and what was encoded or trained."""


def run_two(commands, faults=None):
    """Run the commands in two processes; returns for each command what either process says, None where it died.

    A command may be a pair, one for each process; a fault is what happens to one of them meanwhile.
    """
    places = [socket.socket() for _ in commands]
    for free in places:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in places]
    for free in places:
        free.close()
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | place | {"RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        process.stdin.write(json.dumps([ports, commands, faults or [None] * len(commands)]))
        process.stdin.close()
    said = [[json.loads(line) for line in process.stdout] for process in processes]
    for process in processes:
        process.stdout.close()
        process.wait(timeout=60)
    said = [[*lines, *[None] * (len(commands) - len(lines))] for lines in said]
    return list(zip(*said, strict=True))


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    """Eight videos of three frames in two classes; a frame is damaged."""
    root = make_tracks(tmp_path_factory.mktemp("data") / "tracks")
    (root / "frames" / "3" / "1.png").write_bytes(b"no image")
    return root


def result_in(folder):
    """Read the only result there, without what names the folder."""
    (path,) = folder.glob("*.json")
    (record,) = folder.glob("records/*.parquet")
    result = Result.load(path)
    return result.metrics, result.per_item, result.about.problems, result.about.notes, pq.read_table(record)


OF_IMAGES = ("knn", "x.parquet")
ALONE = ("finetune", "sgd", "all", "prepare")
REFUSED = (*ALONE, "no model", "a different model")


def commands_of(tracks, videos, out):
    """Return all commands by name; those that are refused have an output of their own."""
    data, small = [str(tracks), *SMALL, "--batch-size=2"], ["--batch-size=3", "--per-video=3", "--level=frame"]
    never = f"--out={out / 'never'}"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY_SWEEP.items() if value is not True]
    embed = [["embed", model, *data, f"--out={out / 'never.npz'}"] for model in (MODEL, f"{MODEL[:-1]}9")]
    return {
        "knn": ["evaluate", "knn", MODEL, *data, f"--out={out / 'knn'}"],
        "x.parquet": ["embed", MODEL, *data, f"--out={out / 'x.parquet'}"],
        "retrieval": ["evaluate", "retrieval", MODEL, str(videos), f"--out={out / 'retrieval'}", *SMALL, *small],
        "compared": ["evaluate", "knn", MODEL, *data, f"--out={out / 'compared'}", "--baseline", "random"],
        "finetune": ["evaluate", "finetune", MODEL, *data, never],
        "sgd": ["evaluate", "linear", "--probe=sgd", MODEL, *data, never],
        "all": ["evaluate", "all", MODEL, f"--data-root={tracks}", never],
        "prepare": ["prepare", str(videos), never],
        "no model": ["evaluate", "knn", str(tracks / "train.txt"), *data, never],
        "a different model": embed,
        "sweep": ["sweep", "table4", str(tracks), f"--out={out / 'sweep'}", "--small", "--no-flip", "--jobs=1", *flags],
    }


FAULTS = {
    "one fails": {"kind": "fails", "rank": 1, "after": 6},
    "a bug in 0": {"kind": "is wrong", "rank": 0, "after": 0},
    "a bug in 1": {"kind": "is wrong", "rank": 1, "after": 0},
    "one dies": {"kind": "dies", "rank": 1, "after": 0},
}
"""What happens to one of the processes in further commands; the last ends it."""


class Ran(NamedTuple):
    """What both processes reported, by command, and the folders of two processes and of one."""

    said: dict
    two: Path
    one: Path


@pytest.fixture(scope="module")
def ran(tracks, tmp_path_factory):
    """Run all commands in two processes, and those that two can share in this one, too."""
    root = tmp_path_factory.mktemp("ran")
    videos = make_data(root / "videos")
    commands = commands_of(tracks, videos, root / "two")
    alone = commands_of(tracks, videos, root / "one")
    assert [main(alone[name]) for name in alone if name not in REFUSED] == [0] * 5
    for name in ("one fails", "a bug in 0", "a bug in 1"):
        commands[name] = ["evaluate", "knn", MODEL, str(tracks), f"--out={root / name}", *SMALL, "--batch-size=2"]
    sweep = commands["sweep"]
    commands["different sweeps"] = [sweep, [*sweep, "--seeds=2"]]
    commands["one dies"] = ["embed", MODEL, str(tracks), f"--out={root / 'dies.npz'}", *SMALL, "--batch-size=2"]
    said = run_two(list(commands.values()), [FAULTS.get(name) for name in commands])
    return Ran(dict(zip(commands, said, strict=True)), root / "two", root / "one")


@pytest.mark.parametrize("name", OF_IMAGES)
def test_each_process_encodes_its_half(ran, name):
    """Both end well; the first alone prints."""
    (code, out, _, encoded), (code_of_other, *said, encoded_by_other) = ran.said[name]
    assert (code, code_of_other) == (0, 0)
    assert out
    assert said == ["", ""]
    assert sum(encoded) + sum(encoded_by_other) == 23
    assert min(sum(encoded), sum(encoded_by_other)) >= 11


def test_results_are_those_of_one_process(ran):
    """Record, metrics, notes and what was left out are the same: both embed the same batches."""
    assert result_in(ran.two / "knn") == result_in(ran.one / "knn")
    assert len(result_in(ran.two / "knn")[2]) == 1


def test_a_baseline_is_that_of_one_process(ran):
    """It is evaluated by both processes, too, and the first alone prints the difference."""
    (code, out, *_), other = ran.said["compared"]
    assert (code, other[:3]) == (0, [0, "", ""])
    assert "+0.0 points against random weights" in out
    assert result_in(ran.two / "compared") == result_in(ran.one / "compared")


def test_vectors_are_those_of_one_process(ran):
    """`embed` writes the same rows to the bit."""
    tables = [pq.read_table(folder / "x.parquet").drop_columns("time") for folder in (ran.one, ran.two)]
    assert tables[0].equals(tables[1], check_metadata=True)


def test_retrieval_is_that_of_one_process(ran):
    """Videos are shared, too; with the frames of each in batches of their own the record is the same to the bit."""
    first, other = ran.said["retrieval"]
    assert (first[0], other[:3]) == (0, [0, "", ""])
    assert (len(first[3]), len(other[3])) == (3 + 2, 4 + 3)
    assert result_in(ran.two / "retrieval") == result_in(ran.one / "retrieval")


def errors_of(text):
    """Return the lines of an error output that are not about files without images, such as test.txt."""
    return [line for line in text.splitlines() if not line.startswith("left out: ")]


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_once(ran, name):
    """Both processes end with exit code 2, the first reports why in a line, and nothing is written."""
    first, other = ran.said[name]
    assert (first[0], other[:3]) == (2, [2, "", ""])
    (problem,) = errors_of(first[2])
    reported = {
        "no model": "train.txt",
        "a different model": "process 1 has a different model, data or settings",
    }
    assert reported.get(name, " supports a single process only, but torchrun started 2") in problem
    assert not list(ran.two.glob("never*"))


def test_a_sweep_is_shared(ran):
    """Each process trains its trials, alone; the table is that of one process, and rank 0 reports all trials."""
    first, other = ran.said["sweep"]
    assert (first[0], other[:3]) == (0, [0, "", ""]), first
    tables = [json.loads((folder / "sweep" / "table4.json").read_text()) for folder in (ran.one, ran.two)]
    assert tables[0]["rows"] == tables[1]["rows"]
    trained = [[word for word in said[3] if isinstance(word, str)] for said in (first, other)]
    assert trained == [["intra-image", "cycle"], ["intra-video"]]
    assert [f"[{number}/3]" in first[2] for number in (1, 2, 3)] == [True] * 3


def test_sweeps_with_different_options_are_refused(ran):
    """Rank 0 reports it in a line, and neither trains."""
    first, other = ran.said["different sweeps"]
    assert (first[0], first[3], other) == (2, [], [2, "", "", []])
    assert first[2] == "error: the processes have different options or data; start all with the same\n"


def test_a_failure_of_one_process_ends_both(ran, tracks):
    """Rank 0 reports in a line what the other met; what was embedded before is not embedded again by one process."""
    first, other = ran.said["one fails"]
    assert (first[0], first[2]) == (2, "error: the images of process 1 are gone\n")
    assert other[:3] == [2, "", ""]
    out = ran.two.parent / "one fails"
    assert len(list(out.glob("unfinished/*/*.npz"))) == 1
    knn = ["evaluate", "knn", MODEL, str(tracks), f"--out={out}", *SMALL, "--batch-size=2"]
    assert main(knn) == 0
    assert result_in(out) == result_in(ran.one / "knn")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_lets_no_process_wait(ran, rank):
    """Where one ends with a traceback, the other ends, too."""
    said = ran.said[f"a bug in {rank}"]
    assert said[rank][0] == "traceback"
    assert said[1 - rank][0] == 2


def test_a_killed_process_ends_the_other(ran):
    """One line says that it is gone, and nothing is written."""
    first, other = ran.said["one dies"]
    (problem,) = errors_of(first[2])
    assert (first[0], other) == (2, None)
    assert problem.startswith("error: another process of this command has ended or does not respond")
    assert not (ran.two.parent / "dies.npz").exists()
