"""One process or many: what crosses between processes, and nothing else, is here."""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cyclecontrast.errors import UserError, out_of_memory
from cyclecontrast.models.encoders import Features, encode_in_groups

LONGEST_STEP = timedelta(minutes=10)
"""A process that is silent for so long counts as lost."""
LONGEST_WAIT = timedelta(hours=12)
"""The others wait while the first process prepares videos."""
CPU = torch.device("cpu")

T = TypeVar("T")


class World(NamedTuple):
    """This process's number and how many there are.

    `hosts` joins them for short messages that need no device, `patient` for waits that may be long.
    """

    rank: int
    size: int
    hosts: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None


ALONE = World(0, 1)


@contextlib.contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; leave them however it ends.

    A process that ends without leaving is aborted by the threads that listened to the others.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    _check_environment()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        with together():
            if not dist.is_initialized():
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_STEP)
            groups = (dist.new_group(backend="gloo", timeout=longest) for longest in (LONGEST_STEP, LONGEST_WAIT))
            world = World(dist.get_rank(), dist.get_world_size(), *groups)
        yield world
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _check_environment() -> None:
    known = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    numbers = [known.pop(name) for name in ("RANK", "WORLD_SIZE")]
    is_sound = all(known.values()) and all(map(str.isdecimal, (*numbers, known["MASTER_PORT"])))
    if not is_sound or int(numbers[0]) >= int(numbers[1]):
        told = ", ".join(f"{name}={os.environ.get(name, '')}" for name in ("RANK", "WORLD_SIZE", *known))
        raise UserError(
            f"the environment names several processes and cannot be ({told}); start with torchrun, or unset these"
        )


@contextlib.contextmanager
def first_process_first(world: World) -> Iterator[None]:
    """Let the first process do what is within before the others do it; where it fails, they end, too."""
    if world.rank:
        with together():
            dist.barrier(world.patient)
    yield
    if world.size > 1 and world.rank == 0:
        with together():
            dist.barrier(world.patient)


def check_same(settings: Mapping[str, Any], world: World) -> None:
    """Raise UserError, in all processes, that names each setting in which one differs from the first process."""
    if world.size == 1:
        return
    own = json.dumps(settings, sort_keys=True, default=str).encode()
    first, *others = (json.loads(text) for text in gather_bytes(own, world))
    differences = [
        f"{name}: {first.get(name)} in process 0, {other.get(name)} in process {rank}; start all with the same"
        for rank, other in enumerate(others, start=1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if differences:
        meet(world)
        raise UserError(*differences)


def meet(world: World) -> None:
    """Wait until all have come so far before one ends; that one has come and ended meanwhile is no error."""
    with contextlib.suppress(UserError):
        largest(0, world)


def largest(number: int, world: World) -> int:
    """Return the largest of the numbers that the processes have."""
    return largest_of_each((number,), world)[0]


def largest_of_each(numbers: Sequence[int], world: World) -> list[int]:
    """Return, place by place, the largest of the numbers that the processes have: several in one message."""
    if world.size == 1:
        return list(numbers)
    held = torch.tensor(numbers)
    with together():
        dist.all_reduce(held, dist.ReduceOp.MAX, group=world.hosts)
    return [int(number) for number in held]


def average(numbers: Sequence[float], world: World) -> list[float]:
    """Return the mean over the processes of each number; nan where one has none."""
    if world.size == 1:
        return list(numbers)
    held = torch.tensor(numbers, dtype=torch.float64)
    with together():
        dist.all_reduce(held, group=world.hosts)
    return (held / world.size).tolist()


def gather(tensor: Tensor, world: World) -> Tensor:
    """Return the tensors of all processes, in the order of their ranks, along the first axis."""
    if world.size == 1:
        return tensor
    tensor = tensor.contiguous()  # the parts must lie in memory as what is sent does
    parts = [torch.empty_like(tensor) for _ in range(world.size)]
    with together():
        dist.all_gather(parts, tensor)
    return torch.cat(parts)


def gather_bytes(own: bytes, world: World, longest: int | None = None) -> list[bytes]:
    """Return what each process has to say, as bytes: objects would have to be pickled; `longest`, where it is known."""
    longest = largest(len(own), world) if longest is None else longest
    if world.size == 1 or not longest:
        return [own] * world.size
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(own)] = torch.tensor([*own], dtype=torch.uint8)
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    with together():
        dist.all_gather(parts, padded, group=world.hosts)
    return [bytes(part.tolist()).rstrip(b"\0") for part in parts]


def average_gradients(network: nn.Module, world: World) -> None:
    """Replace each gradient by its mean over the processes.

    Each is sent from where it lies: putting all into one row takes several times as long as sending them.
    """
    if world.size == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    with together():
        for sent in [dist.all_reduce(_in_memory_order(gradient), async_op=True) for gradient in gradients]:
            sent.wait()
    torch._foreach_div_(gradients, world.size)


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Return the same memory as one row; without gaps, as gradients are, whose layout is that of their weights."""
    return tensor.as_strided((tensor.numel(),), (1,))


@torch.no_grad()
def encode_keys(
    encoder: Callable[[Tensor], Features], images: Tensor, num_groups: int, seed: int, world: World
) -> Features:
    """Encode this process's keys such that BatchNorm cannot leak who is in the batch (shuffle-BN).

    The images of all processes are shuffled together by `seed`, each process encodes its share in groups, and the
    features go back to where their images came from.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images) * world.size, generator=generator).to(images.device)
    groups = max(1, num_groups // world.size)
    if world.size == 1:
        return encode_in_groups(encoder, images, groups, order)
    mine = slice(world.rank * len(images), (world.rank + 1) * len(images))
    share = gather(images, world)[order[mine]]
    in_turn = torch.arange(len(images), device=images.device)
    features = encode_in_groups(encoder, share, groups, in_turn)
    back = torch.argsort(order)[mine]
    return Features(*(gather(part, world)[back] for part in features))


@contextlib.contextmanager
def together(work: str = "training", way_on: str = "--resume goes on from the last checkpoint") -> Iterator[None]:
    """Tell in a line that another process is gone, which shows only when one talks to it."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"another process of this {work} has ended or is silent ({reason}); what it said last tells why. Start "
            f"all again; {way_on}"
        ) from error


@contextlib.contextmanager
def joined_command() -> Iterator[World]:
    """Join the processes of torchrun for a command other than training; a failure in one process ends all.

    Only rank 0 writes to stderr. Where processes fail, all end once each has reached the next exchange of objects or
    the end of the block: rank 0 raises UserError with the lines of all, the others UserError without a line.
    """
    with joined_world(CPU) as world, contextlib.ExitStack() as stack:
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
    """Return in rank 0 the values of all processes, in the order of their ranks; in the others an empty list.

    Called within `joined_command`; raises UserError where a process failed.
    """
    if world.size == 1:
        return [value]
    _exchange_problems(None, world)
    values: list[Any] = [None] * world.size if world.rank == 0 else []
    with _command_together():
        dist.gather_object(value, values or None, 0, group=world.patient)
    return values


def broadcast_object(value: T, world: World) -> T:
    """Return the value of rank 0 in every process; as `gather_objects` otherwise."""
    if world.size == 1:
        return value
    _exchange_problems(None, world)
    held = [value]
    with _command_together():
        dist.broadcast_object_list(held, 0, group=world.patient)
    return held[0]


def check_alone(what: str) -> None:
    """Raise UserError, with a line in rank 0, where torchrun started several processes for a command of one."""
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        with joined_command() as world:
            if world.size > 1:
                raise UserError(runs_alone(what))


def runs_alone(what: str) -> str:
    """Return the line about work that several processes cannot share."""
    return f"{what} runs in one process, and {os.environ.get('WORLD_SIZE')} were started; start it without torchrun"


class _SharedFailureError(UserError):
    """A failure that no other process has to be informed of."""


def _exchange_problems(problems: Sequence[str] | None, world: World) -> None:
    """Raise UserError where any process has problems: with all lines in rank 0, without a line in the others."""
    if world.size == 1:
        return
    found: list[Any] = [None] * world.size
    with _command_together():
        dist.all_gather_object(found, problems, group=world.patient)
    failed = [lines for lines in found if lines is not None]
    if failed:
        raise _SharedFailureError(*dict.fromkeys(line for lines in failed for line in lines) if world.rank == 0 else ())


def _lines_of(error: Exception) -> tuple[str, ...]:
    """Return the lines of an error that the user can fix."""
    if isinstance(error, UserError):
        return error.problems
    if isinstance(error, OSError):
        return (f"{error.filename or 'the data'}: {error.strerror or error}",)
    return (out_of_memory(error),)


@contextlib.contextmanager
def _command_together() -> Iterator[None]:
    """Report in a line that another process of a command is gone."""
    try:
        with together("command", "the same command resumes where it stopped"):
            yield
    except UserError as error:
        raise _SharedFailureError(*error.problems) from error
