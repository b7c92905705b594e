"""The verdict on a run (a word and a reason) and its best step, as pure functions of the rows of metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy.special import stdtrit

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
MIN_VIDEOS = 5
"""A gain over fewer videos decides nothing."""
MIN_ACCURACY_GAIN = 0.05
"""If training accuracy rises by more than this while retrieval gets worse, the network is overfitting."""


BETTER, UNCHANGED, WORSE = "better than its start", "no clear change from its start", "worse than its start"
"""Verdicts on a run that started from pretrained weights."""


class Verdict(NamedTuple):
    """The verdict on a run: one word and the reason."""

    word: str
    reason: str

    @property
    def is_alarm(self) -> bool:
        """Whether the verdict is a problem that longer training does not solve."""
        return self.word not in ("healthy", "undertrained", BETTER, UNCHANGED)

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}"


def measured_on(health: Row) -> str:
    """Return the videos on which a verdict rests, such as `12 training videos`, from `health` in run.json."""
    return f"{health['videos']:,} {'held-out' if health['held_out'] else 'training'} videos"


def is_start_kept(about: Row) -> bool:
    """Return whether the final backbone of a run is its start, because training made it worse (`select`: health)."""
    return about.get("selected_step") == 0


class VerdictInputs(NamedTuple):
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

    @property
    def is_compared(self) -> bool:
        """Whether the run is compared with its start: pretrained weights that were measured before the first step."""
        return self.is_given and "health_same_video" in self.at_start

    def with_start(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows, after one of step 0 if the run is compared with its start."""
        return [*([{**self.at_start, "step": 0}] if self.is_compared else []), *rows]


class Retrieval(NamedTuple):
    """The fraction of views whose nearest neighbor is from the same video, and its standard error."""

    rate: float
    error: float = 0.0

    @staticmethod
    def of(row: Row) -> "Retrieval":
        """Return the retrieval of a row of metrics."""
        return Retrieval(row["health_same_video"], row.get("health_same_video_error", 0.0))


def is_significantly_higher(after: Retrieval, before: Retrieval, num_views: int) -> bool:
    """Return whether retrieval rose by more than two standard errors of the difference, and by more than two points.

    The error is at least that of independent views, because older runs did not store an error. It is not paired by
    video and therefore conservative, which also compensates for selecting the best of many measurements.
    """
    return after.rate - before.rate > max(MIN_CHANGE, 2 * _error(after, before, num_views))


def _error(after: Retrieval, before: Retrieval, num_views: int) -> float:
    rate = (before.rate + after.rate) / 2
    return max(math.hypot(before.error, after.error), math.sqrt(2 * rate * (1 - rate) / num_views))


def judge(rows: Sequence[Row], known: VerdictInputs) -> Verdict | None:
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
    if known.is_compared:
        del rules["undertrained"]
    for word, rule in rules.items():
        if reason := rule(history):
            return Verdict(word, f"{reason}; {history.in_words()}")
    if not known.is_compared:
        return Verdict("healthy", history.in_words())
    gains = _gains(history.last, known)
    few = "" if gains else f"fewer than {MIN_VIDEOS} videos are too few to compare it with its start; "
    more = "; it still improved in the last quarter" if history.still_improved() else ""
    return Verdict(_change(history.last, known), f"{few}{history.in_words(_gains_in_words(gains))}{more}")


def best_step(rows: Sequence[Row]) -> int | None:
    """Return the step with the best same-video retrieval; ties go to the highest rank, then to the earliest step."""
    best = max(_measured(rows), key=_rank_key, default=None)
    return None if best is None else int(best["step"])


def chosen_step(rows: Sequence[Row], known: VerdictInputs) -> int:
    """Return the best step if it is clearly better than the last measured one, otherwise the last measured one.

    Never return a step that is worse than the start of a continued run: return 0, the start, instead.
    """
    *_, last = measured = _measured(known.with_start(rows))
    best = max(measured, key=_rank_key)
    if known.is_compared and _change(last, known) == WORSE:
        return int(best["step"]) if _change(best, known) == BETTER else 0
    clearly = is_significantly_higher(Retrieval.of(best), Retrieval.of(last), known.num_views)
    clearly &= not known.is_compared or _change(best, known) != WORSE
    return int((best if clearly else last)["step"])


def last_measured(rows: Sequence[Row]) -> int:
    """Return the last step at which health was measured, 0 if there is none."""
    return max((int(row["step"]) for row in _measured(rows)), default=0)


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("health_same_video") is not None]


def _rank_key(row: Row) -> tuple[float, float]:
    return row["health_same_video"], row.get("health_rank", 0.0)


class _History:
    """The measurements of a run: retrieval before training, at the best and at the last measurement."""

    def __init__(self, measured: list[Row], logged: list[Row], known: VerdictInputs) -> None:
        self.measured, self.logged, self.known = measured, logged, known
        self.last = measured[-1]
        self.best = max(measured, key=lambda row: float(row["health_same_video"]))
        self.now, self.most, self.chance = Retrieval.of(self.last), Retrieval.of(self.best), Retrieval(known.chance)
        self.before = Retrieval.of(known.at_start) if "health_same_video" in known.at_start else self.chance
        self.rank = self.last.get("health_rank", math.inf)

    def is_significantly_higher(self, after: Retrieval, before: Retrieval) -> bool:
        return is_significantly_higher(after, before, self.known.num_views)

    def still_improved(self) -> bool:
        late = [row for row in self.measured if row["step"] <= LATE * self.last["step"]]
        return self.is_significantly_higher(self.now, Retrieval.of(late[-1]) if late else self.before)

    def in_words(self, gains: str = "") -> str:
        words = f"{self.before.rate:.0%} before training, {self.now.rate:.0%} at step {self.last['step']:,}"
        if self.is_significantly_higher(self.most, self.now):
            words += f", {self.most.rate:.0%} at step {self.best['step']:,}"
        rank = self.last.get("health_rank", math.nan)
        return f"same-video retrieval {gains}{words} (chance {self.known.chance:.1%}); rank {rank:.1f}"


def _collapsed(history: _History) -> str:
    spread = history.last.get("health_deviation", 1.0)
    if history.is_significantly_higher(history.now, history.before):
        return ""
    if spread < COLLAPSED_DEVIATION:
        return f"all videos get nearly the same vector, deviation {spread:.3f} of 1"
    if history.rank < COLLAPSED_RANK:
        return f"all vectors lie on one line, rank {history.rank:.1f}"
    began_above, is_above = (
        history.is_significantly_higher(one, history.chance) for one in (history.before, history.now)
    )
    if began_above and history.is_significantly_higher(history.before, history.now) and not is_above:
        return "the vectors do not distinguish videos"
    return ""


def _collapsing(history: _History) -> str:
    highest = max(row.get("health_rank", 0.0) for row in (history.known.at_start, *history.measured))
    fell = history.rank < LOST_RANK * highest
    if not fell or not history.is_significantly_higher(max(history.before, history.most), history.now):
        return ""
    return f"the rank fell from {highest:.1f}, and retrieval with it"


def _over_fitting(history: _History) -> str:
    now = _mean_accuracy(history.logged)
    then = _mean_accuracy([row for row in history.logged if row["step"] <= history.best["step"]])
    if not history.is_significantly_higher(history.most, history.now) or not now > then + MIN_ACCURACY_GAIN:
        return ""
    return f"the accuracy of training batches rose from {then:.0%} to {now:.0%} while retrieval fell"


def _mean_accuracy(rows: Sequence[Row]) -> float:
    last = rows[-NUM_ROWS:]
    return float(sum(row["intra_accuracy"] for row in last)) / len(last) if last else math.nan


def _under_trained(history: _History) -> str:
    known, before, now = history.known, history.before, history.now
    if history.is_significantly_higher(before, now):
        return "it retrieves worse than before training"
    # Ignore the standard errors: a large error does not mean that the rate is near 1.
    has_room = history.is_significantly_higher(Retrieval(1.0), Retrieval(max(before.rate, now.rate)))
    if has_room and not history.is_significantly_higher(now, before):
        noise = f" (the difference is within the noise of {known.num_views:,} views)"
        better = f"clearly better than before training{noise}" if now > before else "better than before training"
        return f"retrieval is not {better}"
    loss = history.last.get("health_queue_loss", 0.0)
    # Perfect: each query equals its positive and is orthogonal to all keys. Its loss is above 0 at a high temperature.
    perfect, chance = math.log1p(known.num_keys * math.exp(-1 / known.temperature)), math.log1p(known.num_keys)
    if loss > perfect + NEAR_CHANCE * (chance - perfect):
        return f"the loss against the queue is {loss:.2f}; chance level is {chance:.2f}, perfect is {perfect:.2f}"
    return "it still improved in the last quarter" if history.still_improved() else ""


def _change(last: Row, known: VerdictInputs) -> str:
    """Return whether retrieval is better or worse than at the start of a continued run, or not clearly changed.

    A change is clear if it is more than two points and, paired by video, significant at 95 %.
    """
    clear = [sign for gain, error in _gains(last, known) for sign in (-1, 1) if sign * gain > max(MIN_CHANGE, error)]
    if len(set(clear)) != 1:
        return UNCHANGED
    return BETTER if clear[0] > 0 else WORSE


def _gains(last: Row, known: VerdictInputs) -> list[tuple[float, float]]:
    """Return the gains over the start in same-video retrieval and far apart in time, with 95 % errors.

    A gain over fewer than MIN_VIDEOS videos is left out. Older runs did not store gains.
    """
    names = [f"health_{name}_gain" for name in ("same_video", "far_video")]
    if not any(name in last for name in names):
        now, before = Retrieval.of(last), Retrieval.of(known.at_start)
        return [(now.rate - before.rate, 2 * _error(now, before, known.num_views))]
    enough = [name for name in names if last.get(f"{name}_videos", 0) >= MIN_VIDEOS]
    return [(last[name], float(stdtrit(last[f"{name}_videos"] - 1, 0.975)) * last[f"{name}_error"]) for name in enough]


def _gains_in_words(gains: Sequence[tuple[float, float]]) -> str:
    texts = [f"{100 * gain:+.1f} ± {100 * error:.1f}" for gain, error in gains]
    formats = ("{} points (95 %)", ", across moments far apart {}")
    return "".join(form.format(text) for form, text in zip(formats, texts, strict=False)) + "; " * bool(texts)
