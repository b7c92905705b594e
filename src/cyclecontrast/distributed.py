"""Process groups for torchrun, and the collectives that the commands use."""

import contextlib
import inspect
import io
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from cyclecontrast.errors import UserError, out_of_memory
from cyclecontrast.output import say

T = TypeVar("T")
CPU = torch.device("cpu")
SETUP_HINT = "nothing was trained yet"
FROM_PEER = re.compile("gloo|nccl|connection|peer|timed out|timeout|store", re.IGNORECASE)
"""Matches PyTorch's error messages when another process has ended, for errors that are not a DistError."""
JOIN_TIMEOUT = timedelta(minutes=5)
"""Time for all processes to start and to find each other."""
SECONDS_OF_SILENCE = 5
"""Seconds after which a process says that it waits for the first."""
STEP_TIMEOUT = timedelta(minutes=10)
"""Timeout of collectives within a training step."""
LONG_TIMEOUT = timedelta(hours=12)
"""Timeout of collectives that may wait long, such as for rank 0 to prepare videos."""


class World(NamedTuple):
    """This process's rank and the number of processes.

    `cpu_group` is the gloo group for small messages within a step, `patient_group` the one with a long timeout.
    """

    rank: int
    size: int
    cpu_group: dist.ProcessGroup | None = None
    patient_group: dist.ProcessGroup | None = None


ALONE = World(0, 1)


@contextlib.contextmanager
def process_group(device: torch.device, command: str) -> Iterator[World]:
    """Initialize the process group of torchrun and destroy it at the end; without torchrun, yield ALONE.

    Raises UserError if the first process cannot be reached, and if the processes run different commands.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    _check_environment()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    joins = not dist.is_initialized()
    try:
        with peer_errors(hint=SETUP_HINT):
            if joins:
                _wait_for_first()
                store, rank, size = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
                store.set_timeout(STEP_TIMEOUT)
                backend = "nccl" if device.type == "cuda" else "gloo"
                dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=STEP_TIMEOUT)
            groups = (dist.new_group(backend="gloo", timeout=timeout) for timeout in (STEP_TIMEOUT, LONG_TIMEOUT))
            world = World(dist.get_rank(), dist.get_world_size(), *groups)
        check_same({"command": command}, world)
        yield world
    finally:
        if joins and dist.is_initialized():
            dist.destroy_process_group()


def end_with_parent(parent: int) -> None:
    """Wait for the end of the parent process, however it ends, and send SIGTERM to this process.

    The kernel can do so too, but once for each thread of the parent, and a second signal ends a training at once.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_first() -> None:
    """Wait until the first process listens; raises UserError after a while.

    PyTorch would retry in silence for twice its timeout and end with the stack of its C++ code.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listens = os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    place, began, has_said = f"MASTER_ADDR={address}, MASTER_PORT={port}", time.monotonic(), False
    while True:
        try:
            if not listens:
                socket.create_connection((address, port), timeout=10).close()
            elif not any(map(_is_local, socket.getaddrinfo(address, port))):
                say(f"process 0 runs here, but {place} is another machine, which must forward to this one")
            return
        except OSError as error:
            problem = f"process 0 cannot be reached at {place} ({error.strerror or error})"
        waited = time.monotonic() - began
        if waited > JOIN_TIMEOUT.total_seconds():
            raise UserError(f"{problem}; check the address, and whether process 0 runs")
        if waited > SECONDS_OF_SILENCE and not has_said:
            say(f"{problem}; waiting up to {JOIN_TIMEOUT.total_seconds():.0f} s")
            has_said = True
        time.sleep(1)


def _is_local(found: tuple[Any, ...]) -> bool:
    """Whether an address that `getaddrinfo` found belongs to this machine."""
    family, *_, address = found
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.bind((address[0], 0))
    except OSError:
        return False
    return True


def _check_environment() -> None:
    values = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    numbers = all(values[name].isdecimal() for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    is_valid = numbers and int(values["RANK"]) < int(values["WORLD_SIZE"]) and int(values["MASTER_PORT"]) < 2**16
    if not is_valid or not values["MASTER_ADDR"]:
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        raise UserError(
            f"the environment variables of torchrun are incomplete or invalid ({shown}); start with "
            f"torchrun, or unset them"
        )


@contextlib.contextmanager
def rank_0_first(world: World) -> Iterator[None]:
    """Run the block on rank 0 first, then on the other ranks. If it fails on rank 0, the others raise UserError."""
    if world.rank:
        with peer_errors(hint=SETUP_HINT):
            dist.barrier(world.patient_group)
    yield
    if world.size > 1 and world.rank == 0:
        with peer_errors(hint=SETUP_HINT):
            dist.barrier(world.patient_group)


def check_same(settings: Mapping[str, Any], world: World) -> None:
    """Raise UserError in all processes if a setting differs from that of rank 0."""
    first, *others = all_gather_objects({name: str(value) for name, value in settings.items()}, world)
    differences = [
        f"{name}: {first.get(name)} in process 0, {other.get(name)} in process {rank}; start all with the same"
        for rank, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if differences:
        barrier(world)
        raise UserError(*differences)


def barrier(world: World) -> None:
    """Barrier over all processes; it ignores the error if a process exits after it has reached the barrier."""
    with contextlib.suppress(UserError):
        all_reduce_max([0], world)


def all_reduce_max(numbers: Sequence[int], world: World) -> list[int]:
    """Return the elementwise maximum over all processes (one all-reduce)."""
    if world.size == 1:
        return list(numbers)
    held = torch.tensor(numbers)
    with peer_errors():
        dist.all_reduce(held, dist.ReduceOp.MAX, group=world.cpu_group)
    return [int(number) for number in held]


def all_reduce_mean(numbers: Sequence[float], world: World) -> list[float]:
    """Return the elementwise mean over all processes (one all-reduce); nan if any value is nan."""
    if world.size == 1:
        return list(numbers)
    held = torch.tensor(numbers, dtype=torch.float64)
    with peer_errors():
        dist.all_reduce(held, group=world.cpu_group)
    return (held / world.size).tolist()


def all_gather(tensor: Tensor, world: World) -> Tensor:
    """Return the tensors of all processes, concatenated along the first dimension in rank order."""
    if world.size == 1:
        return tensor
    tensor = tensor.contiguous()  # all_gather needs equal memory layouts
    parts = [torch.empty_like(tensor) for _ in range(world.size)]
    with peer_errors():
        dist.all_gather(parts, tensor)
    return torch.cat(parts)


def broadcast_from_rank_0(tensors: Iterable[Tensor]) -> None:
    """Broadcast tensors from rank 0, in place."""
    for tensor in tensors:
        held = tensor.contiguous()
        dist.broadcast(held, 0)
        tensor.copy_(held)


def all_gather_objects(value: T, world: World) -> list[T]:
    """Return the picklable values of all processes, in the order of ranks."""
    if world.size == 1:
        return [value]
    found: list[Any] = [None] * world.size
    with peer_errors():
        dist.all_gather_object(found, value, group=world.patient_group)
    return found


@contextlib.contextmanager
def peer_errors(work: str = "training", hint: str = "--resume continues from the last checkpoint") -> Iterator[None]:
    """Raise UserError with one line if another process has ended or hangs; other errors pass through."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not FROM_PEER.search(str(error)):
            raise
        reason = str(error).partition("\n")[0]
        if "connectFullMesh" in reason:  # gloo asks for the address of the machine's name, which may be 127.0.1.1
            hint += "; between machines, set GLOO_SOCKET_IFNAME to the name of their network interface"
        raise UserError(
            f"another process of this {work} has ended or does not respond ({reason}); see its error message. "
            f"Restart all processes; {hint}"
        ) from error


@contextlib.contextmanager
def command_process_group(command: str) -> Iterator[World]:
    """Initialize the process group for a command other than `pretrain`; if one process fails, all fail.

    Only rank 0 writes to stderr. If a process fails, all raise UserError at their next `gather_objects` or
    `broadcast_object`, or at the end of the block: on rank 0 with the messages of all processes, on the others without
    a message.
    """
    with process_group(CPU, command) as world, contextlib.ExitStack() as stack:
        if world.rank:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            yield world
            _exchange_problems(None, world)
        except _SharedFailureError:
            raise
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            if world.size == 1:
                raise
            _exchange_problems(_lines_of(error), world)


def gather_objects(value: T, world: World) -> list[T]:
    """Return the values of all processes in rank order on rank 0, and an empty list on the other ranks.

    Call it within `command_process_group`. Raises UserError if a process failed.
    """
    if world.size == 1:
        return [value]
    _exchange_problems(None, world)
    values: list[Any] = [None] * world.size if world.rank == 0 else []
    with _command_errors():
        dist.gather_object(value, values or None, 0, group=world.patient_group)
    return values


def broadcast_object(value: T, world: World) -> T:
    """Return the value of rank 0 on every rank. Call it within `command_process_group`.

    Raises UserError if a process failed.
    """
    if world.size == 1:
        return value
    _exchange_problems(None, world)
    held = [value]
    with _command_errors():
        dist.broadcast_object_list(held, 0, group=world.patient_group)
    return held[0]


def check_single_process(what: str) -> None:
    """Raise UserError if torchrun started several processes for a single-process command; only rank 0 has a message."""
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        with command_process_group(what) as world:
            if world.size > 1:
                raise UserError(single_process_message(what))


def single_process_message(what: str) -> str:
    """Return the error message for a command that does not support several processes."""
    return (
        f"{what} supports a single process only, but torchrun started {os.environ.get('WORLD_SIZE')}; start it "
        f"without torchrun"
    )


class _SharedFailureError(UserError):
    """A failure that has already been exchanged between all processes."""


def _exchange_problems(problems: Sequence[str] | None, world: World) -> None:
    """Raise UserError if any process has problems: with all messages on rank 0, without a message on the others."""
    if world.size == 1:
        return
    found: list[Any] = [None] * world.size
    with _command_errors():
        dist.all_gather_object(found, problems, group=world.patient_group)
    failed = [lines for lines in found if lines is not None]
    if failed:
        raise _SharedFailureError(*dict.fromkeys(line for lines in failed for line in lines) if world.rank == 0 else ())


def _lines_of(error: Exception) -> tuple[str, ...]:
    """Return the messages of an error that the user can fix."""
    if isinstance(error, UserError):
        return error.problems
    if isinstance(error, OSError):
        return (f"{error.filename or 'the data'}: {error.strerror or error}",)
    return (out_of_memory(error),)


@contextlib.contextmanager
def _command_errors() -> Iterator[None]:
    """Raise an error with one line if another process of a command has ended or hangs."""
    try:
        with peer_errors("command", "the same command resumes where it stopped"):
            yield
    except UserError as error:
        raise _SharedFailureError(*error.problems) from error


class _WithUnused(nn.Module):
    """A module and a parameter that it never uses: without any, DDP prints a C++ warning in every process."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.unused = nn.Parameter(torch.zeros(1, device=next(module.parameters()).device))

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


def data_parallel(module: nn.Module) -> DistributedDataParallel:
    """Wrap a module in DistributedDataParallel; all processes start with the weights and buffers of rank 0."""
    # find_unused_parameters: which parameters get gradients depends on the method, and on whether λ is enabled. It also
    # keeps the buckets as they are, so that a resumed run adds the gradients of all processes in the same order.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before PyTorch 2.13
    options: dict[str, Any] = {name: False, "find_unused_parameters": True, "gradient_as_bucket_view": True}
    with peer_errors():
        broadcast_from_rank_0(module.buffers())
        return DistributedDataParallel(_WithUnused(module), **options)
