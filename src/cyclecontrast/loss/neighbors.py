"""Nearest neighbors across videos among any number of vectors: which are mutual, how sure they are, where they lead.

Shapes: vectors (num_vectors, dim) of any length; video (num_vectors,), the video number of each. Similarities are
cosines.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cyclecontrast.loss.attention import BLOCK


class Neighbors(NamedTuple):
    """The nearest neighbor of each vector among those of other videos. All have shape (num_vectors,).

    `nearest` is the place of the neighbor, `similarity` its cosine, and `margin` its lead over the most similar vector
    of a third video (infinite without one). `mutual`: the vector is the neighbor's nearest neighbor, too. `closed`: the
    neighbor's nearest neighbor is of the vector's video, so the cycle ends at home. Without a second video, nothing is
    mutual or closed.
    """

    nearest: Tensor
    similarity: Tensor
    margin: Tensor
    mutual: Tensor
    closed: Tensor

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the mutual pairs (num_pairs, 2), the smaller place first, and the smaller of their two margins."""
        places = torch.arange(len(self.nearest), device=self.nearest.device)
        first = places[self.mutual & (places < self.nearest)]
        second = self.nearest[first]
        return torch.stack((first, second), dim=1), torch.minimum(self.margin[first], self.margin[second])


@torch.no_grad()
def mutual_neighbors(vectors: Tensor, video: Tensor) -> Neighbors:
    """Return the nearest neighbor of each vector among those of other videos.

    Similarities are computed in blocks, so that memory grows with the number of vectors only. All vectors of a network
    have much in common: pass `centered` vectors, unless that common part is meant.
    """
    wide = normalize(_wide(vectors), dim=1)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    size = max(1, BLOCK // len(wide))
    for start in range(0, len(wide), size):
        with torch.autocast(wide.device.type, enabled=False):
            table = wide[start : start + size] @ wide.T
        own = video[start : start + size, None]
        best, place = table.masked_fill_(own == video, float("-inf")).max(dim=1)
        third = table.masked_fill_(video[place, None] == video, float("-inf")).amax(dim=1)
        parts.append((place, best, best - third))
    nearest, similarity, margin = (torch.cat(part) for part in zip(*parts, strict=True))
    back, exists = nearest[nearest], similarity > float("-inf")
    mutual = (back == torch.arange(len(wide), device=wide.device)) & exists
    return Neighbors(nearest, similarity, margin, mutual, (video[back] == video) & exists)


def centered(vectors: Tensor) -> Tensor:
    """Return the vectors, scaled to length 1, without their mean."""
    wide = normalize(_wide(vectors), dim=1)
    return wide - wide.mean(dim=0)


def video_means(vectors: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each video's vectors (num_videos, dim), and the numbers of the videos in ascending order."""
    numbers, place = torch.unique(video, return_inverse=True)
    wide = _wide(vectors)
    total = wide.new_zeros(len(numbers), wide.shape[1]).index_add_(0, place, wide)
    return total / torch.bincount(place)[:, None], numbers


def precision_by_margin(pairs: Tensor, margin: Tensor, label: Tensor, parts: int = 4) -> list[float]:
    """Return the share of pairs of equal label in each of `parts` equal parts of the pairs, by falling margin.

    Shapes: pairs (num_pairs, 2) and margin (num_pairs,) of `Neighbors.pairs`; label, that of each vector. A part
    without pairs gives nan.
    """
    equal = (label[pairs[:, 0]] == label[pairs[:, 1]])[margin.argsort(descending=True, stable=True)]
    return [float(part.double().mean()) for part in torch.tensor_split(equal, parts)]


def _wide(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
