"""The first process leads and the others answer: a number goes out to all, bytes come back; all end together.

Whatever fails, wherever: the first process tells of it, once, and the others end without a word.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from cyclecontrast.distributed import World, joined_world, peer_errors, wait_for_all
from cyclecontrast.errors import UserError, out_of_memory

DONE, FAILED = -1, -2
CPU = torch.device("cpu")

Answer = Callable[[int], bytes]
"""What a process does when it is asked for a number; raises UserError."""


@contextlib.contextmanager
def leading(world: World) -> Iterator[None]:
    """Let the other processes go when the block ends, well or not; the first process calls it, alone or not."""
    try:
        yield
    except Exception:
        with contextlib.suppress(UserError):  # of one that is gone, which has been told of
            _told(FAILED, world)
        raise
    _told(DONE, world)


def ask(number: int, answer: Answer, world: World) -> list[bytes]:
    """Return what all processes answer, in the order of their ranks; the first process calls it and answers, too.

    Raises UserError with the lines of all that fail.
    """
    _told(number, world)
    try:
        own = _tried(answer, number)
    except Exception:
        with contextlib.suppress(UserError):
            _received(b"", world)  # for which the others wait
        raise
    answers = _received(own, world)
    problems = [line for text in answers if text[:1] == b"!" for line in json.loads(text[1:])]
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return [text[1:] for text in answers]


def serve(answer: Answer, world: World) -> None:
    """Answer until the first process is done; raises UserError without a line where it failed: it has told why."""
    while (number := _told(0, world)) >= 0:
        _received(_tried(answer, number), world)
    if number == FAILED:
        raise UserError()


def check_alone(what: str) -> None:
    """Raise UserError, with a line in the first process, where several were started for what one does."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return
    with joined_world(CPU) as world:
        if world.size > 1:
            wait_for_all(world)
            raise UserError(*([runs_alone(what)] if world.rank == 0 else []))


def runs_alone(what: str) -> str:
    """Return the line about what several processes cannot share."""
    return f"{what} runs in one process, and {os.environ.get('WORLD_SIZE')} were started; start it without torchrun"


def _tried(answer: Answer, number: int) -> bytes:
    """Return the answer behind a dot, or the lines of why there is none behind an exclamation mark."""
    try:
        return b"." + answer(number)
    except UserError as error:
        problems = error.problems
    except OSError as error:
        problems = (f"{error.filename or 'the data'}: {error.strerror or error}",)
    except torch.OutOfMemoryError as error:
        problems = (out_of_memory(error),)
    return b"!" + json.dumps(problems).encode()


def _told(number: int, world: World) -> int:
    """Return the number that the first process tells all."""
    if world.size == 1:
        return number
    held = torch.tensor(number)
    with _at_work():
        dist.broadcast(held, 0, group=world.patient)
    return int(held)


def _received(own: bytes, world: World) -> list[bytes]:
    """Return in the first process what all processes have, in the others nothing."""
    if world.size == 1:
        return [own]
    lengths = [torch.tensor(0) for _ in range(world.size)]
    with _at_work():
        dist.all_gather(lengths, torch.tensor(len(own)), group=world.patient)
        if world.rank:
            dist.send(torch.frombuffer(bytearray(own), dtype=torch.uint8), 0, group=world.patient)
            return []
        parts = [torch.empty(int(length), dtype=torch.uint8) for length in lengths[1:]]
        for rank, part in enumerate(parts, start=1):
            dist.recv(part, rank, group=world.patient)
    return [own, *(part.numpy().tobytes() for part in parts)]


def _at_work() -> contextlib.AbstractContextManager[None]:
    return peer_errors("command", "the same command goes on where it was")
