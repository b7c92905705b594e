"""What `prepare` takes."""

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from cyclecontrast.config.fields import STRICT, Count, IsNumber, Part, Place, Processes, Rate


class PrepareConfig(BaseModel):
    """Videos → frames on disk."""

    model_config = STRICT
    videos: Place = Field(description="folder of video files, searched with all its subfolders")
    out: Place = Field(description="folder of the frame store to make or to go on with")
    frames_per_video: Count | None = Field(None, description="this many frames, spread evenly (R2V2: 4)")
    fps: Rate | None = Field(None, description="this many frames per second; 2 where no policy is named")
    every: Count | None = Field(None, description="every K-th frame")
    keyframes: bool = Field(False, description="keyframes only, the cheapest to decode")
    size: Count = Field(256, description="short side in pixels; smaller frames are never enlarged")
    quality: Annotated[int, Field(ge=1, le=100), IsNumber] = Field(90, description="JPEG quality")
    max_pixels: Count = Field(64_000_000, description="videos with larger frames are skipped with a reason")
    shard_mb: Count = Field(256, description="most video bytes per shard, in MB: the unit of work and of resuming")
    workers: Processes | None = Field(None, description="processes; 0: in this one; default: the number of cores")
    part: Part | None = Field(
        None, description="I/N: only every N-th shard from the I-th, on one of N machines that share --out"
    )

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        named = [
            flag
            for flag, value in (
                ("--frames-per-video", self.frames_per_video),
                ("--fps", self.fps),
                ("--every", self.every),
                ("--keyframes", self.keyframes or None),
            )
            if value is not None
        ]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} exclude each other; name one")
        return self
