"""Training on random clips (protocols.md §c): first the new last layer, then all layers, or the last one further on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cyclecontrast.config import ActionConfig
from cyclecontrast.data.clips import ClipShape
from cyclecontrast.data.labeled_videos import VideoSplit
from cyclecontrast.data.pairs import ORDER, random_stream
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.action.classifier import ClipClassifier
from cyclecontrast.evaluation.action.clip_images import ClipView, RandomClips
from cyclecontrast.evaluation.embeddings import Loading
from cyclecontrast.evaluation.epochs import step_decay, train_epochs
from cyclecontrast.evaluation.image_batches import ImageBatch, load_image_batches
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished

MILESTONES = (6 / 16, 10 / 16, 14 / 16)
FACTOR = 0.3
CLIPS_AT_ONCE = 8
"""What goes through the network together, and what BatchNorm sees, as on each of the release's four GPUs."""


@dataclass(frozen=True)
class ClipEpochs:
    """The batches of each epoch, warm-up included; what could not be read is kept for each, and so survives a stop."""

    videos: VideoSplit
    config: ActionConfig
    loading: Loading
    unfinished: Unfinished

    def batches(self, epoch: int) -> Iterator[ImageBatch]:
        """Yield an epoch in an order of its own, in batches of nearly equal size; raises UserError if it is empty."""
        config = self.config
        clip = ClipShape(config.num_frames, config.fps)
        clips = RandomClips(self.videos, clip, config.clips_per_video, config.seed, epoch)
        view = ClipView(self.loading.image_size, config.flip, config.clips_per_video, config.seed, epoch)
        order = random_stream(config.seed, epoch, 0, ORDER).permutation(len(clips))
        # BatchNorm is not to meet a last batch of one clip.
        asked = [part.tolist() for part in np.array_split(order, -(-len(order) // config.batch_size))]
        title = f"action, epoch {epoch + 1} of {config.warmup_epochs + config.epochs}"
        problems: dict[int, str] = {}
        num_read = 0
        for positions, batch in zip(
            asked, load_image_batches(clips, view, asked, self.loading.workers, title), strict=True
        ):
            read = set(batch.positions.tolist())
            unread = [position // config.clips_per_video for position in positions if position not in read]
            problems |= dict(zip(unread, batch.problems, strict=True))
            num_read += len(read)
            if read:
                yield batch
        if not num_read:
            raise UserError(
                f"action: none of the {len(self.videos):,} training videos can be read", *list(problems.values())[:3]
            )
        self._keep(epoch, problems)

    def problems(self) -> dict[int, str]:
        """Return a line for each video that could not be read in some epoch, when all epochs are over."""
        problems: dict[int, str] = {}
        for epoch in range(self.config.warmup_epochs + self.config.epochs):
            part = self.unfinished.arrays(_part(epoch), dict)
            problems = dict(zip(part["videos"].tolist(), part["problems"].tolist(), strict=True)) | problems
        return dict(sorted(problems.items()))

    def _keep(self, epoch: int, problems: dict[int, str]) -> None:
        def arrays() -> Arrays:
            return {"videos": np.array(list(problems), np.int64), "problems": np.array(list(problems.values()), str)}

        self.unfinished.arrays(_part(epoch), arrays)


def _part(epoch: int) -> str:
    return f"unreadable in epoch {epoch}"


def train(model: ClipClassifier, epochs: ClipEpochs) -> dict[str, list[float]]:
    """Train in two stages, each with an Adam of its own; return the mean losses of each.

    The model is then in evaluation mode. Differs from the release: all randomness comes from the seed.
    """
    config = epochs.config
    finetunes = config.mode == "finetune"
    model.train()
    # Differs from the release: mode linear freezes BatchNorm too, unless `bn` asks for the release's behaviour.
    model.backbone.train(finetunes or config.bn == "train")
    losses = {
        "warm-up": _train_stage("warm-up", model, epochs, range(config.warmup_epochs), False),
        "training": _train_stage("training", model, epochs, _after(config), finetunes),
    }
    model.eval()
    return losses


def _after(config: ActionConfig) -> range:
    return range(config.warmup_epochs, config.warmup_epochs + config.epochs)


def _train_stage(
    name: str, model: ClipClassifier, epochs: ClipEpochs, numbers: range, trains_backbone: bool
) -> list[float]:
    config, device = epochs.config, epochs.loading.device
    labels = torch.from_numpy(epochs.videos.labels).to(device)

    def parts_of(batch: ImageBatch) -> Iterator[Tensor]:
        size = len(batch.positions)
        for pixels, positions in zip(
            *(tensor.tensor_split(math.ceil(size / CLIPS_AT_ONCE)) for tensor in (batch.pixels, batch.positions)),
            strict=True,
        ):
            with torch.set_grad_enabled(trains_backbone):
                features = model.features(pixels.to(device, non_blocking=True))
            videos = positions.to(device) // config.clips_per_video
            loss = nn.functional.cross_entropy(model.logits(features), labels[videos], reduction="sum")
            yield loss / size

    trained = model if trains_backbone else model.head
    decay = step_decay(len(numbers), MILESTONES, FACTOR)
    return train_epochs(
        f"action {name}",
        {"model": model if model.backbone.training else model.head},
        torch.optim.Adam(trained.parameters(), config.learning_rate, weight_decay=0),
        lambda epoch: epochs.batches(numbers[epoch]),
        parts_of,
        decay if name == "training" else lambda _: 1.0,
        len(numbers),
        config.seed,
        epochs.unfinished,
    )
