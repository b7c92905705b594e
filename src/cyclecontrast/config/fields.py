"""The kinds of values that options take, each with its bounds."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeGuard

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)
MOST = 10**9
"""So many of anything are a slip of the keyboard, and more would overflow somewhere."""


def _no_truth_value(value: object) -> object:
    """Refuse what would be taken for 0 or 1."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


def _no_more_than_all(part: str) -> str:
    number, all_parts = map(int, part.split("/"))
    if number > all_parts:
        raise ValueError(f"there are {all_parts} parts, counted from 1")
    return part


IsNumber = BeforeValidator(_no_truth_value)

Count = Annotated[int, Field(ge=1, le=MOST), IsNumber]
Whole = Annotated[int, Field(ge=0, le=MOST), IsNumber]
Few = Annotated[int, Field(ge=1, le=10_000), IsNumber]
"""Of what is made or held all at once."""
Length = Annotated[int, Field(ge=1, le=1_000_000), IsNumber]
"""Of a vector."""
Processes = Annotated[int, Field(ge=0, le=1024), IsNumber]
Part = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}/[1-9][0-9]{0,3}$"), AfterValidator(_no_more_than_all)]
"""I/N, the I-th of N parts."""
Seed = Annotated[int, Field(ge=0, lt=2**32), IsNumber]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), IsNumber]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), IsNumber]
Fraction = Annotated[float, Field(ge=0, le=1), IsNumber]
BelowOne = Annotated[float, Field(ge=0, lt=1), IsNumber]
Rate = Annotated[float, Field(gt=0, le=10_000), IsNumber]
"""Frames per second."""
Side = Annotated[int, Field(ge=8, le=8192), IsNumber]
"""Of an image, in pixels."""


OWN = "own:"
"""Before the name of what a user passes in Python: a network, an augmentation, an objective."""


def is_own(name: object) -> TypeGuard[str]:
    """Whether it names something that only Python can pass."""
    return isinstance(name, str) and re.fullmatch(rf"{OWN}\w{{1,100}}", name) is not None


def _own_or_known(name: object, check: ValidatorFunctionWrapHandler) -> object:
    return name if is_own(name) else check(name)


def _known_backbone(name: str) -> str:
    if not is_own(name) and not re.fullmatch(r"resnet(10|18|34|50)(-small)?(-w[1-9][0-9]{0,2})?|timm:.+", name):
        raise ValueError(
            "name resnet10, resnet18, resnet34 or resnet50, with -small or -w<width> behind it, or timm:<name>"
        )
    return name


def _can_be_a_name(value: object) -> object:
    """Refuse what no file can be called or no config.toml can hold, and the empty name: it means the current folder."""
    if not isinstance(value, str | os.PathLike) or not (name := str(value)):
        raise ValueError("input should be a name")
    try:
        parts = [len(part) for part in name.encode().split(b"/")]
    except UnicodeEncodeError:
        raise ValueError("input should be a name in UTF-8") from None
    if "\0" in name or sum(parts) + len(parts) > 4096 or max(parts) > 255:
        raise ValueError("input should be a name that a file can have")
    return value


def is_url(place: object) -> TypeGuard[str]:
    """Whether it names a place by a URL, not on this machine."""
    return isinstance(place, str) and "://" in place


def _on_this_machine(value: object) -> object:
    if is_url(value):
        raise PydanticCustomError(UNSHOWN, "is a URL; name a place on this machine")
    return value


def _place_or_url(value: object, as_place: Callable[[object], Path | str]) -> Path | str:
    """Take a URL as it is, once nothing in it can be a secret: it will stand in records and messages."""
    if not is_url(value):
        return Path(as_place(_can_be_a_name(value)))
    if "@" in value or "?" in value or "#" in value:
        raise PydanticCustomError(
            UNSHOWN,
            "the URL may hold no user, password or query, for it is written into records; give them by the environment "
            "or the configuration of fsspec",
        )
    if "::" in value:
        raise PydanticCustomError(UNSHOWN, "the URL is a chain of several; name a single one")
    url = value.rstrip("/")
    if not is_url(url):
        raise ValueError("the URL names no place")
    _can_be_a_name(url)
    return url


UNSHOWN = "unshown"
"""The kind of mistakes whose value is not repeated to the user: it may hold a secret."""
Place = Annotated[Path, BeforeValidator(_can_be_a_name), BeforeValidator(_on_this_machine)]
"""A file or folder."""
PlaceOrUrl = Annotated[Path | str, WrapValidator(_place_or_url)]
"""A folder, or the URL of a prepared store, which stays text."""
Name = Annotated[str, AfterValidator(_can_be_a_name)]
"""What may be the name of one."""
OR_OWN = WrapValidator(_own_or_known)
"""Beside a Literal: the names that the command line knows, and those of what is passed in Python."""
AS_TEXT = PlainSerializer(str, return_type=str)
"""Beside OR_OWN, for what is written into config.toml."""
BackboneName = Annotated[Name, AfterValidator(_known_backbone)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,4})?|mps)$")]
