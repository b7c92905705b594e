"""What this machine has and can do: package versions, device, precision, number of workers, and torch.compile."""

import contextlib
import importlib.metadata
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from cyclecontrast.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
BACKEND = "inductor"
PACKAGES = ("cyclecontrast", "torch", "numpy", "opencv-python-headless", "av", "pyarrow", "scikit-learn")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def pick_device(name: str) -> torch.device:
    """Return the device called `name`, or the best one for `auto`; raises UserError where it is absent."""
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    elif name == "auto":
        name = "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: PyTorch sees no GPU here; use --device cpu")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: PyTorch sees {torch.cuda.device_count()} GPU here, counted from cuda:0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: PyTorch sees no Apple GPU here; use --device cpu")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """Return bf16 or fp32; `auto` is bf16 where the hardware multiplies it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    processor = Path("/proc/cpuinfo")
    flags = processor.read_text().split() if device.type == "cpu" and processor.exists() else []
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def pick_executor(name: str, device: torch.device) -> str:
    """Return where views are augmented, cpu or device; `auto` is the device where that is CUDA.

    On a CPU the batched executor takes ten to twenty times as long as OpenCV in the workers.
    """
    if name != "auto":
        return name
    return "device" if device.type == "cuda" else "cpu"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context in which networks run at this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def pick_workers(workers: int | None, device: torch.device) -> int:
    """Return the number of worker processes: as set, or on a CPU the cores that networks leave free."""
    if workers is not None:
        return workers
    if device.type == "cpu":
        return _num_free_cores()
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextlib.contextmanager
def limited_threads(device: torch.device) -> Iterator[None]:
    """Leave cores to the worker processes while a network runs on the CPU; sharing a core slows both.

    The number of threads depends on the machine alone, not on the workers: sums depend on it in their last bits.
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
    """Return the function compiled by torch.compile, for each input shape anew; its first call may raise UserError."""
    from torch._dynamo.exc import TorchDynamoException  # two seconds of imports

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
    """Raise UserError where torch.compile does not work for the device; takes half a minute on a slow machine.

    It also resets the compiler, which compiles each function only a limited number of times per process.
    """

    def some_kernel(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sin() + 1

    torch.compiler.reset()
    compiled(some_kernel)(torch.ones(8, device=device))


def _refused(error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Some messages say what happened in their second line.
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
    return UserError(f"compile: torch.compile does not work here ({reason}); fix it or leave out --compile")
