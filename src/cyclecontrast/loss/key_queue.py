"""The last keys of the momentum encoder, first in, first out, each with the video it came from."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

NO_VIDEO = -1


class KeyQueue(nn.Module):
    """A fixed number of keys, oldest first, saved with the run as buffers.

    It starts full of random unit vectors that belong to no video (-1), as in MoCo; pushing any number of keys drops
    as many of the oldest.
    """

    keys: Tensor
    video: Tensor

    def __init__(self, size: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("keys", normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("video", torch.full((size,), NO_VIDEO))
        self._in_use, self._spare = (_Memory(self.keys[:0], self.video[:0]) for _ in range(2))

    @torch.no_grad()
    def joined(self, keys: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queue with keys (num_keys, dim) and video numbers (num_keys,) behind it; it stays as it is.

        The memory is used again: what is returned is good until other keys are joined or pushed.
        """
        if len(keys) != len(video):
            raise ValueError(f"{len(keys)} keys with {len(video)} video numbers")
        size = len(self.keys) + len(keys)
        if len(self._spare.keys) != size or self._spare.keys.device != self.keys.device:
            # Fresh memory of this size costs several times what is written into it.
            self._spare = _Memory(self.keys.new_empty(size, self.keys.shape[1]), self.video.new_empty(size))
        torch.cat((self.keys, keys.to(self.keys)), out=self._spare.keys)
        torch.cat((self.video, video.to(self.video)), out=self._spare.video)
        return self._spare

    @torch.no_grad()
    def push(self, keys: Tensor, video: Tensor) -> None:
        """Append keys (num_keys, dim) and their video numbers (num_keys,); the oldest give way."""
        self.keys, self.video = (part[len(keys) :] for part in self.joined(keys, video))
        self._in_use, self._spare = self._spare, self._in_use


class _Memory(NamedTuple):
    keys: Tensor
    video: Tensor
