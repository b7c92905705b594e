"""Training a head on crops of images with masks, the backbone frozen or trained along.

VITO-like (protocols.md §g): its crops, batch and epochs; learning rate and weight decay were swept there.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclecontrast.config import SegmentationConfig
from cyclecontrast.data.mask_layouts import IGNORE
from cyclecontrast.data.masked_images import MaskedSplit
from cyclecontrast.data.pairs import ORDER, random_stream
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embeddings import frozen
from cyclecontrast.evaluation.epochs import train_epochs
from cyclecontrast.evaluation.finite import check_finite
from cyclecontrast.evaluation.image_batches import load_image_batches
from cyclecontrast.evaluation.segmentation.crops import RandomCrop
from cyclecontrast.evaluation.segmentation.dense import Dense, enlarge, make_dense
from cyclecontrast.evaluation.segmentation.heads import make_head
from cyclecontrast.evaluation.unfinished import Unfinished
from cyclecontrast.models.backbone import Backbone

MOMENTUM = 0.9
POWER = 0.9


class Segmenter(NamedTuple):
    """A backbone of its own, with a head."""

    dense: Dense
    head: nn.Module

    def scores(self, pixels: Tensor) -> Tensor:
        """Return scores (batch, num_classes, h, w) of uint8 (batch, 3, h, w); raises UserError for broken weights."""
        maps = self.dense.maps(pixels)
        check_finite(maps, self.dense.backbone)
        return enlarge(self.head(maps), self.dense.stride, *pixels.shape[-2:])


class Hardware(NamedTuple):
    """Where networks run, and how many processes load images."""

    device: torch.device
    workers: int


def make_segmenter(backbone: Backbone, num_classes: int, config: SegmentationConfig, device: torch.device) -> Segmenter:
    """Put a new head on a copy of a backbone; raises UserError where its feature map does not serve."""
    dense = make_dense(backbone, config.stride, config.crop_size, device)
    return Segmenter(dense, make_head(config.head, dense.channels, num_classes, config.seed).to(device))


def fit(
    segmenter: Segmenter,
    train: MaskedSplit,
    positions: Sequence[int],
    epochs: int,
    config: SegmentationConfig,
    hardware: Hardware,
    unfinished: Unfinished,
) -> float:
    """Train in place on the images at these positions, and return the mean loss of the last epoch."""
    dense, head = segmenter
    modules: dict[str, nn.Module] = {"head": head} if config.frozen else {"head": head, "backbone": dense.backbone}
    for module in modules.values():
        module.to(hardware.device).train()
    optimizer = torch.optim.SGD(
        [parameter for module in modules.values() for parameter in module.parameters()],
        config.learning_rate,
        MOMENTUM,
        weight_decay=config.weight_decay,
    )

    def parts_of(batch: _Batch) -> Iterator[Tensor]:
        maps = batch.maps if config.frozen else dense.maps(batch.maps)
        scores = enlarge(head(maps), dense.stride, *batch.labels.shape[-2:])
        yield pixel_loss(scores, batch.labels)

    losses = train_epochs(
        "segmentation",
        modules,
        optimizer,
        lambda epoch: _batches(dense, train, positions, epoch, epochs, config, hardware),
        parts_of,
        lambda epoch: float((1 - epoch / epochs) ** POWER),
        epochs,
        config.seed,
        unfinished,
    )
    return losses[-1]


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of scores (batch, classes, h, w) over the pixels whose label is not IGNORE.

    It is 0 where all are to be ignored.
    """
    total = functional.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


class _Batch(NamedTuple):
    """Feature maps where the backbone is frozen, pixels where not; labels (batch, h, w)."""

    maps: Tensor
    labels: Tensor


def _batches(
    dense: Dense,
    train: MaskedSplit,
    positions: Sequence[int],
    epoch: int,
    epochs: int,
    config: SegmentationConfig,
    hardware: Hardware,
) -> Iterator[_Batch]:
    """Yield the batches of an epoch in its own order."""
    red, green, blue = (round(255 * value) for value in dense.backbone.mean)
    crop = RandomCrop(config.seed, epoch, config.crop_size, config.flip, (red, green, blue))
    order = random_stream(config.seed, epoch, 0, ORDER).permutation(positions).tolist()
    title = f"segmentation, epoch {epoch + 1} of {epochs}"
    for batch in load_image_batches(train, crop, split_batches(order, config.batch_size), hardware.workers, title):
        if batch.problems:
            raise UserError(*batch.problems)
        items = batch.pixels.to(hardware.device, non_blocking=True)
        pixels, labels = items[:, :3], items[:, 3].long()
        yield _Batch(_frozen_maps(dense, pixels, hardware.device) if config.frozen else pixels, labels)


def _frozen_maps(dense: Dense, pixels: Tensor, device: torch.device) -> Tensor:
    with frozen(dense.backbone, device), torch.inference_mode():
        maps = dense.maps(pixels)
    check_finite(maps, dense.backbone)
    # Tensors of inference mode cannot take part in a backward pass; their clones can.
    return maps.clone()


def split_batches(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut an epoch into batches; a last one of a single image is dropped, for batch statistics mean little there."""
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches
