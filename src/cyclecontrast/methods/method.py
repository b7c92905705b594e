"""The interface between methods and the trainer, and the base class of methods with a momentum encoder and queues."""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch, ExtraFrames, no_extra_frames
from cyclecontrast.distributed import ALONE, World, all_gather
from cyclecontrast.loss import KeyQueue, is_nearest
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.encoder import Encoder, Features, Projections, make_momentum_encoder, update_momentum_encoder
from cyclecontrast.models.hardware import autocast, compiled


class StepInfo(NamedTuple):
    """The training step that `forward` computes; if `measure` is True, it also returns accuracies for the metrics."""

    step: int
    num_steps: int
    measure: bool = False

    @property
    def progress(self) -> float:
        """The completed fraction of training, in [0, 1)."""
        return self.step / self.num_steps


class Losses(NamedTuple):
    """The scalars that `forward` returns: `total` is minimized; the others are logged.

    `intra` and `cycle` are its unweighted terms; `terms` holds additional losses by name. `intra_accuracy` is the
    fraction of queries whose positive is the most similar key, `cycle_closed` the fraction of cycles that close. None
    means that the method does not have this term, or that it was not measured in this step.
    """

    total: Tensor
    intra: Tensor | None = None
    cycle: Tensor | None = None
    terms: dict[str, Tensor] | None = None
    intra_accuracy: Tensor | None = None
    cycle_closed: Tensor | None = None


class Method(nn.Module):
    """Base class of training methods: an `nn.Module` that owns the networks and computes the loss of a batch of views.

    To use a custom method, pass a subclass: `cc.pretrain(..., method=Subclass)`.

    In each step the trainer runs `forward` and the backward pass for each micro-batch, then the optimizer, then
    `after_step` once. The class attributes describe the method; they are read before its networks are built.
    """

    learns_from: ClassVar[str] = "views of the same video"
    """A phrase for the report that completes "it learns from"."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Names of the method-specific options that the method uses; for warnings about unused options. Optional."""
    same_frame: ClassVar[bool] = False
    """Whether query and positive show the same frame; otherwise two frames of the video."""
    num_queries: ClassVar[int] = 1
    """Number of views per video that are encoded with gradients."""
    num_enqueued: ClassVar[int] = 0
    """Number of keys per video that are pushed into the queue in each step."""
    has_intra: ClassVar[bool] = False
    """Whether the method has a queue for the intra loss (`intra_queue`)."""
    has_cycle: ClassVar[bool] = False
    """Whether the method has a cycle loss and a queue for it (`cycle_queue`)."""
    always_batch_keys: ClassVar[bool] = False
    """Whether batch keys are always candidates, even if the option `batch_keys` is off."""
    compares_queries: ClassVar[bool] = False
    """Whether the loss contrasts queries with other queries of the batch; then micro-batches are not supported."""
    constant_head_rate: ClassVar[bool] = False
    """Whether the learning rate of `head` stays constant (SimSiam)."""
    has_projectors: ClassVar[bool] = True
    """Whether the encoder has projectors; without, `project` and `encode` return the backbone's vectors."""
    needs_videos: ClassVar[bool] = True
    """Whether a flat folder of images does not suffice, unless query and positive show the same frame."""

    head: nn.Module | None
    """A trained module in addition to the encoder, such as a predictor, or None."""

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__()
        self.options, self.world, self.head = options, world, None
        projector = options.projector if self.has_projectors else "none"
        self.encoder = Encoder(backbone, projector, options.projector_dim)
        self._project = self.encoder.project

    def prepare(self, videos: Tensor) -> None:
        """Hook that is called once, before the method is moved to the device, with the numbers of the training videos.

        They are sorted; `batch.video` has the same numbers. The default does nothing.
        """

    @classmethod
    def frames(cls, options: PretrainConfig) -> tuple[bool, ExtraFrames]:
        """Return whether query and positive show the same frame, and a function that draws frames of extra views."""
        same_frame = options.positives == "frame" if "positives" in cls.reads else cls.same_frame
        return same_frame, no_extra_frames

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the losses of a micro-batch, whose views are uint8 tensors on the device."""
        raise NotImplementedError

    def after_step(self, info: StepInfo) -> None:
        """Hook that the trainer calls once after each optimizer step. The default does nothing."""

    def cycle_weight(self, info: StepInfo) -> float | None:
        """Return λ of Eq. 6 in a step, for the metrics; None if the method has no λ."""
        return None

    def seed(self, info: StepInfo) -> int:
        """Return the random seed of a step; it is equal in all processes."""
        return self.options.seed * 1_000_003 + info.step

    def project(self, pixels: Tensor) -> Projections:
        """Return the projector outputs of uint8 views (batch, 3, h, w), computed in the configured precision."""
        images = self.encoder.backbone.normalize(pixels)
        with autocast(pixels.device, self.options.precision):
            return self._project(images)

    def encode(self, pixels: Tensor) -> Features:
        """Return the features of uint8 views (batch, 3, h, w) as unit vectors in fp32."""
        return self.project(pixels).features()

    def compile_encoders(self) -> None:
        """Compile the encoder with torch.compile; state_dict keys stay the same."""
        self._project = compiled(self.encoder.project)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters: first those of the encoder, then those of the head."""
        return [*self.encoder.parameters(), *(self.head.parameters() if self.head is not None else ())]

    def in_batch_accuracy(self, query: Tensor, positive: Tensor, video: Tensor) -> Tensor:
        """Return the fraction of queries whose positive is more similar than all other positives of the batch."""
        keys = all_gather(positive.detach(), self.world)
        candidates = Candidates(keys, all_gather(video, self.world), self.local_key_indices(len(video), keys))
        return self.accuracy(query, positive, candidates.keys, candidates.ignore(video, own_video=False))

    def local_key_indices(self, num_videos: int, keys: Tensor) -> Tensor:
        """Return the indices (batch,) of this process's keys among the keys gathered from all processes."""
        first = self.world.rank * num_videos
        return torch.arange(first, first + num_videos, device=keys.device)

    @staticmethod
    @torch.no_grad()
    def accuracy(query: Tensor, positive: Tensor, keys: Tensor, ignore: Tensor) -> Tensor:
        """Return the fraction of queries whose positive is more similar than every unmasked key."""
        return is_nearest(query, positive, keys, ignore).float().mean()


class Candidates(NamedTuple):
    """The keys that queries are contrasted with: those of a queue, oldest first, then optionally the batch keys.

    Shapes: keys (num_keys, dim), video (num_keys,). `positive_index` (batch,) is the index of each query's positive in
    `keys`, or None without batch keys. The last `num_batch_keys` keys are the batch keys.
    """

    keys: Tensor
    video: Tensor
    positive_index: Tensor | None = None
    num_batch_keys: int = 0

    def ignore(self, video: Tensor, *, own_video: bool) -> Tensor:
        """Return a mask (batch, num_keys): True for the positive and, with `own_video`, for all keys of its video.

        Differs from the release, which masks nothing: the paper excludes the query's own video (§3.2).
        """
        if own_video:
            mask = self.video == video[:, None]
        else:
            mask = torch.zeros(len(video), len(self.video), dtype=torch.bool, device=video.device)
        return mask if self.positive_index is None else mask.scatter_(1, self.positive_index[:, None], True)

    def batch_keys_of_video(self, video: Tensor) -> Tensor:
        """Return a mask (batch, num_keys) that is True for the batch keys of each query's video."""
        fresh = torch.arange(len(self.keys), device=video.device) >= len(self.keys) - self.num_batch_keys
        return (self.video == video[:, None]) & fresh


class MomentumMethod(Method):
    """Base class of methods with a momentum encoder and key queues (MoCo).

    `has_intra` and `has_cycle` select the queues.
    """

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
        """Return the keys of uint8 views (batch, 3, h, w), encoded with momentum encoder and shuffled BatchNorm (MoCo).

        The views of all processes are shuffled, each process encodes an equal part in groups, and the vectors are
        unshuffled. Without shuffling, the BatchNorm statistics would leak which key belongs to a query. A group has
        at least two images, because BatchNorm needs a variance.
        """
        order = torch.randperm(len(pixels) * self.world.size, generator=torch.Generator().manual_seed(self.seed(info)))
        order = order.to(pixels.device)
        mine = slice(self.world.rank * len(pixels), (self.world.rank + 1) * len(pixels))
        # gathers uint8 pixels, which are four times smaller than normalized images
        shuffled = all_gather(pixels, self.world)[order[mine]]
        num_groups = max(1, min(self.options.bn_groups // self.world.size, len(pixels) // 2))
        with autocast(pixels.device, self.options.precision):
            normalize = self.encoder.backbone.normalize
            groups = [self._encode_key(normalize(group)) for group in shuffled.tensor_split(num_groups)]
        back = torch.argsort(order)[mine]
        return Features(*(all_gather(torch.cat(parts), self.world)[back] for parts in zip(*groups, strict=True)))

    def stage_keys(self, keys: Sequence[Features], video: Tensor) -> tuple[Features, Tensor]:
        """Gather the keys of all processes and store them for `after_step`, which enqueues them.

        Returns the keys and their video numbers.
        """
        intra, cycle = (
            torch.cat([all_gather(part, self.world) for part in parts]) for parts in zip(*keys, strict=True)
        )
        new = Features(intra, cycle), all_gather(video, self.world).repeat(len(keys))
        self._new_keys.append(new)
        return new

    def candidates(self, queue: KeyQueue, new_keys: Tensor, new_video: Tensor) -> Candidates:
        """Return the keys of the queue, followed by those of the current batch if `batch_keys` is on.

        Differs from the release with `batch_keys`: without batch keys, the positive is the only key
        from the current momentum encoder, a shortcut that the network can exploit (docs/log.md).
        """
        if not (self.options.batch_keys or self.always_batch_keys):
            return Candidates(queue.keys, queue.video)
        num_videos = len(new_keys) // (self.num_enqueued * self.world.size)
        keys, video = queue.joined(new_keys, new_video)
        return Candidates(keys, video, len(queue.keys) + self.local_key_indices(num_videos, keys), len(new_keys))

    def after_step(self, info: StepInfo) -> None:
        """Update the momentum encoder, then push the batch keys into the queues (Algorithm 1)."""
        update_momentum_encoder(self.momentum_encoder, self.encoder, self.momentum(info))
        for keys, video in self._new_keys:
            if self.has_intra:
                self.intra_queue.push(keys.intra, video)
            if self.has_cycle:
                self.cycle_queue.push(keys.cycle, video)
        self._new_keys.clear()

    def momentum(self, info: StepInfo) -> float:
        """Return the momentum m of a step.

        `momentum_ramp` r limits it to step / (step + r). `momentum_rise` increases it to 1 along a half cosine (BYOL).
        Differs from the release with a ramp: at first, a low momentum lets the momentum encoder follow the encoder,
        which changes fast. Without it, training on small data hardly makes progress (docs/log.md).
        """
        momentum, ramp = self.options.momentum, self.options.momentum_ramp
        if self.options.momentum_rise:
            return 1 - (1 - momentum) * (math.cos(math.pi * info.progress) + 1) / 2
        return momentum if ramp == 0 else min(momentum, info.step / (info.step + ramp))

    def compile_encoders(self) -> None:
        """Compile the encoder and the momentum encoder."""
        super().compile_encoders()
        self._encode_key = compiled(self.momentum_encoder.forward)
