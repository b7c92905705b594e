"""One step of the method. It knows nothing of files or of people."""

from typing import NamedTuple

import torch
from torch import Tensor

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.device_augment import finish_views
from cyclecontrast.data.pairs import Batch
from cyclecontrast.loss.key_queue import KeyQueue
from cyclecontrast.loss.step import Candidates, Losses, LossSettings, Step
from cyclecontrast.models.encoders import Features, follow
from cyclecontrast.models.hardware import autocast
from cyclecontrast.models.heads import Encoded
from cyclecontrast.training.distributed import average_gradients, encode_keys, gather
from cyclecontrast.training.schedule import cycle_weight, encoder_momentum, learning_rate, rising_momentum
from cyclecontrast.training.share import EncodedStep, Share, join, mean_losses
from cyclecontrast.training.training import Training


class FreshKeys(NamedTuple):
    """The keys to enqueue after this step, of all processes, and the videos they come from."""

    intra: Tensor
    cycle: Tensor
    video: Tensor


class LearnedPart(NamedTuple):
    """What a part of the batch gave, its gradient beside."""

    views: EncodedStep
    inputs: Step
    losses: Losses


class StepResult(NamedTuple):
    """What a step computed, before anything was enqueued."""

    losses: Losses
    inputs: Step
    gradient_norm: Tensor


def train_step(training: Training, batch: Batch, step: int) -> StepResult:
    """Update encoder and head, then the momentum encoder, then the queues (Algorithm 1).

    With `accumulate` the queries go through the encoder in parts, whose gradients add up: each part meets the keys that
    the whole batch meets, and is a batch of its own for BatchNorm.
    """
    share = _take_share(training, batch, step)
    fresh = _gather_keys(training, share.keys, share.video) if share.keys else None
    training.optimizer.zero_grad()
    parts = [_learn(training, part, fresh, step) for part in share.parts(training.config.accumulate)]
    inputs = parts[0].inputs
    if len(parts) > 1:
        inputs = _gather_inputs(training, join([part.views for part in parts]), share, fresh, step)
    gradient_norm = _update(training, step)
    _follow(training, step)
    if fresh is not None:
        _enqueue(training, fresh)
    return StepResult(mean_losses([part.losses for part in parts]), inputs, gradient_norm)


def _take_share(training: Training, batch: Batch, step: int) -> Share:
    """Bring what the objective needs of the batch to the device, and encode its keys."""
    needs, (device, _, world) = training.objective.needs, training.hardware
    pixels = {view: _pixels(batch, view, device) for view in sorted({*needs.queries, *needs.keys})}
    video, frames = (numbers.to(device, non_blocking=True) for numbers in (batch.video, batch.frames))
    return Share(pixels, _encode_keys(training, pixels, step), video, frames, world.rank * len(video))


def _encode_keys(training: Training, pixels: dict[int, Tensor], step: int) -> tuple[Features, ...]:
    """Encode the keys of the whole batch that the objective needs, each view in a pass of its own (Algorithm 1).

    Differs from the release, which encodes three: a second view of the query's frame is enqueued there, here it is the
    positive; its keys share BatchNorm in twos, here in the groups of `bn_groups`; and its queries share BatchNorm on
    each of eight GPUs, here in a process, or in a part of its batch.
    """
    config, (device, precision, world), encode = training.config, training.hardware, training.passes.keys
    if encode is None:
        return ()
    normalise, groups = training.encoder.backbone.normalise, (config.bn_groups, _seed(config, step), world)

    def key_of(own: Tensor) -> Features:
        return encode(normalise(own))

    with autocast(device, precision):
        # Bytes are shuffled and sent to other processes, a quarter of what they are when normalised.
        return tuple(encode_keys(key_of, pixels[view], *groups) for view in training.objective.needs.keys)


def _pixels(batch: Batch, view: int, device: torch.device) -> Tensor:
    """Return one view of each video on the device, which does what the workers left to it."""
    pixels = (batch.query, batch.positive, *batch.more)[view].to(device, non_blocking=True)
    return finish_views(pixels, batch.left[:, view]) if batch.left.numel() else pixels


def _learn(training: Training, part: Share, fresh: FreshKeys | None, step: int) -> LearnedPart:
    """Add a part's share of the gradient to that of the parts before."""
    views = _encode(training, part)
    inputs = _gather_inputs(training, views, part, fresh, step)
    losses = training.objective.losses(inputs)
    (losses.total / training.config.accumulate).backward()  # type: ignore[no-untyped-call]
    return LearnedPart(views, inputs, losses)


def _encode(training: Training, share: Share) -> EncodedStep:
    """Encode the queries, each view in a pass of its own, and let the head answer."""
    device, precision, _ = training.hardware
    images = [training.encoder.backbone.normalise(share.pixels[view]) for view in training.objective.needs.queries]
    with autocast(device, precision):
        projections = [training.passes.queries(view) for view in images]
        queries = tuple(projection.features() for projection in projections)
        encoded = Encoded(tuple(projection.intra for projection in projections), queries, share.keys)
        return EncodedStep(encoded, training.head(encoded))


def _gather_keys(training: Training, keys: tuple[Features, ...], video: Tensor) -> FreshKeys:
    """Gather the keys to enqueue from all processes; of a method that enqueues none, the first of each query."""
    world, chosen = training.hardware.world, keys[: training.objective.needs.num_enqueued] or keys[:1]
    return FreshKeys(
        torch.cat([gather(key.intra, world) for key in chosen]),
        torch.cat([gather(key.cycle, world) for key in chosen]),
        gather(video, world).repeat(len(chosen)),
    )


def _gather_inputs(training: Training, views: EncodedStep, share: Share, fresh: FreshKeys | None, step: int) -> Step:
    """Gather what the objective compares the queries with: `fresh`, or where None the keys of this share in all.

    Differs from the release: all processes draw one support, so that many train as one does.
    """
    config, needs, video, first = training.config, training.objective.needs, share.video, share.first
    positive = _positive(views.encoded)
    if fresh is None:
        fresh = _gather_keys(training, views.encoded.keys or (positive,), video)
        first = training.hardware.world.rank * len(video)
    is_in_batch = config.batch_keys or needs.in_batch
    places = torch.arange(first, first + len(video), device=video.device) if is_in_batch else None
    return Step(
        views.encoded.queries[0],
        positive,
        video,
        _candidates(training.intra_queue, fresh.intra, fresh.video, places),
        _candidates(training.cycle_queue, fresh.cycle, fresh.video, places),
        cycle_weight(config.cycle_weight, step / training.num_steps, config.cycle_start),
        _seed(config, step),
        _loss_settings(config),
        views.encoded,
        views.answers,
        share.frames,
    )


def _positive(encoded: Encoded) -> Features:
    """Return the first query's positive: its key, or without a momentum encoder the other query, taken as given."""
    return encoded.keys[0] if encoded.keys else Features(*(part.detach() for part in encoded.queries[1]))


def _loss_settings(config: PretrainConfig) -> LossSettings:
    return LossSettings(
        config.temperature,
        config.support_size,
        config.top_k,
        config.mask_own_video,
        config.split_by,
        config.self_temperature if config.self_batch else None,
    )


def _candidates(queue: KeyQueue, keys: Tensor, video: Tensor, places: Tensor | None) -> Candidates:
    """Return the queue's keys, and with `places` of the positives in the batch, the batch's keys behind them.

    Differs from the release with the batch's keys: old keys alone are told from new ones by their age (docs/log.md).
    """
    if places is None:
        return Candidates(queue.keys, queue.video)
    return Candidates(*queue.joined(keys, video), place=len(queue.keys) + places, num_fresh=len(keys))


def _seed(config: PretrainConfig, step: int) -> int:
    return config.seed * 1_000_003 + step


def _update(training: Training, step: int) -> Tensor:
    config, learned = training.config, training.learned
    average_gradients(learned, training.hardware.world)
    gradients = [p.grad for p in learned.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.gradient_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(learned.parameters(), config.gradient_clip, norm)
    of_encoder, *of_head = training.optimizer.param_groups
    of_encoder["lr"] = learning_rate(config.learning_rate, step / training.num_steps, config.schedule, config.warmup)
    if not training.objective.needs.constant_head_rate:
        for group in of_head:
            group["lr"] = of_encoder["lr"]
    training.optimizer.step()
    return norm


def _follow(training: Training, step: int) -> None:
    config = training.config
    if training.momentum_encoder is None:
        return
    momentum = encoder_momentum(config.momentum, step, config.momentum_ramp)
    if config.momentum_rise:
        momentum = rising_momentum(config.momentum, step / training.num_steps)
    follow(training.momentum_encoder, training.encoder, momentum)


def _enqueue(training: Training, fresh: FreshKeys) -> None:
    needs = training.objective.needs
    if needs.has_intra:
        training.intra_queue.push(fresh.intra, fresh.video)
    if needs.has_cycle:
        training.cycle_queue.push(fresh.cycle, fresh.video)
