"""What the sources of the objectives beside ours say, laid over the presets paper and release (protocols.md §f).

`paper` is the smaller network of a source, `release` the larger, where it has two. Batches count videos: VINCE's 256
and 896 rows are four of each, and its million and 286,000 steps are 92 passes over R2V2's 696,082 videos. What is
absent here is the preset's; SimCLR's and BYOL's learning rates and batches are, for they belong to LARS.
"""

_MOCO_V2_VIEWS: dict[str, object] = {"augmentation": "moco-v2", "min_crop": 0.2, "flip": True}
_VINCE: dict[str, object] = {
    "projector": "mlp",
    "queue_size": 65_536,
    "momentum": 0.999,
    "weight_decay": 1e-4,
    "distinct_frames": False,
}
_SECO: dict[str, object] = _MOCO_V2_VIEWS | {
    "backbone": "resnet50",
    "projector": "mlp",
    "projector_dim": 128,
    "temperature": 0.1,
    "queue_size": 131_072,
    "momentum": 0.999,
    "batch_size": 512,
    "epochs": 400,
    "learning_rate": 0.2,
    "schedule": "cosine",
    "warmup": 5 / 400,
}
_SIMSIAM: dict[str, object] = _MOCO_V2_VIEWS | {
    "backbone": "resnet50",
    "projector": "mlp3-bn",
    "projector_dim": 2048,
    "batch_size": 512,
    "epochs": 100,
    "learning_rate": 0.1,
    "schedule": "cosine",
    "warmup": 0.0,
}
_SIMCLR: dict[str, object] = _MOCO_V2_VIEWS | {
    "backbone": "resnet50",
    "projector": "mlp-bn",
    "projector_dim": 128,
    "temperature": 0.1,
    "schedule": "cosine",
    "warmup": 0.1,
    "epochs": 100,
}
_BYOL: dict[str, object] = _MOCO_V2_VIEWS | {
    "backbone": "resnet50",
    "projector": "mlp-bn",
    "projector_dim": 256,
    "momentum": 0.99,
    "momentum_rise": True,
    "bn_groups": 1,
    "schedule": "cosine",
    "warmup": 10 / 300,
    "epochs": 300,
}

SOURCES: dict[str, dict[str, dict[str, object]]] = {
    "paper": {
        "vince": _VINCE
        | {"projector_dim": 64, "temperature": 0.07, "batch_size": 64, "learning_rate": 0.03, "epochs": 92},
        "seco": _SECO,
        "simsiam": _SIMSIAM,
        "simclr": _SIMCLR,
        "byol": _BYOL,
    },
    "release": {
        "vince": _VINCE
        | _MOCO_V2_VIEWS
        | {
            "projector_dim": 128,
            "temperature": 0.2,
            "self_batch": True,
            "batch_size": 224,
            "learning_rate": 0.105,
            "epochs": 92,
        },
        "seco": _SECO,
        "simsiam": _SIMSIAM,
        "simclr": _SIMCLR,
        "byol": _BYOL,
    },
}
