"""Floor 3, the idea: the equations of the paper as pure functions, the queue of keys, what objectives are made of."""

from cyclecontrast.loss.baseline_objectives import ignored_positive
from cyclecontrast.loss.key_queue import KeyQueue
from cyclecontrast.loss.losses import cycle_consistency, info_nce, soft_nearest_neighbor
from cyclecontrast.loss.objectives import OBJECTIVES, ignored_video, split_candidates
from cyclecontrast.loss.step import Candidates, Losses, Needs, Objective, Step, Term, only_intra

__all__ = [
    "OBJECTIVES",
    "Candidates",
    "KeyQueue",
    "Losses",
    "Needs",
    "Objective",
    "Step",
    "Term",
    "cycle_consistency",
    "ignored_positive",
    "ignored_video",
    "info_nce",
    "only_intra",
    "soft_nearest_neighbor",
    "split_candidates",
]
