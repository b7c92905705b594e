"""What `search` takes."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from cyclecontrast.config.fields import STRICT, Device, Few, IsNumber, Name, Place, PlaceOrUrl, Whole
from cyclecontrast.config.outputs import Page, Vectors

CLOCK = re.compile(r"(?:([0-9]{1,6}):)?([0-9]{1,6}):([0-9]{1,2}(?:\.[0-9]{1,9})?)")


def _seconds(value: object) -> object:
    """Read h:mm:ss.s and mm:ss.s, as the results name moments."""
    match = CLOCK.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    hours, minutes, seconds = match.groups(default="0")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


Moment = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False), IsNumber, BeforeValidator(_seconds)]
Port = Annotated[int, Field(ge=0, le=65535), IsNumber]
OF_A_QUERY = ("image", "video", "frame", "time")


class SearchConfig(BaseModel):
    """The frames most like an image, or like a frame of a video."""

    model_config = STRICT
    index: Vectors = Field(description="a file that `embed` wrote, .parquet or .npz")
    image: Place | None = Field(None, description="an image file: find the frames most like it")
    video: Annotated[str, Field(min_length=1, max_length=10_000)] | None = Field(
        None, description="a video's id in the index: find the frames most like a frame of it"
    )
    frame: Whole | None = Field(None, description="which frame of --video, by its index")
    time: Moment | None = Field(None, description="which frame of --video, by seconds or h:mm:ss: the nearest")
    top: Few = Field(10, description="number of frames to find")
    per_video: Few | None = Field(None, description="at most this many of one video; default: any number")
    other_videos: bool = Field(False, description="leave out the video of the query")
    format: Literal["table", "json"] = Field("table", description="what is printed")
    html: Page | None = Field(None, description="page of pictures to write")
    serve: bool = Field(False, description="search in the browser, at an address of this machine, until Ctrl-C")
    port: Port | None = Field(None, description="of --serve; 0: a free one; default: 8765, or a free one")
    faiss: bool = Field(False, description="with --serve: approximate search by faiss, which needs the extra")
    model: Name | None = Field(None, description="what made the index; default: where it was then")
    data: PlaceOrUrl | None = Field(
        None, description="the frames that it was made from, for pictures; default: where they were then"
    )
    videos: Place | None = Field(
        None, description="folder of the source videos, to play them; default: that of the run which has the frames"
    )
    device: Device = Field("auto", description="auto, cpu, cuda, cuda:N, mps")

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        if problems := [*(self._in_a_page() if self.serve else self._by_command())]:
            raise ValueError(*problems)
        return self

    def _in_a_page(self) -> Iterator[str]:
        named = [name for name in OF_A_QUERY if getattr(self, name) is not None]
        named += ["html"] if self.html else []
        named += ["format"] if self.format != "table" else []
        if named:
            yield f"--serve asks in the page: leave out {', '.join(f'--{name}' for name in named)}"

    def _by_command(self) -> Iterator[str]:
        if (self.image is None) == (self.video is None):
            yield "name one of --image FILE and --video ID, or --serve to ask in a page"
        if self.video is not None and (self.frame is None) == (self.time is None):
            yield "--video needs one of --frame N and --time SECONDS"
        if self.video is None and (self.frame is not None or self.time is not None):
            yield "--frame and --time need --video ID"
        if self.other_videos and self.image is not None:
            yield "--other-videos needs --video: an image is of none"
        if self.faiss:
            yield "--faiss needs --serve: it builds an index of its own, which one search does not pay for"
        if self.port is not None:
            yield "--port needs --serve"
        if self.videos is not None:
            yield "--videos needs --serve: they are played in its page"
        if self.data is not None and self.html is None:
            yield "--data needs --html or --serve: it is for pictures"
        if self.video is not None and self.image is None:
            yield from self._of_an_image_only()

    def _of_an_image_only(self) -> Iterator[str]:
        named = [*(["--model"] if self.model else []), *(["--device"] if self.device != "auto" else [])]
        if named:
            yield f"{' and '.join(named)} need{'' if named[1:] else 's'} --image or --serve: a frame has its vector"
