"""A network of the user's as a backbone: wrapped, tried on images, and refused where no file could hold it."""

from collections import Counter

import torch
from torch import Tensor, nn

from cyclecontrast.config.types import USER_PREFIX, is_user_defined
from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import Backbone, pooled

UNKNOWN_DIM = 0


def wrap_network(network: nn.Module) -> Backbone:
    """Return a network as a backbone called own:<its class>; `try_network` finds how long its vectors are.

    What is a backbone already stays, with its name, normalisation and dim; raises UserError where it is not the user's.
    """
    if not isinstance(network, Backbone):
        return Backbone(network, f"{USER_PREFIX}{type(network).__name__}", UNKNOWN_DIM)
    if not is_user_defined(network.name):
        raise UserError(
            f"backbone: a Backbone of your own is named {USER_PREFIX}<name>, not {network.name!r}; to begin with the "
            "weights of a model name it as init"
        )
    return network


def try_network(backbone: Backbone, size: int) -> None:
    """Try a network on images of a size, and note how long its vectors are; raises UserError with all that is wrong.

    Its weights and modes stay as they are.
    """
    found = _try(backbone, size)
    problems = [f"backbone: {backbone.name} {problem}" for problem in (*_misfits(backbone, found), *_unfit(backbone))]
    if problems:
        raise UserError(*problems)
    backbone.dim = found.shape[1]


def _try(backbone: Backbone, size: int) -> Tensor:
    modes = [(module, module.training) for module in backbone.modules()]
    device = next((weight.device for weight in backbone.parameters()), None)
    try:
        with torch.no_grad():
            found = backbone.eval().network(torch.zeros(2, 3, size, size, device=device))
    except Exception as error:  # whatever the user's code leads to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"backbone: {backbone.name} does not take images of {size} px ({reason})") from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(found, Tensor):
        raise UserError(f"backbone: {backbone.name} gives a {type(found).__name__}, not one tensor")
    return found


def _misfits(backbone: Backbone, found: Tensor) -> list[str]:
    """Return what is wrong with what it gives for two images."""
    if found.ndim not in (2, 4) or len(found) != 2 or 0 in found.shape or not found.is_floating_point():
        return [
            f"gives {found.dtype} {tuple(found.shape)} for 2 images, neither vectors (2, dim) nor a map "
            "(2, channels, h, w) of floats"
        ]
    dim = pooled(found).shape[1]
    return [f"gives {dim} numbers, its dim says {backbone.dim}"] if backbone.dim not in (UNKNOWN_DIM, dim) else []


def _unfit(backbone: Backbone) -> list[str]:
    """Return why its weights can be neither learned nor kept in a file."""
    state: dict[str, object] = backbone.network.state_dict()
    weights = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    places = Counter(value.untyped_storage().data_ptr() for value in weights.values() if value.numel())
    shared = [key for key, value in weights.items() if places[value.untyped_storage().data_ptr()] > 1]
    odd = [key for key, value in weights.items() if value.is_floating_point() and value.dtype != torch.float32]
    problems = [] if any(weight.requires_grad for weight in backbone.network.parameters()) else ["has nothing to learn"]
    if other := [key for key in state if key not in weights]:
        problems.append(f"keeps more than tensors ({', '.join(other[:3])}), which no file of weights can hold")
    if shared:
        problems.append(f"has one memory for several weights ({', '.join(shared[:4])}); give each its own")
    if odd:
        problems.append(f"has weights that are not float32 ({', '.join(odd[:3])}); call .float() on it")
    return problems
