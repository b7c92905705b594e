"""What users are told: every mistake at once, one line each."""

import pickle
from typing import Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cyclecontrast.errors import UserError, attempt, checked, did_you_mean
from cyclecontrast.models.hardware import autocast, pick_device, pick_precision, pick_workers


class Options(BaseModel):
    """Options like those of the commands."""

    model_config = ConfigDict(extra="forbid")
    steps: int = Field(1, ge=1)
    objective: Literal["intra-image", "intra-video", "cycle"] = "cycle"
    batch_size: int
    first: int = 0
    second: int = 0

    @model_validator(mode="after")
    def _one(self):
        if self.first and self.second:
            raise ValueError("first and second exclude each other; name one")
        return self


def problems_of(values):
    """The lines that the user gets to see."""
    with pytest.raises(UserError) as caught:
        checked(Options, values)
    return list(caught.value.problems)


def test_checked_returns_the_config():
    """Values without a mistake become the config, with the defaults of the rest."""
    assert checked(Options, {"batch_size": 8}) == Options(batch_size=8, steps=1, method="cycle")


def test_checked_lists_every_mistake_at_once():
    """Unknown, missing and wrong values come out together, each with what helps to mend it."""
    problems = problems_of({"stepz": 3, "steps": 0, "method": "intra-vidoe"})
    assert len(problems) == 4
    told = "\n".join(problems)
    assert "batch_size is missing" in told
    assert "stepz is no option; did you mean steps?" in told
    assert "steps: input should be greater than or equal to 1, not 0" in told
    assert "not 'intra-vidoe'; did you mean intra-video?" in told


def test_checked_tells_what_excludes_each_other():
    """A mistake of several options together comes out in its own words."""
    assert problems_of({"batch_size": 8, "first": 1, "second": 1}) == ["first and second exclude each other; name one"]


def test_every_problem_is_one_line():
    """A value with line breaks does not break the line."""
    assert all("\n" not in line for line in problems_of({"batch_size": "a\nb", "method": "c\nd"}))


def test_the_hint_needs_a_similar_word():
    """Nothing is suggested for a word that resembles none."""
    assert did_you_mean("batchsize", ["steps", "batch_size"]) == "; did you mean batch_size?"
    assert did_you_mean("zzz", ["steps", "batch_size"]) == ""


def test_a_user_error_survives_pickling():
    """An error that crosses processes keeps its problems apart."""
    copy = pickle.loads(pickle.dumps(UserError("one", "two")))
    assert copy.problems == ("one", "two")
    assert str(copy) == "one\ntwo"


def test_attempt_collects_problems():
    """A failing action adds its lines, a good one returns its value."""
    problems = ["zero"]

    def fail():
        raise UserError("one", "two")

    assert attempt(fail, problems) is None
    assert attempt(lambda: 7, problems) == 7
    assert problems == ["zero", "one", "two"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_an_absent_device_is_told(name):
    """A device that PyTorch does not see is a user's error that names the way out."""
    with pytest.raises(UserError, match=f"device {name}.*--device cpu"):
        pick_device(name)


def test_a_number_of_gpu_that_is_absent_is_told(monkeypatch):
    """On a machine with one GPU, cuda:1 is a user's error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match="device cuda:1: PyTorch sees 1 GPU here"):
        pick_device("cuda:1")


def test_precision_and_workers_as_asked():
    """What is named is taken; autocast is on for bf16 only."""
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert [pick_precision(name, cpu) for name in ("bf16", "fp32")] == ["bf16", "fp32"]
    assert pick_precision("auto", torch.device("mps")) == "fp32"
    assert pick_workers(0, cpu) == 0
    assert pick_workers(None, cpu) >= 1
    a = torch.ones(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(cpu, precision):
            assert (a @ a).dtype == dtype
