"""Whether a training still computes with numbers: looked at without waiting for the device in every step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cyclecontrast.errors import UserError
from cyclecontrast.training.train_step import StepResult
from cyclecontrast.training.training import Training

LARGEST_WEIGHT = 1e6


@dataclass
class Soundness:
    """The first step whose loss or gradient was not finite, -1 without one, on the device."""

    first_bad: Tensor

    def note(self, result: StepResult, step: int) -> None:
        """Take note of a step; the gradient is the mean of all processes, so all see the same."""
        is_sound = result.losses.total.detach().isfinite() & result.gradient_norm.isfinite()
        self.first_bad = torch.where((self.first_bad < 0) & ~is_sound, step, self.first_bad)

    def check(self, training: Training) -> None:
        """Raise UserError where a step was not sound, or the weights have left all reason behind a finite loss."""
        step = int(self.first_bad)
        weights = torch.stack([weight.detach().abs().max() for weight in training.learned.parameters()])
        largest = float(weights.max())
        if step >= 0:
            message = f"the loss or its gradient is not finite at step {step + 1}"
        elif not largest <= LARGEST_WEIGHT:
            message = f"the weights explode, the largest is {largest:.0e}"
        else:
            return
        raise UserError(f"{message}; lower --learning-rate or set --gradient-clip")
