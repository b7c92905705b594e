"""A backbone → a folder as the Hugging Face hub has it: transformers' names, preprocessing and a model card."""

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save

from cyclecontrast.evaluation.image_batches import CROP_MARGIN
from cyclecontrast.exporting.formats import Format, Job, Renaming, Shape, renamed, resnet_shape, weights_of
from cyclecontrast.exporting.model_card import model_card
from cyclecontrast.files import sync
from cyclecontrast.models.backbone import BLOCKS, Backbone

NAMES: Renaming = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."),
    (r"\bconv(\d)\.", lambda match: f"layer.{int(match[1]) - 1}.convolution."),
    (r"\bbn(\d)\.", lambda match: f"layer.{int(match[1]) - 1}.normalization."),
    (r"\bdownsample\.0\.", "shortcut.convolution."),
    (r"\bdownsample\.1\.", "shortcut.normalization."),
)
"""Names of torchvision and those of transformers' ResNetModel."""
BILINEAR = 2
"""As Pillow numbers its filters; shrinking by it is close to the means of areas that the evaluations take."""


def _holds(backbone: Backbone) -> bool:
    shape = resnet_shape(backbone)
    return shape is not None and not shape.is_small


def _write(job: Job) -> None:
    shape = resnet_shape(job.backbone)
    assert shape is not None
    weights = {renamed(key, NAMES): value for key, value in weights_of(job.backbone).items()}
    files = {
        "config.json": _json(_network(shape)),
        "preprocessor_config.json": _json(_preprocessing(job.backbone)),
        "README.md": model_card(job).encode(),
        "model.safetensors": save(weights, {"format": "pt"}),
    }
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=job.path.parent) as aside:
        folder = Path(aside) / "model"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
            sync(folder / name)
        folder.rename(job.path)
    sync(job.path.parent)


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _network(shape: Shape) -> dict[str, Any]:
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
    """Return the centre crop of the evaluations, in transformers' words."""
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


def _snippet(job: Job) -> str:
    dim = job.backbone.dim
    return f"""import transformers

model = transformers.AutoModel.from_pretrained({str(job.path)!r})
processor = transformers.AutoImageProcessor.from_pretrained({str(job.path)!r})
# images: a list of PIL images or of uint8 arrays (height, width, 3), RGB
# outputs = model(**processor(images, return_tensors="pt"))
# features = outputs.pooler_output.flatten(1)   # (batch, {dim})
# map = outputs.last_hidden_state   # (batch, {dim}, h, w)
"""


HUGGINGFACE = Format("backbone-huggingface", "", _holds, _write, _snippet)
