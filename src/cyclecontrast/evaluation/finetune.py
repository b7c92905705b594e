"""The protocol `finetune`: a copy of the backbone is trained with a new classifier, end to end, then it classifies.

The given backbone stays as it is. The paper has no such protocol; the last epoch counts, no split chooses one.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from cyclecontrast.config import FinetuneConfig
from cyclecontrast.config.types import is_user_defined
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.classification import ClassificationProtocol, doubts, not_learned, not_tested
from cyclecontrast.evaluation.embed import Loading
from cyclecontrast.evaluation.epochs import EpochReader, random_view_batches, step_decay, train_epochs
from cyclecontrast.evaluation.image_batches import ImageBatch
from cyclecontrast.evaluation.linear import MOMENTUM, REFERENCE_BATCH, initial_head
from cyclecontrast.evaluation.protocol import Part, Predictions, Protocol
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import Backbone, Pooled


class Finetune(ClassificationProtocol[FinetuneConfig]):
    """Classification after training the whole network end to end."""

    name = "finetune"
    config_class = FinetuneConfig

    def predict(self, backbone: Backbone, data: LabeledImages, cache: ResumeCache) -> Predictions:
        """Train on single images, then rank each test item's classes; a video's by the mean softmax of its frames.

        Training is in single precision, and repeats to the bit on the same device.
        """
        config, loading = self.config, Loading.of(self.config, backbone)
        classifier = make_classifier(backbone, len(data.classes), config.seed).to(loading.device)
        items = f"{len(data.train):,} training images"
        reader = EpochReader("finetune", items, config.epochs, loading.workers, cache)
        last_loss = self._train(classifier, data, loading, reader)
        if config.level == "video":
            classifier.network = nn.Sequential(classifier.network, nn.Softmax(dim=1))
        test = self.embed_items(classifier, data.test, "test", cache)
        unread = reader.unread()
        learned = np.delete(np.arange(len(data.train)), list(unread))
        num_learned = len(learned) if config.level == "frame" else len(np.unique(data.train.videos[learned]))
        return Predictions(
            self.ranked_table({"": test.vectors}, test, data),
            f"finetune level={config.level}" + (" mean=softmax" if config.level == "video" else ""),
            (
                *doubts(last_loss, len(data.classes)),
                *not_learned(data.train.labels[learned], data.classes),
                *not_tested(test.labels, data.classes),
            ),
            (*unread.values(), *test.problems),
            {"last_loss": last_loss, "classes": list(data.classes)},
            (num_learned, len(test.labels)),
        )

    def parts(self, backbone: Backbone, data: LabeledImages) -> list[Part]:
        """Raise UserError: training runs in one process."""
        return Protocol.parts(self, backbone, data)

    def _train(self, classifier: Backbone, data: LabeledImages, loading: Loading, reader: EpochReader) -> float:
        """Train, and return the mean loss of the last epoch."""
        config = self.config
        network, head = classifier.network.children()
        scale = config.batch_size / REFERENCE_BATCH
        groups = [
            {"params": list(network.parameters()), "lr": config.learning_rate * scale},
            {"params": list(head.parameters()), "lr": config.head_learning_rate * scale},
        ]
        labels = torch.from_numpy(data.train.labels).to(loading.device)

        def batches_of(epoch: int) -> Iterator[ImageBatch]:
            size, batch_size = loading.image_size, config.batch_size
            return _of_several(random_view_batches(reader, data.train, epoch, size, batch_size, config.seed))

        def parts_of(batch: ImageBatch) -> Iterator[Tensor]:
            logits = classifier(classifier.normalise(batch.pixels.to(loading.device, non_blocking=True)))
            yield nn.functional.cross_entropy(logits, labels[batch.positions.to(loading.device)])

        classifier.train()
        losses = train_epochs(
            "finetune",
            {"classifier": classifier},
            torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=config.weight_decay),
            batches_of,
            parts_of,
            step_decay(config.epochs),
            config.epochs,
            config.seed,
            reader.cache,
        )
        return losses[-1]


def make_classifier(backbone: Backbone, num_classes: int, seed: int) -> Backbone:
    """Return a copy of the backbone that gives logits (batch, num_classes) by a new last layer."""
    classifier = copy.deepcopy(backbone).requires_grad_(True)
    network = nn.Sequential(classifier.network, Pooled()) if is_user_defined(backbone.name) else classifier.network
    classifier.network = nn.Sequential(network, initial_head(backbone.dim, num_classes, seed))
    classifier.dim, classifier.source = num_classes, f"{backbone.source}, fine-tuned"
    return classifier


def _of_several(batches: Iterator[ImageBatch]) -> Iterator[ImageBatch]:
    """Leave out batches of one image, which have no variance to normalise by; another epoch groups it with others."""
    num_steps = 0
    for batch in batches:
        if len(batch.positions) > 1:
            num_steps += 1
            yield batch
    if not num_steps:
        raise UserError("finetune: no batch has two training images that can be read; there is nothing to train on")
