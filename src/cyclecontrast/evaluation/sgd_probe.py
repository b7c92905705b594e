"""The paper's linear probe (protocols.md §b): SGD on the features of random crops, the backbone frozen.

Differs from the release: the last epoch counts, not the best on the test split.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cyclecontrast.config import LinearConfig
from cyclecontrast.data.labeled_images import Numbers, Split
from cyclecontrast.evaluation.embeddings import Loading, encode, frozen
from cyclecontrast.evaluation.epochs import step_decay, train_epochs
from cyclecontrast.evaluation.metrics import Floats
from cyclecontrast.evaluation.random_views import RandomViews
from cyclecontrast.evaluation.unfinished import Unfinished
from cyclecontrast.models.backbone import Backbone

MOMENTUM = 0.9
REFERENCE_BATCH = 256
INITIAL_DEVIATION = 0.01


class SgdHead(NamedTuple):
    """A trained classifier (num_classes, dim), the learning rate it began with, and the mean loss of its last epoch.

    `labels` are those of the training images that could be read, `problems` has a line for each other.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    learning_rate: float
    last_loss: float
    labels: Numbers
    problems: tuple[str, ...]

    def scores(self, vectors: Floats) -> Floats:
        """Return the logits (num_items, num_classes)."""
        logits: Floats = vectors @ self.weight.T + self.bias
        return logits


def fit(backbone: Backbone, train: Split, num_classes: int, config: LinearConfig, unfinished: Unfinished) -> SgdHead:
    """Train on single images, at level video too; raises UserError where the loss does not stay finite."""
    loading = Loading.of(config, backbone)
    head = initial_head(backbone.dim, num_classes, config.seed).to(loading.device)
    learning_rate = config.learning_rate * config.batch_size / REFERENCE_BATCH
    optimizer = torch.optim.SGD(head.parameters(), learning_rate, MOMENTUM, weight_decay=0)
    labels = torch.from_numpy(train.labels).to(loading.device)
    views = RandomViews(
        train,
        config.seed,
        loading.image_size,
        config.batch_size,
        config.epochs,
        loading.workers,
        "linear",
        unfinished,
    )

    def parts_of(batch: _Features) -> Iterator[Tensor]:
        yield nn.functional.cross_entropy(head(batch.vectors), labels[batch.positions])

    losses = train_epochs(
        "linear",
        {"head": head},
        optimizer,
        lambda epoch: _features(backbone, views, epoch, loading.device),
        parts_of,
        step_decay(config.epochs),
        config.epochs,
        config.seed,
        unfinished,
    )
    weight, bias = (parameter.detach().cpu().numpy() for parameter in (head.weight, head.bias))
    learned = np.delete(train.labels, views.lost())
    return SgdHead(weight, bias, learning_rate, losses[-1], learned, views.problems())


def initial_head(dim: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a classifier with weights of N(0, 0.01) and no bias."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        head = nn.Linear(dim, num_classes)
        nn.init.normal_(head.weight, std=INITIAL_DEVIATION)
        nn.init.zeros_(head.bias)
    return head


class _Features(NamedTuple):
    vectors: Tensor
    positions: Tensor


def _features(backbone: Backbone, views: RandomViews, epoch: int, device: torch.device) -> Iterator[_Features]:
    with frozen(backbone, device):
        for batch in views.batches(epoch):
            # Tensors of inference mode cannot take part in a backward pass; their clones can.
            yield _Features(encode(backbone, batch, device).clone(), batch.positions.to(device))
