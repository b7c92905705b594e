"""SiamFC on frozen features: presets, crops, network, and the tracker that follows the peak of the response.

SiamFC is Bertinetto et al., 2016. The preset `release` follows the tracking code of the paper's release, `vince` that
of VINCE (Gordon et al., 2020).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cyclecontrast.data.images import Pixels
from cyclecontrast.data.tracking_sequences import Boxes
from cyclecontrast.evaluation.embed import check_finite, exact_convolutions
from cyclecontrast.models.backbone import TOTAL_STRIDE_8, Backbone, ResNet, restride

SEARCH_SIZE = 255
"""Side of the search crop in pixels; the side of the exemplar belongs to the preset."""
SCALES = tuple(1.0375**power for power in (-1, 0, 1))
SCALE_RATE = 0.59
SCALE_PENALTY = 0.9745
WINDOW_INFLUENCE = 0.176
RELEASED_STRIDE = 8
SMALL_STEM_STRIDES = (1, 2, 2, 2)
"""Strides of the stages of a backbone for small images: those that it was trained with, a total stride of 8."""
CONTEXT = 0.5
SMALLEST_SIDE = 2.0
UPSAMPLING = 16
UPSAMPLED_SIZE = 17 * UPSAMPLING
"""The release assumes responses of 17 cells; an exemplar of 120 pixels gives 18 cells, one of 127 gives 17."""
_HANN = np.outer(np.hanning(UPSAMPLED_SIZE), np.hanning(UPSAMPLED_SIZE))
WINDOW: npt.NDArray[np.float32] = (_HANN / _HANN.sum()).astype(np.float32)
"""Hann window of the upsampled response; it sums to 1."""


@dataclass(frozen=True)
class Preset:
    """Sizes of the crops in pixels, and how the head is trained.

    `positive_distance` is the largest |dx| + |dy| of a positive from the target, in pixels of the search crop.
    `final_learning_rate` is where an exponential decay ends; None: divide by ten after each quarter of the epochs.
    `jitter` is the scale of the shifts of exemplar and search crop, as a fraction of their side; None: both crops are
    cut from a larger one. `head_dim` and `head_scale` None: they follow from the width of the backbone.
    """

    exemplar_size: int
    train_size: int
    positive_distance: float
    optimizer: Literal["adam", "sgd"]
    loss: Literal["focal", "balanced"]
    learning_rate: float
    final_learning_rate: float | None
    weight_decay: float
    epochs: int
    batch_size: int
    pairs_per_sequence: int
    head_dim: int | None = None
    head_scale: float | None = None
    jitter: tuple[float, float] | None = None


RELEASE = Preset(
    exemplar_size=120,
    train_size=239,
    positive_distance=16,
    optimizer="adam",
    loss="focal",
    learning_rate=1e-3,
    final_learning_rate=1e-5,
    weight_decay=0,
    epochs=50,
    batch_size=8,
    pairs_per_sequence=1,
)
# Differs from the release: the original SiamFC trains an AlexNet without a convolution behind it; the preset `siamfc`
# uses its geometry, loss and optimizer, but trains the two 1x1 convolutions of `release` on a frozen backbone.
SIAMFC = replace(RELEASE, exemplar_size=127, optimizer="sgd", loss="balanced", learning_rate=1e-2, weight_decay=5e-4)
VINCE = Preset(
    exemplar_size=120,
    train_size=247,
    positive_distance=20,
    optimizer="adam",
    loss="balanced",
    learning_rate=1e-2,
    final_learning_rate=None,
    weight_decay=0,
    epochs=40,
    batch_size=256,
    pairs_per_sequence=25,
    head_dim=256,
    head_scale=1e-3,
    jitter=(0.05, 0.33),
)
PRESETS = {"release": RELEASE, "siamfc": SIAMFC, "vince": VINCE}


class Target(NamedTuple):
    """Center and size of a target in pixels, where the first pixel is 0."""

    y: float
    x: float
    height: float
    width: float

    @staticmethod
    def of(box: Boxes) -> "Target":
        """Convert a box x, y, w, h (4,), where the first pixel is 1."""
        x, y, width, height = map(float, box)
        return Target(y - 1 + (height - 1) / 2, x - 1 + (width - 1) / 2, height, width)

    def box(self) -> Boxes:
        """Return x, y, w, h (4,), where the first pixel is 1."""
        left, top = self.x + 1 - (self.width - 1) / 2, self.y + 1 - (self.height - 1) / 2
        return np.array([left, top, self.width, self.height])

    def exemplar_side(self) -> float:
        """Return the side of the square that shows the target with its context."""
        context = CONTEXT * (self.width + self.height)
        return math.sqrt((self.width + context) * (self.height + context))


def crop_squares(image: Pixels, y: float, x: float, sides: Sequence[float], size: int) -> Pixels:
    """Cut squares around a point (first pixel: 0) and resize them to (num_sides, size, size, 3).

    Corners are rounded. Only the part inside the image is resized; the rest has the mean color of the image. A square
    outside the image is black.
    """
    crops = np.zeros((len(sides), size, size, 3), np.uint8)
    mean = None
    for crop, side in zip(crops, sides, strict=True):
        top, bottom, out_top, out_height = _span(y, side, image.shape[0], size)
        left, right, out_left, out_width = _span(x, side, image.shape[1], size)
        if top >= bottom or left >= right:
            continue
        if min(out_height, out_width) < size:
            mean = np.rint(cv2.mean(image)[:3]) if mean is None else mean
            crop[:] = mean
        part = image[top:bottom, left:right]
        resized = cv2.resize(part, (out_width, out_height), interpolation=cv2.INTER_LINEAR)
        crop[out_top : out_top + out_height, out_left : out_left + out_width] = resized
    return crops


def _span(center: float, side: float, length: int, size: int) -> tuple[int, int, int, int]:
    """Return start and stop of a square along one axis of an image, and its start and length in the crop."""
    side = max(side, SMALLEST_SIDE)
    first, last = round(center - side / 2), round(center + side / 2)
    start, stop = max(first, 0), min(last, length)
    out_start = min(int(max(0.0, -first * size / (last - first))), size - 1)
    out_size = max(1, round(size * (stop - start) / (last - first)))
    return start, stop, out_start, min(out_size, size - out_start)


class DenseFeatures:
    """Stage 4 of a frozen copy of a ResNet at a total stride of 8: later stages are dilated instead of strided.

    Raises UserError for a backbone that is not a ResNet.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        network = backbone.network
        has_small_stem = isinstance(network, ResNet) and isinstance(network.maxpool, nn.Identity)
        dense = restride(backbone, SMALL_STEM_STRIDES) if has_small_stem else restride(backbone, *TOTAL_STRIDE_8)
        self.backbone = dense.eval().to(device)
        self.device = device

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (batch, 3, h, w) → feature maps (batch, dim, h / 8, w / 8), rounded up."""
        with exact_convolutions(), torch.inference_mode():
            return self.backbone.feature_map(self.backbone.normalize(pixels.to(self.device)), 4)


class Head(nn.Module):
    """Cross-correlation of two feature maps, each after its own layer."""

    def __init__(self, exemplar: nn.Module, search: nn.Module, scale: float) -> None:
        super().__init__()
        self.exemplar = exemplar
        self.search = search
        self.scale = scale

    def forward(self, exemplar_maps: Tensor, search_maps: Tensor) -> Tensor:
        """Return the responses (batch, h, w) of maps (batch, dim, h, w), pair by pair."""
        return self.respond(self.exemplar(exemplar_maps), search_maps)

    def respond(self, kernels: Tensor, search_maps: Tensor) -> Tensor:
        """Return the responses (batch, h, w) to kernels, the outputs of `exemplar` for one map or for each map."""
        return correlate(kernels, self.search(search_maps)) * self.scale


def correlate(kernels: Tensor, maps: Tensor) -> Tensor:
    """Slide each kernel (batch, dim, kh, kw) over its map (batch, dim, h, w): (batch, h - kh + 1, w - kw + 1).

    A single kernel slides over all maps. One matrix product gives the products of all pairs of cells, which is several
    times faster than a convolution with kernels as large as these.
    """
    (kernel_height, kernel_width), (height, width) = kernels.shape[2:], maps.shape[2:]
    products = kernels.flatten(2).mT @ maps.flatten(2)
    products = products.reshape(-1, kernel_height, kernel_width, height, width).contiguous()
    batch, down, right, row, column = products.stride()
    shape = (len(products), kernel_height, kernel_width, height - kernel_height + 1, width - kernel_width + 1)
    # The product that cell (i, j) of the kernel adds to a response cell lies (i, j) cells further in its own plane.
    return products.as_strided(shape, (batch, down + row, right + column, row, column)).sum(dim=(1, 2))


def make_head(dim: int, preset: Preset, seed: int | None) -> Head:
    """Return a head of two 1x1 convolutions with PyTorch's initial weights, or without layers where `seed` is None."""
    out_dim, scale = head_shape(dim, preset)
    if seed is None:
        return Head(nn.Identity(), nn.Identity(), scale)
    with torch.random.fork_rng(devices=()):
        # torch.manual_seed would also seed the GPUs, whose state this block does not restore.
        torch.default_generator.manual_seed(seed)
        return Head(nn.Conv2d(dim, out_dim, 1), nn.Conv2d(dim, out_dim, 1), scale)


def head_shape(dim: int, preset: Preset) -> tuple[int, float]:
    """Return the width of the head and the factor on its response, for a backbone of this width.

    2048 gives 1024 and 1e-5, 512 gives 512 and 1e-3, as released. For other widths the product of both is kept, so
    that sums over the width stay alike.
    """
    out_dim = preset.head_dim or (dim // 2 if dim > 512 else dim)
    product = 1024 * 1e-5 if dim > 512 else 512 * 1e-3
    return out_dim, preset.head_scale or product / out_dim


def find_peak(responses: npt.NDArray[np.float32], fix_scale_penalty: bool = False) -> tuple[int, float, float]:
    """Upsample the responses of three scales (3, h, w), choose a scale, and find its peak under the window.

    Returns the number of the scale, and the peak's distance dy, dx from the middle in upsampled pixels. The penalty on
    a change of scale is a factor, which rewards a change if peaks are negative, as they often are with a focal loss;
    `fix_scale_penalty` lowers negative peaks too.
    """
    size = (UPSAMPLED_SIZE, UPSAMPLED_SIZE)
    upsampled = [cv2.resize(response, size, interpolation=cv2.INTER_CUBIC) for response in responses]
    peaks = np.array([float(response.max()) for response in upsampled])
    penalized = peaks - (1 - SCALE_PENALTY) * (np.abs(peaks) if fix_scale_penalty else peaks)
    penalized[1] = peaks[1]
    scale = int(penalized.argmax())
    # The penalty cancels out here, because the chosen response is normalized to sum 1.
    response = upsampled[scale] - upsampled[scale].min()
    response *= (1 - WINDOW_INFLUENCE) / (response.sum() + 1e-16)
    response += WINDOW_INFLUENCE * WINDOW
    row, column = np.unravel_index(int(response.argmax()), response.shape)
    middle = (UPSAMPLED_SIZE - 1) / 2
    return scale, row - middle, column - middle


class SiamFC:
    """Follows a target by the features of the first image, which are never updated; boxes may leave the image.

    Differs from the release: the convolution of the exemplar runs once, not in every frame, with the same result.
    """

    def __init__(
        self,
        features: DenseFeatures,
        head: Head,
        exemplar_size: int,
        exact_geometry: bool = False,
        fix_scale_penalty: bool = False,
    ) -> None:
        self._features = features
        self._head = head.to(features.device)
        self._exemplar_size = exemplar_size
        self._exact_geometry = exact_geometry
        self._fix_scale_penalty = fix_scale_penalty

    def init(self, image: Pixels, box: Boxes) -> None:
        """Take the box (4,) in this image as the target."""
        self._target = Target.of(box)
        side = self._target.exemplar_side()
        self._side = side * SEARCH_SIZE / self._exemplar_size
        maps = self._maps(image, [side], self._exemplar_size)
        with exact_convolutions(), torch.inference_mode():
            self._kernels = self._head.exemplar(maps)

    def update(self, image: Pixels) -> Boxes:
        """Return the box (4,) of the target in the next image; raises UserError where features are not finite."""
        target = self._target
        sides = [self._side * scale for scale in SCALES]
        maps = self._maps(image, sides, SEARCH_SIZE)
        with exact_convolutions(), torch.inference_mode():
            responses = self._head.respond(self._kernels, maps)
        check_finite(responses, self._features.backbone)
        scale, dy, dx = find_peak(responses.cpu().numpy(), self._fix_scale_penalty)
        stride = round(SEARCH_SIZE / maps.shape[-1])
        if self._exact_geometry or stride != RELEASED_STRIDE:
            pixels_per_step = responses.shape[-1] * stride / UPSAMPLED_SIZE
        else:
            pixels_per_step = RELEASED_STRIDE / UPSAMPLING
        step = pixels_per_step * sides[scale] / SEARCH_SIZE
        growth = 1 - SCALE_RATE + SCALE_RATE * SCALES[scale]
        self._side *= growth
        self._target = Target(target.y + dy * step, target.x + dx * step, target.height * growth, target.width * growth)
        return self._target.box()

    def _maps(self, image: Pixels, sides: Sequence[float], size: int) -> Tensor:
        crops = crop_squares(image, self._target.y, self._target.x, sides, size)
        return self._features(torch.from_numpy(crops).movedim(-1, 1))
