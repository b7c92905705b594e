"""The protocol `finetune`: a copy of the backbone is trained with a new classifier, end to end, then it classifies.

The backbone that was given stays as it is. No protocol of the paper; the last epoch counts, no split chooses one.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from cyclecontrast.config import FinetuneConfig
from cyclecontrast.config.fields import is_own
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.breakdown import doubts, not_learned, not_tested
from cyclecontrast.evaluation.classification import (
    describe,
    embed_items,
    open_data,
    rank,
    ranked_table,
    score,
)
from cyclecontrast.evaluation.embeddings import Loading
from cyclecontrast.evaluation.epochs import step_decay, train_epochs
from cyclecontrast.evaluation.image_batches import ImageBatch
from cyclecontrast.evaluation.random_views import RandomViews
from cyclecontrast.evaluation.sgd_probe import MOMENTUM, REFERENCE_BATCH, initial_head
from cyclecontrast.evaluation.two_steps import Predictions
from cyclecontrast.evaluation.unfinished import Unfinished
from cyclecontrast.models.backbone import Backbone, Pooled

__all__ = ["describe", "open_data", "predict", "score"]


def predict(backbone: Backbone, data: LabeledImages, config: FinetuneConfig, unfinished: Unfinished) -> Predictions:
    """Train on single images, then rank the classes of each test item; a video's are by the mean softmax of its frames.

    Training is in single precision, and repeats to the bit on the same device.
    """
    loading = Loading.of(config, backbone)
    classifier = make_classifier(backbone, len(data.classes), config.seed).to(loading.device)
    views = RandomViews(
        data.train,
        config.seed,
        loading.image_size,
        config.batch_size,
        config.epochs,
        loading.workers,
        "finetune",
        unfinished,
    )
    last_loss = _train(classifier, data, views, config, unfinished)
    if config.level == "video":
        classifier.network = nn.Sequential(classifier.network, nn.Softmax(dim=1))
    test = embed_items(classifier, data.test, config, "test", unfinished)
    learned = np.delete(np.arange(len(data.train)), views.lost())
    num_learned = len(learned) if config.level == "frame" else len(np.unique(data.train.videos[learned]))
    return Predictions(
        ranked_table({"": rank(test.vectors)}, test, data, config),
        f"finetune level={config.level}" + (" mean=softmax" if config.level == "video" else ""),
        (
            *doubts(last_loss, len(data.classes)),
            *not_learned(data.train.labels[learned], data.classes),
            *not_tested(test.labels, data.classes),
        ),
        views.problems() + test.problems,
        {"last_loss": last_loss, "classes": list(data.classes)},
        (num_learned, len(test.labels)),
    )


def make_classifier(backbone: Backbone, num_classes: int, seed: int) -> Backbone:
    """Return a copy of the backbone that gives logits (batch, num_classes) by a new last layer."""
    classifier = copy.deepcopy(backbone).requires_grad_(True)
    network = nn.Sequential(classifier.network, Pooled()) if is_own(backbone.name) else classifier.network
    classifier.network = nn.Sequential(network, initial_head(backbone.dim, num_classes, seed))
    classifier.dim, classifier.source = num_classes, f"{backbone.source}, fine-tuned"
    return classifier


def _train(
    classifier: Backbone, data: LabeledImages, views: RandomViews, config: FinetuneConfig, unfinished: Unfinished
) -> float:
    network, head = classifier.network.children()
    scale = config.batch_size / REFERENCE_BATCH
    groups = [
        {"params": list(network.parameters()), "lr": config.learning_rate * scale},
        {"params": list(head.parameters()), "lr": config.head_learning_rate * scale},
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=config.weight_decay)
    device = next(head.parameters()).device
    labels = torch.from_numpy(data.train.labels).to(device)

    def parts_of(batch: ImageBatch) -> Iterator[Tensor]:
        logits = classifier(classifier.normalise(batch.pixels.to(device, non_blocking=True)))
        yield nn.functional.cross_entropy(logits, labels[batch.positions.to(device)])

    classifier.train()
    losses = train_epochs(
        "finetune",
        {"classifier": classifier},
        optimizer,
        lambda epoch: _of_several(views.batches(epoch)),
        parts_of,
        step_decay(config.epochs),
        config.epochs,
        config.seed,
        unfinished,
    )
    return losses[-1]


def _of_several(batches: Iterator[ImageBatch]) -> Iterator[ImageBatch]:
    """Leave out batches of one image, which have no variance to normalise by; in another epoch it has company."""
    num_steps = 0
    for batch in batches:
        if len(batch.positions) > 1:
            num_steps += 1
            yield batch
    if not num_steps:
        raise UserError("finetune: no batch has two training images that can be read; there is nothing to train on")
