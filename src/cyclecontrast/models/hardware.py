"""Package versions, device, precision, number of workers and threads, and torch.compile."""

import contextlib
import importlib.metadata
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from cyclecontrast.errors import UserError
from cyclecontrast.output import say

P = ParamSpec("P")
T = TypeVar("T")
BACKEND = "inductor"
MPS_FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"
PACKAGES = ("cyclecontrast", "torch", "numpy", "opencv-python-headless", "av", "pyarrow", "scikit-learn")


INSTRUCTION_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Environment variables that limit the instructions of oneDNN and MKL; PyTorch reports its own."""


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def rounding(device: torch.device) -> dict[str, Any]:
    """Return what decides on a CPU, besides the precision, how sums and products are rounded."""
    if device.type != "cpu":
        return {}
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    limits = [f"{name}={os.environ[name]}" for name in INSTRUCTION_LIMITS if name in os.environ]
    return {
        "processor": models[0] if models else platform.processor(),
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *limits]),
        "threads": torch.get_num_threads(),
    }


def pick_device(name: str) -> torch.device:
    """Return the device `name`; `auto` is CUDA if available, otherwise an Apple GPU, otherwise the CPU.

    Raises UserError if it is not available.
    """
    several = os.environ.get("WORLD_SIZE", "1") != "1"  # processes, which pass no tensors of Apple GPUs to each other
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    elif name == "auto":
        name = "mps" if torch.backends.mps.is_available() and not several else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: PyTorch sees no GPU here; use --device cpu")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: PyTorch sees {torch.cuda.device_count()} GPU here, counted from cuda:0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: PyTorch sees no Apple GPU here; use --device cpu")
    if kind == "mps" and several:
        raise UserError("device mps: several processes cannot share an Apple GPU; start one, or use --device cpu")
    if kind == "mps":
        _announce_mps()
    return torch.device(name)


@cache
def _announce_mps() -> None:
    if os.environ.get(MPS_FALLBACK) != "1":
        say(
            f"device mps: computes in fp32; an operation that PyTorch lacks on Apple GPUs ends the command, unless "
            f"{MPS_FALLBACK}=1 is in the environment: then it runs on the CPU"
        )


def pick_precision(name: str, device: torch.device) -> str:
    """Return bf16 or fp32; `auto` is bf16 if the hardware computes it faster than fp32.

    AVX-512 does so on AMD processors. On Intel's without AMX, matrix products and convolutions take twice the time of
    fp32 (docs/performance.md).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    processor = Path("/proc/cpuinfo")
    words = processor.read_text().split() if device.type == "cpu" and processor.exists() else []
    is_fast = "amx_bf16" in words or ("avx512_bf16" in words and "AuthenticAMD" in words)
    return "bf16" if is_fast else "fp32"


def pick_augment_on(name: str, device: torch.device) -> str:
    """Return where color jitter and blur run, `cpu` or `device`; `auto` is `device` on CUDA.

    On a CPU, `device` is 10 to 20 times slower than OpenCV in the workers.
    """
    if name != "auto":
        return name
    return "device" if device.type == "cuda" else "cpu"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return an autocast context for this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def pick_workers(workers: int | None, device: torch.device) -> int:
    """Return the number of data loading workers: `workers` if set, otherwise a quarter of the cores on a CPU.

    On a GPU the default is all cores, divided by the processes of this node.
    """
    if workers is not None:
        return workers
    if device.type == "cpu":
        return _num_free_cores()
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def free_memory(device: torch.device) -> int:
    """Return the free memory of the device in bytes."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def limited_threads(device: torch.device) -> Iterator[None]:
    """Limit PyTorch's threads on a CPU to leave a quarter of the cores to the workers; sharing a core slows both down.

    The number of threads does not depend on the number of workers, because it affects rounding.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(min(before, num_cores() - _num_free_cores() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_free_cores() -> int:
    return max(1, num_cores() // 4)


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function compiled with torch.compile (static shapes). The first call may raise UserError."""
    from torch._dynamo.exc import TorchDynamoException  # imported here because it takes two seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised while PyTorch imports itself
        try:
            fast = torch.compile(function, dynamic=False, backend=BACKEND)
        except RuntimeError as error:
            raise _refused(error) from error

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return fast(*args, **kwargs)
        except TorchDynamoException as error:
            raise _refused(error) from error

    return call


def check_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile does not work on the device. This takes up to half a minute.

    This also resets the compiler, which compiles each function only a limited number of times per process.
    """

    def some_kernel(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sin() + 1

    torch.compiler.reset()
    compiled(some_kernel)(torch.ones(8, device=device))


def _refused(error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Some messages give the reason in the second line.
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
    return UserError(f"compile: torch.compile does not work on this machine ({reason}); fix it or remove --compile")
