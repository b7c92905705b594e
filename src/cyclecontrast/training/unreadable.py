"""What a run cannot read of its data: counted over all its processes, kept with it, told on the way and at the end.

It is a function of the data and of the steps done, so a resumed run tells what an uninterrupted one does.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.data.pairs import Batch
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing
from cyclecontrast.training.distributed import World, gather_bytes
from cyclecontrast.training.progress import console

UNREADABLE = "unreadable.json"
ENOUGH_VIEWS = 1_000
"""Before so many were shown, a part of them says little."""
WORTH_A_WARNING = 0.01
FEW_NAMES, MOST_NAMES = 3, 10


class Met(NamedTuple):
    """The number of steps after which a frame was known to be unreadable, and why it is."""

    step: int
    reason: str


@dataclass
class Unreadable:
    """Views shown since the run began, those that show another frame than was drawn, and the frames at fault."""

    views: int = 0
    replaced: int = 0
    frames: dict[tuple[str, int], Met] = field(default_factory=dict)
    has_warned: bool = False

    def note(self, batch: Batch, store: FrameStore, done: int, world: World, longest: int | None) -> None:
        """Count a step's batch, in every process those of all; `done` is the number of steps with it.

        `longest`: of what the processes have to say, where it is known.
        """
        self.views += (2 + len(batch.more)) * len(batch.video) * world.size
        for said in filter(None, gather_bytes(to_say(batch, store), world, longest)):
            replaced, bad = json.loads(said)
            self.replaced += replaced
            for video, frame, reason in bad:
                self.frames.setdefault((video, frame), Met(done, reason))

    def warn_once(self) -> None:
        """Tell where more is replaced than a few damaged files explain, as soon as that is clear."""
        if not self.has_warned and self.views >= ENOUGH_VIEWS and self._part > WORTH_A_WARNING:
            self.has_warned = True
            console.print(f"warning: {self._sum()}: {'; '.join(self._names(FEW_NAMES))}", markup=False)

    def is_too_much(self, most: float, is_last: bool) -> bool:
        """Whether more than the part `most` of the views is replaced: of enough of them, or of all."""
        return (self.views >= ENOUGH_VIEWS or is_last) and self._part > most

    def check(self, most: float, is_last: bool) -> None:
        """Raise UserError where it is too much."""
        if self.is_too_much(most, is_last):
            raise UserError(
                f"{self._sum()}, more than --most-unreadable {most:g}: {'; '.join(self._names(FEW_NAMES))}; mend them "
                "and start a new run, or allow more to go on"
            )

    def report(self, run: Path) -> None:
        """Tell at the end how much was replaced, and the names of the frames at fault."""
        if self.replaced:
            warning = "warning: " if self._part > WORTH_A_WARNING else ""
            lines = [f"{warning}{self._sum()}; all are named in {run / UNREADABLE}", *self._names(MOST_NAMES)]
            console.print("\n  ".join(lines), markup=False)

    def write(self, run: Path) -> None:
        """Write unreadable.json, each frame once and in the order in which they were met."""
        frames = [
            {"video": video, "frame": frame, "reason": reason, "step": step}
            for step, video, frame, reason in self._in_order()
        ]
        with replacing(run / UNREADABLE) as aside:
            aside.write_text(json.dumps({"views": self.views, "replaced": self.replaced, "frames": frames}, indent=2))

    @property
    def _part(self) -> float:
        return self.replaced / max(1, self.views)

    def _sum(self) -> str:
        number = "1 frame" if len(self.frames) == 1 else f"{len(self.frames):,} frames"
        return (
            f"{self.replaced:,} of {self.views:,} views ({self._part:.1%}) show another frame than was drawn, for "
            f"{number} cannot be read"
        )

    def _names(self, most: int) -> list[str]:
        told = [f"frame {frame} of {video}: {reason}" for _, video, frame, reason in self._in_order()[:most]]
        return [*told, f"and {len(self.frames) - most:,} more"] if len(self.frames) > most else told

    def _in_order(self) -> list[tuple[int, str, int, str]]:
        return sorted((met.step, video, frame, met.reason) for (video, frame), met in self.frames.items())


def to_say(batch: Batch, store: FrameStore) -> bytes:
    """Return what the other processes must know of a batch; nothing where all of it can be read."""
    named = [(store.video_id(video), frame, reason) for video, frame, reason in batch.unreadable]
    return json.dumps([batch.replaced, named]).encode() if batch.replaced or named else b""


def read_unreadable(folder: Path) -> Unreadable:
    """Return what `write` wrote into a folder."""
    told = json.loads((folder / UNREADABLE).read_text())
    frames = {(bad["video"], bad["frame"]): Met(bad["step"], bad["reason"]) for bad in told["frames"]}
    return Unreadable(told["views"], told["replaced"], frames)
