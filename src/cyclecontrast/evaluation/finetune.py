"""The protocol `finetune`: trains a copy of the backbone with a new classifier end to end, then classifies.

The given backbone is not modified. The paper has no such protocol. The last epoch is evaluated; none is selected.
The preset `gbcu` is the protocol of the gallbladder ultrasound images of Basu et al. (2022): a hidden layer before the
classifier, crops without flip, a cosine that is cut off, and metrics of malignant images against the rest.
Differs from its release: that reports the epoch that is best on the test fold.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

from cyclecontrast.config import FinetuneConfig
from cyclecontrast.config.types import is_user_defined
from cyclecontrast.data.device_augment import on_device
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.classification import (
    RANKED,
    ClassificationProtocol,
    doubts,
    leaked,
    untested_class_notes,
    untrained_class_notes,
)
from cyclecontrast.evaluation.embed import Loading
from cyclecontrast.evaluation.epochs import EpochReader, RandomPlace, RandomView, train_classifier
from cyclecontrast.evaluation.linear import MOMENTUM, REFERENCE_BATCH, initial_head
from cyclecontrast.evaluation.predictions import Record, column_to_matrix
from cyclecontrast.evaluation.protocol import Part, Predictions, Protocol, Score
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import Backbone, Pooled

HIDDEN, DROPOUT = 256, 0.4
COSINE_EPOCHS, LAST_RATE = 50, 1e-6
"""Of the preset gbcu: the cosine reaches its last rate after 50 epochs, but training ends after 30."""
MALIGNANT = 2


class Finetune(ClassificationProtocol[FinetuneConfig]):
    """Classification after training the whole network end to end."""

    name = "finetune"
    config_class = FinetuneConfig

    def open(self) -> LabeledImages:
        """Read the data; raises UserError, also where the preset needs other classes."""
        data = super().open()
        if self.config.preset == "gbcu" and len(data.classes) != 3:
            raise UserError(
                f"{data.root}: has {len(data.classes)} classes, but preset gbcu needs three: normal, benign and "
                "malignant, in this order"
            )
        return data

    def predict(self, backbone: Backbone, data: LabeledImages, cache: ResumeCache) -> Predictions:
        """Train on single images, then rank the classes of each test item.

        For videos, by the mean softmax of their frames. Training is in single precision, and repeats to the bit on the
        same device.
        """
        config, loading, is_gbcu = self.config, Loading.of(self.config, backbone), self.config.preset == "gbcu"
        last_layers = hidden_head if is_gbcu else initial_head
        new_head = last_layers(backbone.dim, len(data.classes), config.seed)
        classifier = make_classifier(backbone, new_head, len(data.classes)).to(loading.device)
        network, head = classifier.network.children()
        scale = config.batch_size / REFERENCE_BATCH
        groups = [
            {"params": list(network.parameters()), "lr": config.learning_rate * scale},
            {"params": list(head.parameters()), "lr": config.head_learning_rate * scale},
        ]
        items = f"{len(data.train):,} training images"
        reader = EpochReader("finetune", items, config.epochs, loading.workers, cache)
        classifier.train()
        last_loss = train_classifier(
            {"classifier": classifier},
            torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=config.weight_decay),
            lambda batch: classifier(classifier.normalize(*on_device(loading.device, batch.pixels))),
            data.train,
            config,
            loading.image_size,
            reader,
            # BatchNorm needs at least two images; a dropped image is in another batch in the next epoch.
            smallest_batch=2,
            view=RandomPlace if is_gbcu else RandomView,
            decay=cosine_decay(config.learning_rate * scale) if is_gbcu else None,
        )
        if config.level == "video":
            classifier.network = nn.Sequential(classifier.network, nn.Softmax(dim=1))
        test = self.embed_items(classifier, data.test, "test", cache)
        unread = reader.unread()
        learned, num_learned = self.readable(data.train, unread)
        return Predictions(
            self.ranked_table({"": test.vectors}, test, data),
            f"finetune{' preset=gbcu' * is_gbcu} level={config.level}"
            + (" mean=softmax" if config.level == "video" else ""),
            (
                *data.notes,
                *doubts(last_loss, len(data.classes)),
                *untrained_class_notes(learned, data.classes),
                *untested_class_notes(test.labels, data.classes),
                *leaked(data.train, data.test),
            ),
            (*unread.values(), *test.problems),
            {"last_loss": last_loss, "classes": list(data.classes)},
            (num_learned, len(test.labels)),
        )

    def score(self, record: Record) -> Score:
        """Score as the other protocols do; with the preset gbcu also malignant images against the rest."""
        score = super().score(record)
        if record.about.config.get("preset") != "gbcu":
            return score
        truth = record.table["label"].to_numpy() == MALIGNANT
        said = column_to_matrix(record.table[RANKED])[:, 0] == MALIGNANT
        parts = {"accuracy": truth == truth, "specificity": ~truth, "sensitivity": truth}
        metrics = {name: float((said == truth)[part].mean()) for name, part in parts.items() if part.any()}
        return score._replace(metrics=metrics | score.metrics)

    def parts(self, backbone: Backbone, data: LabeledImages) -> list[Part]:
        """Raise UserError: training runs in one process."""
        return Protocol.parts(self, backbone, data)


def hidden_head(dim: int, num_classes: int, seed: int) -> nn.Sequential:
    """Return a classifier with a hidden layer and dropout, with PyTorch's initialization."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, num_classes))


def cosine_decay(rate: float) -> Callable[[int], float]:
    """Return the schedule that scales this rate along half a cosine to LAST_RATE at COSINE_EPOCHS."""
    last = LAST_RATE / rate
    return lambda epoch: last + (1 - last) * (1 + math.cos(math.pi * epoch / COSINE_EPOCHS)) / 2


def make_classifier(backbone: Backbone, head: nn.Module, num_classes: int) -> Backbone:
    """Return a copy of the backbone that gives logits (batch, num_classes) by a new head."""
    classifier = copy.deepcopy(backbone).requires_grad_(True)
    network = nn.Sequential(classifier.network, Pooled()) if is_user_defined(backbone.name) else classifier.network
    classifier.network = nn.Sequential(network, head)
    classifier.dim, classifier.source = num_classes, f"{backbone.source}, fine-tuned"
    return classifier
