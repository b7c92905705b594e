"""torch.compile, with one line where no compiler works; functions are compiled, so that networks stay what is saved."""

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from cyclecontrast.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
BACKEND = "inductor"


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function compiled for each shape that it meets: one for all would depend on which shape came first.

    It raises UserError where it cannot be compiled, which shows when it is called first.
    """
    from torch._dynamo.exc import TorchDynamoException  # two seconds of imports, for few

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own, as it imports itself
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
    """Raise UserError where nothing can be compiled for the device; it takes half a minute on a slow machine.

    What was compiled before in this process is forgotten: PyTorch compiles a function only so many times.
    """

    def some_kernel(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sin() + 1

    torch.compiler.reset()
    compiled(some_kernel)(torch.ones(8, device=device))


def _refused(error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # The first line of some says only that something was raised.
    reason = " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
    return UserError(f"compile: torch.compile does not work here ({reason}); mend it or leave out --compile")
