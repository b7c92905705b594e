"""Learning rate, weight of the cycle loss and momentum as pure functions of how far the training is."""

import math

STEP_MILESTONES = (0.6, 0.8)


def learning_rate(peak: float, done: float, schedule: str, warmup: float) -> float:
    """Return the learning rate after the part `done` in [0, 1) of the training.

    A linear rise over the part `warmup`, then half a cosine to zero, or a tenth at 60 % and a hundredth at 80 %
    (epochs 120 and 160 of 200, as in MoCo). Differs from the release: the cosine moves with every step.
    """
    if done < warmup:
        return peak * done / warmup
    if schedule == "step":
        return peak * 0.1 ** sum(done >= milestone for milestone in STEP_MILESTONES)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def cycle_weight(weight: float, done: float, start: float) -> float:
    """Return λ after the part `done` of the training: nothing before `start`."""
    return weight if done >= start else 0.0


def encoder_momentum(momentum: float, step: int, ramp: int) -> float:
    """Return the momentum encoder's momentum at a step: it lags by about step / ramp steps until it is `momentum`.

    Differs from the release where `ramp` is not 0: an encoder that still changes fast is followed closely, else small
    data do not begin to learn (docs/log.md).
    """
    return momentum if ramp == 0 else min(momentum, step / (step + ramp))


def rising_momentum(momentum: float, done: float) -> float:
    """Return the momentum after the part `done` of the training: along half a cosine to 1 (BYOL)."""
    return 1 - (1 - momentum) * (math.cos(math.pi * done) + 1) / 2
