"""How much better one row is than another: differences seed by seed, so that what seeds share does not count."""

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from scipy.special import stdtrit

LEVEL = 0.05


class Gain(NamedTuple):
    """Mean and standard deviation (None: one seed) of the differences over the seeds that both rows have."""

    mean: float
    deviation: float | None
    num_seeds: int

    @property
    def is_significant(self) -> bool:
        """Whether a paired t test at 5 % says that the difference is not the seeds'.

        Equal differences say nothing: accuracies on few items come in steps.
        """
        if not self.deviation:
            return False
        limit = stdtrit(self.num_seeds - 1, 1 - LEVEL / 2)
        return bool(abs(self.mean) * math.sqrt(self.num_seeds) > limit * self.deviation)

    def __str__(self) -> str:
        mean = f"{self.mean:+.1f}" if round(self.mean, 1) else "0.0"
        if self.deviation is None:
            return f"{mean} (one seed proves nothing)"
        verdict = "significant" if self.is_significant else "not significant"
        return f"{mean} ± {self.deviation:.1f} ({verdict})"


def gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Gain | None:
    """Compare two rows' values by seed; None where they share no seed."""
    differences = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    if not differences:
        return None
    return Gain(statistics.mean(differences), deviation(differences), len(differences))


def deviation(values: list[float]) -> float | None:
    """Return the standard deviation of a sample; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None
