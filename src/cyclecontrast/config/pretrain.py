"""The options of `pretrain`.

The defaults here are those of the preset `paper`. Settings that the user did not set are absent from
`model_fields_set`, so that the preset `auto` can decide them.
"""

import contextlib
import hashlib
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from cyclecontrast.config.presets import preset_settings
from cyclecontrast.config.types import (
    AS_TEXT,
    DEVICES,
    OR_USER_DEFINED,
    STRICT,
    BackboneName,
    BelowOne,
    Count,
    Device,
    Few,
    Fraction,
    IsNumber,
    Length,
    Name,
    NonNegative,
    Place,
    PlaceOrUrl,
    Positive,
    Processes,
    Seed,
    Side,
    Whole,
    option,
)

LogTo = tuple[Literal["tensorboard", "wandb"], ...]
MACHINE_SETTINGS = frozenset({"data", "out", "resume", "workers", "device"})
"""Paths and hardware: may differ between the processes of one training."""
RUNTIME_SETTINGS = frozenset(
    {"augment_on", "compile", "log_every", "log_to", "checkpoint_every", "health_every", "report"}
)
"""Settings that change what is learned by no more than rounding."""
MAY_CHANGE = (MACHINE_SETTINGS - {"out"}) | RUNTIME_SETTINGS | {"max_unreadable"}
"""Settings that may change when a run is resumed. Its data may move, but must have the same fingerprint."""
METHODS_OF_OPTION = {
    "positives": ("simclr", "simsiam", "byol"),
    "query_frame_in_support": ("cycle-only",),
    "self_batch": ("vince",),
}
"""Options that would have no effect with any other method."""
RENAMED = {"objective": "method", "most_unreadable": "max_unreadable", "own_key_in_support": "query_frame_in_support"}
"""Former names of options, still accepted on the command line and in files."""
DECIDED_BY_AUTO = frozenset(
    {
        *("backbone", "image_size", "batch_size", "epochs", "queue_size", "cycle_queue_size", "support_size"),
        *("cycle_weight", "cycle_start", "split_by", "batch_keys"),
        *("projector", "projector_dim", "temperature", "momentum", "momentum_ramp", "bn_groups"),
        *("augmentation", "learning_rate", "warmup", "schedule", "holdout"),
    }
)
"""Settings that the preset `auto` decides unless the user does."""


class PretrainConfig(BaseModel):
    """Train a backbone on unlabeled videos."""

    model_config = STRICT

    data: PlaceOrUrl = option(
        ...,
        "a prepared store or its URL, a folder of videos, a tree of frames, or the R2V2 layout",
        group="data",
        names="folder",
    )
    image_size: Side = option(224, "side of the square views", "PIXELS", "data")
    augmentation: Annotated[Literal["moco-v1", "moco-v2"], OR_USER_DEFINED, AS_TEXT] = option(
        "moco-v1", "recipe of the random views", group="data"
    )
    min_crop: Annotated[float, Field(gt=0, le=1), IsNumber] = option(
        0.2, "smallest share of a frame's area in a crop", "FRACTION", "data"
    )
    flip: bool = option(True, "mirror half of the views; turn off if left and right differ in meaning", group="data")
    holdout: Annotated[float, Field(ge=0, le=0.5), IsNumber] = option(
        0.0, "share of the videos kept out of training to measure health; auto: 0.1 of 50 or more", "FRACTION", "data"
    )
    max_unreadable: Fraction = option(
        0.1, "stop if a larger share of the views shows another frame because theirs cannot be read", "FRACTION", "data"
    )

    method: Annotated[
        Literal["intra-image", "intra-video", "cycle", "cycle-only", "vince", "seco", "simclr", "simsiam", "byol"],
        OR_USER_DEFINED,
        AS_TEXT,
    ] = option("cycle", "the paper's method, an ablation of it, or a baseline", "METHOD", "method")
    preset: Literal["auto", "paper", "release"] = option(
        "auto",
        "source of the defaults: size of the data and hardware (auto), paper of the method (paper), or code of its "
        "authors (release)",
        group="method",
    )
    temperature: Positive = option(0.07, "temperature of the softmax; simsiam and byol have none", "NUMBER", "method")
    cycle_weight: NonNegative = option(0.1, "weight of the cycle loss (λ of Eq. 6); cycle only", "NUMBER", "method")
    cycle_start: Fraction = option(
        0.0, "share of the training before the cycle loss is switched on", "FRACTION", "method"
    )
    queue_size: Count = option(
        65_536, "keys in the queue of the intra loss; cycle-only, simclr, simsiam and byol have none", "KEYS", "method"
    )
    cycle_queue_size: Count = option(
        65_536, "keys in the queue of the cycle loss, support and negatives; cycle and cycle-only", "KEYS", "method"
    )
    support_size: Count = option(
        16_384, "keys of the cycle queue that are the support (U) of the soft nearest neighbor", "KEYS", "method"
    )
    top_k: Count | None = option(None, "use only the K most similar keys of the support (Table 7)", "K", "method")
    split_by: Literal["frame", "video"] = option(
        "frame", "draw the support by frame, or by video, so that support and negatives share no video", group="method"
    )
    batch_keys: bool = option(
        False, "also use the other keys of the batch, not only those of the queues", group="method"
    )
    mask_own_video: bool = option(True, "ignore keys of the query's own video in the queues", group="method")
    distinct_frames: bool = option(True, "take the positive from another frame than the query", group="method")
    query_frame_in_support: bool = option(
        False, "cycle-only: add another view of the query's frame (k++) to its support (Table 5)", group="method"
    )
    positives: Literal["frame", "video"] = option(
        "frame", "simclr, simsiam, byol: two views of one frame, or of two frames of a video", group="method"
    )
    self_batch: bool = option(False, "vince: also contrast the queries of a batch with each other", group="method")
    self_temperature: Positive = option(0.03, "temperature of --self-batch", "NUMBER", "method")
    momentum: BelowOne = option(
        0.999, "momentum of the momentum encoder; simclr and simsiam have none", "NUMBER", "method"
    )
    momentum_ramp: Whole = option(0, "limit the momentum to step / (step + STEPS); 0: no limit", "STEPS", "method")
    momentum_rise: bool = option(
        False, "raise the momentum to 1 along a cosine (BYOL); excludes --momentum-ramp", group="method"
    )
    bn_groups: Count = option(8, "groups of shuffled keys for BatchNorm, over all processes", "N", "method")

    backbone: BackboneName = option(
        "resnet18", "resnet10, 18, 34 or 50, with -small (3x3 stem) and -wN (width N), or timm:<name>", "NAME", "model"
    )
    init: Name | None = option(
        None, "start from the backbone of this model instead of random weights", "MODEL", "model", "model"
    )
    projector: Literal["linear", "mlp", "mlp-bn", "mlp3-bn"] = option(
        "linear", "one layer (paper), two (release), two with BatchNorm, or three (SimSiam)", group="model"
    )
    projector_dim: Length = option(64, "dimension of the unit vectors that the losses compare", "DIM", "model")

    batch_size: Count = option(256, "videos per step, over all processes", "VIDEOS", "optimisation")
    accumulate: Few = option(1, "split a batch into N micro-batches, to save memory", "N", "optimisation")
    epochs: Count = option(200, "passes over the videos", "EPOCHS", "optimisation")
    steps: Count | None = option(None, "updates in total; overrides --epochs", "STEPS", "optimisation")
    learning_rate: Positive = option(0.06, "peak learning rate", "RATE", "optimisation")
    schedule: Literal["cosine", "step"] = option(
        "step", "cosine, or a tenth after 60% and again after 80% of the training", group="optimisation"
    )
    warmup: Fraction = option(0.0, "share of the training in which the learning rate rises", "FRACTION", "optimisation")
    sgd_momentum: BelowOne = option(0.9, "momentum of SGD", "NUMBER", "optimisation")
    weight_decay: NonNegative = option(1e-4, "weight decay of SGD", "NUMBER", "optimisation")
    gradient_clip: Positive | None = option(None, "largest norm of the gradient", "NORM", "optimisation")
    seed: Seed = option(0, "seed of all random numbers", "SEED", "optimisation")

    device: Device = option("auto", DEVICES, "DEVICE", "hardware")
    workers: Processes | None = option(
        None, "processes that load and augment (default: the number of cores)", "N", "hardware"
    )
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto", "auto: bf16 where the hardware supports it", group="hardware"
    )
    augment_on: Literal["auto", "cpu", "device"] = option(
        "auto",
        "where colour jitter and blur run, equal up to rounding; auto: on the device if it is a CUDA GPU",
        group="hardware",
    )
    compile: bool = option(
        False,
        "compile the encoders with torch.compile; for CUDA, takes a minute or more at the start",
        group="hardware",
    )

    out: Place = option(..., "folder of the new run", "FOLDER", "output")
    resume: Place | None = option(None, "resume this run with its settings", "RUN", "output")
    checkpoint_every: Count = option(1000, "steps between checkpoints", "STEPS", "output")
    log_every: Count = option(10, "steps between lines of metrics.jsonl", "STEPS", "output")
    log_to: LogTo = option(
        (),
        "also log to tensorboard or wandb, into folders of the run; wandb is offline unless WANDB_MODE is online",
        "LOGGER",
        "output",
    )
    health_every: Whole | None = option(
        None, "steps between measurements of health; 0: none (default: about 20 in a run)", "STEPS", "output"
    )
    select: Literal["last", "health"] = option(
        "last", "keep the last backbone, or the one that retrieves held-out videos best", group="output"
    )
    report: bool = option(True, "write report.html into the run at the end", group="output")

    def undecided(self) -> set[str]:
        """Return the names of the settings that depend on the data and the hardware."""
        return set(DECIDED_BY_AUTO) - self.model_fields_set if self.preset == "auto" else set()

    def requested(self) -> set[str]:
        """Return the names of the settings that the user set; none if all are set, as by the config.toml of a run."""
        usual: dict[str, object] = {}
        if self.preset != "auto":
            usual = {name: field.default for name, field in type(self).model_fields.items()}
            usual |= preset_settings(self.preset, self.method)
        requested = {name for name in self.model_fields_set if name not in usual or getattr(self, name) != usual[name]}
        return set() if requested >= DECIDED_BY_AUTO - {"holdout"} else requested

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Add the settings of the preset, or of the run to resume."""
        values = _with_current_names(values)
        if values.get("resume") is not None:
            return cls._resumed(values, Path(str(values["resume"])))
        preset = preset_settings(str(values.get("preset")), str(values.get("method")))
        if values.get("init") is not None:
            preset.pop("backbone", None)
        return preset | values

    @classmethod
    def _resumed(cls, values: dict[str, Any], run: Path) -> dict[str, Any]:
        """Return the settings of a run with those that may change replaced; raises ValueError if others differ.

        The config.toml of the last checkpoint has the settings that the run was trained with.
        """
        copy, trained = _last_checkpoint(run)
        saved = _read_config(run, f"copy {copy} over it" if copy else "start a new run")
        if changes := cls._changes(trained | {"out": run}, saved | {"out": run}, "in the last checkpoint"):
            raise ValueError(f"resume: {run / 'config.toml'} was changed: {changes} here; copy {copy} over it")
        defaults = {name: field.default for name, field in cls.model_fields.items()}  # None is not in the files
        if changes := cls._changes(defaults | trained | saved | {"out": run}, values, "in the run"):
            raise ValueError(f"resume: the settings of a run cannot change: {changes} requested")
        return trained | saved | values | {"out": run}

    @classmethod
    def _changes(cls, before: dict[str, Any], now: dict[str, Any], where: str) -> str:
        """Describe the settings that differ, except those that may change."""
        return ", ".join(
            f"{name} is {before[name]} {where} and {now[name]}"
            for name in cls.model_fields
            if name in before and name in now and name not in MAY_CHANGE
            if not cls._is_same(name, before[name], now[name])
        )

    @classmethod
    def _is_same(cls, name: str, first: object, second: object) -> bool:
        field: TypeAdapter[Any] = TypeAdapter(cls.__annotations__[name])
        try:
            return bool(field.validate_python(first) == field.validate_python(second))
        except ValidationError:
            return False

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if problems := [*self._wrong_combinations()]:
            raise ValueError(*problems)
        return self

    def _wrong_combinations(self) -> Iterator[str]:
        for name, methods in METHODS_OF_OPTION.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.method not in methods:
                yield f"{name} is for {' and '.join(methods)} only, not for method {self.method}"
        known = self.model_fields_set
        if self.momentum_rise and self.momentum_ramp and {"momentum_rise", "momentum_ramp"} <= known:
            yield "momentum_rise excludes momentum_ramp; set --momentum-ramp 0"
        if self.select == "health" and self.health_every == 0:
            yield "select health needs measurements; leave out --health-every 0"
        if self.method not in ("cycle", "cycle-only") or "support_size" not in known:
            return
        if "cycle_queue_size" in known and self.support_size >= self.cycle_queue_size:
            yield (
                f"support_size ({self.support_size}) leaves no negatives in cycle_queue_size "
                f"({self.cycle_queue_size}); set a smaller support or a larger queue"
            )
        if self.top_k is not None and self.top_k > self.support_size:
            yield f"top_k ({self.top_k}) is more than support_size ({self.support_size})"


def _with_current_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with former names replaced, unless the current one is there too."""
    return {(new if (new := RENAMED.get(name)) and new not in values else name): v for name, v in values.items()}


def _read_config(run: Path, remedy: str) -> dict[str, Any]:
    """Return the settings in the config.toml of a run. Raises ValueError that says what to do."""
    if not os.path.isfile(run / "config.toml"):  # Path.is_file fails if the name is too long
        if os.path.isdir(run / "frames"):
            raise ValueError(f"resume: {run} stopped before its training began; repeat the first command")
        raise ValueError(f"resume: {run / 'config.toml'} does not exist; name the folder of a run")
    if run.resolve().match("checkpoints/step-*"):
        raise ValueError(f"resume: {run} is a checkpoint; name its run, {run.resolve().parents[1]}")
    try:
        return _load(run / "config.toml")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"resume: {run / 'config.toml'} is damaged ({error}); {remedy}") from error


def _last_checkpoint(run: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the config.toml of the last checkpoint and its settings, or None and no settings."""
    for copy in sorted(run.glob("checkpoints/step-*[0-9]/config.toml"), reverse=True):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):  # it is damaged
            checksums = json.loads(copy.with_name("checksums.json").read_bytes())
            if checksums["config.toml"] == hashlib.sha256(copy.read_bytes()).hexdigest():
                return copy, _load(copy)
    return None, {}


def _load(file: Path) -> dict[str, Any]:
    return _with_current_names(tomllib.loads(file.read_text()))
