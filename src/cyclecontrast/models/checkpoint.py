"""Load a backbone from a MODEL (any supported file or name), and save backbones.

Files cannot run code, nor allocate a network larger than their weights. A missing key is an error, so no weight stays
randomly initialized.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import safetensors
import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from cyclecontrast.config.types import (
    MAX_IMAGE_SIZE,
    MODEL,
    Count,
    ImageSize,
    Positive,
    is_named,
    is_user_defined,
    split_model,
)
from cyclecontrast.errors import UserError
from cyclecontrast.files import atomic_write
from cyclecontrast.models.backbone import (
    BLOCKS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    POOLING,
    Backbone,
    load_timm,
    make_backbone,
    make_empty_backbone,
)
from cyclecontrast.models.foreign_checkpoint import (
    FIRST_BLOCK,
    Checkpoint,
    Found,
    Weights,
    choose,
    contents,
    find_network,
    find_resnets,
    read_checkpoint,
    resnet_name,
)
from cyclecontrast.output import say

BACKBONE_FILE = "backbone.safetensors"
BACKBONE_FORMAT = "cyclecontrast-backbone"
HUB_FILE = "model.safetensors"
HEADS = re.compile(
    r"(?:\w+_)?(?:fc|heads?|linear|classif|classifiers?|proj|projections?|projectors?|prediction|predictors?|prototypes?|"
    r"queue|decoder|mask_token|mlp)(?:_\w+)?\d*(?:\..*)?"
)
"""Keys beside a backbone that follow it or belong to its training, so that its features do not depend on them."""
BUFFERS = re.compile(r".*\b(?:relative_position_index|relative_coords_table|attn_mask)")
"""Constants that older versions of timm stored and newer ones compute."""
OTHER_NAMES = frozenset({"mask_token", "register_tokens", "storage_tokens", "rope_embed"})
"""Names in the authors' files of DINOv2 and DINOv3 that timm renames, computes or leaves out."""
PLAIN_RESNET = re.compile(r"(?:tv_|gluon_|ssl_|swsl_)?resnet[-_]?(\d+)(?:[-_]?w\d+x?|_v1b)?(?:\..+)?")
"""What the `arch` of a checkpoint calls a ResNet of torchvision, with the depth."""
REMEDY = "copy or export it again; `cyclecontrast pretrain --resume RUN` rewrites the backbone of a run"


class Architecture(NamedTuple):
    """The description of a backbone, written into its file and into a .json file next to it."""

    format: str
    name: str
    dim: Count
    image_size: Annotated[Count, Field(le=MAX_IMAGE_SIZE)]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    source: str
    fingerprint: str = ""
    sha256: str = ""

    @property
    def checksum(self) -> str:
        """The checksum of the other fields."""
        return hashlib.sha256(json.dumps(self._replace(sha256="")).encode()).hexdigest()


MAX_JSON_BYTES = 2**20
T = TypeVar("T", bound=BaseModel)


class Loaded(NamedTuple):
    """A backbone, and for a file of another project one line that says what was recognized and what was ignored."""

    backbone: Backbone
    recognized: str = ""


def load_backbone(model: str | Path, seed: int = 0, network: nn.Module | None = None) -> Backbone:
    """Load a backbone in evaluation mode. Raises UserError if it cannot be loaded.

    `model` is a run folder, a backbone file, `timm:<name>` (published weights), `random:<backbone>`, drawn with `seed`,
    or a checkpoint of another project. `<backbone>@<checkpoint>` names its network, and `<checkpoint>#<name>` one of
    its backbones; a line on stderr says what was recognized. The file of a user-defined network holds only weights and
    a name: pass the network itself as `network`; its weights are loaded if all keys and shapes match.
    """
    backbone, recognized = open_model(model, seed, network)
    if recognized and os.environ.get("RANK", "0") == "0":
        _report(recognized)
    return backbone


@cache
def _report(line: str) -> None:
    say(line)


def open_model(model: str | Path, seed: int = 0, network: nn.Module | None = None) -> Loaded:
    """Load a backbone and say what was recognized; see `load_backbone`."""
    name = str(model)
    architecture, place, encoder = split_model(name)
    if network is not None and (architecture or is_named(name)):
        raise UserError(f"network: {name} does not need a network; remove it")
    if name.startswith("random:"):
        return Loaded(make_backbone(name.removeprefix("random:"), seed).eval())
    if is_named(name):
        backbone = load_timm(name).eval()
        features = _about_features(backbone)
        return Loaded(backbone, f"{name}: weights of timm{features}" if features else "")
    path = Path(place)
    if path.is_dir():
        path = _file_of_folder(path)
    if not path.is_file():
        raise UserError(f"model {name}: no such file or folder; name {MODEL}")
    about = _read_description(path)
    if network is not None and (about is None or not is_user_defined(about.name)):
        raise UserError(f"network: {path} does not contain a custom network; leave it out")
    if about is None or architecture:
        return _load_foreign(read_checkpoint(path), architecture, encoder)
    if encoder:
        raise UserError(f"{path}: holds one backbone; leave out #{encoder}")
    backbone = _load_described(about, path, network)
    is_unfinished = Path(place) in path.parents[2:3]  # a run without a final backbone
    return Loaded(backbone, f"{place}: training is {unfinished(backbone) or 'unfinished'}" if is_unfinished else "")


def unfinished(backbone: Backbone) -> str:
    """Return `unfinished: step 129 of 4,002` for a backbone of such a checkpoint, otherwise an empty string."""
    found = re.search(r"unfinished: step [\d,]+ of [\d,]*\d", backbone.source)
    return found[0] if found else ""


def save_backbone(backbone: Backbone, folder: Path) -> Path:
    """Write backbone.safetensors with the weights and their description, and backbone.json.

    Returns the path of the weights.
    """
    name, dim, size, source = backbone.name, backbone.dim, backbone.image_size, backbone.source
    about = Architecture(BACKBONE_FORMAT, name, dim, size, backbone.mean, backbone.std, source, fingerprint(backbone))
    about = about._replace(sha256=about.checksum)
    weights = {key: value.detach().cpu().contiguous() for key, value in backbone.network.state_dict().items()}
    path = folder / BACKBONE_FILE
    with atomic_write(path) as temporary:
        # A single metadata entry, because the order of several would differ between processes.
        temporary.write_bytes(save(weights, {"about": json.dumps(about._asdict())}))
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(about._asdict(), indent=2))
    return path


def fingerprint(backbone: Backbone) -> str:
    """Return 16 hex digits that identify the architecture, the normalization and the weights."""
    digest = hashlib.sha256(repr((backbone.name, backbone.mean, backbone.std)).encode())
    for key, value in sorted(backbone.network.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def stored_fingerprint(run: Path) -> str:
    """Return the fingerprint stored in the run's backbone file if the network is custom, otherwise an empty string."""
    try:
        about = _read_description(_backbone_of_run(run))
    except (UserError, OSError, safetensors.SafetensorError):
        return ""
    return about.fingerprint if about is not None and is_user_defined(about.name) else ""


def _backbone_of_run(folder: Path) -> Path:
    newest = sorted(folder.glob(f"checkpoints/step-*[0-9]/{BACKBONE_FILE}"))
    for path in (folder / BACKBONE_FILE, *reversed(newest)):
        if path.exists():
            return path
    raise UserError(f"model {folder}: contains no {BACKBONE_FILE}; choose a run that has written a checkpoint")


def _file_of_folder(folder: Path) -> Path:
    """Return the weights of a run, or of a model in the layout of the Hugging Face hub."""
    is_model = (folder / HUB_FILE).exists() and not (folder / BACKBONE_FILE).exists()
    return folder / HUB_FILE if is_model else _backbone_of_run(folder)


# --- files of this project


def _read_description(path: Path) -> Architecture | None:
    """Return the description in a file of this project, None for other files. Raises UserError if it is damaged."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError:
        return None  # reading the weights reports it
    if "about" not in metadata and not any(BACKBONE_FORMAT in text for text in metadata.values()):
        return None
    try:
        about = TypeAdapter(Architecture).validate_json(metadata.get("about", ""))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "about"
        raise UserError(f"{path}: its description is damaged ({place}: {first['msg']}); {REMEDY}") from error
    if about.format != BACKBONE_FORMAT:
        raise UserError(f"{path}: has the format {about.format!r}, not {BACKBONE_FORMAT!r}; export it again")
    if about.sha256 not in ("", about.checksum):
        raise UserError(f"{path}: is damaged, its description is not the one that was written; {REMEDY}")
    return about


def _load_described(about: Architecture, path: Path, network: nn.Module | None) -> Backbone:
    weights = read_checkpoint(path).weights
    if network is not None:
        inner = network.network if isinstance(network, Backbone) else network
        empty = Backbone(inner, about.name, about.dim)
    elif is_user_defined(about.name):
        raise UserError(
            f"{path}: holds the weights of {about.name}, a custom network, but not its code; load it in Python by "
            f"load_backbone({str(path)!r}, network=...)"
        )
    else:
        empty = _make_empty(about.name, path)
    backbone = _fill(empty, weights, f"{path} ({about.source})")
    backbone.image_size, backbone.mean, backbone.std = about.image_size, about.mean, about.std
    if about.fingerprint not in ("", fingerprint(backbone)):
        raise UserError(f"{path}: is corrupted: the weights do not match the stored fingerprint; {REMEDY}")
    return backbone.eval()


# --- files of other projects


def _load_foreign(checkpoint: Checkpoint, architecture: str, encoder: str) -> Loaded:
    path, how, is_guess = checkpoint.path, "named in MODEL", not architecture
    found = find_resnets(checkpoint)
    if not architecture:
        architecture, how = _recognize(
            checkpoint._replace(arch=checkpoint.arch or _described_arch(path)), found, encoder
        )
    empty = _make_empty(architecture, path)
    wanted = empty.network.state_dict()
    if FIRST_BLOCK not in wanted or not found:
        found = find_network(checkpoint, wanted)
    chosen, names = choose(found, encoder, path)
    label = next(name for name, item in names.items() if item is chosen) if len(names) > 1 else ""
    weights = _converted(empty, chosen.weights)
    hint = f"if it is a variant of a ResNet, name it, for example timm:resnet50d@{path}" if is_guess else ""
    backbone = _fill(empty, weights, f"{path}#{label}" if label else str(path), hint)
    _set_preprocessing(backbone, path)
    rest = {chosen.prefix + key: value for key, value in weights.items() if key not in wanted}
    others = tuple(item.prefix for item in names.values() if not chosen.prefix.startswith(item.prefix))
    places = (chosen.prefix, *others)
    rest |= {key: value for key, value in checkpoint.weights.items() if not key.startswith(places)}
    line = f"{path}: loaded as {architecture}, {how}"
    line += ", names and positions converted by timm" if weights is not chosen.weights else ""
    if label:
        line += f", from #{label} (not {', '.join(f'#{name}' for name in names if name != label)})"
    line += _about_features(backbone)
    if rest:
        line += f"; ignored: {contents(rest, chosen.prefix)}"
    return Loaded(backbone.eval(), line)


def _about_features(backbone: Backbone) -> str:
    """Return what the features of a vision transformer are, in a few words; empty for other networks."""
    pooling = getattr(backbone.network, "global_pool", "") if backbone.patch > 1 else ""
    return f"; its features are {POOLING[pooling]}" if pooling in POOLING else ""


def _converted(empty: Backbone, weights: Weights) -> Weights:
    """Return weights under timm's names and with positions of its size, if they are those of this vision transformer.

    Otherwise returns them unchanged. Only names and positions may differ, so that no file can demand more memory than
    the network has.
    """
    convert = getattr(sys.modules[type(empty.network).__module__], "checkpoint_filter_fn", None)
    wanted = empty.network.state_dict()
    is_fitting = all(
        value.shape == wanted[key].shape or (key == "pos_embed" and value.shape[::2] == wanted[key].shape[::2])
        for key, value in weights.items()
        if key in wanted
    )
    if empty.patch == 1 or not convert or not is_fitting or not all(map(_is_dense, weights.values())):
        return weights
    if not mismatches(empty, weights, ""):
        return weights
    names = {key.split(".")[0] for key in wanted} | OTHER_NAMES
    known = {key: value for key, value in weights.items() if key.split(".")[0] in names}
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):  # for other files it raises any
        found: Weights = convert(known, empty.network)
        found |= {key: value for key, value in weights.items() if key.split(".")[0] not in names}
        return weights if mismatches(empty, found, "") else found
    return weights


def _recognize(checkpoint: Checkpoint, found: list[Found], encoder: str) -> tuple[str, str]:
    """Return the network of a checkpoint and how it was recognized. Raises UserError if that is not certain."""
    path, arch = checkpoint.path, checkpoint.arch
    plain = PLAIN_RESNET.fullmatch(arch.lower())
    if arch and not (plain and plain[1] in BLOCKS):
        try:
            return make_empty_backbone(f"timm:{arch}").name, "by its arch"
        except UserError as error:
            raise UserError(
                f"{path}: its arch is {arch[:100]!r}, which is neither a ResNet of torchvision nor a network of the "
                f"installed timm; name the network: <backbone>@{path}, for example timm:vit_small_patch16_224@{path}"
            ) from error
    if not found:
        raise UserError(
            f"{path}: no ResNet found among its {len(checkpoint.weights)} tensors: {contents(checkpoint.weights)}; "
            f"for another network name its architecture: timm:<name>@{path}"
        )
    chosen, _ = choose(found, encoder, path)
    name = resnet_name(chosen.weights, path)
    if plain and not name.startswith(f"resnet{plain[1]}"):
        raise UserError(f"{path}: its weights are those of {name}, but it says {arch!r}; name one: <backbone>@{path}")
    if chosen.doubt:
        names = name
        if "-small" in name:
            padded = name.replace("-small", "-small-pad2")
            names = f"{name} (stride 1, padding 1, no max-pool), {padded} (the same with padding 2, as in solo-learn)"
        raise UserError(
            f"{path}: looks like {name}, but its keys do not tell {chosen.doubt}; name the network, NAME@{path}: "
            f"{names}, or timm:<name>"
        )
    return name, "by its arch and keys" if plain else "by its keys (strides and dilation as in torchvision)"


class _NetworkConfig(BaseModel):
    """The fields of config.json that decide what a network computes: the first is timm's, the others transformers'."""

    architecture: str = ""
    model_type: str = "resnet"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False


class _Preprocessing(BaseModel):
    """The fields of transformers' preprocessor_config.json that a backbone has."""

    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    crop_size: dict[str, ImageSize] = {}


def _described_arch(path: Path) -> str:
    """Return the network that config.json names beside a model of the Hugging Face hub; empty for a plain ResNet."""
    file = path.with_name("config.json")
    if path.name != HUB_FILE or not file.is_file():
        return ""
    config = _read_json(file, _NetworkConfig)
    if config != _NetworkConfig(architecture=config.architecture):
        raise UserError(f"{file}: describes another network than the ResNet of torchvision; name it: <backbone>@{path}")
    return config.architecture


def _set_preprocessing(backbone: Backbone, path: Path) -> None:
    file = path.with_name("preprocessor_config.json")
    if path.name == HUB_FILE and file.is_file():
        settings = _read_json(file, _Preprocessing)
        backbone.mean, backbone.std = settings.image_mean, settings.image_std
        backbone.image_size = settings.crop_size.get("height", backbone.image_size)


def _read_json(path: Path, model: type[T]) -> T:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("it is too large")
        return model.model_validate_json(path.read_bytes())
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); download or export the model again") from error


# --- networks


def _make_empty(name: str, path: Path) -> Backbone:
    """Return the network of this name without weights, because the name may be wrong."""
    try:
        return make_empty_backbone(name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _fill(empty: Backbone, weights: Weights, source: str, hint: str = "") -> Backbone:
    """Return a backbone with these weights. Raises UserError if they do not match; unknown keys add the hint."""
    if problems := mismatches(empty, weights, source):
        is_other = any("unknown to" in problem for problem in problems)
        raise UserError(*problems, *([hint] if hint and is_other else []))
    backbone = empty if is_user_defined(empty.name) else make_backbone(empty.name)
    wanted = empty.network.state_dict()
    backbone.network.load_state_dict({key: weights[key] for key in wanted if key in weights}, strict=False)
    backbone.source = source
    return backbone


def mismatches(backbone: Backbone, weights: Weights, source: str) -> list[str]:
    """Return a message for each mismatch between the weights and a backbone."""
    wanted = backbone.network.state_dict()
    shared = {key: weights[key] for key in wanted if key in weights}
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    extra = sorted(
        key
        for key in weights
        if key not in wanted
        and (is_user_defined(backbone.name) or not (HEADS.fullmatch(key) or BUFFERS.fullmatch(key)))
    )
    wrong = [
        f"{key} {tuple(value.shape)}, not {tuple(wanted[key].shape)}"
        for key, value in shared.items()
        if value.shape != wanted[key].shape
    ]
    odd = [
        f"{key} {str(value.dtype).removeprefix('torch.')}"
        for key, value in shared.items()
        if wanted[key].is_floating_point() and not (value.is_floating_point() or value.is_complex())
    ]
    sparse = [key for key, value in shared.items() if not _is_dense(value)]
    problems = {
        f"missing for {backbone.name}": missing,
        f"unknown to {backbone.name}": extra,
        f"of another shape than {backbone.name} has": wrong,
        "without floating-point numbers": odd,
        "that are sparse, quantized, complex or expanded": sparse,
    }
    return [
        f"{source}: {len(keys)} key{'s' * (len(keys) > 1)} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)}) {problem}"
        for problem, keys in problems.items()
        if keys
    ]


def _is_dense(value: Tensor) -> bool:
    """Return whether a tensor is dense on the CPU.

    Sparse or expanded tensors could need far more memory than their file.
    """
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()
