"""The fuzzers find what they should, every target is tried a little, and what once was found stays mended."""

import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from cyclecontrast.errors import UserError
from fuzz import mutate, samples
from fuzz.run import Limits, Tally, fuzz, table
from fuzz.targets import TARGETS
from fuzz.trial import Target, read, try_input, variants

NUM_TRIED = 4
VALID = b"valid"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a function that makes a target's valid data once."""
    folders = {}

    def make(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            TARGETS[name].make(folders[name])
        return folders[name]

    return make


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs_of_each_target(name, base, tmp_path):
    """A target's valid data is made, and a few damaged inputs are taken or refused as they should be."""
    assert variants(base(name))
    outcomes = [try_input(TARGETS[name], base(name), tmp_path / "case", 0, number) for number in range(NUM_TRIED)]
    assert [outcome for outcome in outcomes if outcome.is_finding] == []


def test_the_data_that_the_fuzzers_begin_with_is_valid(base, tmp_path):
    """What is refused undamaged would be refused damaged, too, and nothing would be tried."""
    for name in ("labels", "boxes", "masks", "frames"):
        for variant in variants(base(name)):
            assert read(TARGETS[name], variant, []).kind == "accepted", variant


def write_valid(kind, root):
    """Make the data of a target that behaves in one way only."""
    (root / kind).mkdir()
    (root / kind / "data.bin").write_bytes(VALID)


def misbehave(folder):
    """Read a file, and do with a damaged one what no reader may do."""
    path = folder / "data.bin"
    if path.is_file() and path.read_bytes() == VALID:
        return
    match folder.name:
        case "exception":
            raise KeyError("field")
        case "nonsense":
            raise AssertionError("two frames of three")
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(600)
        case "memory":
            bytearray(2**40)
        case "traceback":
            print("Traceback (most recent call last):", file=sys.stderr)
        case "unclear":
            raise UserError("it is damaged")
        case "refused":
            raise UserError(f"{path}: is damaged; mend it")


@pytest.mark.parametrize(
    "kind", ["exception", "nonsense", "crash", "hang", "memory", "traceback", "unclear", "refused", "accepted"]
)
def test_what_may_not_happen_is_found_and_kept(kind, tmp_path):
    """Each kind of finding is counted and kept with its input; the next input is tried all the same."""
    target = Target("bad", partial(write_valid, kind), misbehave)
    limits = Limits(seconds=0.5) if kind == "hang" else Limits()
    tally = fuzz(target, range(2), 0, 60, tmp_path, limits)
    assert tally.kinds == {kind: 2}
    kept = [path.name for path in tmp_path.iterdir()]
    assert kept == ([] if kind in ("refused", "accepted") else ["bad-seed0-0"])
    if kept:
        assert (tmp_path / kept[0] / "finding.txt").read_text().startswith(f"{kind}: ")


def refuse(folder):
    """Refuse everything."""
    raise UserError(f"{folder}: is nothing")


def test_a_target_whose_valid_data_is_refused_is_a_finding(tmp_path):
    """A fuzzer that tries nothing does not pass for one that finds nothing."""
    tally = fuzz(Target("bad", partial(write_valid, "any"), refuse), range(9), 0, 60, tmp_path, Limits())
    assert tally.kinds == {"valid data refused": 1}
    assert len(tally.found) == 1


def test_an_input_is_a_function_of_its_number(base, tmp_path):
    """The same seed, target and number give the same bytes, another number gives others."""

    def content(number):
        try_input(Target("labels", write_valid, lambda _: None), base("labels"), tmp_path / "case", 1, number)
        files = sorted(path for path in (tmp_path / "case").rglob("*") if path.is_file())
        return [(path.relative_to(tmp_path), path.read_bytes()) for path in files]

    assert content(3) == content(3)
    assert content(3) != content(4)


@pytest.mark.parametrize("suffix", mutate.WAYS)
def test_every_way_changes_valid_files(suffix, base, tmp_path):
    """What knows a format takes a valid file of it apart, and puts another together."""
    names = ("videos", "frames", "labels", "models", "configs", "store", "boxes", "runs")
    made = (path for name in names for path in base(name).rglob(f"*{suffix}"))
    path = next((path for path in made if path.is_file()), None)
    if path is None:
        pytest.skip(f"no {suffix} is made of itself")
    data = path.read_bytes()
    for way in mutate.WAYS[suffix]:
        changed = []
        for number in range(20):
            try:
                changed.append(way(data, random.Random(number)) != data)
            except Exception:  # as of a value that the format has no way to write
                continue
        assert any(changed), way


def test_the_table_has_a_line_for_each_target_and_their_sum():
    """Inputs, seconds, outcomes by kind and findings stand in it, as text and as Markdown."""
    one, two = Tally("videos", seconds=3.0), Tally("masks", seconds=4.0)
    one.kinds.update(accepted=1_000, refused=200, crash=2)
    one.found["crash", "SIGSEGV"] = 2
    two.kinds.update(refused=5)
    text, markdown = (list(table([one, two], markdown)) for markdown in (False, True))
    assert text[1].split() == ["videos", "1,202", "3", "1,000", "200", "1", "(2", "crash)"]
    assert text[-1].split()[:5] == ["all", "1,207", "7", "1,000", "205"]
    assert markdown[1].startswith("|--")
    assert [len(line) for line in markdown] == [len(markdown[0])] * 5


def put(name, content, folder):
    """Write a file of the data."""
    path = next(folder.rglob(name))
    path.unlink()
    path.write_bytes(content)


def pipe(name, folder):
    """Make a file of the data a pipe that nobody writes to."""
    path = next(folder.rglob(name))
    path.unlink()
    os.mkfifo(path)


def loop(name, folder):
    """Make a file of the data a link to itself."""
    path = next(folder.rglob(name))
    path.unlink()
    path.symlink_to(path.name)


DIGITS, LONG = b"9" * 5_000, b"a" * 300
KEPT = {
    "a label of 5,000 digits, ImageNet": ("labels", "imagenet", partial(put, "*truth.txt", DIGITS), "5,000 characters"),
    "a label of 19 digits": ("labels", "lists", partial(put, "train.txt", b"v " + b"9" * 19), "whole number as label"),
    "a folder's name that is too long": ("labels", "lists", partial(put, "test.txt", LONG + b" 0"), "no such folder"),
    "a folder outside": ("labels", "lists", partial(put, "test.txt", b"../lists 0"), "leads out"),
    "an absolute folder": ("labels", "lists", partial(put, "test.txt", b"/etc 0"), "leads out"),
    "a pipe for a list": ("labels", "lists", partial(pipe, "train.txt"), "is not a regular file"),
    "a command to the terminal": ("labels", "lists", partial(put, "test.txt", b"\x1b[2J 0"), r"\x1b[2J"),
    "a video's name that is too long": (
        *("labels", "ucf101", partial(put, "testlist01.txt", b"YoYo/" + LONG)),
        "no such video",
    ),
    "a class whose name is a path": ("labels", "ucf101", partial(put, "classInd.txt", b"1 /etc"), "1 <class>"),
    "a class whose name is too long": (
        *("labels", "ucf101", partial(put, "classInd.txt", b"1 Archery\n2 YoYo\n3 " + LONG)),
        "no videos to train on|no such folder",
    ),
    "a line of 5,000 characters": ("labels", "hmdb51", partial(put, "wave_*.txt", DIGITS), "no videos to train on"),
    "boxes in a link to itself": ("boxes", "otb", partial(loop, "groundtruth_rect.txt"), "symbolic links"),
    "a cover of 1e300": ("boxes", "got10k", partial(put, "cover.label", b"8\n8\n1e300"), "from 0 to 8"),
    "a sequence outside": ("boxes", "got10k", partial(put, "list.txt", b"A\n/\n../val/B"), "leads out"),
    "a sequence whose name is too long": ("boxes", "got10k", partial(put, "list.txt", LONG), "no such folder"),
    "the number of a class of 5,000 digits": (
        *("masks", "ade20k", partial(put, "objectInfo150.txt", b"Idx\n" + DIGITS)),
        "5,000 characters",
    ),
    "a mask's name that is too long": ("masks", "voc", partial(put, "val.txt", LONG), "no image with a mask to test"),
    "an image's name that is too long": ("masks", "lists", partial(put, "val.txt", LONG), "no image with a mask to"),
    "an image outside": ("masks", "voc", partial(put, "train.txt", b"../../x 0001.png"), "leads out"),
    "a masked video outside": ("masks", "davis", partial(put, "val.txt", b"bear\n../480p/dog"), "leads out|masks"),
    "a masked video whose name is too long": ("masks", "davis", partial(put, "val.txt", b"bear\n" + LONG), "no such"),
    "a mask that is a pipe": ("masks", "davis", partial(pipe, "00001.png"), "mask|image"),
    "a setting of 5,000 digits": (
        "configs",
        "prepare",
        partial(put, "config.toml", b"every = " + DIGITS),
        "is not TOML",
    ),
    "settings that are nested too deep": (
        *("configs", "prepare", partial(put, "config.toml", b"every = " + b"[" * 100_000)),
        "is not TOML",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_was_found_is_mended(case, base, tmp_path):
    """Inputs that once crashed, hung, ended in a traceback or led out of their folder are refused in clear lines."""
    name, variant, harm, words = KEPT[case]
    shutil.copytree(base(name) / variant, tmp_path / variant)
    harm(tmp_path / variant)
    outcome = read(TARGETS[name], tmp_path / variant, [])
    assert outcome.kind == "refused", outcome
    assert any(word in outcome.text.replace("\\\\", "\\") for word in words.split("|")), outcome.text


def test_names_that_are_no_text_are_refused_or_read(base, tmp_path):
    """A folder of a sequence whose name is not UTF-8 is named; an image of such a name has a place in a fingerprint."""
    from cyclecontrast.data.tracking_sequences import open_otb

    shutil.copytree(base("boxes") / "otb", tmp_path / "otb")
    (tmp_path / "otb" / "David").rename(tmp_path / "otb" / "\udcff")
    image = next((tmp_path / "otb" / "Car" / "img").iterdir())
    image.rename(image.with_name("\udcfe.jpg"))
    opened = open_otb(tmp_path / "otb")
    assert [sequence.name for sequence in opened.sequences] == ["Car"]
    assert "the name is not UTF-8; rename it" in UserError(*opened.problems).problems[0]
    assert len(opened.fingerprint) == 16


def test_the_command_says_what_it_did(tmp_path, monkeypatch, capsys):
    """`fuzz/run.py` prints its table and ends with 0 where nothing was found; a target that is none is refused."""
    from fuzz import run

    monkeypatch.setattr(sys, "argv", ["run.py", "labels", "--inputs", "3", "--findings", str(tmp_path), "--markdown"])
    assert run.main() == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| labels |      3 |")
    monkeypatch.setattr(sys, "argv", ["run.py", "lables"])
    with pytest.raises(SystemExit):
        run.main()
    assert "lables: no such target; there are videos, " in capsys.readouterr().err


def test_no_real_footage_is_needed(tmp_path, monkeypatch):
    """Where the real data is absent, the fuzzers begin with videos made in code."""
    monkeypatch.setattr(samples, "REAL", Path("/nowhere"))
    samples.videos(tmp_path)
    assert len(variants(tmp_path)) >= 4
