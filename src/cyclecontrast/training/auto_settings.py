"""The preset `auto`: resolves the settings that the user did not set, from the data and the hardware.

The measurements behind the choices are in docs/log.md; choices without a measurement follow MoCo.
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

from cyclecontrast.config import RESOLVED_BY_AUTO, PretrainConfig
from cyclecontrast.config.pretrain import ADDED_LATER
from cyclecontrast.config.types import MAX_COUNT, RESNET
from cyclecontrast.errors import UserError, checked
from cyclecontrast.methods import METHODS, Method, MomentumMethod, unread_options

SMALL_IMAGE = 64
MIN_STEPS = 4000
MAX_STEPS_ON_CPU = 20_000
NARROW = 32
MIN_BATCH = 8
"""Minimum batch size, even for few videos, because BatchNorm needs several images."""
HOLDOUT, MIN_VIDEOS_FOR_HOLDOUT = 0.1, 50
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "cycle-only": {"cycle_start": 0.0},
    "simsiam": {"projector": "mlp3-bn", "projector_dim": 512},
    "byol": {"bn_groups": 1},
}
"""Settings of `auto` that override the others for some methods."""
ON_CPU: dict[str, Any] = {"method": "simclr", "positives": "video", "views": 4}
"""On one CPU, from random weights, this learns most in the same time (docs/results.md, accuracy per minute)."""
SMALL_BATCH = 64
"""The most views in a batch of SimCLR on a CPU: more and smaller steps learn more in the same time."""
PAIRS = {"vince": 4}
"""VINCE encodes four pairs of views per video, so it takes a quarter of the videos; SimCLR has half its `views`."""


class DataSize(NamedTuple):
    """The number of videos, and the median of the frames' short sides in pixels."""

    num_videos: int
    frame_side: int


class Machine(NamedTuple):
    """The hardware that `auto` considers: whether training runs on a CPU, and the number of processes."""

    cpu: bool
    processes: int = 1


def resolve(
    config: PretrainConfig, data: DataSize, machine: Machine, method: type[Method] | None = None, patch: int = 1
) -> PretrainConfig:
    """Return the resolved config; settings of the user are kept. Raises UserError if settings contradict each other.

    `method` is a custom class; by default the class is looked up by `config.method`. `patch` is that of the backbone.
    """
    method = method or METHODS[config.method]
    chosen = {name: getattr(config, name) for name in config.model_fields_set}
    decided = auto_settings(chosen, data, machine, method, patch) if config.preset == "auto" else {}
    resolved = checked(PretrainConfig, config.model_dump() | decided | chosen)
    if problems := _conflicts(resolved, config.requested(), machine.processes, method):
        raise UserError(*problems)
    return resolved


def with_method(config: PretrainConfig, machine: Machine) -> PretrainConfig:
    """Return the config with the method of `auto`: on one CPU, SimCLR on four frames of a video.

    The default stays where the user sets the method, an option that SimCLR does not use, or weights to start from.
    """
    of_others = {"method", "init", "resume"} | unread_options(METHODS[ON_CPU["method"]])
    defaults = {name: field.default for name, field in type(config).model_fields.items()}
    is_asked = any(  # a file of options may have all, those that are not decided here at their defaults
        name in RESOLVED_BY_AUTO | {"method"} or getattr(config, name) != defaults[name]
        for name in of_others & config.model_fields_set
    )
    if is_asked or config.preset != "auto" or config.accumulate > 1 or machine != Machine(cpu=True):
        return config
    return config.model_copy(update=ON_CPU)


def num_held_out(num_videos: int, holdout: float) -> int:
    """Return how many videos are held out: at least two, or none for 0."""
    return max(2, round(holdout * num_videos)) if holdout else 0


def auto_settings(
    chosen: dict[str, Any], data: DataSize, machine: Machine, method: type[Method] | None = None, patch: int = 1
) -> dict[str, Any]:
    """Return all settings of `auto` for the data and the hardware, given those that are already `chosen`.

    Only the videos used for training are counted. The config.toml of older versions has all settings except those
    added later, which are then as these versions trained.
    """
    is_older = chosen.keys() >= RESOLVED_BY_AUTO - ADDED_LATER
    holdout = chosen.get("holdout", 0.0 if is_older or data.num_videos < MIN_VIDEOS_FOR_HOLDOUT else HOLDOUT)
    # `check_number` raises if there are too few
    num_videos = max(1, data.num_videos - num_held_out(data.num_videos, holdout))
    is_continued = chosen.get("init") is not None and not is_older
    image_size = chosen.get("image_size", _image_size(data.frame_side, machine.cpu, patch))
    backbone = chosen.get("backbone", _backbone(image_size, machine.cpu))
    pairs = PAIRS.get(str(chosen.get("method")), int(chosen.get("views", 2)) / 2)
    parts = machine.processes * int(chosen.get("accumulate", 1))
    usual = _batch_size(num_videos, machine, pairs, parts)
    is_simclr = chosen.get("method") == "simclr"
    has_short_steps = machine.cpu and is_simclr
    small = min(usual, max(2, int(SMALL_BATCH / 2 / pairs) // parts) * parts)
    batch_size = chosen.get("batch_size", small if has_short_steps else usual)
    steps = chosen.get("steps")
    shorter = max(1.0, usual / batch_size) if has_short_steps else 1.0
    epochs = _epochs(num_videos, batch_size, machine.cpu, steps, shorter)
    if steps is None:
        epochs = chosen.get("epochs", epochs)
    method = method or METHODS[chosen.get("method", "cycle")]
    keys = batch_size * method.num_enqueued
    cycle_queue_size = chosen.get("cycle_queue_size", _power_of_two(max(num_videos, keys), 1024, 65_536))
    return {
        "backbone": backbone,
        "image_size": image_size,
        "batch_size": batch_size,
        "epochs": epochs,
        "queue_size": _power_of_two(max(num_videos // 4, keys), 256, 65_536),
        "cycle_queue_size": cycle_queue_size,
        "support_size": max(1, cycle_queue_size // 4),
        "split_by": "video",
        "cycle_weight": 1.0,
        "cycle_start": 0.5,
        "batch_keys": True,
        "projector": "mlp-bn",
        "projector_dim": 64,
        "temperature": 0.2,
        "momentum": 0.99 if epochs * num_videos < 20_000 * batch_size else 0.999,
        "momentum_ramp": 0 if chosen.get("momentum_rise") else 10,
        "bn_groups": max(1, min(2, batch_size // 2), batch_size // 64),
        "augmentation": "moco-v2",
        "learning_rate": _learning_rate(backbone, batch_size * (2 * pairs if is_simclr else pairs), chosen),
        "warmup": 0.05,
        "schedule": "cosine",
        "holdout": holdout,
        "freeze_batchnorm": is_continued,
        "projector_first": 0.1 if is_continued else 0.0,
    } | METHOD_SETTINGS.get(str(chosen.get("method")), {})


def _conflicts(config: PretrainConfig, set_by_user: Collection[str], processes: int, method: type[Method]) -> list[str]:
    """Return an error message for each conflict between settings; `set_by_user` are the options that the user set.

    For a resumed run only the number of processes is checked, because nothing else can change.
    """
    problems: list[str] = []
    share, rest = divmod(config.batch_size, processes * config.accumulate)
    if config.batch_size < 2:
        problems.append("batch_size: a batch of 1 video has no negatives; set 2 or more")
    elif rest or share < 2:
        parts = [(config.accumulate, "micro-batches"), (processes, "processes")]
        each = " x ".join(f"{number} {what}" for number, what in parts if number > 1)
        every = processes * config.accumulate
        problems.append(f"batch_size: {config.batch_size} must be a multiple of {every} ({each}), at least {2 * every}")
    if config.resume is not None:
        return problems
    if config.accumulate > 1 and (method.compares_queries or config.self_batch):
        what = "--self-batch" if config.self_batch else f"method {config.method}"
        problems.append(
            f"accumulate: {what} contrasts all queries of a batch with each other, which is not possible with "
            f"micro-batches; "
            "remove --accumulate"
        )
    if (
        issubclass(method, MomentumMethod)
        and "bn_groups" in set_by_user
        and config.bn_groups > max(1, config.batch_size // 2)
    ):
        problems.append(
            f"bn_groups: {config.bn_groups} groups of a batch of {config.batch_size} have fewer than the 2 images that "
            f"BatchNorm needs; set --bn-groups {max(1, config.batch_size // 2)} or less"
        )
    keys = method.num_enqueued * config.batch_size
    sizes = {"queue_size": method.has_intra, "cycle_queue_size": method.has_cycle}
    problems += [
        f"{name}: {getattr(config, name)} must be at least the {keys} keys enqueued per step; "
        f"set --{name.replace('_', '-')} {keys} or more, or lower batch_size"
        for name, is_read in sizes.items()
        if is_read and getattr(config, name) < keys
    ]
    return problems


def _image_size(frame_side: int, cpu: bool, patch: int) -> int:
    """Return the largest multiple of 8, or of the patches of a vision transformer, up to the side of the frames."""
    step = patch if patch > 1 else 8
    least, limit = 32, 112 if cpu else 224
    return max(-(-least // step), min(limit, frame_side) // step) * step


def _backbone(image_size: int, cpu: bool) -> str:
    if image_size > SMALL_IMAGE:
        return "resnet18"
    return "resnet18-small-w16" if cpu else "resnet18-small"


def _batch_size(num_videos: int, machine: Machine, pairs: float, parts: int) -> int:
    """Return a batch size of at most the number of videos (at least 8), divisible by `parts`."""
    largest = int((128 if machine.cpu or num_videos < 10_000 else 256) / pairs)
    size = min(largest, max(MIN_BATCH, 1 << (num_videos.bit_length() - 1)))
    return max(2, size // parts) * parts


def _epochs(num_videos: int, batch_size: int, cpu: bool, steps: int | None, shorter: float) -> int:
    """Return the epochs: those of `steps` if set, otherwise 200 (paper), more for few videos, fewer on a CPU.

    The bounds are in steps that are so many times as long as those of this batch size.
    """
    if steps is not None:
        return min(MAX_COUNT, math.ceil(steps * batch_size / num_videos))
    epochs = max(200, math.ceil(shorter * MIN_STEPS * batch_size / num_videos))
    return min(epochs, max(1, int(shorter * MAX_STEPS_ON_CPU * batch_size / num_videos))) if cpu else epochs


def _learning_rate(backbone: str, batch_size: float, chosen: dict[str, Any]) -> float:
    """Return a learning rate proportional to the batch size: high for narrow networks, low for pretrained weights."""
    of_narrow = 0.12 if chosen.get("method") == "simsiam" else 0.48
    match = RESNET.fullmatch(backbone)
    narrow = match is not None and int(match[3] or 64) <= NARROW
    at_256 = 0.015 if chosen.get("init") is not None else of_narrow if narrow else 0.03
    return at_256 * batch_size / 256


def _power_of_two(number: int, least: int, most: int) -> int:
    return min(most, max(least, 1 << (number - 1).bit_length()))
