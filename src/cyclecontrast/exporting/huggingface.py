"""Export to a Hugging Face model folder: weights with transformers' names, preprocessing config and model card."""

import json
from pathlib import Path
from typing import Any

import tomli_w
from markupsafe import Markup
from safetensors.torch import save

from cyclecontrast.config import MACHINE_SETTINGS, PretrainConfig
from cyclecontrast.config.types import read_toml, split_model
from cyclecontrast.data.images import CROP_MARGIN
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.exporting.formats import Format, ResNetShape, render, resnet_shape, weights_of
from cyclecontrast.methods import learns_from
from cyclecontrast.models.backbone import BLOCKS, Backbone
from cyclecontrast.models.checkpoint import fingerprint, unfinished
from cyclecontrast.models.foreign_checkpoint import Renaming, renamed
from cyclecontrast.models.hardware import package_versions
from cyclecontrast.training.run_folder import ABOUT, CONFIG, read_about
from cyclecontrast.training.verdict import is_start_kept, measured_on

NAMES: Renaming = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."),
    (r"\bconv(\d)\.", lambda match: f"layer.{int(match[1]) - 1}.convolution."),
    (r"\bbn(\d)\.", lambda match: f"layer.{int(match[1]) - 1}.normalization."),
    (r"\bdownsample\.0\.", "shortcut.convolution."),
    (r"\bdownsample\.1\.", "shortcut.normalization."),
)
"""Parameter names of transformers' ResNetModel."""
BILINEAR = 2
"""Pillow's number of the filter; when it shrinks an image, it is close to the area averaging of the evaluations."""


def _supports(backbone: Backbone) -> bool:
    shape = resnet_shape(backbone)
    return shape is not None and not shape.is_small


def _write(backbone: Backbone, path: Path, model: str) -> None:
    shape = resnet_shape(backbone)
    assert shape is not None
    weights = {renamed(key, NAMES): value for key, value in weights_of(backbone).items()}
    files = {
        "config.json": _to_json(_architecture(shape)),
        "preprocessor_config.json": _to_json(_preprocessing(backbone)),
        "README.md": model_card(backbone, Path(model)).encode(),
        "model.safetensors": save(weights, {"format": "pt"}),
    }
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)


def _to_json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _architecture(shape: ResNetShape) -> dict[str, Any]:
    is_bottleneck = shape.depth == 50
    return {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": shape.width,
        "hidden_sizes": [shape.width * 2**stage * (4 if is_bottleneck else 1) for stage in range(4)],
        "depths": list(BLOCKS[str(shape.depth)]),
        "layer_type": "bottleneck" if is_bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "dtype": "float32",
    }


def _preprocessing(backbone: Backbone) -> dict[str, Any]:
    """Return the center crop of the evaluations as settings of an image processor."""
    size = backbone.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(size * CROP_MARGIN)},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
    }


def model_card(backbone: Backbone, run: Path) -> str:
    """Return the README.md of an exported backbone: how it was trained, how it performs, and what is unknown.

    `run` is the run folder if MODEL is one. Raises UserError if a file of the run cannot be read.
    """
    about = read_about(run) if (run / ABOUT).is_file() else {}
    settings = _settings(run / CONFIG) if (run / CONFIG).is_file() else {}
    found = [Result.load(path) for path in sorted((run / "results").glob("*.json"))]
    content = fingerprint(backbone)
    return render(
        "card.md",
        backbone,
        source=Path(backbone.source).name,
        fingerprint=content,
        unfinished=unfinished(backbone),
        about=about,
        settings=settings,
        learns_from=learns_from(settings["method"]) if settings else "",
        toml=Markup(tomli_w.dumps(settings)),
        # A run folder may also hold results of earlier backbones.
        results=[result for result in found if result.about.model.fingerprint == content],
        versions=about.get("versions") or package_versions(),
        measured_on=measured_on,
        start_kept=is_start_kept(about),
    )


def _settings(file: Path) -> dict[str, Any]:
    """Return the training settings without local paths, which may be private."""
    try:
        config = checked(PretrainConfig, read_toml(file))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{file}: cannot be read ({'; '.join(str(error).splitlines())}); correct it") from error
    settings = config.model_dump(mode="json", exclude=set(MACHINE_SETTINGS), exclude_none=True)
    models = {name: split_model(settings[name]) for name in ("init", "teacher") if name in settings}
    return settings | {name: str(model._replace(path=Path(model.path).name)) for name, model in models.items()}


HUGGINGFACE = Format("backbone-huggingface", "", _supports, _write)
