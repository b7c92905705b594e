"""The door, used as a person uses it: whole commands, their output, their exit codes."""

import json
import os
import subprocess
import sys
import tomllib

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

import cyclecontrast as cc
from cyclecontrast.api import COMMANDS, EVALUATIONS
from cyclecontrast.cli import main
from tests import make_videos as make

SMALL = (
    "--backbone resnet10-small-w8 --image-size 16 --batch-size 4 --queue-size 16 --cycle-queue-size 16 "
    "--support-size 4 --workers 0 --log-every 1"
).split()


def call(capsys, *arguments):
    """Run a command; returns exit code, what it printed, and its messages."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder as people have it: videos, a corrupt one, a text file renamed to .mp4, an empty folder."""
    root = tmp_path_factory.mktemp("videos")
    for number, suffix in enumerate(("mp4", "mkv", "MP4")):
        folder = root / f"day {number}"
        folder.mkdir()
        make.write_numbered(folder / f"clip.{suffix}", num_frames=12)
    (root / "notes.mp4").write_text("not a video")
    (root / "broken.mp4").write_bytes((root / "day 0" / "clip.mp4").read_bytes()[:300])
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Dark and bright images in the layout of ImageNet."""
    root, rng = tmp_path_factory.mktemp("labeled"), np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 4)):
        for label, low in (("dark", 0), ("bright", 150)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(number):
                cv2.imwrite(str(folder / f"{index}.png"), rng.integers(low, low + 100, (20, 20, 3), np.uint8))
    return root


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """A run made from that folder in one command."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", str(videos), "--out", str(out), "--steps", "3", *SMALL]) == 0
    return out


def test_one_command_from_videos_to_backbone(run, videos, tmp_path, capsys):
    """pretrain takes a folder of videos as it is, names what it skipped, and says where the backbone is."""
    code, out, messages = call(capsys, "pretrain", videos, "--out", tmp_path / "again", "--steps", "2", *SMALL)
    assert code == 0
    assert "3 videos" in messages
    assert "2 skipped" in messages
    assert "settings:" in messages
    assert "backbone.safetensors" in out
    rows = pq.read_table(tmp_path / "again" / "frames" / "videos.parquet").to_pylist()
    assert {row["id"]: row["status"] for row in rows} == {
        "day 0/clip.mp4": "ok",
        "day 1/clip.mkv": "ok",
        "day 2/clip.MP4": "ok",
        "notes.mp4": "skipped",
        "broken.mp4": "skipped",
    }
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_config_of_a_run_is_whole(run):
    """config.toml holds every setting as it was resolved, so that it reruns the run."""
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["steps"] == 3
    assert config["batch_size"] == 4
    assert config["cycle_start"] == cc.commands.COMMANDS["pretrain"].config(**config).cycle_start


def test_a_run_is_evaluated_embedded_exported_reported(run, labeled, tmp_path, capsys):
    """The commands behind pretrain take the run's folder."""
    assert call(capsys, "evaluate", "knn", run, labeled, "--k", "1", "5", "--workers", "0")[0] == 0
    code, out, _ = call(capsys, "evaluate", "linear", run, labeled, "--workers", "0")
    assert code == 0
    assert "top1" in out
    assert len(list((run / "results").glob("*.json"))) == 2
    assert call(capsys, "embed", run, run / "frames", "--out", tmp_path / "e.parquet", "--workers", "0")[0] == 0
    assert pq.read_table(tmp_path / "e.parquet").column_names == ["video", "index", "time", "vector"]
    code, out, _ = call(capsys, "export", run, "--out", tmp_path / "b.safetensors")
    assert code == 0
    assert "load_backbone" in out
    code, out, _ = call(capsys, "report", run, "--out", tmp_path / "page.html")
    assert code == 0
    assert "<html" in (tmp_path / "page.html").read_text()


def test_python_has_the_same_commands(run, labeled):
    """Every command is a function of the package, and packages that share a command's name can be called."""
    assert all(callable(getattr(cc, name)) for name in COMMANDS)
    result = cc.evaluate("knn", run, labeled, k=(3,), workers=0)
    assert result.metrics["top1_k3"] == json.loads(next((run / "results").glob("knn*.json")).read_text())[
        "metrics"
    ].get("top1_k3", result.metrics["top1_k3"])
    assert cc.load_backbone(run).name == "resnet10-small-w8"
    with pytest.raises(AttributeError, match="pretrian"):
        cc.pretrian  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrian"], "did you mean pretrain?"),
        (["evaluate", "knnn", "m", "d"], "did you mean knn?"),
        (["pretrain", "d", "--out", "o", "--lerning-rate", "1"], "did you mean --learning-rate?"),
        (["pretrain", "d", "--out", "o", "extra"], "'extra' is one argument too many"),
        (["pretrain"], "data is missing"),
        (["pretrain", "d", "--out", "o", "--steps", "many"], "steps: input should be a valid integer"),
        (["pretrain", "d", "--out", "o", "--config", "none.toml"], "none.toml cannot be read"),
        (["pretrain", "nowhere", "--out", "o"], "nowhere: no such folder"),
        (["pretrain", "", "--out", "o"], "data: input should be a name, not ''"),
        (["pretrain", "d", "--out", ""], "out: input should be a name, not ''"),
        (["evaluate", "knn", "", "d"], "model: input should be a name, not ''"),
        (
            ["pretrain", "d", "--out", "o", "--workers", "1000000"],
            "workers: input should be less than or equal to 1024",
        ),
        (["sweep", "table4", "d", "--seeds", "1000000000"], "seeds: input should be less than or equal to 10000"),
        (["prepare", "nowhere", "--out", "o"], "nowhere"),
        (["evaluate", "knn", "nothing", "nowhere"], "model nothing: no such file or folder"),
        (["export", "random:resnet99"], "resnet99"),
        (["embed", "random:resnet18", "nowhere", "--out", "x.txt"], "must end in .parquet or .npz"),
        (["report", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    """A mistake is told in a line that starts with error:, with exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, out, messages = call(capsys, *arguments)
    assert code == 2
    assert words in messages
    assert all(line.startswith("error: ") for line in messages.splitlines())
    assert not out
    assert not list(tmp_path.iterdir())


def test_mistakes_of_all_kinds_come_together(tmp_path, monkeypatch, capsys):
    """A wrong flag, a wrong value, absent data, an absent model and a full output folder are told in one go."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    arguments = "pretrain nowhere --out full --init nothing.pth --backbone resnet17 --sped 3".split()
    code, _, messages = call(capsys, *arguments)
    assert code == 2
    assert len(messages.splitlines()) == 5
    for words in ("--sped", "backbone:", "data: nowhere", "init nothing.pth", "out: full is not empty"):
        assert words in messages


def test_a_file_of_wrong_types_is_told(tmp_path, monkeypatch, capsys):
    """Values that TOML allows and options do not, also where names are expected, are told one by one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(
        'data = 5\nout = [1]\ninit = {a = 1}\nflip = 1979-05-27\nsteps = true\n"a\\nb" = 1\n'
    )
    code, out, messages = call(capsys, "pretrain", "--config", "mine.toml")
    assert (code, out) == (2, "")
    told = [line.split()[1] for line in messages.splitlines()]
    assert sorted(told) == ["a\\nb", "data:", "flip:", "init:", "out:", "steps:"]


def test_flags_override_the_file(tmp_path, monkeypatch, capsys):
    """--config gives options, flags win over it, its unknown keys are named, and --print-config shows the outcome."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('data = "d"\nout = "o"\nbatch_size = 7\nseed = 5\n')
    code, out, _ = call(capsys, "pretrain", "--config", "mine.toml", "--seed", "6", "--print-config")
    shown = tomllib.loads(out)
    assert code == 0
    assert (shown["data"], shown["batch_size"], shown["seed"], shown["queue_size"]) == ("d", 7, 6, "auto")
    (tmp_path / "shown.toml").write_text(out)
    assert call(capsys, "pretrain", "--config", "shown.toml", "--print-config")[1] == out
    (tmp_path / "mine.toml").write_text("batchsize = 7\n")
    code, _, messages = call(capsys, "pretrain", "d", "--out", "o", "--config", "mine.toml")
    assert code == 2
    assert "batchsize is no option; did you mean batch_size?" in messages


@pytest.mark.parametrize("name", [*COMMANDS, *(f"evaluate {name}" for name in EVALUATIONS)])
def test_help_names_every_option(name, capsys):
    """--help of each command shows each of its options with a description."""
    code, out, _ = call(capsys, *name.split(), "--help")
    command = (COMMANDS | {f"evaluate {key}": value for key, value in EVALUATIONS.items()})[name]
    assert code == 0
    for field, info in command.config.model_fields.items():
        assert (field.upper() if field in command.positional else f"--{field.replace('_', '-')}") in out
        assert info.description


def test_an_interrupt_ends_quietly(monkeypatch, capsys):
    """Ctrl-C ends with exit code 130 and a line instead of a traceback."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cyclecontrast.api.Command.call", interrupted)
    code, _, messages = call(capsys, "demo")
    assert (code, messages) == (130, "interrupted\n")


def test_the_installed_command_works(tmp_path):
    """`cyclecontrast` and `python -m cyclecontrast` are the same door."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    shown = [
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout
        for command in (
            [sys.executable, "-m", "cyclecontrast", "--version"],
            [sys.executable, "-c", "from cyclecontrast.cli import main; main(['--version'])"],
        )
    ]
    assert shown[0] == shown[1] == f"cyclecontrast {cc.__version__}\n"


def test_real_videos_in_one_command(shared, tmp_path, capsys):
    """Mixed mp4 and mkv, H.264, HEVC and AV1, with a corrupt file, a text file and an empty folder among them."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted((shared / "video_misc").rglob("*.m*")):
        if path.stat().st_size < 200_000:
            (folder / path.name).symlink_to(path)
    (folder / "text.mp4").write_text("hello")
    (folder / "corrupt.mkv").write_bytes(b"\x1aE\xdf\xa3" + bytes(1000))
    (folder / "nothing").mkdir()
    code, _, messages = call(capsys, "pretrain", folder, "--out", tmp_path / "run", "--steps", "2", *SMALL)
    assert code == 0
    assert "6 videos" in messages
    assert "2 skipped" in messages
