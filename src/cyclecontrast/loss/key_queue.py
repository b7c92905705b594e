"""The last keys of the momentum encoder, first in, first out, each with the video it came from."""

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

    @torch.no_grad()
    def push(self, keys: Tensor, video: Tensor) -> None:
        """Append keys (num_keys, dim) and their video numbers (num_keys,); the oldest give way."""
        if len(keys) != len(video):
            raise ValueError(f"{len(keys)} keys with {len(video)} video numbers")
        size = len(self.keys)
        self.keys = torch.cat((self.keys, keys.to(self.keys)))[-size:].clone()
        self.video = torch.cat((self.video, video.to(self.video)))[-size:].clone()
