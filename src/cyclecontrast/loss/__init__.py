"""The losses of the paper as pure functions, neighbors across videos, and the key queue; depends only on PyTorch."""

from cyclecontrast.loss.key_queue import KeyQueue
from cyclecontrast.loss.losses import cycle_consistency, info_nce, is_nearest, soft_nearest_neighbor

__all__ = ["KeyQueue", "cycle_consistency", "info_nce", "is_nearest", "soft_nearest_neighbor"]
