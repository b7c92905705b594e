"""What `runs` takes."""

from pathlib import Path

from pydantic import BaseModel, Field

from cyclecontrast.config.fields import STRICT, Few, Place


class ListConfig(BaseModel):
    """The runs below folders, a line each: how far they are, how they went and what they gave."""

    model_config = STRICT
    folders: tuple[Place, ...] = Field(
        (Path("."),),
        min_length=1,
        description="where to look; default: here. What runs and stores hold is not looked at",
    )
    depth: Few = Field(5, description="levels of folders to look into; links are not followed")
    as_json: bool = Field(False, alias="json", description="all that is known of each, as JSON")


class CompareConfig(BaseModel):
    """Runs side by side: the settings that differ, the last losses and health, verdicts, results."""

    model_config = STRICT
    runs: tuple[Place, ...] = Field(min_length=1, description="run folders, a column each")
