"""Labels → the next frame: each cell takes those of the most similar cells of the context; it knows no files."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclecontrast.evaluation.propagation.presets import Preset, context_frames

TILE = 8
"""Side in cells of the squares that are labeled at once: what bounds the memory, and the cells seen in vain."""


class Propagation:
    """A video followed frame by frame; features (h, w, dim) are unit vectors, labels (h, w, num_labels) sum to 1."""

    def __init__(self, preset: Preset, features: Tensor, labels: Tensor) -> None:
        self.preset = preset
        self.memory = {0: (features, labels)}
        self.frame = 0

    def advance(self, features: Tensor) -> Tensor:
        """Return the labels of the next frame, and remember them."""
        self.frame += 1
        context = context_frames(self.preset, self.frame)
        keys, values = zip(*(self.memory[index] for index in context), strict=True)
        labels = propagate(features, keys, values, self.preset)
        self.memory[self.frame] = features, labels
        no_more_needed = self.frame - self.preset.num_preceding
        if no_more_needed > 0:
            del self.memory[no_more_needed]
        return labels


def propagate(query: Tensor, keys: Sequence[Tensor], labels: Sequence[Tensor], preset: Preset) -> Tensor:
    """Return the labels (h, w, num_labels) of a frame's features (h, w, dim), from those of its context's frames.

    Of all cells in the neighborhood, the top k share in a softmax of similarity / temperature (protocols.md §g).
    """
    everywhere = 1 if preset.first_everywhere else 0
    found = torch.empty_like(labels[0])
    for tile in _tiles(*query.shape[:2]):
        near = tuple(slice(max(0, side.start - preset.radius), side.stop + preset.radius) for side in tile)
        windows = [(slice(None), slice(None))] * everywhere + [near] * (len(keys) - everywhere)
        queries = query[tile].flatten(0, 1)
        seen = [queries @ key[window].flatten(0, 1).T for key, window in zip(keys, windows, strict=True)]
        far = _is_far(tile, near, query, preset)
        for similarities in seen[everywhere:]:
            similarities.masked_fill_(far, -torch.inf)
        values = torch.cat([label[window].flatten(0, 1) for label, window in zip(labels, windows, strict=True)])
        found[tile] = _blend(torch.cat(seen, dim=1), values, preset).reshape(found[tile].shape)
    return found


def _tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top, left in product(range(0, height, TILE), range(0, width, TILE)):
        yield slice(top, min(top + TILE, height)), slice(left, min(left + TILE, width))


def _blend(similarities: Tensor, values: Tensor, preset: Preset) -> Tensor:
    """Average the values (num_keys, num_labels) by the similarities (num_queries, num_keys) of the top k."""
    best, indices = similarities.topk(min(preset.top_k, similarities.shape[1]), dim=1)
    weights = (best / preset.temperature).softmax(dim=1)
    return (weights.unsqueeze(2) * values[indices]).sum(dim=1)


def _is_far(tile: tuple[slice, ...], near: tuple[slice, ...], grid: Tensor, preset: Preset) -> Tensor:
    """Return which cells around a tile are outside the neighborhood of which cell of it (num_queries, num_keys)."""
    offsets = []
    for inner, outer, size in zip(tile, near, grid.shape, strict=False):
        cells = torch.arange(size, device=grid.device)
        offsets.append((cells[inner].unsqueeze(1) - cells[outer]).abs())
    rows, columns = offsets[0][:, None, :, None], offsets[1][None, :, None, :]
    if preset.neighborhood == "circle":
        far = rows**2 + columns**2 >= preset.radius**2
    else:
        far = torch.maximum(rows, columns) > preset.radius
    return far.flatten(2).flatten(0, 1)


def labels_of_mask(mask: Tensor, features: Tensor, mode: Literal["nearest", "bilinear"]) -> Tensor:
    """Return a label for each object and one for none (h, w, num_labels), for each cell of the features (h, w, dim).

    The mask (height, width) holds object numbers; `nearest` takes the pixel in the middle of each cell.
    """
    one_hot = F.one_hot(mask.to(features.device).long()).permute(2, 0, 1)[None].float()
    cells = features.shape[:2]
    return F.interpolate(one_hot, cells, mode="nearest-exact" if mode == "nearest" else mode)[0].permute(1, 2, 0)


def mask_of_labels(labels: Tensor, height: int, width: int, stretch: bool) -> Tensor:
    """Return the object number of each pixel uint8 (height, width): the label that is the largest there."""
    soft = F.interpolate(labels.permute(2, 0, 1)[None], (height, width), mode="bilinear")[0]
    if stretch:
        low, high = soft.amin(dim=(1, 2), keepdim=True), soft.amax(dim=(1, 2), keepdim=True)
        soft = torch.where(high > 0, (soft - low) / (high - low + 1e-12), soft)
    return soft.argmax(dim=0).to(torch.uint8)
