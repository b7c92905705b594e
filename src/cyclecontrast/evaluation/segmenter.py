"""A network that classifies pixels: a backbone with a denser feature map and a head, and how they are trained.

The recipe is like that of VITO (Parthasarathy et al., 2023): its crops, batch size and epochs. VITO sweeps the
learning rate and the weight decay.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclecontrast.config import SegmentationConfig
from cyclecontrast.data.device_augment import on_device
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.masked_images import IGNORE, MaskedSplit
from cyclecontrast.data.random_streams import ORDER, QUERY, random_stream
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import Loading, check_finite
from cyclecontrast.evaluation.epochs import train_epochs
from cyclecontrast.evaluation.image_batches import chunks, load_image_batches
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import TOTAL_STRIDE_8, Backbone, PerStage, ResNet, restride

STAGE = 4
DENSER: tuple[tuple[PerStage, PerStage], ...] = (
    ((1, 2, 2, 2), (1, 1, 1, 1)),
    ((1, 2, 2, 1), (1, 1, 1, 2)),
    TOTAL_STRIDE_8,
)
"""Strides and dilations of the stages for feature maps 1, 2 and 4 times as dense as the ResNet's default."""
DROPOUT = 0.1
INITIAL_DEVIATION = 0.01
SCALES = (0.5, 2.0)
MOMENTUM = 0.9
POWER = 0.9


class Segmenter(nn.Module):
    """A copy of a backbone whose last feature map has a cell per `stride` x `stride` pixels, and a head on it."""

    def __init__(self, backbone: Backbone, head: nn.Module, stride: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.stride = stride

    def forward(self, pixels: Tensor) -> Tensor:
        """Return scores (batch, num_classes, h, w) of uint8 (batch, 3, h, w); raises UserError for broken weights."""
        maps = self.maps(pixels)
        check_finite(maps, self.backbone)
        return self.classify(maps, *pixels.shape[-2:])

    def maps(self, pixels: Tensor) -> Tensor:
        """Return the feature maps (batch, dim, h', w') of uint8 (batch, 3, h, w), padded to whole cells."""
        images = self.backbone.normalize(pixels)
        height, width = pixels.shape[-2:]
        # 0 is the mean color after normalization.
        padded = functional.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        return self.backbone.feature_map(padded, STAGE)

    def classify(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Return scores (batch, num_classes, height, width) of pixels, interpolated between those of the cells."""
        scores = functional.interpolate(self.head(maps), scale_factor=self.stride, mode="bilinear")
        return scores[..., :height, :width]


def make_segmenter(backbone: Backbone, num_classes: int, config: SegmentationConfig, device: torch.device) -> Segmenter:
    """Put a new head on a copy of a backbone; raises UserError where it has no feature map of the set stride."""
    dense, dim = _densify(backbone, config.stride, config.crop_size, device)
    return Segmenter(dense, make_head(config.head, dim, num_classes, config.seed), config.stride).to(device)


def _densify(backbone: Backbone, stride: int, crop_size: int, device: torch.device) -> tuple[Backbone, int]:
    """Return a copy of the backbone with a last map of this stride, and the number of channels of the map."""
    if crop_size < 2 * stride:
        raise UserError(f"crop_size: {crop_size} is less than two cells of stride {stride}; use {2 * stride} or more")
    if stride % backbone.patch:
        raise UserError(
            f"stride: {backbone.name} has a feature map of stride {backbone.patch}; set --stride {backbone.patch}"
        )
    dense = copy.deepcopy(backbone).eval().to(device)
    if isinstance(dense.network, ResNet):
        original = 64 // _map_shape(dense, 64, 64, device)[1]
        halvings = round(math.log2(original / stride))
        if not 0 <= halvings < len(DENSER):
            known = ", ".join(str(original // 2**number) for number in range(len(DENSER)))
            raise UserError(f"stride: {backbone.name} has no feature map of stride {stride}; it has {known}")
        dense = restride(dense, *DENSER[halvings])
    side = -(-crop_size // stride)
    # A non-square input detects networks with a fixed input size, which would fail later on the test images.
    dim, height, width = _map_shape(dense, side * stride, (side + 1) * stride, device)
    if (height, width) != (side, side + 1):
        raise UserError(
            f"{backbone.source}: {backbone.name} has a feature map of {height}x{width} cells where stride {stride} "
            f"needs {side}x{side + 1}; use another stride"
        )
    return dense, dim


def _map_shape(backbone: Backbone, height: int, width: int, device: torch.device) -> tuple[int, int, int]:
    """Return the shape (dim, h', w') of the last map of an image of this size."""
    with torch.inference_mode():
        try:
            dim, rows, columns = backbone.feature_map(torch.zeros(1, 3, height, width, device=device), STAGE).shape[1:]
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"{backbone.source}: {backbone.name} gives no feature map of {height}x{width} pixels ({error}); "
                "segmentation needs a network that takes images of any size"
            ) from error
    return dim, rows, columns


def make_head(kind: str, dim: int, num_classes: int, seed: int) -> nn.Sequential:
    """Return a new head, `linear` or `fcn`: maps (batch, dim, h, w) → scores (batch, num_classes, h, w).

    `linear` has a BatchNorm without affine weights: it is still linear, and one learning rate works for backbones of
    any scale. `fcn` has two 3x3 convolutions with a quarter of the channels before its classifier.
    """
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        classifier = nn.Conv2d(dim if kind == "linear" else dim // 4, num_classes, 1)
        nn.init.normal_(classifier.weight, std=INITIAL_DEVIATION)
        assert classifier.bias is not None
        nn.init.zeros_(classifier.bias)
        if kind == "linear":
            standardize = nn.BatchNorm2d(dim, affine=False)
            return nn.Sequential(OrderedDict(standardize=standardize, classifier=classifier))
        layers = [*_convolution(dim, dim // 4), *_convolution(dim // 4, dim // 4)]
        return nn.Sequential(*layers, nn.Dropout(DROPOUT), classifier)


def _convolution(in_dim: int, dim: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_dim, dim, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(dim), nn.ReLU(inplace=True)


@dataclass(frozen=True)
class RandomCrop:
    """Random scaling by 0.5 to 2, square crop and horizontal flip, as a function of (seed, epoch, position).

    Pixels outside of the image have the color `fill` and the label IGNORE.
    """

    seed: int
    epoch: int
    size: int
    flip: bool
    fill: tuple[int, int, int]

    def __call__(self, image: Pixels, position: int) -> Pixels:
        """Return the crop (size, size, 4) of RGB and label (height, width, 4)."""
        rng = random_stream(self.seed, self.epoch, position, QUERY)
        image = _scale(image, float(rng.uniform(*SCALES)))
        height, width = image.shape[:2]
        top, left = (int(rng.integers(max(side - self.size, 0) + 1)) for side in (height, width))
        part = image[top : top + self.size, left : left + self.size]
        crop = np.full((self.size, self.size, 4), (*self.fill, IGNORE), np.uint8)
        crop[: part.shape[0], : part.shape[1]] = part
        return crop[:, ::-1].copy() if rng.random() < 0.5 and self.flip else crop


def _scale(image: Pixels, scale: float) -> Pixels:
    """Scale colors by averaging or linearly, and labels by the nearest one."""
    target = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    colors = cv2.resize(np.ascontiguousarray(image[..., :3]), target, interpolation=method)
    labels = cv2.resize(np.ascontiguousarray(image[..., 3]), target, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.dstack([colors, labels])


def fit(
    segmenter: Segmenter,
    train: MaskedSplit,
    positions: Sequence[int],
    epochs: int,
    config: SegmentationConfig,
    loading: Loading,
    cache: ResumeCache,
) -> float:
    """Train in place on the images at these positions, and return the mean loss of the last epoch.

    Trains the head alone where `config.frozen`, else the backbone too.
    """
    trained: dict[str, nn.Module] = {"head": segmenter.head}
    if not config.frozen:
        trained["backbone"] = segmenter.backbone
    for module in trained.values():
        module.train()
    optimizer = torch.optim.SGD(
        [parameter for module in trained.values() for parameter in module.parameters()],
        config.learning_rate,
        MOMENTUM,
        weight_decay=config.weight_decay,
    )

    def loss_of(batch: Tensor) -> Iterator[Tensor]:
        pixels, labels = batch[:, :3], batch[:, 3].long()
        with torch.set_grad_enabled(not config.frozen):
            maps = segmenter.maps(pixels)
        if config.frozen:
            check_finite(maps, segmenter.backbone)
        yield pixel_loss(segmenter.classify(maps, *labels.shape[-2:]), labels)

    losses = train_epochs(
        "segmentation",
        trained,
        optimizer,
        lambda epoch: _batches(segmenter, train, positions, epoch, epochs, config, loading),
        loss_of,
        lambda epoch: float((1 - epoch / epochs) ** POWER),
        epochs,
        config.seed,
        cache,
    )
    return losses[-1]


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of scores (batch, classes, h, w) over the pixels whose label is not IGNORE.

    It is 0 where all pixels are ignored.
    """
    total = functional.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def _batches(
    segmenter: Segmenter,
    train: MaskedSplit,
    positions: Sequence[int],
    epoch: int,
    epochs: int,
    config: SegmentationConfig,
    loading: Loading,
) -> Iterator[Tensor]:
    """Yield the batches of an epoch, RGB and label uint8 (batch, 4, size, size), in the epoch's own order."""
    red, green, blue = (round(255 * value) for value in segmenter.backbone.mean)
    crop = RandomCrop(config.seed, epoch, loading.image_size, config.flip, (red, green, blue))
    order = random_stream(config.seed, epoch, 0, ORDER).permutation(positions).tolist()
    batches, title = split_batches(order, loading.batch_size), f"segmentation, epoch {epoch + 1} of {epochs}"
    for batch in load_image_batches(train, crop, batches, loading.workers, title, epoch, epochs):
        if batch.problems:
            raise UserError(*batch.problems)
        yield from on_device(loading.device, batch.pixels)


def split_batches(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split an epoch into batches.

    A last batch with a single image is dropped, because its batch statistics are not useful.
    """
    batches = chunks(order, size)
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches
