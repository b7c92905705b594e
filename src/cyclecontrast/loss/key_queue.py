"""A FIFO queue of the most recent keys of the momentum encoder, with the video number of each key."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

NO_VIDEO = -1


class KeyQueue(nn.Module):
    """A fixed number of keys, oldest first, stored as buffers and therefore saved in checkpoints.

    Shapes: keys (size, dim), video (size,). As in MoCo, it is initialized with random unit vectors; their
    video number is -1. Pushing keys removes the same number of the oldest keys.
    """

    keys: Tensor
    video: Tensor

    def __init__(self, size: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("keys", normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("video", torch.full((size,), NO_VIDEO))
        # Two buffers alternate, because allocating one takes several times longer than filling it.
        self._in_use, self._spare = (self.keys[:0], self.video[:0]), (self.keys[:0], self.video[:0])

    @torch.no_grad()
    def joined(self, keys: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queue with keys (num_keys, dim) and video numbers (num_keys,) appended, without changing it.

        The result is valid only until the next call of `joined` or `push`, which overwrites its memory.
        """
        if len(keys) != len(video):
            raise ValueError(f"{len(keys)} keys with {len(video)} video numbers")
        size = len(self.keys) + len(keys)
        if len(self._spare[0]) != size or self._spare[0].device != self.keys.device:
            self._spare = self.keys.new_empty(size, self.keys.shape[1]), self.video.new_empty(size)
        torch.cat((self.keys, keys.to(self.keys)), out=self._spare[0])
        torch.cat((self.video, video.to(self.video)), out=self._spare[1])
        return self._spare

    @torch.no_grad()
    def push(self, keys: Tensor, video: Tensor) -> None:
        """Append keys (num_keys, dim) and their video numbers (num_keys,); drop the same number of the oldest."""
        self.keys, self.video = (part[len(keys) :] for part in self.joined(keys, video))
        self._in_use, self._spare = self._spare, self._in_use
