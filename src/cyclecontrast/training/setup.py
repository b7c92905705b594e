"""Sets up a training run: resolves the config, opens the dataset, builds the backbone.

Reports all problems together.
"""

import contextlib
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cyclecontrast.config import PrepareConfig, PretrainConfig
from cyclecontrast.config.types import read_toml
from cyclecontrast.data.dataset import ViewDataset, no_extra_frames
from cyclecontrast.data.folders import find_videos, is_video
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.random_streams import random_stream
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import read_settings
from cyclecontrast.distributed import ALONE, World, rank_0_first
from cyclecontrast.errors import UserError, attempt, checked, some
from cyclecontrast.files import check_new_run
from cyclecontrast.loss import KeyQueue
from cyclecontrast.loss.attention import BLOCK
from cyclecontrast.methods import Method, MomentumMethod, unread_options
from cyclecontrast.models.backbone import Backbone, has_batchnorm, layers_of, make_backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.models.hardware import check_compiler, free_memory, pick_augment_on, pick_device, pick_workers
from cyclecontrast.output import quoted, say
from cyclecontrast.training import run_folder
from cyclecontrast.training.auto_settings import MIN_BATCH, DataSize, Machine, num_held_out, resolve
from cyclecontrast.training.checkpoints import checkpoints
from cyclecontrast.training.loggers import check_loggers
from cyclecontrast.training.user_parts import (
    NO_PARTS,
    UserParts,
    check_method,
    check_network,
    check_views,
    method_class,
    recipe_of,
)

SAMPLED_VIDEOS = 32
SAMPLING = ("frames_per_video", "fps", "every", "keyframes", "size")
HEALTH_SEED = 2**32
"""Seed of the health views: the same for all runs, so that they are comparable, and outside of the range of --seed."""
ONE_FRAME_METHODS = "intra-image, simclr, simsiam, byol, nnclr, diet and distill"


def open_training(
    config: PretrainConfig, machine: Machine, world: World, parts: UserParts = NO_PARTS
) -> tuple[PretrainConfig, ViewDataset, Backbone]:
    """Return the resolved config, the dataset and the initial backbone. Rank 0 first extracts frames if needed.

    Raises UserError with all problems before anything is written, except for problems that need the extracted frames.
    """
    problems: list[str] = []
    freezes = config.freeze_batchnorm and "freeze_batchnorm" in config.requested()
    with rank_0_first(world):
        num_videos = attempt(lambda: count_videos(config), problems)
        if config.resume is None and world.rank == 0:
            attempt(lambda: check_new_run(config.out), problems)
        if world.rank == 0:
            attempt(lambda: check_loggers(config.log_to), problems)
        given = attempt(lambda: parts.backbone or _given_backbone(config), problems)
        if config.compile and not problems:
            attempt(lambda: check_compiler(pick_device(config.device)), problems)
        if num_videos and world.rank == 0:
            # The frame size is unknown before extraction; 256 px is the default size of `prepare`.
            attempt(lambda: check_number(config, num_videos), problems)
            attempt(lambda: _resolve_options(config, DataSize(num_videos, 256), machine, given, parts), problems)
            if problems:
                raise UserError(*dict.fromkeys(problems))
            prepare_videos(config)
        opened = attempt(lambda: _open_dataset(config, num_videos or 0, machine, given, parts), problems)
        if problems or opened is None:
            raise UserError(*dict.fromkeys(problems))
    config, dataset = opened
    if config.batch_size > dataset.num_videos and world.rank == 0:
        times = math.ceil(config.batch_size / dataset.num_videos)
        say(
            f"batch size {config.batch_size} exceeds the number of videos, {dataset.num_videos}: each appears up to "
            f"{times} times per batch"
        )
    backbone = given or make_backbone(config.backbone, config.seed)
    if freezes and not has_batchnorm(backbone):
        raise UserError(f"freeze_batchnorm: {backbone.name} has no BatchNorm; remove --freeze-batchnorm")
    origin = f", initialized from {backbone.source}" if _loads_init(config) else ""
    backbone.image_size = config.image_size
    backbone.source = f"cyclecontrast {config.method}, preset {config.preset}, seed {config.seed}{origin}"
    return config, dataset, backbone


def unused_options(config: PretrainConfig, parts: UserParts = NO_PARTS) -> list[str]:
    """Return the names of the options that the user set but the method does not use."""
    method = method_class(config, parts)
    unread = {
        **dict.fromkeys(unread_options(method) if parts.method is None else (), True),
        **dict.fromkeys(("min_crop", "flip"), parts.augmentation is not None),
        "distinct_frames": method.frames(config)[0],
        "self_temperature": not config.self_batch,
        "epochs": config.steps is not None,
    }
    return [name for name in type(config).model_fields if unread.get(name) and name in config.requested()]


def count_videos(config: PretrainConfig) -> int:
    """Return the number of video files to prepare first: 0 if the data are frames or missing."""
    data = config.data
    if isinstance(data, str):
        return 0
    try:
        found = find_videos(data) if data.is_dir() and not (data / "store.json").exists() else []
    except OSError as error:
        raise UserError(f"data: {data}: cannot be listed ({error.strerror}); fix it or name another") from error
    return sum(is_video(video.path.name) for video in found)  # not the folders that cannot be listed


def prepare_videos(config: PretrainConfig) -> None:
    """Prepare a folder of videos into RUN/frames; a resumed run uses its existing frames."""
    frames = config.out / "frames"
    if config.resume is None or not (frames / "frames.parquet").exists():
        settings = {"videos": config.data, "out": frames, "workers": config.workers}
        sampling = _sampling_of(Path(config.init)) if config.init else {}
        summary = prepare(checked(PrepareConfig, sampling | settings))
        say(*str(summary).split("\n"), f"the frames are in {frames}: pass this folder as DATA to reuse them")


def _sampling_of(run: Path) -> dict[str, object]:
    """Return how the frames were sampled that a run was trained on; empty if they were not sampled, or not known."""
    data: Path | None = None
    with contextlib.suppress(OSError, ValueError, LookupError):  # not a run, or a damaged one
        data = Path(str(read_toml(run / run_folder.CONFIG)["data"]))
    for frames in (run / "frames", data):
        if frames is not None and (settings := read_settings(frames)) is not None:
            return {name: settings[name] for name in SAMPLING if settings.get(name)}
    return {}


def frame_size(store: FrameStore) -> DataSize:
    """Return the size of the data for the preset `auto`, from the first frames of some videos."""
    sample = np.linspace(0, store.num_videos - 1, min(SAMPLED_VIDEOS, store.num_videos)).astype(int)
    problems: list[str] = []
    images = [attempt(partial(store.image, int(video), 0), problems) for video in sample]
    sides = [min(image.shape[:2]) for image in images if image is not None]
    if not sides:
        raise UserError(*some(problems))
    return DataSize(store.num_videos, int(np.median(sides)))


def split_videos(num_videos: int, holdout: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the numbers of the training videos and of the held-out videos, which do not depend on the seed."""
    number = num_held_out(num_videos, holdout)
    order = random_stream(HEALTH_SEED, 0, 0, 0).permutation(num_videos)
    return np.sort(order[number:]), np.sort(order[:number])


def check_number(config: PretrainConfig, num_videos: int) -> None:
    """Raise UserError if fewer than two videos are left for training after holding out."""
    held_out = num_held_out(num_videos, config.holdout)
    if num_videos < 2:
        raise UserError(f"data: {config.data}: has {num_videos} video; contrastive learning needs at least two")
    if num_videos - held_out < 2:
        raise UserError(
            f"holdout: holds out {held_out} of {num_videos} videos (minimum 2), which leaves "
            f"{num_videos - held_out} for "
            "training, but contrasting needs at least two; set --holdout 0, or add videos"
        )


def make_dataset(config: PretrainConfig, store: FrameStore, parts: UserParts = NO_PARTS) -> ViewDataset:
    """Return the dataset of the method's views; raises UserError if the method cannot use the data."""
    method = method_class(config, parts)
    same_frame, extra_frames = method.frames(config)
    problems: list[str] = []
    takes_images = (same_frame or not method.needs_videos) and extra_frames is no_extra_frames
    if store.layout == "flat folder of images" and not takes_images:
        how = "set --positives frame to learn from single images"
        if config.positives == "frame":
            how = f"only --method {ONE_FRAME_METHODS} can learn from it"
        problems.append(
            f"{config.data}: a flat folder of images has no videos: {how}; put the frames of each video into a "
            "separate folder"
        )
    attempt(lambda: check_number(config, store.num_videos), problems)
    if problems:
        raise UserError(*problems)
    trained, held_out = split_videos(store.num_videos, config.holdout)
    return ViewDataset(
        store,
        recipe_of(config, parts),
        config.image_size,
        config.seed,
        same_frame,
        config.distinct_frames,
        extra_frames,
        trained if len(held_out) else None,
    )


def make_health_dataset(config: PretrainConfig, dataset: ViewDataset) -> ViewDataset:
    """Return the dataset for health metrics: the held-out videos, or the training videos if none are held out.

    For all methods and options the views show two frames of a video, so that runs are comparable.
    """
    held_out = split_videos(dataset.store.num_videos, config.holdout)[1]
    return replace(
        dataset,
        seed=HEALTH_SEED,
        same_frame=False,
        distinct=True,
        extra_frames=no_extra_frames,
        videos=held_out if len(held_out) else None,
        finish_on_device=False,
    )


def _open_dataset(
    config: PretrainConfig, num_videos: int, machine: Machine, given: Backbone | None, parts: UserParts
) -> tuple[PretrainConfig, ViewDataset]:
    problems: list[str] = []
    store = FrameStore.open(_frames_folder(config, num_videos))
    say(*store.notes)
    if config.resume is not None:
        _check_same_data(config.resume, store)
    resolved = attempt(lambda: _resolve_options(config, frame_size(store), machine, given, parts), problems)
    dataset = attempt(lambda: make_dataset(resolved or config, store, parts), problems)
    workers = pick_workers(config.workers, pick_device(config.device))
    attempt(lambda: check_views(resolved or config, parts, store, workers), problems)
    if resolved is None or dataset is None or problems:
        raise UserError(*problems)
    num_frames = int(np.diff(store.starts)[slice(None) if dataset.videos is None else dataset.videos].sum())
    if resolved.batch_size > max(MIN_BATCH, num_frames) and config.resume is None:
        raise UserError(
            f"batch_size: {resolved.batch_size} is more than the {num_frames:,} frames of the {dataset.num_videos:,} "
            f"videos that are trained on; set --batch-size {max(MIN_BATCH, num_frames)} or less"
        )
    return resolved, replace(dataset, finish_on_device=resolved.augment_on == "device")


def _frames_folder(config: PretrainConfig, num_videos: int) -> Path | str:
    """Return the folder of frames: RUN/frames if DATA is (or was) a folder of videos, otherwise DATA.

    Raises UserError if the data of a resumed run are missing or were replaced by other videos.
    """
    data, frames = config.data, config.out / "frames"
    if isinstance(data, str):
        return data
    is_prepared = config.resume is not None and (frames / "frames.parquet").exists()
    if config.resume is None or data.exists():
        if is_prepared and num_videos:
            found = {video.id for video in find_videos(data)}
            store = FrameStore.open(frames)
            lost = [video_id for video_id in store.video_ids.to_pylist() if video_id not in found]
            if lost:
                raise UserError(
                    f"resume: {data} is not the data that {config.resume} was started with: {len(lost):,} of its "
                    f"{store.num_videos:,} videos are missing, such as {lost[0]}; pass {frames} as DATA, which "
                    f"contains their frames"
                )
        return frames if num_videos else data
    if not is_prepared:
        how = f"cyclecontrast pretrain DATA --resume {quoted(config.resume)}"
        raise UserError(f"data: {data}, on which the run was trained, no longer exists; if it was moved: {how}")
    return frames


def _resolve_options(
    config: PretrainConfig, data: DataSize, machine: Machine, given: Backbone | None, parts: UserParts
) -> PretrainConfig:
    """Return the resolved config; raises UserError if memory is too small or the backbone rejects the image size."""
    device = pick_device(config.device)
    resolved = resolve(config, data, machine, method_class(config, parts), given.patch if given else 1)
    executor = pick_augment_on(config.augment_on, device) if parts.augmentation is None else "cpu"
    resolved = resolved.model_copy(update={"augment_on": executor})
    if parts.backbone is not None:
        check_network(parts.backbone, resolved.image_size)
    method = build_method_on_meta(resolved, given, data.num_videos, parts)
    if parts.method is not None:
        check_method(method)
    needed = memory_lower_bounds(resolved, method, machine.processes)
    total, free, largest = sum(size for size, _, _ in needed), free_memory(device), max(needed)
    if total > free:
        raise UserError(
            f"memory: at least {total / 1e9:,.1f} GB are needed, {largest[0] / 1e9:,.1f} of them for the "
            f"{largest[1]}, and {free / 1e9:,.1f} are free; lower {largest[2]}"
        )
    if given is not None:
        given.check_size(resolved.image_size)
        if config.layer_decay != 1:
            layers_of(given)
    return resolved


def _check_same_data(run: Path, store: FrameStore) -> None:
    if not (run / run_folder.ABOUT).exists():
        return
    begun_with = run_folder.read_about(run).get("data_fingerprint")
    if begun_with != store.fingerprint:
        raise UserError(
            f"resume: {store.root} is not the data that {run} began with (fingerprint {store.fingerprint}, "
            f"not {begun_with}); restore it, or start a new run"
        )


def _given_backbone(config: PretrainConfig) -> Backbone | None:
    """Return the backbone of `init`, or a timm network.

    None for other backbones, which are built after the memory check. The weights of a resumed run are loaded from its
    checkpoint, if it has one.
    """
    if config.init is None or not _loads_init(config):
        return make_backbone(config.backbone, config.seed) if config.backbone.startswith("timm:") else None
    if config.init.startswith("random:") and config.resume is None:
        name = config.init.removeprefix("random:")
        raise UserError(f"init: random weights need no --init: use --backbone {name} instead")
    backbone = load_backbone(config.init, config.seed)
    if "backbone" in config.model_fields_set and config.backbone != backbone.name:
        raise UserError(
            f"init: {config.init} is a {backbone.name}, but backbone is {config.backbone}; leave one of them out"
        )
    return backbone


def _loads_init(config: PretrainConfig) -> bool:
    return config.init is not None and (config.resume is None or not checkpoints(config.resume))


def build_method(
    config: PretrainConfig, backbone: Backbone, num_videos: int, parts: UserParts = NO_PARTS, world: World = ALONE
) -> Method:
    """Return the method, prepared for a store of so many videos."""
    method = method_class(config, parts)(backbone, config, world)
    method.prepare(torch.from_numpy(split_videos(num_videos, config.holdout)[0]))
    return method


def build_method_on_meta(
    config: PretrainConfig, given: Backbone | None, num_videos: int, parts: UserParts = NO_PARTS
) -> Method:
    """Return the method built on the meta device (without memory for weights), except for a given backbone."""

    def make() -> Method:
        return build_method(config, given or make_backbone(config.backbone), num_videos, parts)

    with contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"):
        return make()
    return make()  # custom methods whose constructor computes with weights cannot be built on the meta device


def memory_lower_bounds(config: PretrainConfig, method: Method, processes: int) -> list[tuple[int, str, str]]:
    """Return lower bounds of the memory of a process, as (bytes, purpose, options that reduce it).

    Activations that are kept for the backward pass are not counted, so a training may still run out of memory.
    """
    learned = sum(weight.numel() for weight in method.trainable_parameters())
    momentum = sum(weight.numel() for weight in method.parameters()) - learned
    num_views = 2 + len(method.frames(config)[1](np.random.default_rng(0), 0, 2))
    queues = [module for module in method.modules() if isinstance(module, KeyQueue)]
    keys = sum(len(queue.keys) for queue in queues)
    share = config.batch_size // processes
    queries, groups = share // config.accumulate * method.num_queries, max(1, config.bn_groups // processes)
    normalized = max(queries, -(-share // groups) if isinstance(method, MomentumMethod) else 0)
    pixels = 3 * (share * num_views + 4 * normalized) * config.image_size**2
    return [
        (4 * (3 * learned + momentum), "weights", "projector_dim or take a smaller backbone"),
        (4 * 2 * keys * config.projector_dim, "queues", "queue_size, cycle_queue_size or projector_dim"),
        (pixels, "views", "batch_size or image_size"),
        (4 * min(queries * keys, max(queries, BLOCK)), "similarities", "batch_size, queue_size or cycle_queue_size"),
    ]
