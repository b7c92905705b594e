"""What this machine can do: its device, and the precision that pays on it."""

import contextlib
import os
from pathlib import Path

import torch

from cyclecontrast.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device called `name`, or the best one for `auto`; raises UserError where it is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: PyTorch sees no GPU here; use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: PyTorch sees no Apple GPU here; use --device cpu")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """Return bf16 or fp32; `auto` is bf16 where the hardware multiplies it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context in which networks run at this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def pick_workers(workers: int | None) -> int:
    """Return the number of worker processes: what was asked, or one per core this process may use."""
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_has_bf16() -> bool:
    processor = Path("/proc/cpuinfo")
    flags = processor.read_text().split() if processor.exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags
