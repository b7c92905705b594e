"""Pixels → vectors of a frozen backbone, in single precision, so that the same input gives the same numbers."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cyclecontrast.config import EmbedConfig, EvaluateConfig
from cyclecontrast.data.labeled import raise_problems
from cyclecontrast.errors import UserError
from cyclecontrast.evaluate.image_batches import CenterCrop, ImageBatch, Images, in_order, load_image_batches
from cyclecontrast.model.backbone import Backbone
from cyclecontrast.model.hardware import pick_device, pick_workers


class Loading(NamedTuple):
    """How images reach the network; `image_size` is the side of the crop in pixels."""

    image_size: int
    batch_size: int
    workers: int
    device: torch.device

    @staticmethod
    def of(config: EvaluateConfig | EmbedConfig, backbone: Backbone) -> "Loading":
        """Resolve what the options leave open; raises UserError for an absent device."""
        size = config.image_size or backbone.image_size
        device = pick_device(config.device)
        return Loading(size, config.batch_size, pick_workers(config.workers, device), device)


class Embeddings(NamedTuple):
    """Vectors float32 (num_images, dim), the position of each, and a line for each image that is not there."""

    vectors: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int64]
    problems: tuple[str, ...]


@contextlib.contextmanager
def frozen(backbone: Backbone, device: torch.device) -> Iterator[Backbone]:
    """Hold a backbone in evaluation mode on the device, and its convolutions to exact repeatable arithmetic."""
    training = backbone.training
    backbone.eval().to(device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        try:
            yield backbone
        finally:
            backbone.train(training)


def encode(backbone: Backbone, batch: ImageBatch, device: torch.device) -> Tensor:
    """Return the representations of a batch (batch, dim); raises UserError where they are not finite."""
    with torch.inference_mode():
        features: Tensor = backbone(backbone.normalise(batch.pixels.to(device, non_blocking=True))).float()
        if not bool(features.isfinite().all()):
            raise UserError(f"{backbone.source}: the backbone gives values that are not finite; its weights are broken")
    return features


def embed_batches(backbone: Backbone, images: Images, loading: Loading, title: str) -> Iterator[Embeddings]:
    """Embed the centre crops of all images, batch by batch in order."""
    batches = in_order(len(images), loading.batch_size)
    loaded = load_image_batches(images, CenterCrop(loading.image_size), batches, loading.workers, title)
    with frozen(backbone, loading.device):
        for batch in loaded:
            size = len(batch.positions)
            vectors = encode(backbone, batch, loading.device).cpu() if size else torch.empty(0, backbone.dim)
            yield Embeddings(vectors.numpy(), batch.positions.numpy(), batch.problems)


def embed_images(backbone: Backbone, images: Images, loading: Loading, title: str) -> npt.NDArray[np.float32]:
    """Return one vector per image (num_images, dim); raises UserError naming the images that cannot be read."""
    batches = list(embed_batches(backbone, images, loading, title))
    raise_problems([problem for batch in batches for problem in batch.problems])
    return np.concatenate([batch.vectors for batch in batches])
