"""Color jitter, grayscale and blur of a batch on the device, with parameters drawn by the workers.

Workers still crop, resize and flip (`crop_view`), because frames differ in size and are 2 to 9 times larger than views.
"""

import torch
from torch import Tensor

from cyclecontrast.data.augment import BLUR_AT_SIDE, MIN_SIGMA, Jitter, View

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NEUTRAL = Jitter(1.0, 1.0, 1.0, 0.0, (BRIGHTNESS, CONTRAST, SATURATION, HUE))
COLUMNS = (4, 4, 1, 1)
"""Columns of the numbers of a view: four jitter factors, their order, gray, σ of the blur."""
RED, GREEN, BLUE = 0.299, 0.587, 0.114
"""Weights of the luma."""


def augmentation_params(view: View) -> tuple[float, ...]:
    """Return the parameters of a view that `augment_on_device` needs, as a flat tuple of numbers."""
    *factors, order = view.jitter or NEUTRAL
    return (*factors, *order, float(view.gray), view.blur)


@torch.no_grad()
def augment_on_device(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Apply jitter, gray and blur as `apply_view` does; each change is rounded to 8 bits as there.

    Shapes: pixels uint8 (batch, 3, size, size) on any device. numbers float (batch, 10) on the CPU, so that selecting
    views needs no synchronization. Returns uint8 pixels of the same shape, channels-last. Do not use it under autocast:
    bf16 has less precision than 8-bit pixels.
    """
    factors, order, gray, sigma = torch.split(numbers, list(COLUMNS), dim=1)
    of_color, of_mean = on_device(pixels.device, *_mixtures(factors, order, gray))
    colors = pixels.float().flatten(2)
    for place in range(of_color.shape[1]):
        mean = colors.mean(dim=2, keepdim=True)
        colors = torch.baddbmm(of_mean[:, place] @ mean, of_color[:, place], colors).round_().clamp_(0, 255)
        if place < order.shape[1]:
            _turn_hues(colors, torch.where(order[:, place] == HUE, factors[:, HUE], 0.0))
    planes = colors.view(pixels.shape)
    _blur(planes, sigma[:, 0])
    return planes.to(dtype=torch.uint8, memory_format=torch.channels_last)


def _mixtures(factors: Tensor, order: Tensor, gray: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors (batch, 5, 3, 3).

    The matrices that each change applies to a pixel's color and to the mean color. A factor f weights the color by f
    and black, the mean luma or the luma of the color by 1 - f. Gray is a fifth change with f = 0. A change of hue is
    the identity here.
    """
    change = torch.cat((order, torch.full_like(gray, SATURATION)), dim=1)[..., None, None]
    with_gray = torch.cat((factors.gather(1, order.long()), 1 - gray), dim=1)[..., None, None]
    factor = torch.where(change == HUE, 1.0, with_gray)
    luma = factors.new_tensor((RED, GREEN, BLUE)).expand(3, 3)
    other = (1 - factor) * luma
    return factor * torch.eye(3) + other * (change == SATURATION), other * (change == CONTRAST)


def _turn_hues(colors: Tensor, turns: Tensor) -> None:
    """Rotate the hues of colors (batch, 3, pixels) in place, by fractions of a full turn (batch,); 0 for none."""
    chosen = torch.nonzero(turns)[:, 0]
    if not len(chosen):
        return
    sixths, places = on_device(colors.device, 6 * turns[chosen, None], chosen)
    part = colors[places]
    red, green, blue = part.unbind(1)
    value = part.amax(dim=1)
    chroma = value - part.amin(dim=1)
    of_green = torch.where(green == value, blue - red + 2 * chroma, red - green + 4 * chroma)
    hue = torch.where(red == value, green - blue, of_green) / chroma.clamp(min=1)
    for channel, origin in enumerate((5, 3, 1)):  # start of the sixths where the channel is at its maximum
        along = (hue + (sixths + origin)).remainder_(6)
        falling = torch.minimum(along, 4 - along).clamp_(0, 1)
        part[:, channel] = torch.addcmul(value, chroma, falling, value=-1)
    colors.index_copy_(0, places, part.round_())


def _blur(planes: Tensor, sigma: Tensor) -> None:
    """Blur images (batch, 3, size, size) by a Gaussian of σ (batch,) in pixels at a side of 224, in place; 0 for none.

    A blur along an axis is a matrix product; the matrix includes the reflected border.
    """
    chosen = torch.nonzero(sigma)[:, 0]
    if not len(chosen):
        return
    size = planes.shape[3]
    in_pixels, places = on_device(planes.device, (sigma[chosen] * size / BLUR_AT_SIDE).clamp_(min=MIN_SIGMA), chosen)
    matrix = _gaussian_matrix(in_pixels, size)[:, None]
    blurred = matrix @ planes[places] @ matrix.mT
    planes.index_copy_(0, places, blurred.round_())


def _gaussian_matrix(sigma: Tensor, size: int) -> Tensor:
    """Return the matrices (batch, size, size) that blur along an axis with reflected borders."""
    column = torch.arange(size, device=sigma.device)
    row, last = column[:, None], size - 1
    twice = 2 * sigma[:, None, None] ** 2

    def weight(distance: Tensor) -> Tensor:
        return torch.exp(-(distance**2) / twice)

    inside, before, behind = weight(row - column), weight(row + column), weight(2 * last - row - column)
    matrix = inside + before * (column > 0) + behind * (column < last)
    return matrix / matrix.sum(dim=2, keepdim=True)


def on_device(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors on a device, on CUDA without waiting for the copy.

    On Apple GPUs, PyTorch may copy a tensor after its memory was freed (pytorch#189690).
    """
    return tuple(tensor.to(device, non_blocking=device.type == "cuda") for tensor in tensors)
