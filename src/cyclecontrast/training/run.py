"""A training and its run on disk: begun or taken up again, kept on the way, and what is left of it when it stops."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cyclecontrast.config.fields import is_own
from cyclecontrast.config.pretrain import OF_A_MACHINE
from cyclecontrast.data.pairs import FramePairs
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError, out_of_memory
from cyclecontrast.files import check_new_run, remove
from cyclecontrast.models.checkpoint import fingerprint, misfits
from cyclecontrast.training import run_folder
from cyclecontrast.training.checkpoints import (
    checkpoints,
    drop_behind,
    find_whole,
    flatten,
    load_state,
    save_checkpoint,
)
from cyclecontrast.training.distributed import check_same, largest, meet
from cyclecontrast.training.progress import console
from cyclecontrast.training.training import Training, restore, state_of
from cyclecontrast.training.unreadable import Unreadable, read_unreadable
from cyclecontrast.training.watched_cycles import cut_cycles
from cyclecontrast.versions import package_versions

OF_HEALTH = ("verdict", "reason", "health")


class Begun(NamedTuple):
    """The steps already done, and what was unreadable in them."""

    start: int
    unreadable: Unreadable


def open_run(training: Training, pairs: FramePairs) -> Begun:
    """Make the run's folder, or put the training back to its last whole checkpoint.

    Raises UserError where the run is damaged, or where the processes differ.
    """
    config, store, (device, precision, world) = training.config, pairs.store, training.hardware
    check_same(config.model_dump(mode="json", exclude=set(OF_A_MACHINE)) | {"data": store.fingerprint}, world)
    before: dict[str, Any] = {}
    if config.resume is None:
        check_new_run(config.out)
    elif (config.out / run_folder.ABOUT).exists() or checkpoints(config.out):
        before = run_folder.read_about(config.out)
    found = find_whole(config.out)
    if found.folder is None and before.get("status") == "finished":
        raise UserError(f"resume: {config.out} is finished, and its checkpoints are gone; start a new run")
    start = largest(found.step if world.rank == 0 else 0, world)
    if found.step != start:
        raise UserError(f"out: {config.out} is not the folder that process 0 writes to; name one that all can read")
    if start == 0:
        check_same(_first_weights(training), world)
    unreadable = Unreadable()
    if found.folder is not None:
        state = load_state(found.folder)
        _check_network(training, state["encoder"], found.folder)
        restore(training, state)
        unreadable = read_unreadable(found.folder)
    largest(0, world)  # all have read before anything is removed
    begun = Begun(start, unreadable)
    if world.rank:
        return begun
    about: dict[str, Any] = {
        "versions": package_versions(),
        "device": run_folder.device_name(device),
        "precision": precision,
        "processes": world.size,
        "augment_on": config.augment_on,
        "compile": config.compile,
        "data_fingerprint": store.fingerprint,
        "num_videos": store.num_videos,
        "num_frames": store.num_frames,
        "num_single_frame_videos": int((np.diff(store.starts) == 1).sum()),
        "num_held_out": store.num_videos - pairs.num_videos,
        "num_steps": training.num_steps,
        "status": "running",
        **({name: before[name] for name in OF_HEALTH if name in before} if start else {}),
    }
    for leftover in config.out.glob("*.part"):
        remove(leftover)
    run_folder.write_config(config.out, config)
    run_folder.write_about(config.out, about)
    run_folder.restore_metrics(config.out, found.folder)
    unreadable.write(config.out)
    run_folder.cut_bests(config.out, start)
    cut_cycles(config.out, start)
    drop_behind(config.out, start)
    _announce(training, store, about)
    if config.resume is not None:
        _announce_resumed(before, about, found.damages, start)
    return begun


def _first_weights(training: Training) -> dict[str, str]:
    """Return the weights that a network of the user's begins with, by their fingerprint: each process draws its own."""
    backbone = training.encoder.backbone
    if not is_own(backbone.name):
        return {}
    return {"weights of the backbone (torch.manual_seed before it is made)": fingerprint(backbone)}


def _check_network(training: Training, state: dict[str, Tensor], checkpoint: Path) -> None:
    """Raise UserError where a network of the user's is not the one that a checkpoint is of."""
    backbone, prefix = training.encoder.backbone, "backbone.network."
    if is_own(backbone.name):
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if problems := misfits(backbone, weights, f"resume: {checkpoint}"):
            raise UserError(*problems)


def keep(training: Training, unreadable: Unreadable, done: int) -> None:
    """Write a checkpoint after so many steps, and forget the backbones that no checkpoint needs.

    One process writes, the others wait: none may end before it is written.
    """
    run, world = training.config.out, training.hardware.world
    if world.rank == 0:
        if _is_gone(run):  # what is written would make a new folder in its place
            raise UserError("no checkpoint can be written")
        unreadable.write(run)
        save_checkpoint(run, done, flatten(state_of(training)), training.encoder.backbone)
        run_folder.forget_bests(run, int(checkpoints(run)[0].name[5:]))
    meet(world)


def note_stop(training: Training, message: str) -> str:
    """Note in run.json why the run stops, where the disk still takes it, and say what is left of it."""
    run = training.config.out
    if training.hardware.world.rank == 0:
        with contextlib.suppress(OSError, UserError):
            run_folder.change_about(run, status=f"stopped: {message}")
    if _is_gone(run):
        return f"{message}; {run} is gone, so nothing more is written: if it was moved, --resume goes on from there"
    kept = checkpoints(run)
    rest = f"the last good checkpoint is {kept[-1]}; --resume {run} goes on from it" if kept else "no checkpoint yet"
    return f"{message}; {rest}"


@contextlib.contextmanager
def stops_noted(training: Training) -> Iterator[None]:
    """Note why a training cannot go on, and raise UserError that says what is left of it."""
    try:
        yield
    except UserError as error:
        raise UserError(note_stop(training, "; ".join(error.problems))) from error
    except torch.OutOfMemoryError as error:
        message = f"{out_of_memory(error)}; start a new run with a smaller batch"
        raise UserError(note_stop(training, message)) from error
    except OSError as error:
        reason = f"{error.filename or training.config.out}: {error.strerror or error}"
        raise UserError(note_stop(training, reason)) from error


def _is_gone(run: Path) -> bool:
    return not (run / run_folder.CONFIG).exists()


def _announce(training: Training, store: FrameStore, about: dict[str, Any]) -> None:
    singles = about["num_single_frame_videos"]
    alone = f", {singles:,} of them with one frame, which is both query and positive" if singles else ""
    console.print(f"data: {store.num_videos:,} videos{alone}, {store.num_frames:,} frames ({store.layout})")
    if about["num_held_out"]:
        console.print(f"{about['num_held_out']:,} videos are held out, to measure health on (--holdout 0: none)")
    config = training.config
    shown = sorted(set(type(config).model_fields) - {"data", "out", "resume"})
    console.print("settings: " + " ".join(f"{name}={getattr(config, name)}" for name in shown))
    console.print(f"{training.num_steps:,} steps on {about['device']} in {about['precision']}")


def _announce_resumed(before: dict[str, Any], about: dict[str, Any], damages: tuple[str, ...], start: int) -> None:
    for damage in damages:
        console.print(f"{damage}: the one before is taken")
    console.print(f"going on after step {start:,}" if start else "no checkpoint: beginning again at the first step")
    changed = [
        f"{name} was {before[name]}, is {about[name]}"
        for name in ("device", "precision", "processes", "augment_on", "compile", "versions")
        if name in before and before[name] != about[name]
    ]
    if changed:
        console.print(f"not the same to the bit from here on: {'; '.join(changed)}")
