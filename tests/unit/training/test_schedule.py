"""Learning rate and λ at hand-computed points."""

import pytest

from cyclecontrast.training.schedule import cycle_weight, encoder_momentum, learning_rate, rising_momentum


@pytest.mark.parametrize(
    ("done", "schedule", "warmup", "expected"),
    [
        (0.0, "cosine", 0.0, 1.0),
        (0.5, "cosine", 0.0, 0.5),
        (1.0, "cosine", 0.0, 0.0),
        (1 / 3, "cosine", 0.0, 0.75),
        (0.05, "cosine", 0.1, 0.5),
        (0.1, "cosine", 0.1, 1.0),
        (0.55, "cosine", 0.1, 0.5),
        (0.0, "step", 0.0, 1.0),
        (119 / 200, "step", 0.0, 1.0),
        (120 / 200, "step", 0.0, 0.1),
        (160 / 200, "step", 0.0, 0.01),
        (0.0, "step", 0.1, 0.0),
    ],
)
def test_learning_rate(done, schedule, warmup, expected):
    """The rate follows half a cosine or the steps of MoCo (epochs 120 and 160 of 200), after a linear rise."""
    assert learning_rate(0.06, done, schedule, warmup) == pytest.approx(0.06 * expected, abs=1e-9)


def test_the_cycle_starts_when_told():
    """λ is nothing before its start and itself from then on."""
    assert [cycle_weight(0.1, done, 0.5) for done in (0.0, 0.499, 0.5, 1.0)] == [0, 0, 0.1, 0.1]
    assert cycle_weight(0.1, 0.0, 0.0) == 0.1


def test_the_momentum_encoder_follows_closely_at_first():
    """With a ramp the momentum is step / (step + ramp) up to its final value; without, it is constant."""
    assert [encoder_momentum(0.9, step, 100) for step in (0, 100, 300, 900, 5000)] == [0, 0.5, 0.75, 0.9, 0.9]
    assert encoder_momentum(0.999, 0, 0) == 0.999


def test_the_momentum_of_byol_rises_to_one():
    """It is its base at first, halfway between base and 1 at half time, and 1 at the end."""
    assert [rising_momentum(0.9, done) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.95, 1.0])
    assert rising_momentum(0.9, 1 / 3) == pytest.approx(1 - 0.1 * 0.75)
