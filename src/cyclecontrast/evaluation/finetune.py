"""The protocol `finetune`: trains a copy of the backbone with a new classifier end to end, then classifies.

The given backbone is not modified. The paper has no such protocol. The last epoch is evaluated; none is selected.
"""

import copy

import torch
from torch import nn

from cyclecontrast.config import FinetuneConfig
from cyclecontrast.config.types import is_user_defined
from cyclecontrast.data.device_augment import on_device
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.evaluation.classification import (
    ClassificationProtocol,
    doubts,
    leaked,
    untested_class_notes,
    untrained_class_notes,
)
from cyclecontrast.evaluation.embed import Loading
from cyclecontrast.evaluation.epochs import EpochReader, train_classifier
from cyclecontrast.evaluation.linear import MOMENTUM, REFERENCE_BATCH, initial_head
from cyclecontrast.evaluation.protocol import Part, Predictions, Protocol
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import Backbone, Pooled


class Finetune(ClassificationProtocol[FinetuneConfig]):
    """Classification after training the whole network end to end."""

    name = "finetune"
    config_class = FinetuneConfig

    def predict(self, backbone: Backbone, data: LabeledImages, cache: ResumeCache) -> Predictions:
        """Train on single images, then rank the classes of each test item.

        For videos, by the mean softmax of their frames. Training is in single precision, and repeats to the bit on the
        same device.
        """
        config, loading = self.config, Loading.of(self.config, backbone)
        classifier = make_classifier(backbone, len(data.classes), config.seed).to(loading.device)
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
        )
        if config.level == "video":
            classifier.network = nn.Sequential(classifier.network, nn.Softmax(dim=1))
        test = self.embed_items(classifier, data.test, "test", cache)
        unread = reader.unread()
        learned, num_learned = self.readable(data.train, unread)
        return Predictions(
            self.ranked_table({"": test.vectors}, test, data),
            f"finetune level={config.level}" + (" mean=softmax" if config.level == "video" else ""),
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

    def parts(self, backbone: Backbone, data: LabeledImages) -> list[Part]:
        """Raise UserError: training runs in one process."""
        return Protocol.parts(self, backbone, data)


def make_classifier(backbone: Backbone, num_classes: int, seed: int) -> Backbone:
    """Return a copy of the backbone that gives logits (batch, num_classes) by a new last layer."""
    classifier = copy.deepcopy(backbone).requires_grad_(True)
    network = nn.Sequential(classifier.network, Pooled()) if is_user_defined(backbone.name) else classifier.network
    classifier.network = nn.Sequential(network, initial_head(backbone.dim, num_classes, seed))
    classifier.dim, classifier.source = num_classes, f"{backbone.source}, fine-tuned"
    return classifier
