"""From what was asked to what is trained: every problem is told before anything is written."""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.pairs import FramePairs
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.files import check_new_run
from cyclecontrast.loss.baseline_objectives import ignored_positive
from cyclecontrast.models.backbone import Backbone, make_backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.models.compiled import check_compiler
from cyclecontrast.models.hardware import pick_device, pick_executor, pick_workers
from cyclecontrast.models.own_network import try_network
from cyclecontrast.training import run_folder
from cyclecontrast.training.distributed import World, first_process_first
from cyclecontrast.training.loggers import check_loggers
from cyclecontrast.training.memory import check_memory
from cyclecontrast.training.open_data import (
    check_number,
    count_videos,
    frames_folder,
    make_pairs,
    prepare_videos,
    size_of,
)
from cyclecontrast.training.own import NOTHING_OWN, Own, check_views, objective_of
from cyclecontrast.training.presets import LEAST_BATCH, DataSize, Machine, resolve
from cyclecontrast.training.progress import console


class Opened(NamedTuple):
    """The config with nothing left open, the pairs to train on, and the backbone to begin with."""

    config: PretrainConfig
    pairs: FramePairs
    backbone: Backbone


def open_training(config: PretrainConfig, machine: Machine, world: World, own: Own = NOTHING_OWN) -> Opened:
    """Settle the config, open the data and make the backbone; videos are prepared by the first process.

    Raises UserError with all problems, before anything is written; of videos only their number is known then.
    """
    problems: list[str] = []
    with first_process_first(world):
        num_videos = attempt(lambda: count_videos(config), problems)
        if config.resume is None and world.rank == 0:
            attempt(lambda: check_new_run(config.out), problems)
        if world.rank == 0:
            attempt(lambda: check_loggers(config.log_to), problems)
        given = attempt(lambda: own.backbone or _given_backbone(config), problems)
        if config.compile and not problems:
            attempt(lambda: check_compiler(pick_device(config.device)), problems)
        if num_videos and world.rank == 0:
            _prepare(config, machine, num_videos, given, own, problems)
        opened = attempt(lambda: _open_pairs(config, num_videos or 0, machine, given, own), problems)
        if problems or opened is None:
            raise UserError(*dict.fromkeys(problems))
    config, pairs = opened
    if config.batch_size > pairs.num_videos and world.rank == 0:
        times = math.ceil(config.batch_size / pairs.num_videos)
        console.print(f"a batch of {config.batch_size} holds each of {pairs.num_videos} videos up to {times} times")
    return Opened(config, pairs, _make_backbone(config, given))


def unread_options(config: PretrainConfig, own: Own = NOTHING_OWN) -> list[str]:
    """Return the options that were asked for although the objective's training does not read them."""
    objective = objective_of(config, own)
    needs = objective.needs
    is_read = {
        **dict.fromkeys(("cycle_weight", "cycle_start"), needs.weighs_cycle),
        **dict.fromkeys(("cycle_queue_size", "support_size", "top_k", "split_by"), needs.has_cycle),
        **dict.fromkeys(("momentum", "momentum_ramp", "momentum_rise", "bn_groups"), bool(needs.keys)),
        **dict.fromkeys(("min_crop", "flip"), own.augmentation is None),
        "queue_size": needs.has_intra,
        "batch_keys": not needs.in_batch,
        "mask_own_video": objective.ignored is not ignored_positive,
        "distinct_frames": not needs.same_frame,
        "self_temperature": config.self_batch,
        "epochs": config.steps is None,
        "temperature": config.method not in ("simsiam", "byol"),
    }
    return [name for name, read in is_read.items() if not read and name in config.asked()]


def _open_pairs(
    config: PretrainConfig, num_videos: int, machine: Machine, given: Backbone | None, own: Own
) -> tuple[PretrainConfig, FramePairs]:
    problems: list[str] = []
    store = FrameStore.open(frames_folder(config, num_videos))
    if config.resume is not None:
        _check_same_data(config.resume, store)
    settled = attempt(lambda: _settle(config, size_of(store), machine, given, own), problems)
    pairs = attempt(lambda: make_pairs(settled or config, store, own), problems)
    workers = pick_workers(config.workers, pick_device(config.device))
    attempt(lambda: check_views(settled or config, own, store, workers), problems)
    if settled is None or pairs is None or problems:
        raise UserError(*problems)
    num_frames = int(np.diff(store.starts)[slice(None) if pairs.videos is None else pairs.videos].sum())
    if settled.batch_size > max(LEAST_BATCH, num_frames) and config.resume is None:
        raise UserError(
            f"batch_size: {settled.batch_size} is more than the {num_frames:,} frames of the {pairs.num_videos:,} "
            f"videos that are trained on; set --batch-size {max(LEAST_BATCH, num_frames)} or less"
        )
    return settled, replace(pairs, cut_only=settled.augment_on == "device")


def _prepare(
    config: PretrainConfig,
    machine: Machine,
    num_videos: int,
    given: Backbone | None,
    own: Own,
    problems: list[str],
) -> None:
    """Prepare the videos, unless there are problems; the size of their frames, taken for 256, gives none."""
    attempt(lambda: check_number(config, num_videos), problems)
    attempt(lambda: _settle(config, DataSize(num_videos, 256), machine, given, own), problems)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    prepare_videos(config)


def _settle(
    config: PretrainConfig, data: DataSize, machine: Machine, given: Backbone | None, own: Own
) -> PretrainConfig:
    """Decide what is open; raises UserError where the memory is too small, or the backbone does not take the images."""
    device = pick_device(config.device)
    resolved = resolve(config, data, machine, objective_of(config, own).needs)
    executor = pick_executor(config.augment_on, device) if own.augmentation is None else "cpu"
    settled = resolved.model_copy(update={"augment_on": executor})
    if own.backbone is not None:
        try_network(own.backbone, settled.image_size)
    check_memory(settled, given, machine.processes, device, own)
    if given is not None and given.name.startswith("timm:"):
        _check_images(given, settled.image_size)
    return settled


def _check_same_data(run: Path, store: FrameStore) -> None:
    if not (run / run_folder.ABOUT).exists():
        return
    begun_with = run_folder.read_about(run).get("data_fingerprint")
    if begun_with is None:
        place, way = run / run_folder.ABOUT, run_folder.how_to_restore(run, run_folder.ABOUT)
        raise UserError(f"{place}: is damaged (it names no data); {way}")
    if begun_with != store.fingerprint:
        raise UserError(
            f"resume: {store.root} is not the data that {run} began with (fingerprint {store.fingerprint}, "
            f"not {begun_with}); restore it, or start a new run"
        )


def _given_backbone(config: PretrainConfig) -> Backbone | None:
    """Load the backbone to start from, or make that of timm; ours is made later, once it is known to fit into memory.

    The weights of a run that is resumed are in its checkpoint.
    """
    if config.init is None or config.resume is not None:
        return make_backbone(config.backbone, config.seed) if config.backbone.startswith("timm:") else None
    backbone = load_backbone(config.init, config.seed)
    if "backbone" in config.model_fields_set and config.backbone != backbone.name:
        raise UserError(
            f"init: {config.init} holds a {backbone.name}, but backbone is {config.backbone}; leave one of them out"
        )
    return backbone


def _check_images(backbone: Backbone, size: int) -> None:
    """Raise UserError where a network of timm does not take images of the size; ours take any."""
    try:
        with torch.inference_mode():
            backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"image_size: {backbone.name} does not take images of {size} px ({reason}); set --image-size"
        raise UserError(problem) from error
    finally:
        backbone.train()


def _make_backbone(config: PretrainConfig, given: Backbone | None) -> Backbone:
    backbone = given or make_backbone(config.backbone, config.seed)
    origin = f", begun with {backbone.source}" if config.init is not None and config.resume is None else ""
    backbone.image_size = config.image_size
    backbone.source = f"cyclecontrast {config.method}, preset {config.preset}, seed {config.seed}{origin}"
    return backbone
