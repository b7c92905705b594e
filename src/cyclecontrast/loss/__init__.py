"""Floor 3, the idea: the equations of the paper as pure functions, and the queue of keys they are fed from."""

from cyclecontrast.loss.key_queue import KeyQueue
from cyclecontrast.loss.losses import cycle_consistency, info_nce, soft_nearest_neighbor

__all__ = ["KeyQueue", "cycle_consistency", "info_nce", "soft_nearest_neighbor"]
