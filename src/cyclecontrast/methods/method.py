"""The interface between methods and the trainer, and the base class of methods with a momentum encoder and queues."""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, FurtherFrames, no_further_frames
from cyclecontrast.distributed import ALONE, World, gather
from cyclecontrast.loss import KeyQueue, is_nearest
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.encoder import Encoder, Features, Projections, follow, make_momentum_encoder
from cyclecontrast.models.hardware import autocast, compiled


class StepInfo(NamedTuple):
    """The position in the training; with `measure` the method also returns accuracies for the metrics."""

    step: int
    num_steps: int
    measure: bool = False

    @property
    def progress(self) -> float:
        """Completed fraction of the training, in [0, 1)."""
        return self.step / self.num_steps


class Losses(NamedTuple):
    """Scalars of a batch: `total` is minimized, the others are its unweighted parts and accuracies, for the metrics.

    `terms` holds additional losses by name. `intra_accuracy` is the fraction of queries whose positive is the most
    similar key, `cycle_closed` the fraction of cycles that close. None means that the method has no such part, or that
    it was not measured.
    """

    total: Tensor
    intra: Tensor | None = None
    cycle: Tensor | None = None
    terms: dict[str, Tensor] | None = None
    intra_accuracy: Tensor | None = None
    cycle_closed: Tensor | None = None


class Method(nn.Module):
    """The networks and the loss of a step. For a custom method pass a subclass: `cc.pretrain(..., method=Subclass)`.

    In each step the trainer runs `forward` and the backward pass for each micro-batch, then the optimizer, then
    `after_step` once. The class attributes describe the method before its networks are built.
    """

    learns_from: ClassVar[str] = "views of the same video"
    """A phrase for the report that completes "it learns from"."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Method-specific options that it uses, to warn about unused ones; custom methods can omit it."""
    same_frame: ClassVar[bool] = False
    """Whether query and positive show the same frame; otherwise two frames of the video."""
    num_queries: ClassVar[int] = 1
    """Views of each video that the encoder encodes with a gradient."""
    num_enqueued: ClassVar[int] = 0
    """Keys of each video that are enqueued in each step."""
    has_intra: ClassVar[bool] = False
    """Whether there is an intra-video loss with a queue."""
    has_cycle: ClassVar[bool] = False
    """Whether there is a cycle loss."""
    always_batch_keys: ClassVar[bool] = False
    """Whether batch keys are candidates regardless of the option `batch_keys`."""
    compares_queries: ClassVar[bool] = False
    """Whether the loss of a query depends on other queries of the batch, so that micro-batches would change it."""
    constant_head_rate: ClassVar[bool] = False
    """Whether the learning rate of the head is constant."""

    head: nn.Module | None
    """A module trained in addition to the encoder, such as a predictor; None if there is none."""

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__()
        self.options, self.world, self.head = options, world, None
        self.encoder = Encoder(backbone, options.projector, options.projector_dim)
        self._project = self.encoder.project

    @classmethod
    def frames(cls, options: PretrainConfig) -> tuple[bool, FurtherFrames]:
        """Return whether query and positive show the same frame, and a function that draws frames of extra views."""
        return cls.same_frame, no_further_frames

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses of a micro-batch, whose views are uint8 tensors on the device."""
        raise NotImplementedError

    def after_step(self, info: StepInfo) -> None:
        """Called once after each optimizer step; does nothing by default."""

    def cycle_weight(self, info: StepInfo) -> float | None:
        """Return λ of Eq. 6 in a step, for the metrics; None if the method has no λ."""
        return None

    def project(self, pixels: Tensor) -> Projections:
        """Encode uint8 views (batch, 3, h, w) → projector outputs, in the configured precision."""
        images = self.encoder.backbone.normalise(pixels)
        with autocast(pixels.device, self.options.precision):
            return self._project(images)

    def encode(self, pixels: Tensor) -> Features:
        """Encode uint8 views (batch, 3, h, w) → unit vectors in fp32."""
        return self.project(pixels).features()

    def compile_encoders(self) -> None:
        """Compile the encoder with torch.compile; state_dict keys stay the same."""
        self._project = compiled(self.encoder.project)

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the optimizer: those of the encoder, then of the head."""
        return [*self.encoder.parameters(), *(self.head.parameters() if self.head is not None else ())]

    def in_batch_accuracy(self, query: Tensor, positive: Tensor, video: Tensor) -> Tensor:
        """Return the fraction of queries that are more similar to their positive than to others of the batch."""
        keys = gather(positive.detach(), self.world)
        candidates = Candidates(keys, gather(video, self.world), self.places(len(video), keys))
        return self.accuracy(query, positive, candidates.keys, candidates.ignore(video, own_video=False))

    def places(self, num_videos: int, keys: Tensor) -> Tensor:
        """Return the indices of this process's keys in the keys gathered from all processes (batch,)."""
        first = self.world.rank * num_videos
        return torch.arange(first, first + num_videos, device=keys.device)

    @staticmethod
    @torch.no_grad()
    def accuracy(query: Tensor, positive: Tensor, keys: Tensor, ignore: Tensor) -> Tensor:
        """Return the fraction of queries whose positive is more similar than every unmasked key."""
        return is_nearest(query, positive, keys, ignore).float().mean()


class Candidates(NamedTuple):
    """The keys that queries are compared with: those of a queue, oldest first, then optionally the batch keys.

    Shapes: keys (num_keys, dim), video (num_keys,). `place` (batch,) is the index of each query's positive, None
    without batch keys. The last `num_fresh` keys are the batch keys.
    """

    keys: Tensor
    video: Tensor
    place: Tensor | None = None
    num_fresh: int = 0

    def ignore(self, video: Tensor, *, own_video: bool) -> Tensor:
        """Return the mask (batch, num_keys) of the query's positive and, with `own_video`, of all keys of its video.

        Differs from the release, which masks nothing: the paper excludes the query's own video (§3.2).
        """
        if own_video:
            mask = self.video == video[:, None]
        else:
            mask = torch.zeros(len(video), len(self.video), dtype=torch.bool, device=video.device)
        return mask if self.place is None else mask.scatter_(1, self.place[:, None], True)

    def fresh_of(self, video: Tensor) -> Tensor:
        """Return the mask (batch, num_keys) of the batch keys of the query's video."""
        fresh = torch.arange(len(self.keys), device=video.device) >= len(self.keys) - self.num_fresh
        return (self.video == video[:, None]) & fresh


class MomentumMethod(Method):
    """A method with a momentum encoder and, if it declares them, queues of its keys (MoCo)."""

    reads = frozenset({"temperature", "momentum", "momentum_ramp", "momentum_rise", "bn_groups"})
    num_enqueued = 1

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        self.momentum_encoder = make_momentum_encoder(self.encoder)
        self._encode_key = self.momentum_encoder.forward
        self._new_keys: list[tuple[Features, Tensor]] = []
        if self.has_intra:
            self.intra_queue = KeyQueue(options.queue_size, options.projector_dim, options.seed)
        if self.has_cycle:
            self.cycle_queue = KeyQueue(options.cycle_queue_size, options.projector_dim, options.seed + 1)

    @torch.no_grad()
    def encode_keys(self, pixels: Tensor, info: StepInfo) -> Features:
        """Encode uint8 views (batch, 3, h, w) with the momentum encoder and shuffled BatchNorm (MoCo's shuffle-BN).

        The views of all processes are shuffled, each process encodes an equal part in groups, and the vectors are
        unshuffled. Otherwise a query and its positive could be matched by the statistics of their batch. A group has
        at least two images, because BatchNorm needs a variance.
        """
        order = torch.randperm(len(pixels) * self.world.size, generator=torch.Generator().manual_seed(self.seed(info)))
        order = order.to(pixels.device)
        mine = slice(self.world.rank * len(pixels), (self.world.rank + 1) * len(pixels))
        shuffled = gather(pixels, self.world)[order[mine]]  # uint8: a quarter of the size of normalized images
        num_groups = max(1, min(self.options.bn_groups // self.world.size, len(pixels) // 2))
        with autocast(pixels.device, self.options.precision):
            normalise = self.encoder.backbone.normalise
            groups = [self._encode_key(normalise(group)) for group in shuffled.tensor_split(num_groups)]
        back = torch.argsort(order)[mine]
        return Features(*(gather(torch.cat(parts), self.world)[back] for parts in zip(*groups, strict=True)))

    def enqueue_later(self, keys: Sequence[Features], video: Tensor) -> tuple[Features, Tensor]:
        """Return the keys of all processes and the numbers of their videos; `after_step` will enqueue them."""
        intra, cycle = (torch.cat([gather(part, self.world) for part in parts]) for parts in zip(*keys, strict=True))
        new = Features(intra, cycle), gather(video, self.world).repeat(len(keys))
        self._new_keys.append(new)
        return new

    def candidates(self, queue: KeyQueue, new_keys: Tensor, new_video: Tensor) -> Candidates:
        """Return the keys of the queue and, with `batch_keys`, of the current batch.

        Differs from the release with `batch_keys`: without batch keys the positive is the only key of the current
        momentum encoder, which the network can exploit (docs/log.md).
        """
        if not (self.options.batch_keys or self.always_batch_keys):
            return Candidates(queue.keys, queue.video)
        num_videos = len(new_keys) // (self.num_enqueued * self.world.size)
        keys, video = queue.joined(new_keys, new_video)
        return Candidates(keys, video, len(queue.keys) + self.places(num_videos, keys), len(new_keys))

    def seed(self, info: StepInfo) -> int:
        """Return the random seed of a step, which is the same in all processes."""
        return self.options.seed * 1_000_003 + info.step

    def after_step(self, info: StepInfo) -> None:
        """Update the momentum encoder, then push the batch keys into the queues (Algorithm 1)."""
        follow(self.momentum_encoder, self.encoder, self.momentum(info))
        for keys, video in self._new_keys:
            if self.has_intra:
                self.intra_queue.push(keys.intra, video)
            if self.has_cycle:
                self.cycle_queue.push(keys.cycle, video)
        self._new_keys.clear()

    def momentum(self, info: StepInfo) -> float:
        """Return the momentum m of a step.

        With `momentum_ramp` r it is at most step / (step + r); with `momentum_rise` it increases to 1 along a half
        cosine (BYOL). Differs from the release with a ramp: a low momentum at first tracks the encoder while it changes
        fast; without it, training on small data hardly starts (docs/log.md).
        """
        momentum, ramp = self.options.momentum, self.options.momentum_ramp
        if self.options.momentum_rise:
            return 1 - (1 - momentum) * (math.cos(math.pi * info.progress) + 1) / 2
        return momentum if ramp == 0 else min(momentum, info.step / (info.step + ramp))

    def compile_encoders(self) -> None:
        """Compile the encoder and the momentum encoder."""
        super().compile_encoders()
        self._encode_key = compiled(self.momentum_encoder.forward)
