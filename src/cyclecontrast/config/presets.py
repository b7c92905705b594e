"""The presets `paper` and `release`: the settings of each paper, and those of its authors' code."""

Settings = dict[str, object]

_OURS: Settings = {
    "temperature": 0.07,
    "cycle_weight": 0.1,
    "cycle_start": 0.0,
    "queue_size": 65_536,
    "support_size": 16_384,
    "top_k": None,
    "batch_keys": False,
    "split_by": "frame",
    "momentum": 0.999,
    "momentum_ramp": 0,
    "bn_groups": 8,
    "image_size": 224,
    "min_crop": 0.2,
    "flip": True,
    "epochs": 200,
    "learning_rate": 0.06,
    "warmup": 0.0,
    "sgd_momentum": 0.9,
    "weight_decay": 1e-4,
}
PRESETS: dict[str, Settings] = {
    "paper": _OURS
    | {
        "backbone": "resnet18",
        "projector": "linear",
        "projector_dim": 64,
        "cycle_queue_size": 65_536,
        "mask_own_video": True,
        "distinct_frames": True,
        "augmentation": "moco-v1",
        "batch_size": 256,
        "schedule": "step",
    },
    "release": _OURS
    | {
        "backbone": "resnet50",
        "projector": "mlp",
        "projector_dim": 128,
        "cycle_queue_size": 81_920,
        "mask_own_video": False,
        "distinct_frames": False,
        "augmentation": "moco-v2",
        "batch_size": 512,
        "schedule": "cosine",
    },
}
"""Cross-video cycle-consistency (Wu & Wang 2021)."""

_MOCO_V2_VIEWS: Settings = {"augmentation": "moco-v2", "min_crop": 0.2, "flip": True}
_RESNET50: Settings = _MOCO_V2_VIEWS | {"backbone": "resnet50", "schedule": "cosine"}
_VINCE: Settings = {
    "projector": "mlp",
    "queue_size": 65_536,
    "momentum": 0.999,
    "weight_decay": 1e-4,
    "distinct_frames": False,
    "epochs": 92,
}
_BASELINES: dict[str, Settings] = {
    "seco": _RESNET50
    | {
        "projector": "mlp",
        "projector_dim": 128,
        "temperature": 0.1,
        "queue_size": 131_072,
        "momentum": 0.999,
        "batch_size": 512,
        "epochs": 400,
        "learning_rate": 0.2,
        "warmup": 5 / 400,
    },
    "simsiam": _RESNET50
    | {
        "projector": "mlp3-bn",
        "projector_dim": 2048,
        "batch_size": 512,
        "epochs": 100,
        "learning_rate": 0.1,
        "warmup": 0.0,
    },
    "simclr": _RESNET50
    | {"projector": "mlp-bn", "projector_dim": 128, "temperature": 0.1, "epochs": 100, "warmup": 0.1},
    "byol": _RESNET50
    | {
        "projector": "mlp-bn",
        "projector_dim": 256,
        "momentum": 0.99,
        "momentum_rise": True,
        "bn_groups": 1,
        "epochs": 300,
        "warmup": 10 / 300,
    },
    "nnclr": _RESNET50
    | {
        "projector": "mlp3-bn",
        "projector_dim": 256,
        "temperature": 0.1,
        "queue_size": 98_304,
        "epochs": 1000,
        "warmup": 10 / 1000,
    },
    "diet": {"schedule": "cosine"},
}
BASELINE_PRESETS: dict[str, dict[str, Settings]] = {
    "paper": _BASELINES
    | {
        "vince": _VINCE | {"projector_dim": 64, "temperature": 0.07, "batch_size": 64, "learning_rate": 0.03},
    },
    "release": _BASELINES
    | {
        "vince": _VINCE
        | _MOCO_V2_VIEWS
        | {
            "projector_dim": 128,
            "temperature": 0.2,
            "self_batch": True,
            "batch_size": 224,
            "learning_rate": 0.105,
        },
    },
}
"""The settings of the baseline methods, which override those of PRESETS.

If a source uses two networks, `paper` is the smaller one and `release` the larger one. Batch sizes count videos: the
batches of 256 and 896 images of VINCE have four images per video, and its 1,000,000 and 286,000 steps are 92 epochs of
the 696,082 videos of R2V2. The learning rates and batch sizes of SimCLR, BYOL, NNCLR and
DIET are omitted, because they suit LARS and AdamW.
"""


def preset_settings(preset: str, method: str) -> Settings:
    """Return the settings of a preset for a method; empty for `auto`, which training/auto_settings.py resolves."""
    return PRESETS.get(preset, {}) | BASELINE_PRESETS.get(preset, {}).get(method, {})
