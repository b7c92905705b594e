"""The faithful presets of our method: what the text says, and what the release runs."""

from cyclecontrast.config.sources import SOURCES

PRESETS: dict[str, dict[str, object]] = {
    "paper": {
        "backbone": "resnet18",
        "projector": "linear",
        "projector_dim": 64,
        "temperature": 0.07,
        "cycle_weight": 0.1,
        "cycle_start": 0.0,
        "queue_size": 65_536,
        "cycle_queue_size": 65_536,
        "support_size": 16_384,
        "top_k": None,
        "batch_keys": False,
        "mask_own_video": True,
        "split_by": "frame",
        "distinct_frames": True,
        "momentum": 0.999,
        "momentum_ramp": 0,
        "bn_groups": 8,
        "image_size": 224,
        "augmentation": "moco-v1",
        "min_crop": 0.2,
        "flip": True,
        "batch_size": 256,
        "epochs": 200,
        "learning_rate": 0.06,
        "schedule": "step",
        "warmup": 0.0,
        "sgd_momentum": 0.9,
        "weight_decay": 1e-4,
    },
    "release": {
        "backbone": "resnet50",
        "projector": "mlp",
        "projector_dim": 128,
        "temperature": 0.07,
        "cycle_weight": 0.1,
        "cycle_start": 0.0,
        "queue_size": 65_536,
        "cycle_queue_size": 81_920,
        "support_size": 16_384,
        "top_k": None,
        "batch_keys": False,
        "mask_own_video": False,
        "split_by": "frame",
        "distinct_frames": False,
        "momentum": 0.999,
        "momentum_ramp": 0,
        "bn_groups": 8,
        "image_size": 224,
        "augmentation": "moco-v2",
        "min_crop": 0.2,
        "flip": True,
        "batch_size": 512,
        "epochs": 200,
        "learning_rate": 0.06,
        "schedule": "cosine",
        "warmup": 0.0,
        "sgd_momentum": 0.9,
        "weight_decay": 1e-4,
    },
}
"""Faithful settings by name: `paper` is what the text says, `release` what the authors' script runs."""


def of_preset(preset: str, objective: str) -> dict[str, object]:
    """Return what the preset says of our method, and over it what an objective's own source says."""
    return PRESETS.get(preset, {}) | SOURCES.get(preset, {}).get(objective, {})
