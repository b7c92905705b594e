"""From what was asked to what is trained: every problem is told before anything is written."""

from pathlib import Path
from typing import NamedTuple

import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.pairs import FramePairs
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.files import check_new_run
from cyclecontrast.loss.objectives import OBJECTIVES
from cyclecontrast.model.backbone import Backbone, make_backbone
from cyclecontrast.model.checkpoint import load_backbone
from cyclecontrast.train.distributed import World, first_process_first
from cyclecontrast.train.open_data import count_videos, make_pairs, prepare_videos, size_of
from cyclecontrast.train.presets import DataSize, Machine, resolve


class Opened(NamedTuple):
    """The config with nothing left open, the pairs to train on, and the backbone to begin with."""

    config: PretrainConfig
    pairs: FramePairs
    backbone: Backbone


def open_training(config: PretrainConfig, machine: Machine, world: World) -> Opened:
    """Settle the config, open the data and make the backbone; videos are prepared by the first process.

    Raises UserError with all problems, before anything is written; of videos only their number is known then.
    """
    problems: list[str] = []
    with first_process_first(world):
        num_videos = count_videos(config)
        if world.rank == 0:
            problems = _problems(config)
            if num_videos:
                _prepare(config, machine, num_videos, problems)
        folder = config.out / "frames" if num_videos else config.data
        opened = attempt(lambda: _open_pairs(config, folder, machine), problems)
        if problems or opened is None:
            raise UserError(*problems)
    config, pairs = opened
    backbone = _make_backbone(config)
    _check_images(backbone)
    return Opened(config, pairs, backbone)


def unread_options(config: PretrainConfig) -> list[str]:
    """Return the options that were asked for although the objective's training does not read them."""
    needs = OBJECTIVES[config.objective].needs
    is_read = {
        **dict.fromkeys(("cycle_weight", "cycle_start"), needs.weighs_cycle),
        **dict.fromkeys(("cycle_queue_size", "support_size", "top_k", "split_by"), needs.has_cycle),
        **dict.fromkeys(("momentum", "momentum_ramp", "momentum_rise", "bn_groups"), bool(needs.keys)),
        "queue_size": needs.has_intra,
        "temperature": config.objective not in ("simsiam", "byol"),
    }
    return [name for name, read in is_read.items() if not read and name in config.asked()]


def _open_pairs(config: PretrainConfig, folder: Path, machine: Machine) -> tuple[PretrainConfig, FramePairs]:
    store = FrameStore.open(folder)
    config = resolve(config, size_of(store), machine)
    return config, make_pairs(config, store)


def _problems(config: PretrainConfig) -> list[str]:
    """Return what can be known to be wrong before the data is looked at."""
    problems: list[str] = []
    if config.resume is None:
        attempt(lambda: check_new_run(config.out), problems)
    if config.init is not None or "backbone" in config.model_fields_set:
        attempt(lambda: _check_backbone(config), problems)
    return problems


def _prepare(config: PretrainConfig, machine: Machine, num_videos: int, problems: list[str]) -> None:
    """Prepare the videos, unless there are problems; the size of their frames, taken for 256, gives none."""
    if num_videos == 1:
        problems.append(f"data: {config.data}: holds one video; contrasting needs two at least")
    resolved = attempt(lambda: resolve(config, DataSize(num_videos, 256), machine), problems)
    if problems or resolved is None:
        raise UserError(*problems)
    _check_images(_make_backbone(resolved))
    prepare_videos(config)


def _check_backbone(config: PretrainConfig) -> None:
    name = _make_backbone(config).name
    if "backbone" in config.model_fields_set and config.backbone != name:
        raise UserError(f"init: {config.init} holds a {name}, but backbone is {config.backbone}; leave one of them out")


def _check_images(backbone: Backbone) -> None:
    """Raise UserError where a network of timm does not take images of the size; ours take any."""
    size = backbone.image_size
    if not backbone.name.startswith("timm:"):
        return
    try:
        with torch.inference_mode():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"image_size: {backbone.name} does not take images of {size} px ({reason}); set --image-size"
        raise UserError(problem) from error
    finally:
        backbone.train()


def _make_backbone(config: PretrainConfig) -> Backbone:
    """Build the backbone, or load the one to start from; a resumed run has its weights in its checkpoint."""
    if config.init is None or config.resume is not None:
        backbone, origin = make_backbone(config.backbone, config.seed), ""
    else:
        backbone = load_backbone(config.init, config.seed)
        origin = f", begun with {backbone.source}"
    backbone.image_size = config.image_size
    backbone.source = f"cyclecontrast {config.objective}, preset {config.preset}, seed {config.seed}{origin}"
    return backbone
