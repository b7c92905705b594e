"""Devices, precision and workers: what is requested is taken, or refused in a line."""

import pytest
import torch

from cyclecontrast.errors import UserError
from cyclecontrast.models.hardware import autocast, pick_device, pick_precision, pick_workers


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_an_absent_device_is_reported(name):
    """A device that PyTorch does not see is an error that names the alternative."""
    with pytest.raises(UserError, match=f"device {name}.*--device cpu"):
        pick_device(name)


def test_the_number_of_an_absent_gpu_is_reported(monkeypatch):
    """On a machine with one GPU, cuda:1 is a user's error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match="device cuda:1: PyTorch sees 1 GPU here"):
        pick_device("cuda:1")


def test_requested_precision_and_workers_are_used():
    """A named precision and number of workers is used; autocast is on for bf16 only."""
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
