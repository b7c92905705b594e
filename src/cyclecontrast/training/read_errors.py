"""Frames that a run could not read: counted over all processes, saved in checkpoints, reported at the end.

The counts depend only on the data and the steps done, so a resumed run reports the same as an uninterrupted one.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from cyclecontrast.data.dataset import Batch
from cyclecontrast.data.store import FrameStore
from cyclecontrast.distributed import World, all_gather_objects, all_reduce_max
from cyclecontrast.errors import UserError, some
from cyclecontrast.files import atomic_write
from cyclecontrast.output import say

READ_ERRORS = "unreadable.json"
MIN_VIEWS = 1_000
"""Minimum number of views before the fraction of replaced views is checked."""
WARN_ABOVE = 0.01


@dataclass
class ReadErrors:
    """Counts of all views and of replaced views (whose frame was unreadable), and the unreadable frames.

    `frames` maps (video id, frame number) to the step of the first error and its reason.
    """

    views: int = 0
    replaced: int = 0
    frames: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)
    has_warned: bool = False

    def count(self, batch: Batch, store: FrameStore, done: int, world: World) -> None:
        """Add the batches of all processes; `done` is the number of steps including this one."""
        self.views += len(batch.views) * len(batch.video) * world.size
        found = [(store.video_id(error.video), error.frame, error.reason) for error in batch.read_errors]
        if not all_reduce_max([batch.num_replaced or len(found)], world)[0]:
            return
        for replaced, errors in all_gather_objects((batch.num_replaced, found), world):
            self.replaced += replaced
            for video, frame, reason in errors:
                self.frames.setdefault((video, frame), (done, reason))

    def warn_once(self) -> None:
        """Print a warning once if more than 1 % of at least 1,000 views were replaced."""
        if not self.has_warned and self.views >= MIN_VIEWS and self._fraction > WARN_ABOVE:
            self.has_warned = True
            say(f"warning: {self._summary()}: {'; '.join(self._names(3))}")

    def too_many(self, max_fraction: float, is_last: bool) -> bool:
        """Whether more than this fraction of the views was replaced; judged after 1,000 views or at the last step."""
        return (self.views >= MIN_VIEWS or is_last) and self._fraction > max_fraction

    def check(self, max_fraction: float, is_last: bool) -> None:
        """Raise UserError if too many views were replaced."""
        if self.too_many(max_fraction, is_last):
            raise UserError(
                f"{self._summary()}, more than --max-unreadable {max_fraction:g}: {'; '.join(self._names(3))}; fix "
                "them and start a new run, or raise --max-unreadable and --resume"
            )

    def report(self, run: Path) -> None:
        """Print the number of replaced views and the unreadable frames, at the end."""
        if self.replaced:
            warning = "warning: " if self._fraction > WARN_ABOVE else ""
            names = (f"  {name}" for name in self._names(10))
            say(f"{warning}{self._summary()}; all are listed in {run / READ_ERRORS}", *names)

    def write(self, run: Path) -> None:
        """Write unreadable.json: each frame once, ordered by the step of its first error."""
        frames = [
            {"video": video, "frame": frame, "reason": reason, "step": step}
            for step, video, frame, reason in self._in_order()
        ]
        with atomic_write(run / READ_ERRORS) as aside:
            aside.write_text(json.dumps({"views": self.views, "replaced": self.replaced, "frames": frames}, indent=2))

    @staticmethod
    def read(folder: Path) -> "ReadErrors":
        """Return what `write` wrote into a folder."""
        content = json.loads((folder / READ_ERRORS).read_text())
        frames = {(bad["video"], bad["frame"]): (bad["step"], bad["reason"]) for bad in content["frames"]}
        return ReadErrors(content["views"], content["replaced"], frames)

    @property
    def _fraction(self) -> float:
        return self.replaced / max(1, self.views)

    def _summary(self) -> str:
        number = "1 frame" if len(self.frames) == 1 else f"{len(self.frames):,} frames"
        return (
            f"{self.replaced:,} of {self.views:,} views ({self._fraction:.1%}) show a replacement frame, "
            f"because {number} cannot be read"
        )

    def _names(self, limit: int) -> list[str]:
        return some([f"frame {frame} of {video}: {reason}" for _, video, frame, reason in self._in_order()], limit)

    def _in_order(self) -> list[tuple[int, str, int, str]]:
        return sorted((step, video, frame, reason) for (video, frame), (step, reason) in self.frames.items())
