"""What the server answers, without its protocol: only frames and videos by number, and images that are sent to it."""

import threading
from time import perf_counter
from typing import Annotated, Any

from pydantic import BaseModel, Field

from cyclecontrast.config.types import STRICT, Few
from cyclecontrast.data.images import Pixels, decode_image
from cyclecontrast.errors import UserError
from cyclecontrast.searching.engines import Engine
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.nearest import Wanted, allowed_rows
from cyclecontrast.searching.pictures import Pictures
from cyclecontrast.searching.queries import Encoder, Query
from cyclecontrast.searching.results import Hit, hit_of, hits_of, name_of
from cyclecontrast.searching.source_videos import SourceVideo, SourceVideos

MOST_TOP = 200


class Asked(BaseModel):
    """How many frames a page asks for, at most how many of one video, and whether of others than the query's alone."""

    model_config = STRICT
    top: Annotated[int, Field(ge=1, le=MOST_TOP)] = 24
    per_video: Few | None = None
    other_videos: bool = False


class Site:
    """An index that is asked by several threads."""

    def __init__(
        self, index: FrameIndex, engine: Engine, encoder: Encoder, pictures: Pictures, sources: SourceVideos
    ) -> None:
        self.index, self.engine, self.encoder, self.pictures, self.sources = index, engine, encoder, pictures, sources
        self._one_at_a_time = threading.Lock()

    def by_image(self, data: bytes, asked: Asked) -> dict[str, Any]:
        """Return the frames most like an encoded image; raises UserError where it is none."""
        image = _decoded(data)
        with self._one_at_a_time:
            began = perf_counter()
            return self._found(Query(self.encoder.vector(image), ""), asked, began)

    def by_frame(self, row: int, asked: Asked) -> dict[str, Any]:
        """Return the frames most like one of the index; raises UserError where it has no such row."""
        self._check(row)
        with self._one_at_a_time:
            began = perf_counter()
            return self._found(Query(self.engine.vectors[row], name_of(self.index, row), row), asked, began)

    def picture(self, row: int) -> bytes:
        """Return the JPEG of a row; raises UserError where there is none."""
        self._check(row)
        return self.pictures.jpeg(row)

    def video(self, number: int) -> SourceVideo:
        """Return a source video by its number in the index; raises UserError where it cannot be played."""
        video = self.sources.videos.get(number)
        if video is None or (problem := video.problem):
            raise UserError("the video is not known" if video is None else problem)
        return video

    def _check(self, row: int) -> None:
        if not 0 <= row < len(self.index):
            raise UserError(f"frame: the index has {len(self.index):,} frames, and none of number {row}")

    def _found(self, query: Query, asked: Asked, began: float) -> dict[str, Any]:
        allowed = allowed_rows(self.index.video, query.row, asked.other_videos)
        wanted = Wanted(asked.top, asked.per_video, allowed)
        nearest = self.engine.find(query.vector, self.index.video, wanted)
        frames = [self._plain(hit) for hit in hits_of(self.index, nearest)]
        of_frame = None if query.row is None else self._plain(hit_of(self.index, query.row))
        return {"query": of_frame, "frames": frames, "seconds": perf_counter() - began}

    def _plain(self, hit: Hit) -> dict[str, Any]:
        number = int(self.index.video[hit.row])
        video = self.sources.videos.get(number)
        problem = "" if video is None else video.problem
        return {
            "row": hit.row,
            "similarity": hit.similarity,
            "video": hit.video,
            "moment": hit.moment,
            "time": hit.time,
            "playable": None if video is None or problem else number,
            "problem": problem,
        }


def _decoded(data: bytes) -> Pixels:
    try:
        return decode_image(data)
    except ValueError as error:
        raise UserError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from error
