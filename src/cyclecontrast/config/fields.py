"""The kinds of values that options take, each with its bounds."""

import re
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

STRICT = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=8)]
"""Of an image, in pixels."""


def _known_backbone(name: str) -> str:
    if not re.fullmatch(r"resnet(10|18|34|50)(-small)?(-w[1-9][0-9]*)?|timm:.+", name):
        raise ValueError(
            "name resnet10, resnet18, resnet34 or resnet50, with -small or -w<width> behind it, or timm:<name>"
        )
    return name


BackboneName = Annotated[str, AfterValidator(_known_backbone)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
