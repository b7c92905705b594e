"""Verdicts: the course of a run's signals becomes one word with its reason, and the best step."""

import math
import re

import numpy as np
import pytest

from cyclecontrast.training.verdict import (
    BETTER,
    UNCHANGED,
    WORSE,
    Retrieval,
    VerdictInputs,
    best_step,
    chosen_step,
    is_significantly_higher,
    judge,
    last_measured,
)

KNOWN = VerdictInputs(512, 1 / 511, {"health_same_video": 0.1, "health_rank": 12.0}, num_keys=256, temperature=0.2)


def curve(retrieval, rank=20.0, deviation=0.9, accuracy=0.3, queue_loss=3.0):
    """Return rows of metrics every 100 steps; a number is a constant."""
    num = len(retrieval)
    columns = [c if isinstance(c, list) else [c] * num for c in (rank, deviation, accuracy, queue_loss)]
    names = ("health_rank", "health_deviation", "intra_accuracy", "health_queue_loss")
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    found = zip(rows, retrieval, strict=True)
    return [row | {"step": 100 * i, "health_same_video": r} for i, (row, r) in enumerate(found, start=1)]


RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.6, 0.61, 0.61]
VERDICTS = {
    "rises and levels off": (curve(RISING), "healthy"),
    "the loss rises at first": (
        curve(RISING, queue_loss=[0.5, 2.0, 4.0, 5.4, 5.3, 5.0, 4.5, 4.0, 3.5, 3.0]),
        "healthy",
    ),
    "accuracy falls from one at first": (curve(RISING, accuracy=[1.0, 0.8, 0.4, *[0.1] * 7]), "healthy"),
    "same vectors at first": (
        curve(RISING, deviation=[0.01, 0.05, *[0.9] * 8], rank=[1.1, 1.4, *[20.0] * 8]),
        "healthy",
    ),
    "a bend that is noise": (curve([*RISING[:-1], 0.58], accuracy=[*[0.3] * 5, *[0.6] * 5]), "healthy"),
    "nothing learned": (curve([0.1] * 10), "undertrained"),
    "worse than before": (curve([0.1] * 9 + [0.04]), "undertrained"),
    "a loss near chance": (curve(RISING, queue_loss=5.3), "undertrained"),
    "still rising": (curve([0.05 * i for i in range(1, 11)]), "undertrained"),
    "all the same": (curve([0.1] * 9 + [0.0], rank=1.0, deviation=0.0), "collapsed"),
    "on a line": (curve([0.1] * 9 + [0.0], rank=1.2, deviation=0.7), "collapsed"),
    "at chance level": (curve([*RISING[:8], 0.1, 0.002]), "collapsed"),
    "losing dimensions": (curve([*RISING, 0.5, 0.3], rank=[*[20.0] * 10, 12.0, 6.0]), "collapsing"),
    "better in training only": (curve([*RISING, 0.5, 0.4], accuracy=[0.3] * 10 + [0.9] * 2), "overfitting the queue"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_of_curves(name):
    """Each course gets its word, with a reason of one line that has retrieval before training and now."""
    rows, word = VERDICTS[name]
    verdict = judge(rows, KNOWN)
    assert verdict.word == word
    assert "10% before training" in verdict.reason
    assert "\n" not in verdict.reason


@pytest.mark.parametrize(
    ("before", "is_given", "retrieval", "word"),
    [
        (0.985, False, [0.99, 0.995, 1.0, 1.0], "healthy"),
        (0.985, False, [0.9, 0.7, 0.6, 0.6], "undertrained"),
        (0.9, False, [0.9, 0.9, 0.9, 0.9], "undertrained"),
        (0.9, True, [0.9, 0.9, 0.9, 0.9], UNCHANGED),
        (0.9, True, [0.9, 0.7, 0.6, 0.6], WORSE),
        (0.6, True, [0.7, 0.8, 0.8, 0.8], BETTER),
    ],
    ids=["at the ceiling", "fallen from it", "no gain", "given and good", "given and spoiled", "given and improved"],
)
def test_the_network_before_training_is_what_counts(before, is_given, retrieval, word):
    """Retrieval near its ceiling need not rise; a run from given weights is compared with its start."""
    known = KNOWN._replace(at_start=KNOWN.at_start | {"health_same_video": before}, is_given=is_given)
    assert judge(curve(retrieval, queue_loss=1.0), known).word == word


@pytest.mark.parametrize(
    ("last", "signals", "words"),
    [
        (0.12, {}, "retrieval is not clearly better than before training (the difference is within the noise of 512"),
        (0.1, {}, "retrieval is not better than before training; "),
        (0.08, {}, "retrieval is not better than before training; "),
        (0.1, {"rank": 1.0, "deviation": 0.986}, "all vectors lie on one line, rank 1.0; "),
        (0.1, {"rank": 1.0, "deviation": 0.01}, "all videos get nearly the same vector, deviation 0.010 of 1; "),
    ],
)
def test_a_reason_is_what_was_measured(last, signals, words):
    """A gain within the noise is called that, a loss is not called a gain, and a rank not a deviation."""
    assert judge(curve([0.1, last], **signals), KNOWN).reason.startswith(words)


def test_a_rate_of_few_videos_is_not_at_its_ceiling():
    """A rate with a large error is not taken for one that cannot rise, so its fall is not called healthy."""
    at_start = KNOWN.at_start | {"health_same_video": 0.66, "health_same_video_error": 0.17}
    rows = [row | {"health_same_video_error": 0.11} for row in curve([0.69, 0.5, 0.44], queue_loss=1.0)]
    assert judge(rows, KNOWN._replace(num_views=32, at_start=at_start)).word == "undertrained"


@pytest.mark.parametrize(
    ("num_keys", "temperature", "loss", "word"),
    [
        (256, 0.2, 4.3, "healthy"),
        (256, 0.2, 4.5, "undertrained"),
        (65_536, 0.5, 9.2, "healthy"),
        (65_536, 0.5, 10.8, "undertrained"),
        (65_536, 0.07, 8.2, "healthy"),
        (65_536, 0.07, 9.0, "undertrained"),
    ],
)
def test_a_loss_near_chance_depends_on_keys_and_temperature(num_keys, temperature, loss, word):
    """A high temperature makes even orthogonal keys expensive: 65,536 of them at 0.5 give at least 9.09."""
    known = KNOWN._replace(num_keys=num_keys, temperature=temperature)
    assert judge(curve(RISING, queue_loss=loss), known).word == word


@pytest.mark.parametrize("until", range(1, 11))
def test_no_alarm_while_the_queue_fills(until):
    """At no time of a normal run, whose loss first rises and accuracy falls, is there an alarm."""
    loss, accuracy = [0.5, 2.0, 4.0, 5.4, 5.3, 5.0, 4.5, 4.0, 3.5, 3.0], [1.0, 0.8, 0.3, 0.05, *[0.1] * 6]
    rows = curve(RISING, queue_loss=loss, accuracy=accuracy, rank=[12.0 + i for i in range(10)])[:until]
    assert judge(rows, KNOWN).word in ("undertrained", "healthy")


def test_without_measurements_there_is_no_verdict():
    """Without measurements there is no verdict and no best step; without a queue the other signals suffice."""
    assert judge([{"step": 1, "intra_accuracy": 0.5}], KNOWN) is None
    assert best_step([{"step": 1}]) is None
    assert last_measured([{"step": 1}]) == 0
    rows = [{"step": 100 * i, "health_same_video": r} for i, r in enumerate(RISING, start=1)]
    assert judge(rows, VerdictInputs(512, 1 / 511, {})).word == "healthy"


def test_the_best_step():
    """It has the best retrieval, of equals the highest rank, then it is the first."""
    assert best_step(curve([0.1, 0.5, 0.5, 0.4, 0.5], rank=[9.0, 3.0, 4.0, 9.0, 4.0])) == 300


def test_a_lucky_measurement_is_not_chosen():
    """The best step is chosen only if it is clearly better than the last."""
    assert chosen_step(curve([0.1, 0.3, 0.28]), KNOWN) == 300
    assert chosen_step(curve([0.1, 0.5, 0.28]), KNOWN) == 200
    assert chosen_step(curve([0.1, 0.5, 0.28]), KNOWN._replace(num_views=16)) == 300


@pytest.mark.parametrize(("error", "word", "step"), [(0.01, "healthy", 200), (0.1, "undertrained", 300)])
def test_errors_by_video_decide(error, word, step):
    """With the error of few videos a difference that 512 independent views would prove is not significant."""
    rows = [row | {"health_same_video_error": error} for row in curve([0.24, 0.4, 0.25])]
    known = KNOWN._replace(at_start=KNOWN.at_start | {"health_same_video_error": error})
    assert judge([row | {"step": step} for row in rows[:1] for step in (100, 200)], known).word == word
    assert chosen_step(rows, known) == step


@pytest.mark.parametrize("num_videos", [5, 25])
def test_equal_networks_are_seldom_called_better(num_videos):
    """Of two measurements that differ by chance alone, one in forty is called more, not one in eight."""
    rng, more = np.random.default_rng(0), []
    for _ in range(1000):
        hits = rng.binomial(8, rng.beta(0.7, 1.6, (2, num_videos))) / 8
        after, before = (Retrieval(one.mean(), one.std(ddof=1) / math.sqrt(num_videos)) for one in hits)
        more.append(is_significantly_higher(after, before, 8 * num_videos))
    assert 0 < np.mean(more) < 0.05


def gained(same, far=None, videos=(40, 40)):
    """Return the signals of two gains over the start, each with its standard error, over so many videos."""
    names = [f"health_{name}_gain{part}" for name in ("same_video", "far_video") for part in ("", "_error", "_videos")]
    return dict(zip(names, [*same, videos[0], *((*far, videos[1]) if far else ())], strict=False))


@pytest.mark.parametrize(
    ("same", "far", "word"),
    [
        ((0.1, 0.02), (0.01, 0.02), BETTER),
        ((0.01, 0.02), (-0.1, 0.02), WORSE),
        ((0.1, 0.06), (0.03, 0.02), UNCHANGED),
        ((0.1, 0.02), (-0.1, 0.02), UNCHANGED),
        ((0.01, 0.001), (0.01, 0.001), UNCHANGED),
    ],
    ids=["more", "less far apart", "noise", "both", "too little"],
)
def test_a_change_from_the_start_is_paired_by_video(same, far, word):
    """A change counts if it is significant and over two points; retrieval far apart in time counts as much."""
    known = KNOWN._replace(is_given=True)
    last = gained(same, far)
    verdict = judge([row | last for row in curve([0.12, 0.12])], known)
    assert verdict.word == word
    assert verdict.reason.startswith(f"same-video retrieval {100 * same[0]:+.1f} ± ")
    assert f" points (95 %), across moments far apart {100 * far[0]:+.1f} ± " in verdict.reason
    assert verdict.reason.count("same-video retrieval") == 1
    assert verdict.is_alarm == (word == WORSE)
    assert chosen_step([row | last for row in curve([0.09, 0.09])], known) == (0 if word == WORSE else 200)


@pytest.mark.parametrize(
    ("retrieval", "gains", "step"),
    [
        ([0.1, 0.11, 0.06], [(0.0, 0.01), (0.01, 0.01), (-0.04, 0.01)], 0),
        ([0.1, 0.4, 0.06], [(0.0, 0.01), (0.3, 0.01), (-0.04, 0.01)], 200),
        ([0.1, 0.11, 0.1], [(0.0, 0.01), (0.01, 0.01), (0.0, 0.01)], 300),
        ([0.1, 0.4, 0.1], [(0.0, 0.01), (-0.3, 0.01), (0.0, 0.01)], 300),
    ],
    ids=["a lucky step", "a better step", "no change", "the best is worse far apart"],
)
def test_a_step_worse_than_the_start_is_never_chosen(retrieval, gains, step):
    """If the last step is worse than the start, the start is chosen, or an earlier step better than the start."""
    rows = [row | gained(gain) for row, gain in zip(curve(retrieval), gains, strict=True)]
    known = KNOWN._replace(is_given=True)
    assert chosen_step(rows, known) == step
    assert (judge(rows, known).word == WORSE) == (retrieval[-1] < 0.1)


@pytest.mark.parametrize(
    ("videos", "error", "word"), [(40, 4.9, WORSE), (40, 5.0, UNCHANGED), (5, 3.6, WORSE), (5, 3.7, UNCHANGED)]
)
def test_a_gain_is_judged_by_its_own_videos(videos, error, word):
    """The far-apart gain of few videos needs their Student quantile, not that of all watched videos."""
    quantile = {40: 2.0227, 5: 2.7764}[videos]  # of a table, two-sided 95 %
    far = (-0.1, error / 100)
    assert (quantile * error / 100 < 0.1) == (word == WORSE)
    last = gained((0.0, 0.01), far, videos=(40, videos))
    assert judge([row | last for row in curve([0.1])], KNOWN._replace(is_given=True)).word == word


def test_a_gain_over_few_videos_decides_nothing():
    """Two videos that changed by the same, or a gain without an error, are left out of verdict and reason."""
    known = KNOWN._replace(is_given=True)
    verdict = judge([row | gained((-0.5, 0.0), videos=(2, 0)) for row in curve([0.05])], known)
    assert verdict.word == UNCHANGED
    assert verdict.reason.startswith("fewer than 5 videos are too few to compare it with its start; ")
    alone = gained((0.0, 0.01)) | {"health_far_video_gain": -0.9, "health_far_video_gain_videos": 1}
    verdict = judge([row | alone for row in curve([0.1])], known)
    assert verdict.word == UNCHANGED
    assert not re.search("inf|nan|far apart", verdict.reason)
