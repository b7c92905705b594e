"""Load a backbone from a MODEL (any supported file or name), and save backbones.

Files are read as safetensors or with `weights_only=True`, so they cannot run code, nor allocate a network larger than
their weights. A missing key is an error, so no weight stays randomly initialized.
"""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import safetensors
import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cyclecontrast.config.types import MODEL, Count, Positive, is_user_defined
from cyclecontrast.errors import UserError
from cyclecontrast.files import replacing
from cyclecontrast.models.backbone import BLOCKS, Backbone, ResNet, load_timm, make_backbone

BACKBONE_FILE = "backbone.safetensors"
BACKBONE_FORMAT = "cyclecontrast-backbone"
HEADS = ("fc.", "q_cycle_fc.", "k_cycle_fc.", "head.", "classifier.")
FIRST_BLOCK = "layer1.0.conv1.weight"
QUERY_ENCODERS = ("encoder_q.", "base_encoder.", "online", "student")
"""Prefixes of the encoder to load from files that contain several."""
MAX_IMAGE_SIZE = 8192
REMEDY = "copy or export it again; `cyclecontrast pretrain --resume RUN` rewrites the backbone of a run"

Weights = dict[str, Tensor]


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


def load_backbone(model: str | Path, seed: int = 0, network: nn.Module | None = None) -> Backbone:
    """Load a backbone in evaluation mode. Raises UserError if it cannot be loaded.

    `model` is a run folder, a backbone file, a checkpoint of this project, of the authors' release, of MoCo or of
    VINCE, a state dict of torchvision or timm, `timm:<name>` (published weights), `timm:<name>@<file>`, or
    `random:<backbone>`, drawn with `seed`. The file of a user-defined network holds only weights and a name:
    pass the network itself as `network`; its weights are loaded if all keys and shapes match.
    """
    name = str(model)
    if network is not None and name.startswith(("random:", "timm:")):
        raise UserError(f"network: {name} does not need a network; remove it")
    if name.startswith("random:"):
        return make_backbone(name.removeprefix("random:"), seed).eval()
    if name.startswith("timm:"):
        timm_name, _, file = name.partition("@")
        return (_fill(make_backbone(timm_name), _read(Path(file)), file) if file else load_timm(timm_name)).eval()
    path = Path(name)
    if path.is_dir():
        return load_backbone(_backbone_of_run(path), network=network)
    if not path.is_file():
        raise UserError(f"model {name}: no such file or folder; name {MODEL}")
    return _load_file(path, network).eval()


def save_backbone(backbone: Backbone, folder: Path) -> Path:
    """Write backbone.safetensors with the weights and their description, and backbone.json.

    Returns the path of the weights.
    """
    name, dim, size, source = backbone.name, backbone.dim, backbone.image_size, backbone.source
    about = Architecture(BACKBONE_FORMAT, name, dim, size, backbone.mean, backbone.std, source, fingerprint(backbone))
    about = about._replace(sha256=about.checksum)
    weights = {key: value.detach().cpu().contiguous() for key, value in backbone.network.state_dict().items()}
    path = folder / BACKBONE_FILE
    with replacing(path) as temporary:
        # A single metadata entry, because the order of several would differ between processes.
        temporary.write_bytes(save(weights, {"about": json.dumps(about._asdict())}))
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(about._asdict(), indent=2))
    return path


def fingerprint(backbone: Backbone) -> str:
    """Return 16 hex digits that identify the architecture, the normalization and the weights."""
    digest = hashlib.sha256(repr((backbone.name, backbone.mean, backbone.std)).encode())
    for key, value in sorted(backbone.network.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def noted_fingerprint(run: Path) -> str:
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


def _load_file(path: Path, network: nn.Module | None) -> Backbone:
    weights = _read(path)
    about = _read_description(path)
    if network is not None and (about is None or not is_user_defined(about.name)):
        raise UserError(f"network: {path} does not contain a custom network; leave it out")
    if about is not None:
        backbone = _fill(_make_described(about, path, network), weights, f"{path} ({about.source})")
        backbone.image_size, backbone.mean, backbone.std = about.image_size, about.mean, about.std
        if about.fingerprint not in ("", fingerprint(backbone)):
            raise UserError(f"{path}: is corrupted: the weights do not match the stored fingerprint; {REMEDY}")
        return backbone
    prefix = _find_resnet(weights, path)
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return _fill(_make_empty(_resnet_name(weights, path), path), weights, str(path))


# --- files


def _read(path: Path) -> Weights:
    """Return the tensors of a file. Raises UserError if it is not a readable file of weights."""
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except Exception as error:  # a damaged file raises any exception
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise UserError(
                f"{path}: contains more than weights ({code[1]}); loading it could run code. Save only the state_dict"
            ) from error
        reason = ": ".join(filter(None, (type(error).__name__, re.split(r"\n|\. ", str(error))[0])))
        raise UserError(
            f"{path}: cannot be read as a file of weights; it is damaged or has another format ({reason})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: holds no state dict (a mapping of names to tensors)")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _unpickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than the size of the file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols
        return torch.load(path, "cpu", weights_only=True)


def _read_description(path: Path) -> Architecture | None:
    """Return the description in a file of this project, None for other files. Raises UserError if it is damaged."""
    if path.suffix != ".safetensors":
        return None
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
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


# --- networks


def _find_resnet(weights: Weights, path: Path) -> str:
    """Return the key prefix of the ResNet in a checkpoint of another project. Raises UserError if none is found."""
    found = [key.removesuffix(FIRST_BLOCK) for key in weights if key.endswith(FIRST_BLOCK)]
    chosen = found
    if len(found) > 1:
        chosen = [prefix for prefix in found if any(word in prefix for word in QUERY_ENCODERS)]
    if len(chosen) == 1:
        return chosen[0]
    if found:
        raise UserError(f"{path}: holds several backbones ({', '.join(found)}); save only one of them")
    some = ", ".join(list(weights)[:3])
    raise UserError(
        f"{path}: no ResNet found among its {len(weights)} keys (first: {some}), {FIRST_BLOCK} is missing; "
        f"for another network name its architecture: timm:<name>@{path}"
    )


def _resnet_name(weights: Weights, path: Path) -> str:
    """Return the name of the ResNet with weights of these shapes. Raises UserError if it is not supported."""
    names = {tuple(key.split(".")[:2]) for key in weights}
    blocks = tuple(sum(name[0] == f"layer{stage}" for name in names) for stage in (1, 2, 3, 4))
    stem = weights.get("conv1.weight", weights[FIRST_BLOCK]).shape
    small = "conv1.weight" in weights and stem[2:] == (3, 3)
    bottleneck = "layer1.0.conv3.weight" in weights
    for depth, known in BLOCKS.items():
        if known == blocks and bottleneck == (depth == "50"):
            return f"resnet{depth}{'-small' if small else ''}" + ("" if stem[:1] == (64,) else f"-w{[*stem, 0][0]}")
    raise UserError(f"{path}: a ResNet with {blocks} blocks; supported are {', '.join(BLOCKS)}")


def _make_described(about: Architecture, path: Path, network: nn.Module | None) -> Backbone:
    if not is_user_defined(about.name):
        return _make_empty(about.name, path)
    if network is None:
        raise UserError(
            f"{path}: holds the weights of {about.name}, a custom network, but not its code; load it in Python by "
            f"load_backbone({str(path)!r}, network=...)"
        )
    inner = network.network if isinstance(network, Backbone) else network
    return Backbone(inner, about.name, about.dim)


def _make_empty(name: str, path: Path) -> Backbone:
    """Return the network of this name without weights.

    ResNets on the meta device, because the description may be wrong.
    """
    try:
        with torch.device("cpu" if name.startswith("timm:") else "meta"):
            return make_backbone(name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _fill(empty: Backbone, weights: Weights, source: str) -> Backbone:
    """Return a backbone with these weights. Raises UserError if keys or shapes do not match."""
    if problems := misfits(empty, weights, source):
        raise UserError(*problems)
    backbone = make_backbone(empty.name) if isinstance(empty.network, ResNet) else empty
    wanted = empty.network.state_dict()
    backbone.network.load_state_dict({key: weights[key] for key in wanted if key in weights}, strict=False)
    backbone.source = source
    return backbone


def misfits(backbone: Backbone, weights: Weights, source: str) -> list[str]:
    """Return a message for each mismatch between the weights and a backbone."""
    wanted = backbone.network.state_dict()
    shared = {key: weights[key] for key in wanted if key in weights}
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    extra: list[str] = []
    if isinstance(backbone.network, ResNet) or is_user_defined(backbone.name):
        heads = () if is_user_defined(backbone.name) else HEADS
        extra = sorted(key for key in weights if key not in wanted and not key.startswith(heads))
    wrong = [
        f"{key} {tuple(value.shape)}, not {tuple(wanted[key].shape)}"
        for key, value in shared.items()
        if value.shape != wanted[key].shape
    ]
    sparse = [key for key, value in shared.items() if not _is_dense(value)]
    problems = {
        f"missing for {backbone.name}": missing,
        f"unknown to {backbone.name}": extra,
        f"of another shape than {backbone.name} has": wrong,
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
