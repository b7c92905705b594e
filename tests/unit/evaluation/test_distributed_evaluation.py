"""Two processes embed and evaluate together: the numbers are those of one, and the first alone speaks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from cyclecontrast.cli import main
from cyclecontrast.evaluation.predictions import Result
from tests.unit.evaluation.test_retrieval import make_data
from tests.unit.sweeping.test_sweep import make_tracks

MODEL = "random:resnet10-small-w8"
SMALL = ["--image-size=16", "--workers=0", "--device=cpu"]

SCRIPT = """
import contextlib, io, json, os, sys
from cyclecontrast import cli
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import embeddings
from cyclecontrast.evaluation.retrieval import video_vectors

rank, encode, encoded = int(os.environ["RANK"]), embeddings.encode, []
ports, commands, faults = json.loads(sys.stdin.read())

def counted(backbone, batch, device):
    encoded.append(len(batch.positions))
    if fault and rank == fault["rank"] and sum(encoded) > fault["after"]:
        if fault["kind"] == "dies":
            os._exit(9)
        if fault["kind"] == "is wrong":
            raise ValueError("a mistake of ours")
        raise UserError("the images of process 1 are gone")
    return encode(backbone, batch, device)

embeddings.encode = video_vectors.encode = counted
for port, command, fault in zip(ports, commands, faults):
    os.environ["MASTER_PORT"] = str(port)
    out, err = io.StringIO(), io.StringIO()
    encoded.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(command[rank] if isinstance(command[0], list) else command)
    print(json.dumps([code, out.getvalue(), err.getvalue(), encoded]), flush=True)
"""
"""Run commands one after the other, and say of each how it ended, what it printed and what was encoded or trained."""


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


OF_IMAGES = ("knn", "linear", "x.parquet", "x.npz")
ALONE = ("finetune", "sgd", "all", "demo", "prepare", "export", "report")
REFUSED = (*ALONE, "no model", "another model")


def commands_of(tracks, videos, out):
    """Return all commands by name; those that are refused have an output of their own."""
    data, small = [str(tracks), *SMALL, "--batch-size=2"], ["--batch-size=3", "--per-video=3", "--level=frame"]
    never = f"--out={out / 'never'}"
    embed = [["embed", model, *data, f"--out={out / 'never.npz'}"] for model in (MODEL, f"{MODEL[:-1]}9")]
    return {
        **{name: ["evaluate", name, MODEL, *data, f"--out={out / name}"] for name in ("knn", "linear")},
        **{name: ["embed", MODEL, *data, f"--out={out / name}"] for name in ("x.parquet", "x.npz")},
        "retrieval": ["evaluate", "retrieval", MODEL, str(videos), f"--out={out / 'retrieval'}", *SMALL, *small],
        "finetune": ["evaluate", "finetune", MODEL, *data, never],
        "sgd": ["evaluate", "linear", "--probe=sgd", MODEL, *data, never],
        "all": ["evaluate", "all", MODEL, f"--data-root={tracks}", never],
        "demo": ["demo", never],
        "prepare": ["prepare", str(videos), never],
        "export": ["export", MODEL, f"--out={out / 'never.safetensors'}"],
        "report": ["report", str(videos), f"--out={out / 'never.html'}"],
        "no model": ["evaluate", "knn", str(tracks / "train.txt"), *data, never],
        "another model": embed,
    }


class Ran(NamedTuple):
    """What both processes said, by command, and the folders of two processes and of one."""

    said: dict
    two: Path
    one: Path


@pytest.fixture(scope="module")
def ran(tracks, tmp_path_factory):
    """Run all commands in two processes, and those that two can share in this one, too."""
    root = tmp_path_factory.mktemp("ran")
    videos = make_data(root / "videos")
    commands = commands_of(tracks, videos, root / "two")
    said = dict(zip(commands, run_two(list(commands.values())), strict=True))
    alone = commands_of(tracks, videos, root / "one")
    assert [main(alone[name]) for name in alone if name not in REFUSED] == [0] * 5
    return Ran(said, root / "two", root / "one")


@pytest.mark.parametrize("name", OF_IMAGES)
def test_each_process_encodes_its_half(ran, name):
    """Both end well; the first alone prints."""
    (code, out, _, encoded), (code_of_other, *said, encoded_by_other) = ran.said[name]
    assert (code, code_of_other) == (0, 0)
    assert out
    assert said == ["", ""]
    assert sum(encoded) + sum(encoded_by_other) == 23
    assert min(sum(encoded), sum(encoded_by_other)) >= 11


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_results_are_those_of_one_process(ran, name):
    """Record, metrics, notes and what was left out are the same to the bit."""
    assert result_in(ran.two / name) == result_in(ran.one / name)
    assert len(result_in(ran.two / name)[2]) == 1


def test_vectors_are_those_of_one_process(ran):
    """`embed` writes the same rows to the bit."""
    tables = [pq.read_table(folder / "x.parquet").drop_columns("time") for folder in (ran.one, ran.two)]
    assert tables[0].equals(tables[1], check_metadata=True)
    arrays = [np.load(folder / "x.npz") for folder in (ran.one, ran.two)]
    assert arrays[0].files == arrays[1].files
    for name in arrays[0].files:
        np.testing.assert_array_equal(arrays[1][name], arrays[0][name])


def test_retrieval_is_that_of_one_process(ran):
    """Videos are dealt out, too; with the frames of each in batches of their own the record is the same to the bit."""
    first, other = ran.said["retrieval"]
    assert (first[0], other[:3]) == (0, [0, "", ""])
    assert (len(first[3]), len(other[3])) == (3 + 2, 4 + 3)
    assert result_in(ran.two / "retrieval") == result_in(ran.one / "retrieval")


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_once(ran, name):
    """Both processes end with exit code 2, the first tells why in a line, and nothing is written."""
    first, other = ran.said[name]
    assert (first[0], other[:3]) == (2, [2, "", ""])
    assert first[2].count("\n") == 1
    told = {"no model": "train.txt", "another model": "process 1 has another model, other data or other settings"}
    assert told.get(name, " runs in one process, and 2 were started; start it without torchrun") in first[2]
    assert not list(ran.two.glob("never*"))


def test_an_error_or_the_end_of_one_process_ends_the_other(tracks, tmp_path):
    """The first tells in a line what the second met, or that it is gone; what was embedded stays for one process."""
    knn, whole = (["evaluate", "knn", MODEL, str(tracks), f"--out={tmp_path / x}", *SMALL] for x in ("out", "whole"))
    embed = ["embed", MODEL, str(tracks), f"--out={tmp_path / 'x.npz'}", *SMALL]
    commands = [[*command, "--batch-size=2"] for command in (knn, embed, whole)]
    faults = [{"kind": "fails", "rank": 1, "after": 6}, {"kind": "dies", "rank": 1, "after": 0}]
    failed, died = run_two(commands[:2], faults)
    assert (failed[0][0], failed[0][2]) == (2, "error: the images of process 1 are gone\n")
    assert failed[1][:3] == [2, "", ""]
    assert len(list((tmp_path / "out").glob("unfinished/*/*.npz"))) == 1
    assert (died[0][0], died[0][2].count("\n"), died[1]) == (2, 1, None)
    assert died[0][2].startswith("error: another process of this command has ended or is silent")
    assert not (tmp_path / "x.npz").exists()
    assert [main(commands[0]), main(commands[2])] == [0, 0]
    assert result_in(tmp_path / "out") == result_in(tmp_path / "whole")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_of_ours_lets_no_process_wait(tracks, tmp_path, rank):
    """Where one ends with a traceback, first or second, the other ends too."""
    knn = ["evaluate", "knn", MODEL, str(tracks), f"--out={tmp_path / 'out'}", *SMALL, "--batch-size=2"]
    (said,) = run_two([knn], [{"kind": "is wrong", "rank": rank, "after": 0}])
    assert said[rank] is None
    assert said[1 - rank][0] == 2
