"""Read a file of weights of any project, and find the backbones in it.

Reading cannot run code: PyTorch files are read with `weights_only=True` and a few more harmless types, a pickle of
`export --format detectron2` is refused unless it consists of the instructions that the export uses.
"""

import argparse
import io
import pathlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor

from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import BLOCKS

Weights = dict[str, Tensor]
Renaming: TypeAlias = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
"""Patterns in the parameter names of one project, and their replacements in another's names."""

MAX_DEPTH = 12
"""Nested dictionaries of a file in which tensors are looked for."""


class Checkpoint(NamedTuple):
    """The tensors of a file by their full names, and the name that the file gives its network (empty if none)."""

    path: Path
    weights: Weights
    arch: str = ""
    is_export: bool = False


class Found(NamedTuple):
    """A backbone in a checkpoint: the prefix of its keys, and its weights, in torchvision's names for a ResNet.

    `doubt` says what the keys of this layout do not tell about the network, empty if nothing.
    """

    prefix: str
    weights: Weights
    doubt: str = ""


# --- reading


class _Ignored:
    """Stands for a NumPy scalar in a checkpoint, which is not needed."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


SAFE_TYPES: list[Any] = [
    (argparse.Namespace, "argparse.Namespace"),
    *((_Ignored, name) for name in ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")),
    *(
        (pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
    (dict, "lightning.fabric.utilities.data.AttributeDict"),
    (dict, "lightning_fabric.utilities.data.AttributeDict"),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
]
"""What checkpoints hold beside weights, and the class that stands for it: options, numbers, paths."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the tensors of a file. Raises UserError if it is not a readable file of weights."""
    try:
        if path.suffix == ".safetensors":
            return Checkpoint(path, load_file(path))
        is_export = path.suffix == ".pkl" and _protocol(path) == 4  # torch.save writes protocol 2 or an archive
        content = _read_export(path) if is_export else _unpickle(path)
    except UserError:
        raise
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
    weights = _tensors(content)
    if not weights:
        entries = f"; its entries are {_some([str(key) for key in content])}" if isinstance(content, dict) else ""
        raise UserError(f"{path}: holds no state dict (a mapping of names to tensors){entries}")
    return Checkpoint(path, weights, _arch(content), is_export)


def _unpickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than the size of the file")
    with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_TYPES):
        warnings.simplefilter("ignore")  # about pickle protocols
        return torch.load(path, "cpu", weights_only=True)


EXPORT_INSTRUCTIONS = re.compile(
    r"PROTO|FRAME|STOP|MARK|MEMOIZE|(LONG_)?BINGET|EMPTY_DICT|SETITEMS?|(EMPTY_)?TUPLE[123]?|(SHORT_)?BINUNICODE|"
    r"(SHORT_)?BINBYTES|BININT[12]?|NEWTRUE|STACK_GLOBAL|REDUCE"
)
"""The pickle instructions of `export --format detectron2`. None of them sets attributes or reserves memory."""


class _ExportUnpickler(pickle.Unpickler):
    """Calls two functions of this file in place of the two that the pickle of an export names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return _tensor
        if (module, name) == ("builtins", "bytearray"):
            return _bytes
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _protocol(path: Path) -> int:
    with path.open("rb") as file:
        start = file.read(2)
    return start[1] if len(start) == 2 and start[0] == 0x80 else 0


def _read_export(path: Path) -> Any:
    """Return the content of a file that `export --format detectron2` wrote."""
    data = path.read_bytes()
    is_plain = all(EXPORT_INSTRUCTIONS.fullmatch(operation.name) for operation, _, _ in pickletools.genops(data))
    content = _ExportUnpickler(io.BytesIO(data)).load() if is_plain else None
    if not isinstance(content, dict) or content.get("__author__") != "cyclecontrast":
        raise UserError(
            f"{path}: is no file of cyclecontrast export --format detectron2; name the checkpoint that it was made from"
        )
    return {"model": content.get("model")}


def _bytes(value: object) -> bytearray:
    if not isinstance(value, bytes):
        raise TypeError("no bytes")
    return bytearray(value)


def _tensor(shape: tuple[int, ...], dtype: str, data: bytearray) -> Tensor:
    dtypes = {"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}
    return torch.frombuffer(data, dtype=dtypes[dtype]).reshape(shape)


def _tensors(content: object) -> Weights:
    """Return all tensors in nested dictionaries, by their keys joined by dots."""
    weights: Weights = {}
    visited: set[int] = set()  # a dictionary may be in several places

    def visit(values: dict[Any, Any], prefix: str, depth: int) -> None:
        visited.add(id(values))
        for key, value in values.items():
            if isinstance(value, Tensor):
                weights.setdefault(f"{prefix}{key}", value)
            elif isinstance(value, dict) and id(value) not in visited and depth < MAX_DEPTH:
                visit(value, f"{prefix}{key}.", depth + 1)

    if isinstance(content, dict):
        visit(content, "", 0)
    return weights


def _arch(content: dict[Any, Any]) -> str:
    """Return the name of the network in a checkpoint: its `arch`, or an option of the training."""
    for holder in (content, content.get("args"), content.get("hyper_parameters")):
        options = vars(holder) if isinstance(holder, argparse.Namespace) else holder
        if not isinstance(options, dict):
            continue
        if isinstance(options.get("arch"), str):
            return str(options["arch"])
        for key in ("model", "backbone", "encoder"):
            value = options.get(key)
            value = value.get("name") if isinstance(value, dict) else value
            if isinstance(value, str) and re.search("res-?net", value.lower()):
                return value
    return ""


# --- ResNets


def _stage(shift: int) -> Callable[[re.Match[str]], str]:
    """Return the replacement of the number of a layer in nn.Sequential by the name of a stage."""
    return lambda match: f"layer{int(match[1]) - shift}."


SHORTCUT = (r"\bshortcut\.", "downsample.")
LAYOUTS: dict[str, tuple[str, Renaming, str]] = {
    "torchvision": ("layer1.0.conv1.weight", (SHORTCUT,), ""),
    # By the number of stage 1: without modules for ReLU and max-pool (lightly's own), without one of them, with both.
    **{
        f"nn.Sequential {number}": (
            f"{number}.0.conv1.weight",
            ((r"^0\.", "conv1."), (r"^1\.", "bn1."), (rf"^([{number}-{number + 3}])\.", _stage(number - 1)), SHORTCUT),
            "whether its stem has a max-pool" if number == 3 else "",
        )
        for number in (2, 3, 4)
    },
    "transformers": (
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
        (
            (r"^embedder\.embedder\.convolution\.", "conv1."),
            (r"^embedder\.embedder\.normalization\.", "bn1."),
            (r"^encoder\.stages\.(\d)\.layers\.", _stage(-1)),
            (r"\blayer\.(\d)\.convolution\.", lambda match: f"conv{int(match[1]) + 1}."),
            (r"\blayer\.(\d)\.normalization\.", lambda match: f"bn{int(match[1]) + 1}."),
            (r"\bshortcut\.convolution\.", "downsample.0."),
            (r"\bshortcut\.normalization\.", "downsample.1."),
        ),
        "",
    ),
    "detectron2": (
        "res2.0.conv1.weight",
        (
            (r"^stem\.", ""),
            (r"^res(\d)\.", _stage(1)),
            (r"\bconv(\d)\.norm\.", r"bn\1."),
            (r"\bshortcut\.norm\.", "downsample.1."),
            (r"\bshortcut\.(?=weight)", "downsample.0."),
        ),
        "which convolution of a block has the stride",
    ),
}
"""How projects name the layers of a ResNet: the first convolution, the patterns of torchvision's names, and a doubt."""
STEM, FIRST_BLOCK = "conv1.weight", "layer1.0.conv1.weight"
FIRST_BLOCKS = re.compile(rf"((?:.*\.)?)({'|'.join(re.escape(first) for first, _, _ in LAYOUTS.values())})")
DENSE_HEADS = re.compile(r"(?:.*\.)?(?:aux_)?(?:classifier|decode_head|auxiliary_head)\..*")


def find_resnets(checkpoint: Checkpoint) -> list[Found]:
    """Return the ResNets in a checkpoint."""
    matches = [match for match in map(FIRST_BLOCKS.fullmatch, checkpoint.weights) if match]
    layouts: dict[str, str] = {}
    for layout, (first, _, _) in LAYOUTS.items():
        for match in matches:
            is_sequence = layout.startswith("nn.Sequential")
            if match[2] == first and (not is_sequence or f"{match[1]}0.weight" in checkpoint.weights):
                layouts.setdefault(match[1], layout)
    found = []
    for prefix, layout in layouts.items():
        _, names, doubt = LAYOUTS[layout]
        weights = {renamed(key, names): value for key, value in _below(prefix, layouts, checkpoint.weights).items()}
        doubt = "" if checkpoint.is_export else doubt or _doubt(checkpoint, prefix, layout, weights)
        found.append(Found(prefix, weights, doubt))
    return found


def _below(prefix: str, others: Iterable[str], weights: Weights) -> Weights:
    """Return the weights whose keys have a prefix, without it, except those of other backbones below it."""
    inner = tuple(other for other in others if other != prefix and other.startswith(prefix))
    return {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        if key.startswith(prefix) and not key.startswith(inner)
    }


def _doubt(checkpoint: Checkpoint, prefix: str, layout: str, weights: Weights) -> str:
    """Return what the keys of a ResNet do not tell about it, empty if it is one of ours."""
    is_small = STEM in weights and weights[STEM].shape[2:] == (3, 3)
    # These projects write "shortcut", and their 3x3 stems have stride 1, padding 1 and no max-pool.
    has_small_names = layout == "nn.Sequential 2" or any(
        key.startswith(prefix) and ".shortcut." in key for key in checkpoint.weights
    )
    if is_small and not has_small_names:
        return "stride, padding and max-pool of its 3x3 stem"
    if layout == "nn.Sequential 2" and not is_small:
        return "whether its stem has a max-pool"
    others = (key for key in checkpoint.weights if not key.startswith(f"{prefix}layer"))
    if any(DENSE_HEADS.fullmatch(key) and checkpoint.weights[key].ndim == 4 for key in others):
        return "whether its stages are dilated, as in segmentation networks"
    return ""


def renamed(key: str, names: Renaming) -> str:
    """Return another project's name of a parameter."""
    for pattern, name in names:
        key = re.sub(pattern, name, key)
    return key


def resnet_name(weights: Weights, path: Path) -> str:
    """Return the name of the ResNet with weights of these shapes. Raises UserError if it is not supported."""
    names = {tuple(key.split(".")[:2]) for key in weights}
    blocks = tuple(sum(name[0] == f"layer{stage}" for name in names) for stage in (1, 2, 3, 4))
    stem = weights.get(STEM, weights[FIRST_BLOCK]).shape
    small = STEM in weights and stem[2:] == (3, 3)
    bottleneck = "layer1.0.conv3.weight" in weights
    for depth, known in BLOCKS.items():
        if known == blocks and bottleneck == (depth == "50"):
            return f"resnet{depth}{'-small' if small else ''}" + ("" if stem[:1] == (64,) else f"-w{[*stem, 0][0]}")
    raise UserError(
        f"{path}: a ResNet with {blocks} blocks; supported are {', '.join(BLOCKS)}, or by its name in timm, for "
        f"example timm:resnet101@{path}"
    )


# --- several backbones in a file


TEACHERS = re.compile(r"teacher|(?:^|[._])ema(?:[._]|$)")
FOLLOWERS = re.compile(r"student|momentum|moco_encoder|target|encoder_k|(?:^|[._])key")
QUERIES = re.compile(r"online|encoder_q|base_encoder")


def find_network(checkpoint: Checkpoint, wanted: Weights) -> list[Found]:
    """Return the parts of a checkpoint that may hold a network with these keys."""
    ends = (
        {key.removesuffix(first) for key in checkpoint.weights if f".{key}".endswith(f".{first}")} for first in wanted
    )
    prefixes = next(filter(None, ends), {""})
    counts = {prefix: sum(f"{prefix}{key}" in checkpoint.weights for key in wanted) for prefix in prefixes}
    prefixes = {prefix for prefix in prefixes if counts[prefix] == max(counts.values())}
    return [Found(prefix, _below(prefix, prefixes, checkpoint.weights)) for prefix in sorted(prefixes)]


def choose(found: list[Found], name: str, path: Path) -> tuple[Found, dict[str, Found]]:
    """Return the backbone called `name`, or by default the teacher or the query encoder, and all by their names.

    Raises UserError if there is no such backbone, or no default.
    """
    labels = _labels(found)
    if name:
        exact = [item for label, item in labels.items() if name in (label, item.prefix.strip("."))]
        chosen = exact or [item for item in found if name in item.prefix.split(".")]
        problem = f"holds no backbone #{name}" if not chosen else f"holds several backbones #{name}"
    else:
        chosen = [item for item in found if TEACHERS.search(item.prefix)]
        if len(chosen) != 1:
            chosen = [item for item in found if not FOLLOWERS.search(item.prefix)]
        if len(chosen) > 1:
            chosen = [item for item in chosen if QUERIES.search(item.prefix)]
        problem = "holds several backbones"
    if len(found) == 1 and not name:
        chosen = found
    if len(chosen) == 1:
        return chosen[0], labels
    raise UserError(f"{path}: {problem}; choose one of {', '.join(f'{path}#{label}' for label in labels)}")


def _labels(found: list[Found]) -> dict[str, Found]:
    """Return a short name for each backbone: the part of its prefix that the others lack, or the prefix."""
    parts = [item.prefix.strip(".").split(".") for item in found]
    shared = set.intersection(*map(set, parts))
    short = [next((part for part in own if part not in shared), ".".join(own)) for own in parts]
    names = short if len(set(short)) == len(found) else [item.prefix.strip(".") for item in found]
    return {name or "backbone": item for name, item in zip(names, found, strict=True)}


def contents(weights: Weights, prefix: str = "") -> str:
    """Return the first parts of keys that differ from a prefix, with their numbers of tensors, in a few words."""
    counts: dict[str, int] = {}
    for key in weights:
        own, place = key.split("."), prefix.split(".")
        shared = next((i for i, pair in enumerate(zip(own, place, strict=False)) if pair[0] != pair[1]), len(place) - 1)
        group = ".".join(own[: shared + 1])
        counts[group] = counts.get(group, 0) + 1
    return _some([f"{group} ({number})" if number > 1 else group for group, number in counts.items()])


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(name[:60] for name in names[:most]) + ", ..." * (len(names) > most) if names else "none"
