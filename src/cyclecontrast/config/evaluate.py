"""What every protocol of `evaluate` takes."""

from typing import Any, ClassVar, Literal, get_origin

from pydantic import BaseModel, Field

from cyclecontrast.config.fields import STRICT, Device, Name, Place, Processes, Seed


class EvaluateConfig(BaseModel):
    """What every protocol of `evaluate` takes."""

    model_config = STRICT
    scoring: ClassVar[frozenset[str]] = frozenset()
    """Settings of the scoring step alone: predictions do not depend on them."""

    model: Name = Field(description="a run, a backbone file, a checkpoint, timm:<name>, or random:<backbone>")
    data: Place = Field(description="folder of the data set")
    out: Place | None = Field(None, description="folder of results; default: the run's, else ./results")
    score_only: bool = Field(False, description="score the records of an earlier run again, without the model")
    report: bool = Field(True, description="write the report.html of the run that is evaluated anew")
    workers: Processes | None = Field(None, description="processes that load images; default: the number of cores")
    seed: Seed = Field(0, description="of random:<backbone> and of every random choice")
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N, mps")

    def unusual(self) -> dict[str, Any]:
        """Return the settings that are not the defaults of the variant chosen: of a mode, a preset, a head."""
        fields = type(self).model_fields
        choices = {name: getattr(self, name) for name in fields if get_origin(fields[name].annotation) is Literal}
        usual = type(self).model_validate({"model": self.model, "data": self.data, **choices})
        return {name: getattr(self, name) for name in fields if getattr(self, name) != getattr(usual, name)}
