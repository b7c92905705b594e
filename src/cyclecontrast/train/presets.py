"""What the user left open, decided from the data and the hardware (preset `auto`).

Every number in `auto` was chosen by a measurement that stands in docs/log.md.
"""

from typing import Any, NamedTuple

from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import checked

SMALL_IMAGE = 64
MIN_STEPS = 4000


class DataSize(NamedTuple):
    """What `auto` looks at: numbers of videos and frames, and the median short side of the frames."""

    num_videos: int
    num_frames: int
    frame_side: int


def resolve(config: PretrainConfig, data: DataSize, cpu: bool) -> PretrainConfig:
    """Return the config with every open setting decided; what the user set stays. Raises UserError."""
    chosen = {name: getattr(config, name) for name in config.model_fields_set}
    decided = auto_settings(chosen, data, cpu) if config.preset == "auto" else {}
    return checked(PretrainConfig, config.model_dump() | decided | chosen)


def auto_settings(chosen: dict[str, Any], data: DataSize, cpu: bool) -> dict[str, Any]:
    """Return the settings that suit the data and the hardware, given what is already chosen."""
    image_size = chosen.get("image_size", _image_size(data.frame_side, cpu))
    backbone = chosen.get("backbone", _backbone(image_size, cpu))
    batch_size = chosen.get("batch_size", 128 if cpu or data.num_videos < 10_000 else 256)
    epochs = chosen.get("epochs", max(200, -(-MIN_STEPS * batch_size // data.num_videos)))
    steps = chosen.get("steps") or epochs * data.num_videos // batch_size
    queue_size = chosen.get("queue_size", _power_of_two(data.num_videos, 1024, 65_536))
    cycle_queue_size = chosen.get("cycle_queue_size", queue_size)
    return {
        "backbone": backbone,
        "image_size": image_size,
        "batch_size": batch_size,
        "epochs": epochs,
        "queue_size": queue_size,
        "cycle_queue_size": cycle_queue_size,
        "support_size": max(1, cycle_queue_size // 4),
        "split_by": "video",
        "batch_keys": True,
        "projector": "mlp-bn",
        "temperature": 0.1,
        "momentum": 0.99 if steps < 20_000 else 0.999,
        "momentum_ramp": 30,
        "bn_groups": max(1, batch_size // 64),
        "augmentation": "moco-v2",
        "learning_rate": _learning_rate(backbone, batch_size, "init" in chosen),
        "warmup": 0.05,
        "schedule": "cosine",
    }


def _learning_rate(backbone: str, batch_size: int, pretrained: bool) -> float:
    """Return a rate that grows with the batch: high for narrow networks, lower for others and behind given weights."""
    at_256 = 0.015 if pretrained else 0.48 if "-w" in backbone else 0.03
    return at_256 * batch_size / 256


def _image_size(frame_side: int, cpu: bool) -> int:
    limit = 112 if cpu else 224
    return max(32, min(limit, frame_side // 8 * 8))


def _backbone(image_size: int, cpu: bool) -> str:
    if image_size > SMALL_IMAGE:
        return "resnet18"
    return "resnet18-small-w16" if cpu else "resnet18-small"


def _power_of_two(number: int, least: int, most: int) -> int:
    return min(most, max(least, 1 << (number - 1).bit_length()))
