"""The contract between methods and the trainer, and what methods with a momentum encoder and queues share (MoCo)."""

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
    """Where the training is; with `measure` the method also measures how often it finds the positive."""

    step: int
    num_steps: int
    measure: bool = False

    @property
    def progress(self) -> float:
        """Fraction of the training that is done, in [0, 1)."""
        return self.step / self.num_steps


class Losses(NamedTuple):
    """Scalars of a batch: `total` is minimized, the others are its parts before weighting, for the metrics.

    `terms` are further parts by name. Rates are fractions of the batch: queries that find their positive, and cycles
    that close. None: the method has no such part, or it was not measured.
    """

    total: Tensor
    intra: Tensor | None = None
    cycle: Tensor | None = None
    terms: dict[str, Tensor] | None = None
    intra_accuracy: Tensor | None = None
    cycle_closed: Tensor | None = None


class Method(nn.Module):
    """Networks and the loss of a step; a subclass is a method of its own: `cc.pretrain(..., method=Subclass)`.

    The trainer calls `forward` on each micro-batch, the backward pass, the optimizer, then `after_step` once. Class
    attributes say what a method needs of a video before its networks exist.
    """

    learns_from: ClassVar[str] = "views of the same video"
    """In words, for the report."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Names of the options that it reads and other methods may not; not needed for a method of your own."""
    same_frame: ClassVar[bool] = False
    """Whether query and positive show one frame; else two frames of the video."""
    num_queries: ClassVar[int] = 1
    """Views of a video that go through the encoder, with a gradient."""
    num_enqueued: ClassVar[int] = 0
    """Keys of a video that enter the queues in each step."""
    has_intra: ClassVar[bool] = False
    """Whether an intra-video loss compares queries with a queue."""
    has_cycle: ClassVar[bool] = False
    """Whether there is a cycle loss."""
    always_batch_keys: ClassVar[bool] = False
    """Whether the step's keys are candidates whatever the option batch_keys says."""
    compares_queries: ClassVar[bool] = False
    """Whether the loss of a query depends on the batch's other queries, so that micro-batches would change it."""
    constant_head_rate: ClassVar[bool] = False
    """Whether the head trains at a constant learning rate."""

    head: nn.Module | None
    """What is trained beside the encoder: a predictor or a classifier."""

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__()
        self.options, self.world, self.head = options, world, None
        self.encoder = Encoder(backbone, options.projector, options.projector_dim)
        self._project = self.encoder.project

    @classmethod
    def frames(cls, options: PretrainConfig) -> tuple[bool, FurtherFrames]:
        """Return whether query and positive show one frame, and the function that draws frames of further views."""
        return cls.same_frame, no_further_frames

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses of a micro-batch whose views are uint8 on the device."""
        raise NotImplementedError

    def after_step(self, info: StepInfo) -> None:
        """Do what follows the optimizer's step; nothing by default."""

    def cycle_weight(self, info: StepInfo) -> float | None:
        """Return λ of Eq. 6 in a step, for the metrics; None for a method without."""
        return None

    def project(self, pixels: Tensor) -> Projections:
        """Encode uint8 views (batch, 3, h, w) → the projectors' outputs, in the precision of the training."""
        images = self.encoder.backbone.normalise(pixels)
        with autocast(pixels.device, self.options.precision):
            return self._project(images)

    def encode(self, pixels: Tensor) -> Features:
        """Encode uint8 views (batch, 3, h, w) → unit vectors in fp32."""
        return self.project(pixels).features()

    def compile_encoders(self) -> None:
        """Let torch.compile make the encoders faster; what is saved stays the same."""
        self._project = compiled(self.encoder.project)

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer changes: the encoder's parameters, then the head's."""
        return [*self.encoder.parameters(), *(self.head.parameters() if self.head is not None else ())]

    def in_batch_accuracy(self, query: Tensor, positive: Tensor, video: Tensor) -> Tensor:
        """Return how often a query is nearer to its positive than to the batch's other positives."""
        keys = gather(positive.detach(), self.world)
        candidates = Candidates(keys, gather(video, self.world), self.places(len(video), keys))
        return self.accuracy(query, positive, candidates.keys, candidates.ignore(video, own_video=False))

    def places(self, num_videos: int, keys: Tensor) -> Tensor:
        """Return where this process's keys are among the first keys of all processes (batch,)."""
        first = self.world.rank * num_videos
        return torch.arange(first, first + num_videos, device=keys.device)

    @staticmethod
    @torch.no_grad()
    def accuracy(query: Tensor, positive: Tensor, keys: Tensor, ignore: Tensor) -> Tensor:
        """Return how often the positive is more similar to the query than every candidate."""
        return is_nearest(query, positive, keys, ignore).float().mean()


class Candidates(NamedTuple):
    """Keys that queries are compared with: a queue's, oldest first, and perhaps the step's own behind them.

    Shapes: keys (num_keys, dim), video (num_keys,). `place` (batch,) is the index of each query's positive, None where
    the step's keys are not among them; the last `num_fresh` keys are of this step.
    """

    keys: Tensor
    video: Tensor
    place: Tensor | None = None
    num_fresh: int = 0

    def ignore(self, video: Tensor, *, own_video: bool) -> Tensor:
        """Return the mask (batch, num_keys) of the query's positive and, with `own_video`, all keys of its video.

        Differs from the release, which masks nothing: the paper keeps a query's own video out (§3.2).
        """
        if own_video:
            mask = self.video == video[:, None]
        else:
            mask = torch.zeros(len(video), len(self.video), dtype=torch.bool, device=video.device)
        return mask if self.place is None else mask.scatter_(1, self.place[:, None], True)

    def fresh_of(self, video: Tensor) -> Tensor:
        """Return the mask (batch, num_keys) of this step's keys of the query's video."""
        fresh = torch.arange(len(self.keys), device=video.device) >= len(self.keys) - self.num_fresh
        return (self.video == video[:, None]) & fresh


class MomentumMethod(Method):
    """A method with a momentum encoder, whose keys, shuffled for BatchNorm, may enter queues (MoCo)."""

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
        """Encode uint8 views (batch, 3, h, w) with the momentum encoder, so that BatchNorm leaks nothing (shuffle-BN).

        The views of all processes are shuffled together, each process encodes its part in groups, and the vectors
        return to where the views came from. Groups have at least two images, or BatchNorm has no variance.
        """
        order = torch.randperm(len(pixels) * self.world.size, generator=torch.Generator().manual_seed(self.seed(info)))
        order = order.to(pixels.device)
        mine = slice(self.world.rank * len(pixels), (self.world.rank + 1) * len(pixels))
        shuffled = gather(pixels, self.world)[order[mine]]  # bytes: a quarter of the normalized images
        num_groups = max(1, min(self.options.bn_groups // self.world.size, len(pixels) // 2))
        with autocast(pixels.device, self.options.precision):
            normalise = self.encoder.backbone.normalise
            groups = [self._encode_key(normalise(group)) for group in shuffled.tensor_split(num_groups)]
        back = torch.argsort(order)[mine]
        return Features(*(gather(torch.cat(parts), self.world)[back] for parts in zip(*groups, strict=True)))

    def enqueue_later(self, keys: Sequence[Features], video: Tensor) -> tuple[Features, Tensor]:
        """Return the keys of all processes, and their videos; `after_step` enqueues them."""
        intra, cycle = (torch.cat([gather(part, self.world) for part in parts]) for parts in zip(*keys, strict=True))
        new = Features(intra, cycle), gather(video, self.world).repeat(len(keys))
        self._new_keys.append(new)
        return new

    def candidates(self, queue: KeyQueue, new_keys: Tensor, new_video: Tensor) -> Candidates:
        """Return the queue's keys and, with `batch_keys`, this step's.

        Differs from the release with `batch_keys`: old keys alone can be told from new ones by their age (docs/log.md).
        """
        if not (self.options.batch_keys or self.always_batch_keys):
            return Candidates(queue.keys, queue.video)
        num_videos = len(new_keys) // (self.num_enqueued * self.world.size)
        keys, video = queue.joined(new_keys, new_video)
        return Candidates(keys, video, len(queue.keys) + self.places(num_videos, keys), len(new_keys))

    def seed(self, info: StepInfo) -> int:
        """Return the seed of a step, the same in all processes."""
        return self.options.seed * 1_000_003 + info.step

    def after_step(self, info: StepInfo) -> None:
        """Let the momentum encoder follow the encoder, then push the step's keys into the queues (Algorithm 1)."""
        follow(self.momentum_encoder, self.encoder, self.momentum(info))
        for keys, video in self._new_keys:
            if self.has_intra:
                self.intra_queue.push(keys.intra, video)
            if self.has_cycle:
                self.cycle_queue.push(keys.cycle, video)
        self._new_keys.clear()

    def momentum(self, info: StepInfo) -> float:
        """Return the momentum m of a step.

        With `momentum_ramp` r it is at most step / (step + r); with `momentum_rise` it rises to 1 along half a cosine
        (BYOL). Differs from the release with a ramp: an encoder that still changes fast is followed closely, or
        training on small data hardly starts (docs/log.md).
        """
        momentum, ramp = self.options.momentum, self.options.momentum_ramp
        if self.options.momentum_rise:
            return 1 - (1 - momentum) * (math.cos(math.pi * info.progress) + 1) / 2
        return momentum if ramp == 0 else min(momentum, info.step / (info.step + ramp))

    def compile_encoders(self) -> None:
        """Compile the encoder and the momentum encoder."""
        super().compile_encoders()
        self._encode_key = compiled(self.momentum_encoder.forward)
