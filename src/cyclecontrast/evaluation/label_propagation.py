"""Label propagation: each cell of a frame takes the labels of the most similar cells in its context.

The presets are those of CRW (Jabri et al., 2020), VFS (Xu and Wang, 2021) and DINO (Caron et al., 2021).
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclecontrast.models.backbone import Backbone, Bottleneck

TILE = 8
"""Side in cells of the tiles that are processed together: it bounds memory and the number of useless comparisons."""


class Preset(NamedTuple):
    """How labels propagate from frame to frame; distances are in cells of the feature map.

    The context of a frame is the first frame and the `num_preceding` frames before it. `start` says what replaces
    frames before the first: the first frame, or nothing, with or without the first among the preceding ones.
    `bottleneck_radius` is the radius for backbones made of bottlenecks (ResNet-50). `first_everywhere`: the first
    frame is searched beyond the radius. `first_labels` is how the first mask is resized to the map. `stretch`: labels
    of each object are scaled to 0..1 in each frame before the largest wins. The frame's width is cut down to a
    multiple of `width_multiple`.
    """

    num_preceding: int
    start: Literal["repeat first", "with first", "without first"]
    top_k: int
    temperature: float
    neighborhood: Literal["circle", "square"]
    radius: int
    bottleneck_radius: int
    first_everywhere: bool
    first_labels: Literal["nearest", "bilinear"]
    stretch: bool
    width_multiple: int


# Differs from the release: `dino` also compares feature maps of ResNets, normalizes red with ImageNet's mean, and
# scales labels to the original size in one step.
PRESETS = {
    "crw": Preset(20, "repeat first", 10, 0.05, "circle", 12, 12, True, "bilinear", False, 1),
    "vfs": Preset(20, "with first", 10, 0.07, "circle", 12, 18, False, "nearest", True, 1),
    "dino": Preset(7, "without first", 5, 0.1, "square", 12, 12, False, "nearest", True, 64),
}


def preset_for(name: str, backbone: Backbone) -> Preset:
    """Return the preset with its radius for this kind of backbone."""
    preset = PRESETS[name]
    is_deep = any(isinstance(module, Bottleneck) for module in backbone.modules())
    return preset._replace(radius=preset.bottleneck_radius) if is_deep else preset


def context_frames(preset: Preset, frame: int) -> list[int]:
    """Return the frames that a frame takes its labels from: the first, then those before it; frames may repeat."""
    window = range(frame - preset.num_preceding, frame)
    if preset.start == "repeat first":
        return [0, *(max(0, index) for index in window)]
    earliest = 0 if preset.start == "with first" else 1
    return [0, *(index for index in window if index >= earliest)]


class LabelPropagation:
    """Propagates labels through one video.

    Features (h, w, dim) are unit vectors, labels (h, w, num_labels) sum to 1.
    """

    def __init__(self, preset: Preset, features: Tensor, labels: Tensor) -> None:
        self.preset = preset
        self.memory = {0: (features, labels)}
        self.frame = 0

    def advance(self, features: Tensor) -> Tensor:
        """Return the labels of the next frame, and store them."""
        self.frame += 1
        context = context_frames(self.preset, self.frame)
        keys, values = zip(*(self.memory[index] for index in context), strict=True)
        labels = propagate(features, keys, values, self.preset)
        self.memory[self.frame] = features, labels
        out_of_context = self.frame - self.preset.num_preceding
        if out_of_context > 0:
            del self.memory[out_of_context]
        return labels


def propagate(query: Tensor, keys: Sequence[Tensor], labels: Sequence[Tensor], preset: Preset) -> Tensor:
    """Return the labels (h, w, num_labels) of a frame's features (h, w, dim), from those of the frames of its context.

    A cell averages the labels of its top k neighbors by the softmax of similarity / temperature.
    """
    everywhere = 1 if preset.first_everywhere else 0
    found = torch.empty_like(labels[0])
    for tile in _tiles(*query.shape[:2]):
        near = tuple(slice(max(0, side.start - preset.radius), side.stop + preset.radius) for side in tile)
        windows = [(slice(None), slice(None))] * everywhere + [near] * (len(keys) - everywhere)
        queries = query[tile].flatten(0, 1)
        similarities = [queries @ key[window].flatten(0, 1).T for key, window in zip(keys, windows, strict=True)]
        far = _is_far(tile, near, query, preset)
        for frame in similarities[everywhere:]:
            frame.masked_fill_(far, -torch.inf)
        values = torch.cat([label[window].flatten(0, 1) for label, window in zip(labels, windows, strict=True)])
        found[tile] = _blend(torch.cat(similarities, dim=1), values, preset).reshape(found[tile].shape)
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
    """Return which keys of the window `near` are outside the neighborhood of each query (num_queries, num_keys)."""
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
    """Return labels (h, w, num_labels) for the cells of features (h, w, dim): one per object, and 0 for background.

    The mask (height, width) holds object numbers; `nearest` takes the pixel in the middle of each cell.
    """
    one_hot = F.one_hot(mask.to(features.device).long()).permute(2, 0, 1)[None].float()
    cells = features.shape[:2]
    return F.interpolate(one_hot, cells, mode="nearest-exact" if mode == "nearest" else mode)[0].permute(1, 2, 0)


def mask_of_labels(labels: Tensor, height: int, width: int, stretch: bool) -> Tensor:
    """Return the object number of each pixel, uint8 (height, width): that of its largest label."""
    soft = F.interpolate(labels.permute(2, 0, 1)[None], (height, width), mode="bilinear")[0]
    if stretch:
        low, high = soft.amin(dim=(1, 2), keepdim=True), soft.amax(dim=(1, 2), keepdim=True)
        soft = torch.where(high > 0, (soft - low) / (high - low + 1e-12), soft)
    return soft.argmax(dim=0).to(torch.uint8)
