"""Pixels → vectors of a frozen backbone, in single precision, so that the same input gives the same numbers."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.finite import check_finite
from cyclecontrast.evaluation.image_batches import CenterCrop, ImageBatch, Images, in_order, load_image_batches
from cyclecontrast.evaluation.shares import Part
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.hardware import pick_device, pick_workers

IMAGES_PER_PART = 2**14


class HowToLoad(Protocol):
    """The options of a command that embeds images."""

    @property
    def image_size(self) -> int | None:
        """Side of the crop in pixels; None: what the backbone was trained at."""

    @property
    def batch_size(self) -> int:
        """Images per forward pass."""

    @property
    def workers(self) -> int | None:
        """Processes that load images."""

    @property
    def device(self) -> str:
        """Name of the device."""


class Loading(NamedTuple):
    """How images reach the network; `image_size` is the side of the crop in pixels."""

    image_size: int
    batch_size: int
    workers: int
    device: torch.device

    @staticmethod
    def of(config: HowToLoad, backbone: Backbone) -> "Loading":
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
    """Hold a backbone in evaluation mode on the device, and its convolutions to exact repeatable arithmetic.

    Afterwards it is on the device that it came from, and each of its modules in the mode that it had.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    home = next(backbone.parameters()).device
    backbone.eval().to(device)
    with exact_convolutions():
        try:
            yield backbone
        finally:
            backbone.to(home)
            for module, mode in modes:
                module.training = mode


def exact_convolutions() -> contextlib.AbstractContextManager[None]:
    """Hold convolutions on a GPU to single precision and to algorithms that repeat to the bit."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def encode(backbone: Backbone, batch: ImageBatch, device: torch.device) -> Tensor:
    """Return the representations of a batch (batch, dim); raises UserError where they are not finite."""
    with torch.inference_mode():
        features: Tensor = backbone(backbone.normalise(batch.pixels.to(device, non_blocking=True))).float()
        check_finite(features, backbone)
    return features


def embed_batches(
    backbone: Backbone, images: Images, loading: Loading, title: str, batches: Sequence[Sequence[int]] | None = None
) -> Iterator[Embeddings]:
    """Embed the centre crops of all images, or of these batches of positions, batch by batch in order."""
    batches = in_order(len(images), loading.batch_size) if batches is None else batches
    loaded = load_image_batches(images, CenterCrop(loading.image_size), batches, loading.workers, title)
    with frozen(backbone, loading.device):
        for batch in loaded:
            size = len(batch.positions)
            vectors = encode(backbone, batch, loading.device).cpu() if size else torch.empty(0, backbone.dim)
            yield Embeddings(vectors.numpy(), batch.positions.numpy(), batch.problems)


def embed_images(
    backbone: Backbone, images: Images, loading: Loading, title: str, unfinished: Unfinished
) -> Embeddings:
    """Embed all images that can be read; what was embedded before a stop is not embedded again.

    Raises UserError where none can be read.
    """
    parts = [unfinished.arrays(part.name, part.whole) for part in parts_of_images(backbone, images, loading, title)]
    vectors, positions, problems = (np.concatenate([part[name] for part in parts]) for name in Embeddings._fields)
    if len(positions) == 0:
        raise UserError(f"{title}: none of the {len(images):,} images can be read", *problems[:3].tolist())
    return Embeddings(vectors, positions, tuple(problems.tolist()))


def parts_of_images(backbone: Backbone, images: Images, loading: Loading, title: str) -> list[Part]:
    """Return all images, in order, as the parts that a process embeds at once; their items are whole batches."""
    batches = in_order(len(images), loading.batch_size)
    per_part = max(1, IMAGES_PER_PART // loading.batch_size)
    asked = [batches[start : start + per_part] for start in range(0, len(batches), per_part)]
    make = partial(_embed_part, backbone, images, loading, title)
    return [Part(f"{title}-{part[0][0]}-{part[-1][-1]}", part, make) for part in asked]


def _embed_part(
    backbone: Backbone, images: Images, loading: Loading, title: str, batches: Sequence[Sequence[int]]
) -> Arrays:
    made = list(embed_batches(backbone, images, loading, title, batches))
    return {
        "vectors": np.concatenate([batch.vectors for batch in made]),
        "positions": np.concatenate([batch.positions for batch in made]),
        "problems": np.array([problem for batch in made for problem in batch.problems], dtype=str),
    }
