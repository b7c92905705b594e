"""Types of option values with their bounds, and `option`, which defines an option."""

import os
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, cast
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True, defer_build=True)
GROUPS = ("data", "method", "model", "options", "optimization", "hardware", "output")
"""The groups of options, in the order of the help."""


def option(
    default: Any,
    about: str,
    metavar: str = "",
    group: str = "options",
    names: Literal["", "folder", "file", "path", "model"] = "",
    bare: str = "",
    **rules: Any,
) -> Any:
    """Return the pydantic field of an option; `about` is its help text, `default` is ... if it is required.

    `names` is the kind of path that the value must refer to: it must exist when the command starts (`path`: a file or
    a folder). `bare` is the value of the flag without a value. `rules` are passed to `pydantic.Field`.
    """
    details: dict[str, Any] = {"metavar": metavar, "group": group, "names": names, "bare": bare}
    return Field(default, description=about, json_schema_extra=details, **rules)


def detail(field: FieldInfo, key: str) -> str:
    """Return a detail of an option (metavar, group, names or bare), "" for a field not created by `option`."""
    return str(cast(dict[str, Any], field.json_schema_extra or {}).get(key, ""))


# --- numbers

MAX_COUNT = 10**9
"""Upper bound of counts; larger values are typos and would overflow."""


def _refuse_boolean(value: object) -> object:
    """Refuse booleans, which pydantic would convert to 0 or 1."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


IsNumber = BeforeValidator(_refuse_boolean)
Count = Annotated[int, Field(ge=1, le=MAX_COUNT), IsNumber]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT), IsNumber]
SmallCount = Annotated[int, Field(ge=1, le=10_000), IsNumber]
"""A small count, of things that are held in memory at the same time."""
Dim = Annotated[int, Field(ge=1, le=1_000_000), IsNumber]
"""The dimension of a vector."""
WorkerCount = Annotated[int, Field(ge=0, le=1024), IsNumber]
Seed = Annotated[int, Field(ge=0, lt=2**32), IsNumber]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), IsNumber]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), IsNumber]
Fraction = Annotated[float, Field(ge=0, le=1), IsNumber]
Stages = Annotated[int, Field(ge=0, le=3), IsNumber]
HalfOpenFraction = Annotated[float, Field(ge=0, lt=1), IsNumber]
FrameRate = Annotated[float, Field(gt=0, le=10_000), IsNumber]
"""Frames per second."""
MAX_IMAGE_SIZE = 2048
"""In pixels. A single larger image can take more memory than a small machine has."""
ImageSize = Annotated[int, Field(ge=8, le=MAX_IMAGE_SIZE), IsNumber]
"""The side of an image in pixels."""

# --- names and places

HIDDEN_VALUE = "hidden_value"
"""The type of errors whose value is not printed, because it may contain a secret."""


def _check_name(value: object) -> object:
    """Reject values that cannot be a file name: empty (it would mean the current folder), too long, or not UTF-8."""
    if not isinstance(value, str | os.PathLike) or not (name := str(value)):
        raise ValueError("must be a non-empty file name or path")
    try:
        lengths = [len(part) for part in name.encode().split(b"/")]
    except UnicodeEncodeError:
        raise ValueError("input should be a name in UTF-8") from None
    if "\0" in name or sum(lengths) + len(lengths) > 4096 or max(lengths) > 255:
        raise ValueError("must be a valid file name")
    return value


def _path_to_str(value: object) -> object:
    return str(value) if isinstance(value, os.PathLike) else value


def is_url(place: object) -> TypeGuard[str]:
    """Whether this is a URL instead of a local path."""
    return isinstance(place, str) and "://" in place


def _refuse_url(value: object) -> object:
    if is_url(value):
        raise PydanticCustomError(HIDDEN_VALUE, "is a URL; use a local path")
    return value


def _path_or_url(value: object, as_path: Callable[[object], Path | str]) -> Path | str:
    """Return a path, or a URL without secrets, because it will appear in files and messages."""
    if is_url(value):
        kind, _, rest = value.partition("://")
        value = f"{kind.lower()}://{rest}"
    if isinstance(value, str) and value.startswith("file:///"):
        value = unquote(value.removeprefix("file://"))
    if not is_url(value):
        return Path(as_path(_check_name(value)))
    if "@" in value or "?" in value or "#" in value:
        raise PydanticCustomError(
            HIDDEN_VALUE,
            "the URL must not contain a user, password or query, because it is written to files; pass them through the "
            "environment or the configuration of fsspec",
        )
    if "::" in value:
        raise PydanticCustomError(HIDDEN_VALUE, "chained URLs (::) are not supported; use a single URL")
    url = value.rstrip("/")
    if not is_url(url):
        raise ValueError("the URL has no host or path")
    _check_name(url)
    return url


MAX_TOML_BYTES = 2**16


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a file of options; raises OSError, and ValueError where it is not a small TOML file."""
    about = path.stat()
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):  # a pipe may never end, or never begin
        raise ValueError("it is not a regular file")
    if about.st_size > MAX_TOML_BYTES:
        raise ValueError(f"it has {about.st_size:,} bytes, more than {MAX_TOML_BYTES:,}")
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


Name = Annotated[str, BeforeValidator(_path_to_str), AfterValidator(_check_name)]
LocalPath = Annotated[Path, BeforeValidator(_check_name), BeforeValidator(_refuse_url)]
"""A file or folder on this machine."""
PathOrUrl = Annotated[Path | str, WrapValidator(_path_or_url)]
"""A folder, or the URL of a prepared store, which stays a string."""


def _with_suffix(*suffixes: str) -> AfterValidator:
    def check(file: Path) -> Path:
        if file.suffix.lower() not in suffixes:
            raise ValueError(f"must end in {' or '.join(suffixes)}")
        return file

    return AfterValidator(check)


VectorFile = Annotated[LocalPath, _with_suffix(".parquet", ".npz")]
HtmlFile = Annotated[LocalPath, _with_suffix(".html", ".htm")]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,4})?|mps)$")]

# --- what a user passes in Python

USER_PREFIX = "own:"
"""The prefix of the names of user-defined networks, augmentations and methods in files and messages."""


def is_user_defined(name: object) -> TypeGuard[str]:
    """Whether this is the name of a user-defined network, augmentation or method, passed in Python."""
    return isinstance(name, str) and re.fullmatch(rf"{USER_PREFIX}\w{{1,100}}", name) is not None


def _known_or_user_defined(name: object, check: ValidatorFunctionWrapHandler) -> object:
    return name if is_user_defined(name) else check(name)


OR_USER_DEFINED = WrapValidator(_known_or_user_defined)
"""Also accepts the names of custom methods, networks and augmentations, in addition to a Literal."""
AS_TEXT = PlainSerializer(str, return_type=str)
"""Use it with OR_USER_DEFINED, so that such names can be written to config.toml."""

RESNET = re.compile(r"resnet(10|18|34|50)(-small(?:-pad2)?)?(?:-w([1-9][0-9]{0,2}))?")
"""Names of the built-in ResNets: depth, small stem, width of the first stage."""


def _check_backbone(name: str) -> str:
    if not is_user_defined(name) and not RESNET.fullmatch(name) and not re.fullmatch("timm:.+", name):
        raise ValueError("name resnet10, resnet18, resnet34 or resnet50, with -small or -w<width>, or timm:<name>")
    return name


BackboneName = Annotated[Name, AfterValidator(_check_backbone)]

# --- models


class ModelName(NamedTuple):
    """The parts of MODEL, `<backbone>@<path>#<encoder>`; the first and the last may be empty."""

    architecture: str
    path: str
    encoder: str

    def __str__(self) -> str:
        at, hash_sign = "@" * bool(self.architecture), "#" * bool(self.encoder)
        return f"{self.architecture}{at}{self.path}{hash_sign}{self.encoder}"


def split_model(name: str) -> ModelName:
    """Return the parts of a MODEL; a name that exists as a whole is a path."""
    architecture, path, encoder = "", name, ""
    before, at, after = name.partition("@")
    if at and (before.startswith("timm:") or RESNET.fullmatch(before)) and not os.path.exists(name):
        architecture, path = before, after
    if "#" in path and not os.path.exists(path):
        path, _, encoder = path.rpartition("#")
    return ModelName(architecture, path, encoder)


def absolute_model(name: str) -> str:
    """Return a MODEL with its path made valid in any working directory."""
    if is_named(name):
        return name
    model = split_model(name)
    return str(model._replace(path=os.path.abspath(model.path)))


def is_named(model: str) -> bool:
    """Return whether a MODEL is a name that needs no file."""
    return model.startswith("random:") or (model.startswith("timm:") and "@" not in model)


def is_model(name: str) -> bool:
    """Return whether MODEL is an existing file or folder, or a name that needs none."""
    return is_named(name) or os.path.exists(split_model(name).path)


def must_be_downloaded(model: object) -> TypeGuard[str]:
    """Return whether a MODEL names weights that timm downloads."""
    return isinstance(model, str) and is_named(model) and not model.startswith("random:")


ModelPath = Annotated[Name, AfterValidator(absolute_model)]
"""A MODEL that is written to files, so that it is valid in any working directory."""

# --- options that several commands share

MODEL = "a run, a backbone file, a checkpoint, timm:<name>, or random:<backbone>"
DEVICES = "auto, cpu, cuda, cuda:N or mps"
LOADERS = "processes that load images (default: a quarter of the cores on a CPU, all cores on a GPU)"
TRAINED_SIZE = "side of the input images (default: the training size of the model)"
