"""The equations of the paper as pure functions, and the queue of keys; imports torch alone."""

from cyclecontrast.loss.key_queue import KeyQueue
from cyclecontrast.loss.losses import cycle_consistency, info_nce, is_nearest, soft_nearest_neighbor

__all__ = ["KeyQueue", "cycle_consistency", "info_nce", "is_nearest", "soft_nearest_neighbor"]
