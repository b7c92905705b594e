"""Custom backbones, augmentations and methods, which are passed to `cc.pretrain` as objects instead of names.

The files of a run store only their names (own:<name>).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cyclecontrast.config import PretrainConfig
from cyclecontrast.config.types import USER_PREFIX, is_user_defined
from cyclecontrast.data.augment import RECIPES, Augmentation, Recipe, check_augmentation, check_picklable
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.methods import METHODS, Method
from cyclecontrast.models.backbone import Backbone, pooled

UNKNOWN_DIM = 0


class UserParts(NamedTuple):
    """The parts that the user passed; None if the option is a name."""

    backbone: Backbone | None = None
    augmentation: Augmentation | None = None
    method: type[Method] | None = None


NO_PARTS = UserParts()


def take_user_parts(given: Mapping[str, Any]) -> UserParts:
    """Return the custom objects as UserParts; raises UserError with a line for each object of a wrong type."""
    problems: list[str] = []
    takers: dict[str, Callable[[Any], Any]]
    takers = {"backbone": _network, "augmentation": _augmentation, "method": _method}
    taken = {name: attempt(partial(takers[name], value), problems) for name, value in given.items()}
    if problems:
        raise UserError(*problems)
    return UserParts(**taken)


def name_of(value: object) -> str:
    """Return the name of a user-defined part in files: own:<its function or class>."""
    if isinstance(value, Backbone):
        return value.name
    name = getattr(value, "__name__", type(value).__name__)
    return USER_PREFIX + (re.sub(r"\W", "", name)[:100] or "unnamed")


def check_given(config: PretrainConfig, parts: UserParts) -> None:
    """Raise UserError if a custom object is referred to but not passed, or if one contradicts an option."""
    how = f"resume={str(config.resume)!r}" if config.resume is not None else "..."
    problems = [
        f"{option}: {name} is defined in your code, not in a file; pass it in Python: "
        f"cyclecontrast.pretrain({how}, {option}=...)"
        for option in UserParts._fields
        if is_user_defined(name := getattr(config, option)) and getattr(parts, option) is None
    ]
    if parts.backbone is not None and config.init is not None:
        problems.append("init: a custom network is trained from its current weights; remove init")
    if parts.backbone is not None and config.freeze:
        problems.append(
            "freeze: the stages of a custom network are not known; remove freeze, and call requires_grad_(False) on "
            "the layers to freeze"
        )
    if parts.augmentation is not None and config.augment_on == "device":
        problems.append("augment_on: a custom augmentation runs on the CPU only; remove augment_on, or set it to cpu")
    if problems:
        raise UserError(*problems)


def method_class(config: PretrainConfig, parts: UserParts) -> type[Method]:
    """Return the class of the method: the user-defined one, or that of `config.method`."""
    return parts.method or METHODS[config.method]


def recipe_of(config: PretrainConfig, parts: UserParts) -> Recipe | Augmentation:
    """Return the augmentation: the user-defined one, or the recipe of `config.augmentation`."""
    if parts.augmentation is not None:
        return parts.augmentation
    return RECIPES[config.augmentation]._replace(min_crop=config.min_crop, flip=config.flip)


def check_views(config: PretrainConfig, parts: UserParts, store: FrameStore, workers: int) -> None:
    """Test a user-defined augmentation on a frame; raises UserError if it fails or cannot be pickled for workers."""
    problems: list[str] = []
    if parts.augmentation is not None:
        augmentation, image = parts.augmentation, store.image(0, 0)
        attempt(lambda: check_augmentation(augmentation, image, config.image_size), problems)
    if workers:
        extra_frames = method_class(config, parts).frames(config)[1]
        attempt(lambda: check_picklable("augmentation", parts.augmentation), problems)
        attempt(lambda: check_picklable("method, frames", extra_frames), problems)
    if problems:
        raise UserError(*problems)


def _network(value: object) -> Backbone:
    """Return a network as a backbone named own:<its class>; `check_network` sets its dimension."""
    if isinstance(value, type):
        raise UserError(f"backbone: {value.__name__} is a class; pass an instance: {value.__name__}(...)")
    if not isinstance(value, nn.Module):
        raise UserError(f"backbone: a {type(value).__name__} is neither a name nor a torch.nn.Module")
    if not isinstance(value, Backbone):
        return Backbone(value, f"{USER_PREFIX}{type(value).__name__}", UNKNOWN_DIM)
    if not is_user_defined(value.name):
        raise UserError(
            f"backbone: the name of a custom Backbone must be {USER_PREFIX}<name>, not {value.name!r}; to start "
            "from the weights of a model use init"
        )
    return value


def _augmentation(value: object) -> object:
    if isinstance(value, type):
        raise UserError(f"augmentation: {value.__name__} is a class; pass an instance: {value.__name__}(...)")
    if not callable(value):
        raise UserError(f"augmentation: a {type(value).__name__} is neither a name nor a function")
    return value


def _method(value: object) -> type[Method]:
    if not (isinstance(value, type) and issubclass(value, Method)):
        what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise UserError(
            f"method: {what} is neither a name nor a subclass of cyclecontrast.methods.Method; pass a class"
        )
    if value.forward is Method.forward:
        raise UserError(f"method: {value.__name__} has no forward(batch, info) that returns Losses")
    return value


def check_method(method: Method) -> None:
    """Raise UserError if a user-defined method has weights that the optimizer does not train."""
    trained = {id(weight) for weight in method.trainable_parameters()}
    others = [name for name, weight in method.named_parameters() if weight.requires_grad and id(weight) not in trained]
    if others:
        raise UserError(
            f"method: {type(method).__name__} has trainable weights outside of encoder and head "
            f"({', '.join(others[:3])}); make them "
            "part of self.head, or call requires_grad_(False) on them"
        )


def check_network(backbone: Backbone, size: int) -> None:
    """Run a custom network on images of this size and set its `dim`. Raises UserError with all problems.

    Its weights and module modes are not changed.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    device = next((weight.device for weight in backbone.parameters()), None)
    try:
        with torch.no_grad():
            found = backbone.eval().network(torch.zeros(2, 3, size, size, device=device))
    except Exception as error:  # the user's code may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"backbone: {backbone.name} fails on images of {size} px ({reason})") from error
    finally:
        for module, mode in modes:
            module.training = mode
    problems = [*_output_problems(backbone, found), *_weight_problems(backbone)]
    if problems:
        raise UserError(*(f"backbone: {backbone.name} {problem}" for problem in problems))
    backbone.dim = pooled(found).shape[1]


def _output_problems(backbone: Backbone, found: object) -> list[str]:
    if not isinstance(found, Tensor):
        return [f"returns a {type(found).__name__}, not one tensor"]
    if found.ndim not in (2, 4) or len(found) != 2 or 0 in found.shape or not found.is_floating_point():
        return [
            f"returns {found.dtype} {tuple(found.shape)} for 2 images, not floats of shape "
            "(2, dim) or (2, channels, h, w)"
        ]
    dim = pooled(found).shape[1]
    return [f"returns vectors of {dim} dimensions, its dim is {backbone.dim}"] if backbone.dim not in (0, dim) else []


def _weight_problems(backbone: Backbone) -> list[str]:
    """Return the reasons why its weights cannot be trained or saved."""
    state: dict[str, object] = backbone.network.state_dict()
    weights = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    storages = Counter(value.untyped_storage().data_ptr() for value in weights.values() if value.numel())
    shared = [key for key, value in weights.items() if storages[value.untyped_storage().data_ptr()] > 1]
    odd = [key for key, value in weights.items() if value.is_floating_point() and value.dtype != torch.float32]
    trainable = any(weight.requires_grad for weight in backbone.network.parameters())
    problems = [] if trainable else ["has no trainable weights"]
    if other := [key for key in state if key not in weights]:
        problems.append(
            f"has non-tensor entries in its state_dict ({', '.join(other[:3])}), which cannot be saved as safetensors"
        )
    if shared:
        problems.append(f"shares memory between weights ({', '.join(shared[:4])}); give each its own")
    if odd:
        problems.append(f"has weights that are not float32 ({', '.join(odd[:3])}); call .float() on it")
    return problems
