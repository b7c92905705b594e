"""The options of `pretrain`.

The defaults are those of the preset `paper`. Options that the user did not set are not in `model_fields_set`;
the preset `auto` resolves these.
"""

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Collection, Iterator
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
    Count,
    Device,
    Dim,
    Fraction,
    HalfOpenFraction,
    ImageSize,
    IsNumber,
    LocalPath,
    ModelPath,
    NonNegative,
    NonNegativeInt,
    PathOrUrl,
    Positive,
    Seed,
    SmallCount,
    Stages,
    WorkerCount,
    absolute_model,
    is_url,
    is_user_defined,
    must_be_downloaded,
    option,
    read_toml,
)

LogTo = tuple[Literal["tensorboard", "wandb"], ...]
MACHINE_SETTINGS = frozenset({"data", "out", "resume", "workers", "device"})
"""Settings that may differ between the processes of a training run: paths and hardware."""
RUNTIME_SETTINGS = frozenset(
    {"augment_on", "compile", "log_every", "log_to", "checkpoint_every", "health_every", "report"}
)
"""Settings that change the result at most by rounding errors."""
CHANGEABLE_ON_RESUME = (MACHINE_SETTINGS - {"out"}) | RUNTIME_SETTINGS | {"max_unreadable", "teacher"}
"""Settings that may change when a run is resumed. Data and teacher may be moved, but must have the same fingerprint."""
METHODS_OF_OPTION = {
    "positives": ("simclr", "simsiam", "byol", "nnclr"),
    "views": ("simclr",),
    "teacher": ("distill",),
    "query_frame_in_support": ("cycle-only",),
    "self_batch": ("vince",),
}
"""Method-specific options; PretrainConfig rejects them for all other methods but those of users."""
RENAMED = {"objective": "method", "most_unreadable": "max_unreadable", "own_key_in_support": "query_frame_in_support"}
"""Former names of options, still accepted on the command line and in files."""
RESOLVED_BY_AUTO = frozenset(
    {
        *("backbone", "image_size", "batch_size", "epochs", "queue_size", "cycle_queue_size", "support_size"),
        *("cycle_weight", "cycle_start", "split_by", "batch_keys"),
        *("projector", "projector_dim", "temperature", "momentum", "momentum_ramp", "bn_groups"),
        *("augmentation", "learning_rate", "warmup", "schedule", "holdout", "freeze_batchnorm"),
        "projector_first",
    }
)
"""Settings that the preset `auto` resolves if the user did not set them."""
CONTINUING = "intra-video"
"""The method of `auto` with `init`: there, the cycle loss gains nothing and forgets more (docs/pretrained.md)."""
ADDED_LATER = frozenset({"holdout", "freeze_batchnorm", "projector_first"})
"""Settings that the config.toml of older versions may lack, which trained as if they were off."""


class PretrainConfig(BaseModel):
    """Train a backbone on unlabeled videos."""

    model_config = STRICT

    data: PathOrUrl = option(
        ...,
        "a prepared store or its URL, a folder of videos, a tree of frames, or the R2V2 layout",
        group="data",
        names="folder",
    )
    image_size: ImageSize = option(224, "side of the square views", "PIXELS", "data")
    augmentation: Annotated[Literal["moco-v1", "moco-v2"], OR_USER_DEFINED, AS_TEXT] = option(
        "moco-v1", "recipe of the random augmentation", group="data"
    )
    min_crop: Annotated[float, Field(gt=0, le=1), IsNumber] = option(
        0.2, "smallest area of a random crop, as a fraction of the frame", "FRACTION", "data"
    )
    flip: bool = option(True, "random horizontal flip; disable if left and right differ in meaning", group="data")
    holdout: Annotated[float, Field(ge=0, le=0.5), IsNumber] = option(
        0.0,
        "fraction of the videos to hold out, on which health is measured; auto: 0.1 for at least 50 videos, "
        "otherwise 0",
        "FRACTION",
        "data",
    )
    max_unreadable: Fraction = option(
        0.1,
        "stop if more than this fraction of the views shows a replacement of an unreadable frame",
        "FRACTION",
        "data",
    )

    method: Annotated[
        Literal[
            "intra-image",
            "intra-video",
            "cycle",
            "cycle-only",
            "vince",
            "seco",
            "simclr",
            "simsiam",
            "byol",
            "nnclr",
            "diet",
            "distill",
        ],
        OR_USER_DEFINED,
        AS_TEXT,
    ] = option(
        "cycle",
        "the paper's method, an ablation, or a baseline; auto takes simclr on one CPU, and intra-video with --init",
        "METHOD",
        "method",
    )
    preset: Literal["auto", "paper", "release"] = option(
        "auto",
        "source of the defaults: data size and hardware (auto), the paper of the method (paper), or the code of its "
        "authors (release)",
        group="method",
    )
    temperature: Positive = option(
        0.07, "softmax temperature; not used by simsiam, byol, diet and distill", "NUMBER", "method"
    )
    cycle_weight: NonNegative = option(
        0.1, "weight of the cycle loss (λ of Eq. 6); used by method cycle", "NUMBER", "method"
    )
    cycle_start: Fraction = option(
        0.0,
        "fraction of the training after which the cycle loss is enabled; used by method cycle",
        "FRACTION",
        "method",
    )
    queue_size: Count = option(
        65_536,
        "keys in the queue of the intra loss; used by intra-image, intra-video, cycle, vince, seco and nnclr",
        "KEYS",
        "method",
    )
    cycle_queue_size: Count = option(
        65_536,
        "keys in the queue of the cycle loss, support and negatives together; used by cycle and cycle-only",
        "KEYS",
        "method",
    )
    support_size: Count = option(
        16_384,
        "keys in the support (U), from which the soft nearest neighbor is computed; used by cycle and cycle-only",
        "KEYS",
        "method",
    )
    top_k: Count | None = option(
        None, "use only the K most similar keys of the support (Table 7; default: all)", "K", "method"
    )
    split_by: Literal["frame", "video"] = option(
        "frame",
        "how keys are split into support and negatives: frame by frame, or so that the two sets share no video",
        group="method",
    )
    batch_keys: bool = option(
        False, "contrast queries also with the keys of the current batch, in addition to the queues", group="method"
    )
    mask_own_video: bool = option(
        True, "ignore keys of the query's own video, which would be false negatives", group="method"
    )
    distinct_frames: bool = option(True, "never draw the same frame for query and positive", group="method")
    query_frame_in_support: bool = option(
        False,
        "add another view of the query's frame (k++) to its support (Table 5); used by cycle-only",
        group="method",
    )
    positives: Literal["frame", "video"] = option(
        "frame",
        "positive pairs: two views of one frame, or of two frames of a video; used by simclr, simsiam, byol and nnclr",
        group="method",
    )
    views: Annotated[int, Field(ge=2, le=64), IsNumber] = option(
        2,
        "frames of each video in a step, each contrasted with each other; a short video repeats some; used by simclr",
        "N",
        "method",
    )
    teacher: ModelPath | None = option(
        None,
        "model whose features the backbone learns to predict; not trained; used by distill, which needs it",
        "MODEL",
        "method",
        "model",
    )
    self_batch: bool = option(
        False, "also contrast the queries of a batch with each other; used by vince", group="method"
    )
    self_temperature: Positive = option(0.03, "softmax temperature of --self-batch", "NUMBER", "method")
    momentum: HalfOpenFraction = option(
        0.999,
        "momentum of the momentum encoder; not used by simclr, simsiam, nnclr, diet and distill",
        "NUMBER",
        "method",
    )
    momentum_ramp: NonNegativeInt = option(
        0, "limit the momentum of the momentum encoder to step / (step + STEPS); 0: no limit", "STEPS", "method"
    )
    momentum_rise: bool = option(
        False,
        "increase the momentum of the momentum encoder to 1 along a cosine (BYOL); needs --momentum-ramp 0",
        group="method",
    )
    bn_groups: Count = option(
        8, "number of groups for shuffled BatchNorm of the keys, summed over all processes", "N", "method"
    )

    backbone: BackboneName = option(
        "resnet18",
        "resnet10, 18, 34 or 50, optionally with -small (3x3 stem) or -wN (width N), or timm:<name>",
        "NAME",
        "model",
    )
    init: ModelPath | None = option(
        None,
        "initialize the backbone from this model; a run also passes on its image size and flip (default: random "
        "weights)",
        "MODEL",
        "model",
        "model",
    )
    freeze: Stages = option(
        0, "with --init, do not train the stem and the first STAGES of the 4 stages; 0: train all", "STAGES", "model"
    )
    freeze_batchnorm: bool = option(
        False,
        "with --init, BatchNorm layers of the backbone normalize with the statistics of the start, not of the batch; "
        "auto: on with --init",
        group="model",
    )
    projector: Literal["linear", "mlp", "mlp-bn", "mlp3-bn"] = option(
        "linear",
        "one layer (paper), two (release), two with BatchNorm, or three with BatchNorm (SimSiam)",
        group="model",
    )
    projector_dim: Dim = option(64, "output dimension of the projectors", "DIM", "model")

    batch_size: Count = option(256, "videos per step, over all processes", "VIDEOS", "optimization")
    accumulate: SmallCount = option(1, "accumulate gradients over N micro-batches, to save memory", "N", "optimization")
    epochs: Count = option(200, "passes over the training videos", "EPOCHS", "optimization")
    steps: Count | None = option(None, "optimizer steps in total; overrides --epochs", "STEPS", "optimization")
    minutes: Positive | None = option(
        None,
        "train for about this long in all, with as many steps as fit on this machine; excludes --steps and --epochs",
        "MINUTES",
        "optimization",
    )
    learning_rate: Positive = option(0.06, "peak learning rate", "RATE", "optimization")
    schedule: Literal["cosine", "step"] = option(
        "step",
        "learning rate schedule: cosine, or step (x0.1 at 60% and 80% of training)",
        group="optimization",
    )
    warmup: Fraction = option(
        0.0, "fraction of the training with linear warm-up of the learning rate", "FRACTION", "optimization"
    )
    backbone_rate: Positive = option(
        1.0, "learning rate of the backbone, relative to that of the projectors", "FACTOR", "optimization"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1), IsNumber] = option(
        1.0,
        "with --init of a network of timm, multiply the learning rate by this per layer below the last; 1: off",
        "FACTOR",
        "optimization",
    )
    projector_first: HalfOpenFraction = option(
        0.0,
        "with --init, train only the projectors for this fraction of the training; auto: 0.1 with --init",
        "FRACTION",
        "optimization",
    )
    sgd_momentum: HalfOpenFraction = option(0.9, "momentum of SGD", "NUMBER", "optimization")
    weight_decay: NonNegative = option(1e-4, "weight decay of SGD", "NUMBER", "optimization")
    gradient_clip: Positive | None = option(
        None, "clip the gradient to this norm (default: no clipping)", "NORM", "optimization"
    )
    seed: Seed = option(0, "random seed", "SEED", "optimization")

    device: Device = option("auto", DEVICES, "DEVICE", "hardware")
    workers: WorkerCount | None = option(
        None,
        "processes that load and augment frames (default: a quarter of the cores on a CPU; on a GPU all cores, shared "
        "by the processes of the node)",
        "N",
        "hardware",
    )
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto", "auto: bf16 if the hardware is faster with it", group="hardware"
    )
    augment_on: Literal["auto", "cpu", "device"] = option(
        "auto",
        "where to run color jitter and blur; the results are equal up to rounding; auto: device on a CUDA GPU, "
        "otherwise cpu",
        group="hardware",
    )
    compile: bool = option(
        False,
        "compile the encoders with torch.compile; meant for CUDA; takes a minute or more at the start",
        group="hardware",
    )

    out: LocalPath = option(..., "folder of the new run", "FOLDER", "output")
    resume: LocalPath | None = option(
        None, "resume the run in this folder, with its saved settings; with more --steps, extend it", "RUN", "output"
    )
    checkpoint_every: Count = option(1000, "steps between checkpoints", "STEPS", "output")
    log_every: Count = option(10, "steps between rows of metrics.jsonl", "STEPS", "output")
    log_to: LogTo = option(
        (),
        "also log to tensorboard and/or wandb, in the run folder; wandb is offline unless WANDB_MODE=online",
        "LOGGER",
        "output",
    )
    health_every: NonNegativeInt | None = option(
        None,
        "steps between measurements of health; 0: never (default: about 20 measurements per run)",
        "STEPS",
        "output",
    )
    select: Literal["last", "health"] = option(
        "last",
        "final backbone: that of the last step, or of the step with the best same-video retrieval if it "
        "is clearly better than the last",
        group="output",
    )
    report: bool = option(True, "write RUN/report.html at the end", group="output")
    plan: bool = option(False, "only print what the training would do and how long it would take", group="output")

    def undecided(self) -> set[str]:
        """Return the settings that the preset `auto` has not resolved yet."""
        if self.preset != "auto":
            return set()
        method = set[str]() if "method" in self.model_fields_set else {"method", "positives", "views"}
        return (method | RESOLVED_BY_AUTO) - self.model_fields_set

    def requested(self) -> set[str]:
        """Return the settings that the user set explicitly; empty if the config comes from the config.toml of a run."""
        usual: dict[str, object] = {}
        if self.preset != "auto":
            usual = {name: field.default for name, field in type(self).model_fields.items()}
            usual |= preset_settings(self.preset, self.method)
        requested = {name for name in self.model_fields_set if name not in usual or getattr(self, name) != usual[name]}
        if requested >= RESOLVED_BY_AUTO - ADDED_LATER:
            return set()
        inherited: dict[str, object] = {}
        if self.init is not None and self.resume is None:
            inherited = _inherited(Path(self.init)) | {"method": CONTINUING}
        if self.preset == "auto":
            inherited |= _implied(requested)
        return {name for name in requested if name not in inherited or getattr(self, name) != inherited[name]}

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in the settings of the preset, or of the run to resume."""
        values = _with_current_names(values)
        if values.get("resume") is not None:
            return cls._resumed(values, Path(str(values["resume"])))
        preset = preset_settings(str(values.get("preset")), str(values.get("method")))
        if values.get("init") is not None:
            of_cycle = {"cycle_weight", "cycle_start", "cycle_queue_size", "support_size", "top_k", "split_by"}
            if values.get("preset") in (None, "auto") and not of_cycle & values.keys():
                preset["method"] = CONTINUING
            preset.pop("backbone", None)
            preset |= _inherited(Path(str(values["init"])))
        if values.get("preset") in (None, "auto"):
            preset |= _implied(values)
        return preset | values

    @classmethod
    def _resumed(cls, values: dict[str, Any], run: Path) -> dict[str, Any]:
        """Return the settings of a run, updated by `values`; raises ValueError if another setting changes.

        The settings in the config.toml of the last checkpoint are those that the run was trained with.
        """
        if values.get("minutes") is not None:
            raise ValueError("minutes sizes a new training; with --resume set --steps")
        if values.get("plan"):
            raise ValueError("plan is for a new training; remove --resume")
        copy, trained = _last_checkpoint(run)
        saved = _read_config(run, f"copy {copy} over it" if copy else "start a new run")
        trained, saved = _with_absolute_start(trained, run), _with_absolute_start(saved, run)
        if changes := cls._changes(trained | {"out": run}, saved | {"out": run}, "in the last checkpoint"):
            raise ValueError(
                f"resume: {run / 'config.toml'} was changed since the last checkpoint: {changes} in "
                f"this file; restore it by copying {copy} over it"
            )
        before = trained | saved
        if is_url(place := before.get("data")) and values.get("data") is None:
            allow = f"cyclecontrast pretrain {shlex.quote(str(place))} --resume {shlex.quote(str(run))}"
            raise ValueError(f"resume: {run} was trained on {place}; to allow the download: {allow}")
        for name, what in ({"teacher": "has the teacher"} | ({} if copy else {"init": "starts from"})).items():
            if must_be_downloaded(model := before.get(name)) and values.get(name) is None:
                allow = f"cyclecontrast pretrain --resume {shlex.quote(str(run))} --{name} {shlex.quote(str(model))}"
                raise ValueError(f"resume: {run} {what} {model}; to allow its download: {allow}")
        defaults = {name: field.default for name, field in cls.model_fields.items()}  # None is not in the files
        if changes := cls._changes(defaults | before | {"out": run}, values, "in the run"):
            raise ValueError(f"resume: the settings of a run cannot change: {changes} requested")
        return before | values | {"out": run}

    @classmethod
    def _changes(cls, before: dict[str, Any], now: dict[str, Any], where: str) -> str:
        """Describe the settings that differ, except those that may change."""
        return ", ".join(
            f"{name} is {before[name]} {where} and {now[name]}"
            for name in cls.model_fields
            if name in before and name in now and name not in CHANGEABLE_ON_RESUME | {"steps"}  # not below those done
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
            allowed = is_user_defined(self.method) or self.method in methods
            if getattr(self, name) != type(self).model_fields[name].default and not allowed:
                yield f"{name} is supported only by {', '.join(methods)}, not by method {self.method}"
        if self.method == "distill" and self.teacher is None:
            yield "method distill needs a model to learn from; set --teacher MODEL"
        if self.views > 2 and self.positives == "frame":
            yield "views of more than two frames need --positives video"
        known = self.model_fields_set
        if self.momentum_rise and self.momentum_ramp and {"momentum_rise", "momentum_ramp"} <= known:
            yield "momentum_rise excludes momentum_ramp; set --momentum-ramp 0"
        if self.init is None and not is_user_defined(self.backbone):
            for name in ("freeze", "freeze_batchnorm", "layer_decay", "projector_first"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    yield f"{name} needs pretrained weights: set --init, or remove it"
        if self.minutes is not None and (self.steps is not None or "epochs" in self.requested()):
            yield "minutes excludes steps and epochs, because it chooses their number; remove one of them"
        if self.select == "health" and self.health_every == 0:
            yield "select health needs health measurements; remove --health-every 0"
        if self.method not in ("cycle", "cycle-only") or "support_size" not in known:
            return
        if "cycle_queue_size" in known and self.support_size >= self.cycle_queue_size:
            yield (
                f"support_size ({self.support_size}) must be smaller than cycle_queue_size "
                f"({self.cycle_queue_size}); set a smaller support or a larger queue"
            )
        if self.top_k is not None and self.top_k > self.support_size:
            yield f"top_k ({self.top_k}) is more than support_size ({self.support_size})"


def _implied(options: Collection[str]) -> dict[str, Any]:
    """Return what the options of SimCLR imply, unless it is set."""
    if "views" in options:
        return {"method": "simclr", "positives": "video"}
    return {"method": "simclr"} if "positives" in options else {}


def _inherited(run: Path) -> dict[str, Any]:
    """Return the settings that a run takes over from the run that it starts from; empty for other models."""
    if not os.path.isfile(run / "config.toml"):  # Path.is_file fails if the name is too long
        return {}
    try:
        saved = _load(run / "config.toml")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"init: {run / 'config.toml'} cannot be read ({error})") from error
    return {name: saved[name] for name in ("image_size", "flip") if name in saved}


def _with_absolute_start(settings: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return the settings of a run with the path in run.json for `init`, which older versions wrote as it was given."""
    init = settings.get("init")
    if isinstance(init, str) and init != absolute_model(init):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):  # reported when resumed
            return settings | {"init": json.loads((run / "run.json").read_bytes())["start"]["model"]}
    return settings


def _with_current_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with former names replaced, unless the current name is set as well."""
    return {(new if (new := RENAMED.get(name)) and new not in values else name): v for name, v in values.items()}


def _read_config(run: Path, remedy: str) -> dict[str, Any]:
    """Return the settings of a run. Raises ValueError if they cannot be read."""
    if not os.path.isfile(run / "config.toml"):
        if os.path.isdir(run / "frames"):
            raise ValueError(f"resume: {run} stopped before training began; run the original command again")
        raise ValueError(f"resume: {run / 'config.toml'} does not exist; pass the folder of a run")
    if run.resolve().match("checkpoints/step-*"):
        raise ValueError(f"resume: {run} is a checkpoint; name its run, {run.resolve().parents[1]}")
    try:
        return _load(run / "config.toml")
    except (OSError, ValueError) as error:
        raise ValueError(f"resume: {run / 'config.toml'} is damaged ({error}); {remedy}") from error


def _last_checkpoint(run: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the path and the settings of the config.toml in the last checkpoint, or (None, {}) without one."""
    for copy in sorted(run.glob("checkpoints/step-*[0-9]/config.toml"), reverse=True):
        if not copy.parent.name[5:].isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):  # skip a damaged one
            checksums = json.loads(copy.with_name("checksums.json").read_bytes())
            if checksums["config.toml"] == hashlib.sha256(copy.read_bytes()).hexdigest():
                return copy, _load(copy)
    return None, {}


def _load(file: Path) -> dict[str, Any]:
    return _with_current_names(read_toml(file))
