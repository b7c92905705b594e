"""What users read: every mistake at once, one line each."""

import errno
import os
import pickle
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cyclecontrast.config import PrepareConfig
from cyclecontrast.errors import UserError, attempt, checked, did_you_mean, explained, system_error, why_no_workers


class Options(BaseModel):
    """Options like those of the commands."""

    model_config = ConfigDict(extra="forbid")
    steps: int = Field(1, ge=1)
    method: Literal["intra-image", "intra-video", "cycle"] = "cycle"
    batch_size: int
    first: int = 0
    second: int = 0

    @model_validator(mode="after")
    def _one(self):
        if self.first and self.second:
            raise ValueError("first and second exclude each other; choose one")
        return self


def problems_of(values, config=Options):
    """Return the lines that the user sees."""
    with pytest.raises(UserError) as caught:
        checked(config, values)
    return list(caught.value.problems)


def test_checked_returns_the_config():
    """Values without a mistake become the config, with the defaults of the rest."""
    assert checked(Options, {"batch_size": 8}) == Options(batch_size=8, steps=1, method="cycle")


def test_checked_lists_every_mistake_at_once():
    """Unknown, missing and wrong values are reported together, each with what helps to fix it."""
    assert sorted(problems_of({"stepz": 3, "steps": 0, "method": "intra-vidoe"})) == [
        "batch_size is missing",
        "method: input should be 'intra-image', 'intra-video' or 'cycle', not 'intra-vidoe'; did you mean intra-video?",
        "steps: input should be greater than or equal to 1, not 0",
        "unknown option stepz; did you mean steps?",
    ]


def test_wrong_combinations_are_reported():
    """Values that are right by themselves but exclude each other are one line."""
    exclusive = "first and second exclude each other; choose one"
    assert problems_of({"batch_size": 8, "first": 1, "second": 1}) == [exclusive]
    frames = {"videos": "v", "out": "o", "every": 2, "keyframes": True, "frames_per_video": 3}
    assert problems_of(frames, PrepareConfig) == [
        "--frames-per-video and --every and --keyframes exclude each other; choose one"
    ]


def test_every_problem_is_one_short_line():
    """Long values are cut, and characters that break a line or control a terminal are escaped."""
    lines = problems_of({"batch_size": "a\nb", "method": "c\nd" * 10**6, "sp\ned\x1b[2J": 1, "steps": [0] * 10**6})
    assert all(len(line.splitlines()) == 1 and len(line) < 250 for line in lines)
    assert lines[-1] == "unknown option sp\\ned\\x1b[2J"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("batchsize", "; did you mean batch_size?"),
        ("zzz", ""),
        ("--lr", "; did you mean --learning-rate?"),
        ("--learning", "; did you mean --learning-rate?"),
    ],
)
def test_a_hint_names_a_similar_word(name, hint):
    """The hint is the most similar word or the one with these initials, or nothing."""
    assert did_you_mean(name, ["steps", "batch_size", "--learning-rate", "--flip"]) == hint


def test_a_user_error_survives_pickling():
    """An error that crosses processes keeps its problems apart."""
    copy = pickle.loads(pickle.dumps(UserError("one", "two")))
    assert copy.problems == ("one", "two")
    assert str(copy) == "one\ntwo"


def test_missing_permission_is_a_problem_of_the_user():
    """It is one line with the file, wherever in the data it is; other errors of the system keep their traceback."""
    problems = []

    def denied():
        raise PermissionError(13, "Permission denied", "/data/a\nb")

    assert attempt(denied, problems) is None
    assert problems == ["/data/a\\nb: permission denied; allow access, or use other data"]
    with pytest.raises(FileExistsError):
        attempt(lambda: (_ for _ in ()).throw(FileExistsError(17, "File exists", "a")), problems)


def test_attempt_collects_problems():
    """A failing action adds its lines, and one that succeeds returns its value."""
    problems = ["zero"]

    def fail():
        raise UserError("one", "two")

    assert attempt(fail, problems) is None
    assert attempt(lambda: 7, problems) == 7
    assert problems == ["zero", "one", "two"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.EFBIG, os.strerror(errno.EFBIG), "a"),
            "a: file too large; raise the limit on the size of files",
        ),
        (OSError(errno.EEXIST, os.strerror(errno.EEXIST), "a"), "a: file exists"),
        (MemoryError(), "memory: cannot allocate memory; free memory or raise its limit"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "memory: cannot allocate memory; "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory: cannot allocate memory; "),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB"), "memory: cannot allocate memory; "),
        (
            RuntimeError("can't start new thread"),
            "the output: resource temporarily unavailable; raise the limit on proc",
        ),
    ],
)
def test_errors_of_the_system_say_what_to_do(error, line):
    """Limits on memory, processes and files are recognized, also where a library hides them in its own error."""
    assert explained(system_error(error)).startswith(line)


def test_other_errors_are_not_those_of_the_system():
    """A bug is not taken for a limit of the system."""
    for error in (RuntimeError("shapes do not match"), ImportError("No module named x"), OSError("truncated image")):
        assert system_error(error) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many open files; raise the limit on open files"),
        (
            BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
            "resource temporarily unavailable; raise the limit on",
        ),
        (RuntimeError("received 0 items of ancdata"), "too many open files; raise the limit on open files"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "/dev/shm: read-only file system; make it writable"),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
            "/dev/shm: no space left on device; use fewer --workers, or give the container more shared memory",
        ),
    ],
)
def test_why_processes_do_not_start_is_said(error, line):
    """Full or read-only shared memory and limits on files and processes are named, with the remedy."""
    assert why_no_workers(error).startswith(line)
