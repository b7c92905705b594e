"""What a user passes in Python in place of a name: a network, an augmentation, an objective. Files know their names."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from cyclecontrast.config import PretrainConfig
from cyclecontrast.config.fields import OWN, is_own
from cyclecontrast.data.augment import RECIPES, Recipe
from cyclecontrast.data.further_views import no_further
from cyclecontrast.data.own_augment import Augmentation, check_sendable, try_augmentation
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.loss.objectives import pick_objective
from cyclecontrast.loss.step import Needs, Objective
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.own_network import wrap_network


class Own(NamedTuple):
    """The user's own, None where a name of ours stands."""

    backbone: Backbone | None = None
    augmentation: Augmentation | None = None
    method: Objective | None = None


NOTHING_OWN = Own()


def take_own(given: Mapping[str, Any]) -> Own:
    """Return what was given for each option; raises UserError with all that is nothing of its kind."""
    problems: list[str] = []
    takers: dict[str, Callable[[Any], Any]]
    takers = {"backbone": _network, "augmentation": _augmentation, "method": _method}
    taken = {name: attempt(partial(takers[name], value), problems) for name, value in given.items()}
    if problems:
        raise UserError(*problems)
    return Own(**taken)


def name_of(value: object) -> str:
    """Return what files call a user's own: own:<its function or class>."""
    if isinstance(value, Backbone):
        return value.name
    made_by = value.losses if isinstance(value, Objective) else value
    name = getattr(made_by, "__name__", type(made_by).__name__)
    return OWN + (re.sub(r"\W", "", name)[:100] or "unnamed")


def check_given(config: PretrainConfig, own: Own) -> None:
    """Raise UserError where a name stands for something of the user's that was not passed."""
    how = f"resume={str(config.resume)!r}" if config.resume is not None else "..."
    problems = [
        f"{option}: {name} is your own and in no file; pass it in Python: cyclecontrast.pretrain({how}, {option}=...)"
        for option in Own._fields
        if is_own(name := getattr(config, option)) and getattr(own, option) is None
    ]
    if own.backbone is not None and config.init is not None:
        problems.append("init: a network of your own begins with the weights that it has; leave init out")
    if own.augmentation is not None and config.augment_on == "device":
        problems.append("augment_on: the device knows no augmentation of your own; leave it out, or set cpu")
    if problems:
        raise UserError(*problems)


def objective_of(config: PretrainConfig, own: Own) -> Objective:
    """Return the objective that the options name, or the user's own."""
    return own.method or pick_objective(config.method, config.positives, config.own_key_in_support)


def recipe_of(config: PretrainConfig, own: Own) -> Recipe | Augmentation:
    """Return how views are made."""
    if own.augmentation is not None:
        return own.augmentation
    return RECIPES[config.augmentation]._replace(min_crop=config.min_crop, flip=config.flip)


def check_views(config: PretrainConfig, own: Own, store: FrameStore, workers: int) -> None:
    """Try an augmentation on a frame; raises UserError, also where worker processes could not be given it."""
    problems: list[str] = []
    if own.augmentation is not None:
        augmentation, image = own.augmentation, store.image(0, 0)
        attempt(lambda: try_augmentation(augmentation, image, config.image_size), problems)
    if workers:
        attempt(lambda: check_sendable("augmentation", own.augmentation), problems)
        attempt(lambda: check_sendable("objective, further", objective_of(config, own).needs.further), problems)
    if problems:
        raise UserError(*problems)


def _network(value: object) -> Backbone:
    _refuse_class("backbone", value)
    if not isinstance(value, nn.Module):
        raise UserError(f"backbone: a {type(value).__name__} is neither a name nor a torch.nn.Module")
    return wrap_network(value)


def _augmentation(value: object) -> object:
    _refuse_class("augmentation", value)
    if not callable(value):
        raise UserError(f"augmentation: a {type(value).__name__} is neither a name nor a function")
    return value


def _method(value: object) -> Objective:
    _refuse_class("method", value)
    if not isinstance(value, Objective):
        raise UserError(
            f"objective: a {type(value).__name__} is neither a name nor an Objective; say what it needs: "
            "cyclecontrast.Objective(losses, ignored, cyclecontrast.Needs(), learns_from)"
        )
    _check_needs(value.needs)
    return value


def _check_needs(needs: Needs) -> None:
    """Raise UserError where needs contradict each other."""
    problems = []
    if not needs.queries or (not needs.keys and len(needs.queries) < 2):
        problems.append("objective: its needs have no query, or no positive: name one key, or two queries")
    if needs.num_enqueued > len(needs.keys):
        problems.append(f"objective: its needs enqueue {needs.num_enqueued} of {len(needs.keys)} keys")
    if needs.further is no_further and max((*needs.queries, *needs.keys), default=0) > 1:
        problems.append("objective: its needs number a view above 1, and further makes none")
    if not needs.keys and (needs.has_intra or needs.has_cycle):
        problems.append("objective: its needs have a queue and no keys for it; set has_intra=False, or name keys")
    if problems:
        raise UserError(*problems)


def _refuse_class(option: str, value: object) -> None:
    if isinstance(value, type):
        raise UserError(f"{option}: {value.__name__} is a class; pass what it makes: {value.__name__}(...)")
