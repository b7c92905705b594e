"""What `pretrain` takes; a field that the user did not set is absent from `model_fields_set`, which presets look at.

The defaults written here are those of the paper's text (preset `paper`).
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from cyclecontrast.config.fields import (
    AS_TEXT,
    OR_OWN,
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
)
from cyclecontrast.config.presets import of_preset
from cyclecontrast.config.seal import is_sealed

LogTo = tuple[Literal["tensorboard", "wandb"], ...]
OF_A_MACHINE = frozenset({"data", "out", "resume", "workers", "device"})
"""Settings that say where something lies, or what a process runs on: those of one training may differ in them."""
NOT_OF_THE_METHOD = frozenset(
    {"augment_on", "compile", "log_every", "log_to", "checkpoint_every", "health_every", "report"}
)
"""Settings that change nothing of what is learned but by rounding."""
MAY_CHANGE = (OF_A_MACHINE - {"out"}) | NOT_OF_THE_METHOD | {"most_unreadable"}
"""Settings of a run that may differ when it is resumed: the data must have the same fingerprint, wherever it lies."""

BELONGS_TO = {
    "positives": ("simclr", "simsiam", "byol"),
    "own_key_in_support": ("cycle-only",),
    "self_batch": ("vince",),
}
"""Options that other objectives would leave unread in silence."""


class PretrainConfig(BaseModel):
    """Frames → backbone: the method, its optimizer, and what `auto` may decide."""

    model_config = STRICT
    data: PlaceOrUrl = Field(
        description="a prepared store or its URL, a folder of videos, a tree of frames, or the R2V2 layout"
    )
    out: Place = Field(description="folder of the run to make")
    preset: Literal["auto", "paper", "release"] = Field(
        "auto",
        description="auto: sized from the data and the hardware; paper: its text; release: its script; "
        "the last two for vince, seco, simclr, simsiam, byol: what their own sources say",
    )
    method: Annotated[
        Literal["intra-image", "intra-video", "cycle", "cycle-only", "vince", "seco", "simclr", "simsiam", "byol"],
        OR_OWN,
        AS_TEXT,
    ] = Field(
        "cycle", description="what is trained; all but the first four follow the papers that they are named after"
    )
    positives: Literal["frame", "video"] = Field(
        "frame", description="simclr, simsiam, byol: two views of one frame, as there, or of two frames of a video"
    )

    backbone: BackboneName = Field(
        "resnet18", description="resnet10|18|34|50, with -small (3x3 stem) and -wN (width), or timm:<name>"
    )
    init: Name | None = Field(None, description="start from this model's backbone instead of random weights")
    projector: Literal["linear", "mlp", "mlp-bn", "mlp3-bn"] = Field(
        "linear", description="one layer (paper), two (release), two with BatchNorm, or three (SimSiam)"
    )
    projector_dim: Length = Field(64, description="length of the unit vectors that the losses compare")

    temperature: Positive = Field(0.07, description="of all softmaxes; simsiam and byol have none")
    cycle_weight: NonNegative = Field(0.1, description="λ of Eq. 6; for cycle only")
    cycle_start: Fraction = Field(0.0, description="part of the training after which λ is switched on")
    queue_size: Count = Field(
        65_536, description="keys of the intra loss; cycle-only, simclr, simsiam and byol have none"
    )
    cycle_queue_size: Count = Field(
        65_536, description="keys of the cycle loss (cycle, cycle-only): support and negatives"
    )
    support_size: Count = Field(16_384, description="keys drawn for the soft nearest neighbor (U)")
    own_key_in_support: bool = Field(
        False, description="cycle-only: another view of the query's frame (k++) is in its support (Table 5)"
    )
    self_batch: bool = Field(False, description="vince: contrast the queries with each other, too")
    self_temperature: Positive = Field(0.03, description="of the softmax of --self-batch")
    top_k: Count | None = Field(None, description="only the K most similar of the support (Table 7)")
    batch_keys: bool = Field(False, description="the other keys of the step are candidates beside the queues'")
    mask_own_video: bool = Field(True, description="keys of the query's own video are no candidates")
    split_by: Literal["frame", "video"] = Field("frame", description="what support and negatives may not share")
    distinct_frames: bool = Field(True, description="the positive is another frame than the query")
    momentum: BelowOne = Field(0.999, description="of the momentum encoder; simclr and simsiam have none")
    momentum_ramp: Whole = Field(0, description="momentum is at most step / (step + ramp); 0 for none")
    momentum_rise: bool = Field(False, description="the momentum rises to 1 along a cosine (BYOL); excludes a ramp")
    bn_groups: Count = Field(
        8, description="groups that the keys are shuffled into for BatchNorm, all processes together"
    )

    image_size: Side = Field(224, description="side of the square views in pixels")
    augmentation: Annotated[Literal["moco-v1", "moco-v2"], OR_OWN, AS_TEXT] = Field(
        "moco-v1", description="recipe of the random views"
    )
    min_crop: Annotated[float, Field(gt=0, le=1), IsNumber] = Field(
        0.2, description="smallest part of a frame's area in a crop"
    )
    flip: bool = Field(True, description="mirror half of the views; off where left and right differ in meaning")

    batch_size: Count = Field(256, description="videos per step, over all processes")
    accumulate: Few = Field(
        1, description="parts of the batch that go through the encoder one after the other: less memory"
    )
    epochs: Count = Field(200, description="passes over the videos")
    steps: Count | None = Field(None, description="updates in all; overrides --epochs")
    learning_rate: Positive = Field(0.06, description="at its peak")
    schedule: Literal["cosine", "step"] = Field("step", description="cosine, or ÷10 at 60 % and at 80 %")
    warmup: Fraction = Field(0.0, description="part of the training in which the learning rate rises")
    sgd_momentum: BelowOne = Field(0.9, description="of the optimizer")
    weight_decay: NonNegative = Field(1e-4, description="of the optimizer")
    gradient_clip: Positive | None = Field(None, description="largest norm of the gradient")

    holdout: Annotated[float, Field(ge=0, le=0.5), IsNumber] = Field(
        0.0, description="part of the videos kept from the training, to measure its health on; auto: .1 of 50 or more"
    )
    health_every: Whole | None = Field(
        None, description="steps between measurements of health, 0 for none; default: about 20 in the run"
    )
    select: Literal["last", "health"] = Field(
        "last", description="which backbone remains: the last, or the one that retrieves best in the videos held out"
    )

    seed: Seed = Field(0, description="all randomness is a function of it")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the hardware has it")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N, mps")
    workers: Processes | None = Field(None, description="processes that load and augment; default: the number of cores")
    augment_on: Literal["auto", "cpu", "device"] = Field(
        "auto",
        description="where colours and blur of the views are made: by the workers, or on the device from the same "
        "random numbers, which differs by rounding; auto: device where that is a GPU of CUDA",
    )
    compile: bool = Field(
        False, description="let torch.compile make the encoders faster; meant for CUDA, takes a minute or more to begin"
    )
    checkpoint_every: Count = Field(1000, description="steps between checkpoints")
    log_every: Count = Field(10, description="steps between lines of metrics.jsonl")
    log_to: LogTo = Field(
        (),
        description="viewers that get these lines, too, in folders of the run: tensorboard, wandb (offline, unless "
        "WANDB_MODE is online)",
    )
    most_unreadable: Fraction = Field(
        0.1, description="part of the views whose frame may be replaced, because it cannot be read, before a run stops"
    )
    report: bool = Field(True, description="write report.html into the run at the end")
    resume: Place | None = Field(None, description="go on with this run; its settings must stay as they are")

    def undecided(self) -> set[str]:
        """Return the settings that are open until the data and the hardware are known."""
        return set(DECIDED_BY_AUTO) - self.model_fields_set if self.preset == "auto" else set()

    def asked(self) -> set[str]:
        """Return the settings that were asked for; none where all are named, as in the config.toml of a run."""
        usual: dict[str, object] = {}
        if self.preset != "auto":
            usual = {name: field.default for name, field in type(self).model_fields.items()}
            usual |= of_preset(self.preset, self.method)
        asked = {name for name in self.model_fields_set if name not in usual or getattr(self, name) != usual[name]}
        return set() if asked >= DECIDED_BY_AUTO - {"holdout"} else asked

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Complete what is asked with the preset, or with the settings of the run to resume, which may not change."""
        values = _with_method(values)
        if values.get("resume") is None:
            preset = of_preset(str(values.get("preset")), str(values.get("method"))) | values
            return {k: v for k, v in preset.items() if k in values or k != "backbone" or values.get("init") is None}
        run = Path(str(values["resume"]))
        if not os.path.isfile(run / "config.toml"):  # a path's own method fails where the name is too long
            if os.path.isdir(run / "frames"):
                raise ValueError(f"resume: {run} was stopped before its training; the first command, again, goes on")
            raise ValueError(f"resume: {run / 'config.toml'} does not exist; name the folder of a run")
        if run.resolve().match("checkpoints/step-*"):
            raise ValueError(f"resume: {run} is a checkpoint; name its run, {run.resolve().parents[1]}")
        text = (run / "config.toml").read_text(errors="replace")
        if not is_sealed(text):
            raise ValueError(
                f"resume: {run / 'config.toml'} is damaged or was changed; copy the one of the last checkpoint over it"
            )
        saved = _with_method(tomllib.loads(text)) | {"out": run}
        before = {name: field.default for name, field in cls.model_fields.items()} | saved  # None is not written
        changed = [
            f"{name}: {before[name]} in the run, {value} asked"
            for name, value in values.items()
            if name in cls.model_fields and name not in MAY_CHANGE and not cls._same(name, before[name], value)
        ]
        if changed:
            raise ValueError("resume: settings must stay as they are; " + "; ".join(changed))
        return saved | values | {"out": run}

    @classmethod
    def _same(cls, name: str, saved: object, asked: object) -> bool:
        field: TypeAdapter[Any] = TypeAdapter(cls.__annotations__[name])
        try:
            return bool(field.validate_python(saved) == field.validate_python(asked))
        except ValidationError:
            return False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = [
            f"{name} is for {' and '.join(methods)} only, not for method {self.method}"
            for name, methods in BELONGS_TO.items()
            if getattr(self, name) != type(self).model_fields[name].default and self.method not in methods
        ]
        if self.momentum_rise and self.momentum_ramp and {"momentum_rise", "momentum_ramp"} <= self.model_fields_set:
            problems.append("momentum_rise excludes momentum_ramp; set --momentum-ramp 0")
        if self.select == "health" and self.health_every == 0:
            problems.append("select health needs measurements; leave out --health-every 0")
        problems += self._misfits_of_the_support() if self.method in ("cycle", "cycle-only") else []
        if problems:
            raise ValueError(*problems)
        return self

    def _misfits_of_the_support(self) -> list[str]:
        problems, known = [], self.model_fields_set
        if {"support_size", "cycle_queue_size"} <= known and self.support_size >= self.cycle_queue_size:
            problems.append(
                f"support_size ({self.support_size}) leaves no negatives in cycle_queue_size "
                f"({self.cycle_queue_size}); make the support smaller or the queue larger"
            )
        if "support_size" in known and self.top_k is not None and self.top_k > self.support_size:
            problems.append(f"top_k ({self.top_k}) is more than support_size ({self.support_size})")
        return problems


def _with_method(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with `objective`, the former name of `method`, under its name of today."""
    if "objective" in values and "method" not in values:
        return {("method" if name == "objective" else name): value for name, value in values.items()}
    return values


DECIDED_BY_AUTO = frozenset(
    {
        *("backbone", "image_size", "batch_size", "epochs", "queue_size", "cycle_queue_size", "support_size"),
        *("cycle_weight", "cycle_start", "split_by", "batch_keys"),
        *("projector", "projector_dim", "temperature", "momentum", "momentum_ramp", "bn_groups"),
        *("augmentation", "learning_rate", "warmup", "schedule", "holdout"),
    }
)
"""What the preset `auto` decides where the user does not."""
