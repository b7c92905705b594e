"""The command line as people use it: whole commands, their output, and their exit codes."""

import contextlib
import errno
import io
import os
import tomllib
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cyclecontrast import cli
from cyclecontrast.cli import COMMANDS, main
from cyclecontrast.config import RESOLVED_BY_AUTO, DemoConfig, PretrainConfig
from cyclecontrast.errors import UserError
from tests import make_videos as make

SMALL = (
    "--backbone resnet10-small-w8 --image-size 16 --batch-size 4 --queue-size 16 --cycle-queue-size 16 "
    "--support-size 4 --workers 0 --log-every 1"
).split()


def call(*arguments):
    """Run a command; returns its exit code, what it printed, and its messages."""
    out, messages = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(messages):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), messages.getvalue()


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Write dark and bright images in the layout of ImageNet."""
    root, rng = tmp_path_factory.mktemp("labeled"), np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 4)):
        for label, low in (("dark", 0), ("bright", 150)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(number):
                cv2.imwrite(str(folder / f"{index}.png"), rng.integers(low, low + 100, (20, 20, 3), np.uint8))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train on a folder as people have it: videos, a corrupt one, a text file renamed to .mp4, an empty folder."""
    root = tmp_path_factory.mktemp("videos")
    for number, suffix in enumerate(("mp4", "mkv", "MP4")):
        (root / f"day {number}").mkdir()
        make.write_numbered(root / f"day {number}" / f"clip.{suffix}", num_frames=12)
    (root / "notes.mp4").write_text("not a video")
    (root / "broken.mp4").write_bytes((root / "day 0" / "clip.mp4").read_bytes()[:300])
    (root / "empty").mkdir()
    run = tmp_path_factory.mktemp("runs") / "run"
    return run, *call("pretrain", root, "--out", run, "--steps", "3", "--no-report", *SMALL)


def test_one_command_from_videos_to_backbone(trained):
    """`pretrain` takes a folder of videos as it is, names what it skipped, and says where the backbone is."""
    run, code, out, messages = trained
    assert code == 0
    assert all(words in messages for words in ("3 videos", "2 skipped", "settings ("))
    assert "backbone.safetensors" in out
    rows = pq.read_table(run / "frames" / "videos.parquet").to_pylist()
    assert {row["id"]: row["status"] for row in rows} == {
        "day 0/clip.mp4": "ok",
        "day 1/clip.mkv": "ok",
        "day 2/clip.MP4": "ok",
        "notes.mp4": "skipped",
        "broken.mp4": "skipped",
    }
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    saved = tomllib.loads((run / "config.toml").read_text())
    assert (saved["steps"], saved["batch_size"], saved["out"]) == (3, 4, str(run))
    assert PretrainConfig(**saved).requested() == set()


def test_a_run_is_evaluated_embedded_exported_reported(trained, labeled, tmp_path):
    """The other commands take the folder of a run, print what they found, and write where they say."""
    run = trained[0]
    code, out, messages = call("evaluate", "knn", run, labeled, "--k", "1", "5", "--workers", "0", "--no-report")
    assert (code, "top1_k5" in out) == (0, True)
    assert str(next((run / "results").glob("knn*.json"))) in messages
    assert call("embed", run, run / "frames", "--out", tmp_path / "e.parquet", "--workers", "0")[0] == 0
    assert pq.read_table(tmp_path / "e.parquet").column_names == ["video", "index", "time", "vector", "path"]
    code, out, _ = call("export", run, "--out", tmp_path / "b.safetensors")
    assert (code, "load_backbone" in out) == (0, True)
    assert call("report", run, "--out", tmp_path / "page.html", "--workers", "0")[0] == 0
    assert "<html" in (tmp_path / "page.html").read_text()
    code, out, _ = call("runs", "ls", run.parent)
    assert (code, "run" in out) == (0, True)


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("pretrian", "unknown command 'pretrian'; did you mean pretrain?"),
        ("evaluate knnn m d", "unknown protocol 'knnn'; did you mean knn?"),
        ("runs list", "unknown command 'list'"),
        ("pretrain d --out o --lerning-rate 1", "unknown option --lerning-rate; did you mean --learning-rate?"),
        ("pretrain d --out o --lr 1", "unknown option --lr; did you mean --learning-rate?"),
        ("pretrain d --out o --iterations 9", "unknown option --iterations; did you mean --steps?"),
        ("pretrain d --out o --gpus 1", "unknown option --gpus; did you mean --device?"),
        ("pretrain d --out o --bogus", "unknown option --bogus\n"),
        ("pretrain d --out o extra", "unexpected argument 'extra'"),
        ("pretrain d --out", "argument --out: expected one argument"),
        ("pretrain", "data is missing"),
        ("pretrain d --out o --steps many", "steps: input should be a valid integer"),
        ("pretrain d --out o --config none.toml", "none.toml cannot be read"),
        ("pretrain nowhere --out o", "nowhere: no such folder; name a prepared store"),
        (
            "evaluate shape-bias random:resnet10 nowhere --train-data nowhere",
            "nowhere: no such folder; name a folder of images",
        ),
        ("pretrain = --out o", "data: must be a non-empty file name or path, not ''"),
        ("evaluate knn = d", "model: must be a non-empty file name or path, not ''"),
        ("pretrain d --out o --workers 1000000", "workers: input should be less than or equal to 1024"),
        ("sweep table4 d --seeds 1000000000", "seeds: input should be less than or equal to 10000"),
        ("evaluate knn nothing nowhere", "model nothing: no such file or folder"),
        ("evaluate tracking random:resnet10 nowhere", "nowhere: no such file or folder; name an OTB"),
        ("search none.npz --image q.png", "none.npz: no such file"),
        ("export random:resnet99", "resnet99"),
        ("embed random:resnet18 nowhere --out x.txt", "must end in .parquet or .npz"),
        ("report nowhere", "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(arguments, words, tmp_path, monkeypatch):
    """A mistake is a line that starts with `error:`, with exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, out, messages = call(*(word.replace("=", "") for word in arguments.split(" ")))
    assert (code, out) == (2, "")
    assert words in messages
    assert all(line.startswith("error: ") for line in messages.splitlines())
    assert not list(tmp_path.iterdir())


def test_mistakes_of_all_kinds_come_together(tmp_path, monkeypatch):
    """An unknown flag, a wrong value, absent data, an absent model and a full output folder are reported at once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    code, _, messages = call(
        *"pretrain nowhere --out full --init nothing.pth --backbone resnet17 --sped 3".split(),
    )
    assert code == 2
    assert len(messages.splitlines()) == 5
    for words in ("--sped", "backbone:", "data: nowhere", "init nothing.pth", "out: full is not empty"):
        assert words in messages


def test_wrong_types_in_a_file_are_reported(tmp_path, monkeypatch):
    """Values that TOML has and options do not, also in place of names, are reported one by one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(
        'data = 5\nout = [1]\ninit = {a = 1}\nflip = 1979-05-27\nsteps = true\n"a\\nb" = 1\n'
    )
    code, out, messages = call("pretrain", "--config", "mine.toml")
    assert (code, out) == (2, "")
    names = [line.removeprefix("error: ").removeprefix("unknown option ").split()[0] for line in messages.splitlines()]
    assert sorted(names) == ["a\\nb", "data:", "flip:", "init:", "out:", "steps:"]
    (tmp_path / "mine.toml").write_text("batchsize = 7\n")
    code, _, messages = call("pretrain", "d", "--out", "o", "--config", "mine.toml")
    assert code == 2
    assert "unknown option batchsize; did you mean batch_size?" in messages


# --- options and help


def test_flags_override_the_file(tmp_path, monkeypatch):
    """--config gives options, flags override them, and --print-config prints a file that gives the same options."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('data = "d"\nout = "o"\nbatch_size = 7\nseed = 5\n')
    code, out, _ = call("pretrain", "--config", "mine.toml", "--seed", "6", "--print-config")
    shown = tomllib.loads(out)
    assert code == 0
    assert (shown["data"], shown["batch_size"], shown["seed"], shown["queue_size"]) == ("d", 7, 6, "auto")
    (tmp_path / "shown.toml").write_text(out)
    assert call("pretrain", "--config", "shown.toml", "--print-config")[1] == out
    mine = tmp_path / "mine.toml"
    mine.write_bytes(b"\xef\xbb\xbf" + mine.read_bytes())  # as editors on Windows write it
    assert call("pretrain", "--config", "mine.toml", "--seed", "6", "--print-config")[1] == out


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (os.mkfifo, "is not TOML (it is not a regular file)"),
        (lambda file: file.symlink_to("/dev/zero"), "is not TOML (it is not a regular file)"),
        (lambda file: (file.touch(), os.truncate(file, 2**40)), "(it has 1,099,511,627,776 bytes, more than 65,536)"),
        (lambda file: file.write_text("steps = " + 20_000 * "["), "is not TOML (it is nested too deeply)"),
        (
            lambda file: file.write_text("steps" + 2_000 * ".a" + " = 1"),
            "integer, not a value with thousands of levels",
        ),
    ],
    ids=["pipe", "device", "large", "deep list", "deep table"],
)
def test_a_file_of_options_is_small(tmp_path, write, words):
    """What has no end, is huge or is nested deeply is refused in a line, before it is read or waited for."""
    write(tmp_path / "mine.toml")
    code, out, messages = call("pretrain", tmp_path, "--out", tmp_path / "o", "--config", tmp_path / "mine.toml")
    assert (code, out) == (2, "")
    assert words in messages.splitlines()[0]


def test_former_flags_are_accepted():
    """Renamed flags work under their former names, which the help does not show."""
    former = "--objective cycle-only --most-unreadable .5 --own-key-in-support".split()
    shown = tomllib.loads(call("pretrain", "d", "--out", "o", *former, "--print-config")[1])
    assert (shown["method"], shown["max_unreadable"], shown["query_frame_in_support"]) == ("cycle-only", 0.5, True)
    assert "--objective" not in call("pretrain", "--help")[1]


def test_a_baseline_needs_no_name():
    """`--baseline` alone means random weights, and `--no-baseline` none, as before there was a choice."""
    words = ("evaluate", "all", "m", "--data-root", "d", "--print-config")
    for flags, expected in (
        (["--baseline"], "random"),
        (["--no-baseline"], "none"),
        (["--baseline", "start"], "start"),
    ):
        assert tomllib.loads(call(*words, *flags)[1])["baseline"] == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_option(name, monkeypatch):
    """--help shows each option with its help text and its default, and fits a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(*name.split(), "--help")
    command = COMMANDS[name]
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.replace("-\n", "-").split())
    for option, field in command.options.items():
        assert (option.upper() if option in command.positional else f"--{option.replace('_', '-')}") in out
        assert field.description.split(" (default")[0].replace("- ", "-") in text.replace("- ", "-")
    assert ("auto; paper: " in text) == (name == "pretrain")
    assert text.endswith("show this help message and exit")


def test_help_groups_the_options_of_pretrain():
    """The options of `pretrain` are in groups, each under its title, and what `auto` decides is marked."""
    out = call("pretrain", "--help")[1]
    titles = [line[:-1] for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    groups = ["data", "method", "model", "optimization", "hardware", "output", "general"]
    assert titles == ["positional arguments", *groups]
    optimization = out.partition("optimization:")[2].partition("hardware:")[0]
    assert all(flag in optimization for flag in ("--batch-size VIDEOS", "--steps STEPS", "--warmup FRACTION"))
    assert " ".join(out.split()).count("default: auto; paper: ") == len(RESOLVED_BY_AUTO)


def test_overviews_name_every_command():
    """`cyclecontrast`, `evaluate` and `runs` without more words list what there is."""
    overview = call()[1]
    for name in COMMANDS:
        first, _, second = name.partition(" ")
        assert f"\n  {first} " in overview
        assert not second or f"\n  {second} " in call(first)[1]
    assert max(map(len, (overview + call("evaluate")[1]).splitlines())) <= 80


# --- exit codes


class Partial(NamedTuple):
    """A result with a failure."""

    failure: str

    def __str__(self):
        return "the rest"


def returning(monkeypatch, action):
    """Let the command `demo` do something else."""
    monkeypatch.setitem(cli.COMMANDS, "demo", cli.Command(DemoConfig, action))
    return call("demo")


def raising(error):
    """Return a function that raises."""

    def call(**options):
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("repeat it"), 130, "repeat it\n"),
        (UserError("one", "two"), 2, "error: one\nerror: two\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.npz"),
            2,
            "error: a.npz: no space left on device; free space, or name a folder on another disk\n",
        ),
        (
            OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), "a"),
            2,
            "error: a: resource temporarily unavailable; raise the limit on processes and threads (ulimit -u), "
            "or use fewer --workers\n",
        ),
    ],
)
def test_errors_end_in_lines(monkeypatch, error, code, message):
    """Ctrl-C, mistakes and a full disk end in lines and an exit code, without a traceback."""
    assert returning(monkeypatch, raising(error)) == (code, "", message)


def test_bugs_keep_their_traceback(monkeypatch):
    """Any other exception is a bug."""
    with pytest.raises(FileNotFoundError):
        returning(monkeypatch, raising(FileNotFoundError(errno.ENOENT, "x")))


def test_a_partial_result_is_printed_and_fails(monkeypatch):
    """A result that lacks something is printed, and exit code 2 lets scripts notice; no result prints nothing."""
    assert returning(monkeypatch, lambda **_: Partial("a part failed")) == (2, "the rest\n", "error: a part failed\n")
    assert returning(monkeypatch, lambda **_: Partial("")) == (0, "the rest\n", "")
    assert returning(monkeypatch, lambda **_: None) == (0, "", "")


def test_real_videos_are_prepared(shared, tmp_path):
    """Of mp4 and mkv files in H.264, HEVC and AV1 among broken ones, all videos are read and the others named."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted((shared / "video_misc").rglob("*.m*")):
        if path.stat().st_size < 200_000:
            (folder / path.name).symlink_to(path)
    (folder / "text.mp4").write_text("hello")
    (folder / "corrupt.mkv").write_bytes(b"\x1aE\xdf\xa3" + bytes(1000))
    code, out, messages = call("prepare", folder, "--out", tmp_path / "frames", "--every", "30", "--workers", "0")
    assert code == 0
    assert "6 videos" in out + messages
    assert "2 skipped" in out + messages
