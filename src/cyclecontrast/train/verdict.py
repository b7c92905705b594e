"""The signals of a run → one word with its reason, and its best step: pure functions of the lines of metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

SAME = 0.1
"""Deviation below which vectors are nearly the same."""
LEAST_RANK = 1.5
"""Rank below which they lie on a line."""
LOST_RANK = 0.5
"""Part of its highest rank below which a network is losing dimensions."""
NEAR_GUESSING = 0.8
"""Part of log K above which a loss is still near that of guessing."""
LATE = 0.75
"""Part of the run after which a network that still gains is not done."""
FEW_LINES = 5
"""Lines of metrics that a rate of one batch is averaged over."""
LEAST_CHANGE = 0.02
MORE_FOUND = 0.05
"""Growth of the training's own accuracy that, with worse retrieval, is over-fitting."""


class Verdict(NamedTuple):
    """How a run went, in one word, and why."""

    word: str
    reason: str

    @property
    def is_alarm(self) -> bool:
        """Whether going on would make it worse, not better."""
        return self.word not in ("healthy", "under-trained")

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}"


class Known(NamedTuple):
    """What the signals are judged by.

    `num_views`: views that were measured; `chance`: retrieval by chance; `at_start`: the signals before the first step;
    `guessing`: log K, the loss of guessing among the queue's keys, nan without a queue.
    """

    num_views: int
    chance: float
    at_start: Row
    guessing: float = math.nan


def is_more(after: float, before: float, num_views: int) -> bool:
    """Tell whether retrieval rose by two standard errors of a difference, and by two points."""
    rate = (before + after) / 2
    return after - before > max(LEAST_CHANGE, 2 * math.sqrt(2 * rate * (1 - rate) / num_views))


def judge(rows: Sequence[Row], known: Known) -> Verdict | None:
    """Judge a run by the lines of its metrics; None where no health was measured.

    The training loss is not looked at: MoCo's rises while keys replace the queue's random vectors (protocols.md §h),
    which is as it should be.
    """
    measured = _measured(rows)
    if not measured:
        return None
    history = _History(measured, [row for row in rows if row.get("intra_accuracy") is not None], known)
    rules = {
        "collapsed": _collapsed,
        "collapsing": _collapsing,
        "over-fitting the queue": _over_fitting,
        "under-trained": _under_trained,
    }
    verdicts = (Verdict(word, reason) for word, rule in rules.items() if (reason := rule(history)))
    return next(verdicts, Verdict("healthy", history.in_words()))


def best_step(rows: Sequence[Row]) -> int | None:
    """Return the step whose same-video retrieval is best, of equals the one of the highest rank, then the first."""
    best = max(_measured(rows), key=_merit, default=None)
    return None if best is None else int(best["step"])


def chosen_step(rows: Sequence[Row], known: Known) -> int:
    """Return the best step, or the last that was measured where the best is not clearly better: that may be luck."""
    *_, last = measured = _measured(rows)
    best = max(measured, key=_merit)
    clearly = is_more(best["health_same_video"], last["health_same_video"], known.num_views)
    return int((best if clearly else last)["step"])


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("health_same_video") is not None]


def _merit(row: Row) -> tuple[float, float]:
    return row["health_same_video"], row.get("health_rank", 0.0)


class _History(NamedTuple):
    measured: list[Row]
    logged: list[Row]
    known: Known

    @property
    def last(self) -> Row:
        return self.measured[-1]

    @property
    def best(self) -> Row:
        return max(self.measured, key=lambda row: float(row["health_same_video"]))

    @property
    def found(self) -> float:
        return float(self.last["health_same_video"])

    @property
    def before(self) -> float:
        return float(self.known.at_start.get("health_same_video", self.known.chance))

    def is_more(self, after: float, before: float) -> bool:
        return is_more(after, before, self.known.num_views)

    def in_words(self) -> str:
        told = f"same-video retrieval {self.before:.0%} before training, {self.found:.0%} now"
        if self.is_more(self.best["health_same_video"], self.found):
            told += f", {self.best['health_same_video']:.0%} at step {self.best['step']:,}"
        return f"{told} (chance {self.known.chance:.1%}); rank {self.last.get('health_rank', math.nan):.1f}"


def _collapsed(history: _History) -> str:
    spread, rank = history.last.get("health_deviation", 1.0), history.last.get("health_rank", math.inf)
    if history.is_more(history.found, history.before):
        return ""
    if spread < SAME or rank < LEAST_RANK:
        return f"all videos get nearly the same vector, deviation {spread:.3f} of 1; {history.in_words()}"
    chance = history.known.chance
    began_above = history.is_more(history.before, chance)
    if began_above and history.is_more(history.before, history.found) and not history.is_more(history.found, chance):
        return f"the vectors say nothing of the video; {history.in_words()}"
    return ""


def _collapsing(history: _History) -> str:
    rank = history.last.get("health_rank", math.inf)
    highest = max(row.get("health_rank", 0.0) for row in (history.known.at_start, *history.measured))
    retrieved = max(history.before, history.best["health_same_video"])
    if rank >= LOST_RANK * highest or not history.is_more(retrieved, history.found):
        return ""
    return f"the rank fell from {highest:.1f}, and retrieval with it; {history.in_words()}"


def _over_fitting(history: _History) -> str:
    best = history.best
    now = _mean_accuracy(history.logged)
    then = _mean_accuracy([row for row in history.logged if row["step"] <= best["step"]])
    if not history.is_more(best["health_same_video"], history.found) or not now > then + MORE_FOUND:
        return ""
    return f"in the training's batches more positives are found ({then:.0%}, then {now:.0%}); {history.in_words()}"


def _mean_accuracy(rows: Sequence[Row]) -> float:
    last = rows[-FEW_LINES:]
    return float(sum(row["intra_accuracy"] for row in last)) / len(last) if last else math.nan


def _under_trained(history: _History) -> str:
    if not history.is_more(history.found, history.before):
        return f"it retrieves hardly better than before training; {history.in_words()}"
    loss, guessing = history.last.get("health_queue_loss", 0.0), history.known.guessing
    if loss > NEAR_GUESSING * guessing:
        return f"the loss against the queue is {loss:.2f}, and {guessing:.2f} by guessing; {history.in_words()}"
    late = [row for row in history.measured if row["step"] <= LATE * history.last["step"]]
    if history.is_more(history.found, late[-1]["health_same_video"] if late else history.before):
        return f"it still gained in the last quarter; {history.in_words()}"
    return ""
