"""Two feature maps → how well the exemplar fits at each place of the search region."""

import torch
from torch import Tensor, nn

from cyclecontrast.evaluation.tracking.presets import Preset, head_shape


class Head(nn.Module):
    """Cross-correlation of two maps, each behind a layer of its own."""

    def __init__(self, exemplar: nn.Module, search: nn.Module, scale: float) -> None:
        super().__init__()
        self.exemplar = exemplar
        self.search = search
        self.scale = scale

    def forward(self, exemplar_maps: Tensor, search_maps: Tensor) -> Tensor:
        """Return the responses (batch, h, w) of maps (batch, dim, h, w), pair by pair."""
        return self.respond(self.exemplar(exemplar_maps), search_maps)

    def respond(self, kernels: Tensor, search_maps: Tensor) -> Tensor:
        """Return the responses (batch, h, w) to what `exemplar` made of one map or of as many as there are."""
        return correlate(kernels, self.search(search_maps)) * self.scale


def correlate(kernels: Tensor, maps: Tensor) -> Tensor:
    """Slide each kernel (batch, dim, kh, kw) over its map (batch, dim, h, w): (batch, h - kh + 1, w - kw + 1).

    One kernel slides over all maps. All products of cells are made by one matrix product, which for kernels as large
    as these is several times faster than a convolution.
    """
    (kernel_height, kernel_width), (height, width) = kernels.shape[2:], maps.shape[2:]
    products = kernels.flatten(2).mT @ maps.flatten(2)
    products = products.reshape(-1, kernel_height, kernel_width, height, width).contiguous()
    batch, down, right, row, column = products.stride()
    shape = (len(products), kernel_height, kernel_width, height - kernel_height + 1, width - kernel_width + 1)
    # What cell (i, j) of the kernel gives to a place of the response lies (i, j) cells further in its own plane.
    return products.as_strided(shape, (batch, down + row, right + column, row, column)).sum(dim=(1, 2))


def make_head(dim: int, preset: Preset, seed: int) -> Head:
    """Return two 1x1 convolutions with the initial weights that PyTorch gives them."""
    out_dim, scale = head_shape(dim, preset)
    with torch.random.fork_rng(devices=()):
        # torch.manual_seed would seed the GPUs too, which this block does not put back.
        torch.default_generator.manual_seed(seed)
        return Head(nn.Conv2d(dim, out_dim, 1), nn.Conv2d(dim, out_dim, 1), scale)


def raw_head(dim: int, preset: Preset) -> Head:
    """Return a head that has nothing to learn: it correlates the maps as they are."""
    return Head(nn.Identity(), nn.Identity(), head_shape(dim, preset)[1])
