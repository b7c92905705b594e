"""The signals of a run → one word with its reason, and its best step: pure functions of the lines of metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cyclecontrast.training.health_metrics import Retrieval

Row = Mapping[str, Any]

SAME = 0.1
"""Deviation below which vectors are nearly the same."""
LEAST_RANK = 1.5
"""Rank below which they lie on a line."""
LOST_RANK = 0.5
"""Part of its highest rank below which a network is losing dimensions."""
NEAR_GUESSING = 0.75
"""Part of the way from the loss of perfect positives to that of guessing behind which a loss is still near guessing."""
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
    `num_keys`: keys in the queue, 0 without one; `temperature`: of their softmax; `is_given`: the run began with given
    weights, which may have been good.
    """

    num_views: int
    chance: float
    at_start: Row
    num_keys: int = 0
    temperature: float = 1.0
    is_given: bool = False


def is_more(after: Retrieval, before: Retrieval, num_views: int) -> bool:
    """Tell whether retrieval rose by two standard errors of a difference, and by two points.

    The error is never below that of independent views, which is all that is known of older runs. It is not paired by
    video: what two measurements share makes it too large, not too small, and often the best of many is compared.
    """
    rate = (before.rate + after.rate) / 2
    error = max(math.hypot(before.error, after.error), math.sqrt(2 * rate * (1 - rate) / num_views))
    return after.rate - before.rate > max(LEAST_CHANGE, 2 * error)


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
    clearly = is_more(_retrieval(best), _retrieval(last), known.num_views)
    return int((best if clearly else last)["step"])


def last_measured(rows: Sequence[Row]) -> int:
    """Return the last step that health was measured at, 0 where there is none."""
    return max((int(row["step"]) for row in _measured(rows)), default=0)


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("health_same_video") is not None]


def _retrieval(row: Row) -> Retrieval:
    return Retrieval(row["health_same_video"], row.get("health_same_video_error", 0.0))


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
    def most(self) -> Retrieval:
        return _retrieval(self.best)

    @property
    def found(self) -> Retrieval:
        return _retrieval(self.last)

    @property
    def chance(self) -> Retrieval:
        return Retrieval(self.known.chance)

    @property
    def before(self) -> Retrieval:
        at_start = self.known.at_start
        return _retrieval(at_start) if "health_same_video" in at_start else self.chance

    def is_more(self, after: Retrieval, before: Retrieval) -> bool:
        return is_more(after, before, self.known.num_views)

    def in_words(self) -> str:
        told = f"{self.before.rate:.0%} before training, {self.found.rate:.0%} at step {self.last['step']:,}"
        if self.is_more(self.most, self.found):
            told += f", {self.most.rate:.0%} at step {self.best['step']:,}"
        rank = self.last.get("health_rank", math.nan)
        return f"same-video retrieval {told} (chance {self.known.chance:.1%}); rank {rank:.1f}"


def _collapsed(history: _History) -> str:
    spread, rank = history.last.get("health_deviation", 1.0), history.last.get("health_rank", math.inf)
    if history.is_more(history.found, history.before):
        return ""
    if spread < SAME:
        return f"all videos get nearly the same vector, deviation {spread:.3f} of 1; {history.in_words()}"
    if rank < LEAST_RANK:
        return f"all vectors lie on one line, rank {rank:.1f}; {history.in_words()}"
    began_above, is_above = (history.is_more(one, history.chance) for one in (history.before, history.found))
    if began_above and history.is_more(history.before, history.found) and not is_above:
        return f"the vectors say nothing of the video; {history.in_words()}"
    return ""


def _collapsing(history: _History) -> str:
    rank = history.last.get("health_rank", math.inf)
    highest = max(row.get("health_rank", 0.0) for row in (history.known.at_start, *history.measured))
    if rank >= LOST_RANK * highest or not history.is_more(max(history.before, history.most), history.found):
        return ""
    return f"the rank fell from {highest:.1f}, and retrieval with it; {history.in_words()}"


def _over_fitting(history: _History) -> str:
    best = history.best
    now = _mean_accuracy(history.logged)
    then = _mean_accuracy([row for row in history.logged if row["step"] <= best["step"]])
    if not history.is_more(history.most, history.found) or not now > then + MORE_FOUND:
        return ""
    return f"in the training's batches more positives are found ({then:.0%}, then {now:.0%}); {history.in_words()}"


def _mean_accuracy(rows: Sequence[Row]) -> float:
    last = rows[-FEW_LINES:]
    return float(sum(row["intra_accuracy"] for row in last)) / len(last) if last else math.nan


def _under_trained(history: _History) -> str:
    known, before, found = history.known, history.before, history.found
    if history.is_more(before, found):
        return f"it retrieves worse than before training; {history.in_words()}"
    # Without the errors: that few videos say little of a rate does not bring it near 1.
    has_room = history.is_more(Retrieval(1.0), Retrieval(max(before.rate, found.rate)))
    if has_room and not known.is_given and not history.is_more(found, before):
        noise = f" (the difference is within the noise of {known.num_views:,} views)"
        better = f"clearly better than before training{noise}" if found > before else "better than before training"
        return f"retrieval is not {better}; {history.in_words()}"
    loss = history.last.get("health_queue_loss", 0.0)
    # Perfect: each query equals its positive and is orthogonal to the keys. At a high temperature even that costs.
    perfect, guessing = math.log1p(known.num_keys * math.exp(-1 / known.temperature)), math.log1p(known.num_keys)
    if loss > perfect + NEAR_GUESSING * (guessing - perfect):
        losses = f"{loss:.2f}, {guessing:.2f} by guessing and {perfect:.2f} with perfect positives"
        return f"the loss against the queue is {losses}; {history.in_words()}"
    late = [row for row in history.measured if row["step"] <= LATE * history.last["step"]]
    if history.is_more(history.found, _retrieval(late[-1]) if late else history.before):
        return f"it still gained in the last quarter; {history.in_words()}"
    return ""
