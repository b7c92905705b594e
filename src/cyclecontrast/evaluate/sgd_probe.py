"""The paper's linear probe (protocols.md §b): SGD on the features of random crops, the backbone frozen.

Differs from the release: the last epoch counts, not the best on the test split.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cyclecontrast.config import LinearConfig
from cyclecontrast.data.augment import Recipe, apply_view, draw_view
from cyclecontrast.data.frames import Pixels
from cyclecontrast.data.labeled import Split
from cyclecontrast.data.pairs import ORDER, QUERY, random_stream
from cyclecontrast.evaluate.embeddings import Loading, encode, frozen
from cyclecontrast.evaluate.epochs import step_decay, train_epochs
from cyclecontrast.evaluate.image_batches import load_image_batches
from cyclecontrast.evaluate.metrics import Floats
from cyclecontrast.evaluate.unfinished import Unfinished
from cyclecontrast.model.backbone import Backbone

RECIPE = Recipe((0.0, 0.0, 0.0, 0.0), 0.0, 0.0, 0.0, min_crop=0.08, flip=True)
MOMENTUM = 0.9
REFERENCE_BATCH = 256
INITIAL_DEVIATION = 0.01


class SgdHead(NamedTuple):
    """A trained classifier (num_classes, dim), the learning rate it began with, and the mean loss of its last epoch."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    learning_rate: float
    last_loss: float
    problems: tuple[str, ...]

    def scores(self, vectors: Floats) -> Floats:
        """Return the logits (num_items, num_classes)."""
        logits: Floats = vectors @ self.weight.T + self.bias
        return logits


@dataclass(frozen=True)
class RandomView:
    """Random crop and flip of the image at a position: a function of (seed, epoch, position)."""

    seed: int
    epoch: int
    size: int

    def __call__(self, image: Pixels, position: int) -> Pixels:
        """Return the view (size, size, 3)."""
        rng = random_stream(self.seed, self.epoch, position, QUERY)
        return apply_view(image, draw_view(rng, image.shape[0], image.shape[1], RECIPE), self.size)


def fit(backbone: Backbone, train: Split, num_classes: int, config: LinearConfig, unfinished: Unfinished) -> SgdHead:
    """Train on single images, at level video too; raises UserError where the loss does not stay finite."""
    loading = Loading.of(config, backbone)
    head = initial_head(backbone.dim, num_classes, config.seed).to(loading.device)
    learning_rate = config.learning_rate * config.batch_size / REFERENCE_BATCH
    optimizer = torch.optim.SGD(head.parameters(), learning_rate, MOMENTUM, weight_decay=0)
    labels = torch.from_numpy(train.labels).to(loading.device)
    problems: dict[str, None] = {}

    def loss_of(batch: _Features) -> Tensor:
        return nn.functional.cross_entropy(head(batch.vectors), labels[batch.positions])

    losses = train_epochs(
        "linear",
        {"head": head},
        optimizer,
        lambda epoch: _features(backbone, train, epoch, config, loading, problems),
        loss_of,
        step_decay(config.epochs),
        config.epochs,
        config.seed,
        unfinished,
    )
    weight, bias = (parameter.detach().cpu().numpy() for parameter in (head.weight, head.bias))
    return SgdHead(weight, bias, learning_rate, losses[-1], tuple(problems))


def initial_head(dim: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a classifier with weights of N(0, 0.01) and no bias."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        head = nn.Linear(dim, num_classes)
        nn.init.normal_(head.weight, std=INITIAL_DEVIATION)
        nn.init.zeros_(head.bias)
    return head


class _Features(NamedTuple):
    vectors: Tensor
    positions: Tensor


def _features(
    backbone: Backbone, train: Split, epoch: int, config: LinearConfig, loading: Loading, problems: dict[str, None]
) -> Iterator[_Features]:
    """Yield the batches of an epoch; lines on images that cannot be read go into `problems`, once each."""
    order = random_stream(config.seed, epoch, 0, ORDER).permutation(len(train)).tolist()
    size = config.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    view = RandomView(config.seed, epoch, loading.image_size)
    title = f"linear, epoch {epoch + 1} of {config.epochs}"
    with frozen(backbone, loading.device):
        for batch in load_image_batches(train, view, batches, loading.workers, title):
            problems.update(dict.fromkeys(batch.problems))
            if not len(batch.positions):
                continue
            # Tensors of inference mode cannot take part in a backward pass; their clones can.
            yield _Features(encode(backbone, batch, loading.device).clone(), batch.positions.to(loading.device))
