"""What several processes embed together: each its slice of a part, the first has them all, in the order of one process.

A part is what one process would embed at once, so that what is kept of a stopped evaluation fits any number of them.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished
from cyclecontrast.models.hardware import limited_threads, pick_device
from cyclecontrast.training.distributed import World
from cyclecontrast.training.leading import ask, serve

KEY = "key"


class Part(NamedTuple):
    """Batches of images, or videos, and how they are embedded; any slice of them can be, by itself."""

    name: str
    items: Sequence[Any]
    make: Callable[[Sequence[Any]], Arrays]

    def whole(self) -> Arrays:
        """Embed all of it."""
        return self.make(self.items)

    def share(self, world: World) -> Arrays:
        """Embed this process's slice: contiguous, as long as the others' or by one longer; nothing of too little."""
        start, end = (len(self.items) * rank // world.size for rank in (world.rank, world.rank + 1))
        return self.make(self.items[start:end]) if end > start else {}


@dataclass(frozen=True)
class Work:
    """All that is to be embedded; `key` names model, data and settings, which must be the same in all processes."""

    key: str
    parts: Sequence[Part]

    def gathered(self, number: int, world: World) -> Arrays:
        """Return a part that all processes embedded; in the first process. Raises UserError, also where they differ."""
        answers = [_unpacked(content) for content in ask(number, lambda asked: self.answer(asked, world), world)]
        odd = [rank for rank, answer in enumerate(answers) if str(answer.pop(KEY)) != self.key]
        if odd:
            raise UserError(
                f"process {odd[0]} has another model, other data or other settings; start all with the same"
            )
        found = [answer for answer in answers if answer]
        return {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]}

    def answer(self, number: int, world: World) -> bytes:
        """Return this process's share of a part."""
        buffer = io.BytesIO()
        np.savez(buffer, **{KEY: np.array(self.key)}, **self.parts[number].share(world))  # type: ignore[arg-type]
        return buffer.getvalue()


def embed_together(work: Work, unfinished: Unfinished, world: World) -> None:
    """Embed what is not there from before, so that the first process finds all of it and goes on alone."""
    for number, part in enumerate(work.parts):
        unfinished.arrays(part.name, lambda number=number: work.gathered(number, world))  # type: ignore[misc]


def help_embed(open_work: Callable[[], Work], device: str, world: World) -> None:
    """Embed this process's shares until the first one is done, in silence; raises UserError without a line.

    What keeps it from that is told by the first process once it asks.
    """
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        attempt(lambda: stack.enter_context(limited_threads(pick_device(device))), problems)
        work = None if problems else attempt(open_work, problems)

        def answer(number: int) -> bytes:
            if work is None:
                raise UserError(*problems)
            return work.answer(number, world)

        serve(answer, world)


def all_gathered(work: Work, world: World) -> Iterator[Arrays]:
    """Yield the parts, in order."""
    for number in range(len(work.parts)):
        yield work.gathered(number, world)


def _unpacked(content: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)
