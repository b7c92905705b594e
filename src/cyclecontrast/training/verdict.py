"""The verdict on a run (a word and a reason) and its best step, as pure functions of the rows of metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

COLLAPSED_DEVIATION = 0.1
"""Below this deviation all vectors are nearly the same."""
COLLAPSED_RANK = 1.5
"""Below this rank, all vectors are nearly collinear."""
LOST_RANK = 0.5
"""If the rank falls below this fraction of its maximum, the representation is collapsing."""
NEAR_CHANCE = 0.75
"""A loss is near chance if it is above this fraction of the interval from the perfect loss to the chance level."""
LATE = 0.75
"""A network that still improves after this fraction of the run is undertrained."""
NUM_ROWS = 5
"""Number of rows over which the accuracy of training batches is averaged."""
MIN_CHANGE = 0.02
MORE_FOUND = 0.05
"""If training accuracy rises by more than this while retrieval gets worse, the network is overfitting."""


class Verdict(NamedTuple):
    """The verdict on a run: one word and the reason."""

    word: str
    reason: str

    @property
    def is_alarm(self) -> bool:
        """Whether the verdict is a problem that longer training does not solve."""
        return self.word not in ("healthy", "undertrained")

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}"


class Known(NamedTuple):
    """What the verdict depends on besides the metrics.

    `num_views`: number of measured views; `chance`: chance level of retrieval; `at_start`: health metrics before the
    first step; `num_keys`: size of the intra queue, 0 without one; `temperature`: of the loss; `is_given`: the run
    started from pretrained weights (`init`).
    """

    num_views: int
    chance: float
    at_start: Row
    num_keys: int = 0
    temperature: float = 1.0
    is_given: bool = False


class Retrieval(NamedTuple):
    """The fraction of views whose nearest neighbor is from the same video, and its standard error."""

    rate: float
    error: float = 0.0

    @staticmethod
    def of(row: Row) -> "Retrieval":
        """Return the retrieval of a row of metrics."""
        return Retrieval(row["health_same_video"], row.get("health_same_video_error", 0.0))


def is_more(after: Retrieval, before: Retrieval, num_views: int) -> bool:
    """Return whether retrieval rose by more than two standard errors of the difference, and by more than two points.

    The error is at least that of independent views, because older runs did not store an error. It is not paired by
    video and therefore conservative, which also compensates for selecting the best of many measurements.
    """
    rate = (before.rate + after.rate) / 2
    error = max(math.hypot(before.error, after.error), math.sqrt(2 * rate * (1 - rate) / num_views))
    return after.rate - before.rate > max(MIN_CHANGE, 2 * error)


def judge(rows: Sequence[Row], known: Known) -> Verdict | None:
    """Judge a run by the rows of its metrics; None if health was not measured.

    The training loss is not used, because it rises while keys replace the random vectors in the queue.
    """
    measured = _measured(rows)
    if not measured:
        return None
    history = _History(measured, [row for row in rows if row.get("intra_accuracy") is not None], known)
    rules = {
        "collapsed": _collapsed,
        "collapsing": _collapsing,
        "overfitting the queue": _over_fitting,
        "undertrained": _under_trained,
    }
    for word, rule in rules.items():
        if reason := rule(history):
            return Verdict(word, f"{reason}; {history.in_words()}")
    return Verdict("healthy", history.in_words())


def best_step(rows: Sequence[Row]) -> int | None:
    """Return the step with the best same-video retrieval; ties go to the highest rank, then to the earliest step."""
    best = max(_measured(rows), key=_merit, default=None)
    return None if best is None else int(best["step"])


def chosen_step(rows: Sequence[Row], known: Known) -> int:
    """Return the best step if it is clearly better than the last measured one, otherwise the last measured one."""
    *_, last = measured = _measured(rows)
    best = max(measured, key=_merit)
    clearly = is_more(Retrieval.of(best), Retrieval.of(last), known.num_views)
    return int((best if clearly else last)["step"])


def last_measured(rows: Sequence[Row]) -> int:
    """Return the last step at which health was measured, 0 if there is none."""
    return max((int(row["step"]) for row in _measured(rows)), default=0)


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("health_same_video") is not None]


def _merit(row: Row) -> tuple[float, float]:
    return row["health_same_video"], row.get("health_rank", 0.0)


class _History:
    """The measurements of a run: retrieval before training, at the best and at the last measurement."""

    def __init__(self, measured: list[Row], logged: list[Row], known: Known) -> None:
        self.measured, self.logged, self.known = measured, logged, known
        self.last = measured[-1]
        self.best = max(measured, key=lambda row: float(row["health_same_video"]))
        self.now, self.most, self.chance = Retrieval.of(self.last), Retrieval.of(self.best), Retrieval(known.chance)
        self.before = Retrieval.of(known.at_start) if "health_same_video" in known.at_start else self.chance
        self.rank = self.last.get("health_rank", math.inf)

    def is_more(self, after: Retrieval, before: Retrieval) -> bool:
        return is_more(after, before, self.known.num_views)

    def in_words(self) -> str:
        words = f"{self.before.rate:.0%} before training, {self.now.rate:.0%} at step {self.last['step']:,}"
        if self.is_more(self.most, self.now):
            words += f", {self.most.rate:.0%} at step {self.best['step']:,}"
        rank = self.last.get("health_rank", math.nan)
        return f"same-video retrieval {words} (chance {self.known.chance:.1%}); rank {rank:.1f}"


def _collapsed(history: _History) -> str:
    spread = history.last.get("health_deviation", 1.0)
    if history.is_more(history.now, history.before):
        return ""
    if spread < COLLAPSED_DEVIATION:
        return f"all videos get nearly the same vector, deviation {spread:.3f} of 1"
    if history.rank < COLLAPSED_RANK:
        return f"all vectors lie on one line, rank {history.rank:.1f}"
    began_above, is_above = (history.is_more(one, history.chance) for one in (history.before, history.now))
    if began_above and history.is_more(history.before, history.now) and not is_above:
        return "the vectors do not distinguish videos"
    return ""


def _collapsing(history: _History) -> str:
    highest = max(row.get("health_rank", 0.0) for row in (history.known.at_start, *history.measured))
    fell = history.rank < LOST_RANK * highest
    if not fell or not history.is_more(max(history.before, history.most), history.now):
        return ""
    return f"the rank fell from {highest:.1f}, and retrieval with it"


def _over_fitting(history: _History) -> str:
    now = _mean_accuracy(history.logged)
    then = _mean_accuracy([row for row in history.logged if row["step"] <= history.best["step"]])
    if not history.is_more(history.most, history.now) or not now > then + MORE_FOUND:
        return ""
    return f"the accuracy of training batches rose from {then:.0%} to {now:.0%} while retrieval fell"


def _mean_accuracy(rows: Sequence[Row]) -> float:
    last = rows[-NUM_ROWS:]
    return float(sum(row["intra_accuracy"] for row in last)) / len(last) if last else math.nan


def _under_trained(history: _History) -> str:
    known, before, now = history.known, history.before, history.now
    if history.is_more(before, now):
        return "it retrieves worse than before training"
    # Ignore the standard errors: a large error does not mean that the rate is near 1.
    has_room = history.is_more(Retrieval(1.0), Retrieval(max(before.rate, now.rate)))
    if has_room and not known.is_given and not history.is_more(now, before):
        noise = f" (the difference is within the noise of {known.num_views:,} views)"
        better = f"clearly better than before training{noise}" if now > before else "better than before training"
        return f"retrieval is not {better}"
    loss = history.last.get("health_queue_loss", 0.0)
    # Perfect: each query equals its positive and is orthogonal to all keys. Its loss is above 0 at a high temperature.
    perfect, chance = math.log1p(known.num_keys * math.exp(-1 / known.temperature)), math.log1p(known.num_keys)
    if loss > perfect + NEAR_CHANCE * (chance - perfect):
        return f"the loss against the queue is {loss:.2f}; chance level is {chance:.2f}, perfect is {perfect:.2f}"
    late = [row for row in history.measured if row["step"] <= LATE * history.last["step"]]
    if history.is_more(now, Retrieval.of(late[-1]) if late else before):
        return "it still improved in the last quarter"
    return ""
