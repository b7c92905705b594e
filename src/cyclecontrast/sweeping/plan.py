"""What a sweep is to do: checked before anything is computed, a cell for every row and seed."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cyclecontrast.config import PretrainConfig, SweepConfig
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.layouts import find_layouts
from cyclecontrast.errors import UserError, attempt, checked
from cyclecontrast.evaluation.protocol import find_protocol
from cyclecontrast.files import LOCK_FILE, check_folder
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.hardware import num_cores, pick_device, pick_precision
from cyclecontrast.sweeping.cells import Cell, Evaluation, check_begun, settings_of
from cyclecontrast.sweeping.tables import TABLES, Row, Table, rows_of
from cyclecontrast.training.auto_settings import DataSize, Machine, auto_settings, resolve
from cyclecontrast.training.loggers import check_loggers
from cyclecontrast.training.setup import count_videos, frame_size, prepare_videos

PASSED_ON = ("preset", "backbone", "image_size", "batch_size", "epochs", "steps")
SCALED = ("table5", "table6", "table7")


class Plan(NamedTuple):
    """All that is to be done, checked: cells in their order, one seed after the other, and how many at once."""

    table: Table
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    jobs: int
    folder: Path
    about: str


def make_plan(config: SweepConfig, processes: int = 1, prepares: bool = True) -> Plan:
    """Check all that can be known, prepare videos, and return what is to be done; raises UserError.

    So many `processes` share the machine, each of them with as many jobs at once; one of them `prepares` for all.
    """
    table, folder = TABLES[config.table], config.out or Path("sweeps") / config.table
    trial = checked(PretrainConfig, {"data": config.data, "out": folder, "workers": config.workers})
    _check(config, table, folder)
    data = folder / "frames" if count_videos(trial) else config.data
    if data != config.data and prepares:
        prepare_videos(trial)
    store, device = FrameStore.open(data), pick_device(config.device)
    cpu = device.type == "cpu"
    size, machine, settings = frame_size(store), Machine(cpu), _settings(config)
    queue = auto_settings(settings, size, machine)["cycle_queue_size"] if config.small else None
    rows = rows_of(config.table, queue)
    jobs = config.jobs or (max(1, num_cores() // 2 // processes) if cpu else 1)
    like = Cell("", 0, folder / "runs", data, store.fingerprint, settings, _hardware(config, jobs * processes, cpu))
    like = like._replace(evaluations=_evaluations(config, table))
    asked = (like.of(row.folder, seed, row.settings) for seed in range(config.seeds) for row in rows)
    problems: list[str] = []
    resolved = [attempt(partial(_resolved, cell, size, machine, device), problems) for cell in asked]
    cells = tuple(cell for cell in resolved if cell is not None)
    attempt(lambda: list(map(check_begun, cells)), problems)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return Plan(table, rows, cells, jobs, folder, _about(config, store, cells[0].pretraining, queue, like.run))


def _check(config: SweepConfig, table: Table, folder: Path) -> None:
    problems: list[str] = []
    attempt(lambda: _check_folder(folder), problems)
    attempt(lambda: _check_labels(config, table, folder), problems)
    attempt(lambda: pick_device(config.device), problems)
    attempt(lambda: check_loggers(config.log_to), problems)
    if config.backbone is not None:
        attempt(partial(make_backbone, config.backbone, 0), problems)
    if problems:
        raise UserError(*problems)


def _check_folder(folder: Path) -> None:
    """Raise UserError where the folder holds something and is not one that a sweep began."""
    check_folder(folder)
    inside = (*folder.glob("*"), *folder.glob("runs/*"))
    is_begun = any(path.match("runs/*-seed*.json") for path in inside)
    ours = (LOCK_FILE, "frames", "runs")
    if not is_begun and any(path.name not in ours and path.suffix not in (".part", ".log") for path in inside):
        raise UserError(f"out: {folder} holds something else and no sweep; name a new folder")


def _check_labels(config: SweepConfig, table: Table, folder: Path) -> None:
    """Raise UserError where there are no labels that the table's protocols can read."""
    on = config.on or config.data
    if not on.is_dir():
        raise UserError(f"on: {on}: no such folder")
    if not {layout.kind for layout in find_layouts(on, depth=0)} & set(table.kinds):
        raise UserError(f"on: {on}: holds no labels for {table.name}; name with --on {_wanted(table)}")
    for evaluation in _evaluations(config, table):
        find_protocol(evaluation.protocol)(evaluation.config(folder, 0)).open()


def _wanted(table: Table) -> str:
    return {
        "images": "a folder with train/<class> and val/<class>, or a frame tree with train.txt and test.txt",
        "otb": "an OTB root",
        "videos": "a UCF101 or HMDB51 root",
    }[table.kinds[0]]


def _settings(config: SweepConfig) -> dict[str, Any]:
    asked = {name: getattr(config, name) for name in PASSED_ON if getattr(config, name) is not None}
    preset = {} if config.small or config.preset else {"preset": "paper"}
    return {**preset, **asked, "flip": config.flip}


def _resolved(cell: Cell, data: DataSize, machine: Machine, device: torch.device) -> Cell:
    """Return the cell with every open setting decided: cells of one row must not differ by what `auto` decides."""
    config = resolve(cell.pretraining, data, machine)
    precision = pick_precision(config.precision, device)
    return cell._replace(settings=settings_of(config.model_copy(update={"precision": precision})))


def _hardware(config: SweepConfig, at_once: int, cpu: bool) -> dict[str, Any]:
    """Return what does not change the numbers; several trainings share the cores."""
    share = num_cores() // at_once
    shared = None if at_once == 1 else max(1, share // 4 if cpu else share)
    workers = shared if config.workers is None else config.workers
    return {"device": config.device, "log_to": config.log_to} | ({} if workers is None else {"workers": workers})


def _evaluations(config: SweepConfig, table: Table) -> tuple[Evaluation, ...]:
    shared: dict[str, Any] = {"data": config.on or config.data, "device": config.device}
    shared |= {} if config.workers is None else {"workers": config.workers}
    of_protocol: dict[str, dict[str, Any]] = {
        "tracking": {"train": config.train, "train_data": config.train_data},
        "action": {"flip": config.flip},
    }
    return tuple(
        Evaluation(protocol, {**shared, **settings, **of_protocol.get(protocol, {})})
        for protocol, settings in table.evaluations
    )


def _about(config: SweepConfig, store: FrameStore, resolved: PretrainConfig, queue: int | None, runs: Path) -> str:
    length = f"{resolved.steps:,} steps" if resolved.steps else f"{resolved.epochs:,} epochs by steps"
    lines = [
        f"Pretrained on {config.data} ({store.num_videos:,} videos, {store.num_frames:,} frames), "
        f"{resolved.backbone} at {resolved.image_size} px, {length} of "
        f"{resolved.batch_size} videos, preset {resolved.preset}; evaluated on {config.on or config.data}."
    ]
    if queue is not None and config.table in SCALED:
        lines.append(f"Sizes are scaled from the paper's queue of 65,536 keys to {queue:,}.")
    elif not config.small and resolved.cycle_queue_size > store.num_frames:
        lines.append(
            f"The queue of {resolved.cycle_queue_size:,} keys is longer than the {store.num_frames:,} frames; "
            "--small scales it."
        )
    found = (path.name.rpartition("-seed")[2] for path in runs.glob("*-seed*"))
    if any(seed.isdecimal() and int(seed) >= config.seeds for seed in found):
        lines.append(f"Seeds: {', '.join(map(str, range(config.seeds)))}; more are in the folder.")
    return " ".join(lines)
