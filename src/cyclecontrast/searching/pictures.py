"""The frames of an index as pictures: which image of the store each row is, small enough for a page."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cyclecontrast.config.types import is_url
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.images import Pixels, resize_short_side
from cyclecontrast.errors import UserError
from cyclecontrast.searching.index import FrameIndex

SIDE, MOST_TIMES_AS_LONG, QUALITY = 240, 3, 85


class Pictures:
    """The pictures of an index; several threads may ask for them."""

    def __init__(self, index: FrameIndex, store: FrameStore) -> None:
        self.index, self.store = index, store
        numbers = pc.index_in(pa.array(index.video_ids, pa.string()), value_set=store.video_ids)
        self._numbers = numbers.fill_null(-1).to_numpy(zero_copy_only=False)
        self._one_at_a_time = threading.Lock()

    def jpeg(self, row: int) -> bytes:
        """Return a small JPEG of the frame of a row; raises UserError where it cannot be read."""
        video, frame = int(self._numbers[self.index.video[row]]), int(self.index.index[row])
        if video < 0 or frame >= self.store.frames_in(video):
            raise UserError(f"data: {self.store.root} has no such frame")
        with self._one_at_a_time:  # a store's open shards are not shared by threads
            image = self.store.image(video, frame)
        return jpeg_of(image)


def open_pictures(index: FrameIndex, named: Path | str | None) -> Pictures:
    """Open the frames that an index was made from, where it says or as named; raises UserError.

    What a file names is only taken where it is on this machine: no network is asked for it.
    """
    place = named or index.about("data")
    if not place:
        raise UserError(f"data: {index.path} does not say where its frames are; name them: --data DATA")
    if named is None and is_url(place):
        raise UserError(f"data: {index.path} was made from {place}; if its frames may be fetched: --data {place}")
    if not is_url(place) and not Path(place).is_dir():
        raise UserError(f"data: {place}, which has the frames of {index.path}, is gone; name where it is: --data DATA")
    store = FrameStore.open(place)
    known = index.about("data_fingerprint")
    if store.fingerprint != known:
        raise UserError(
            f"data: {place} is not what {index.path} was made from (fingerprint {store.fingerprint}, not "
            f"{known or 'known'}); name that with --data, or embed again"
        )
    return Pictures(index, store)


def jpeg_of(image: Pixels) -> bytes:
    """Return an RGB image as a JPEG that is small enough for a page; a strip loses its ends."""
    edge = MOST_TIMES_AS_LONG * min(image.shape[:2])
    top, left = (max(0, side - edge) // 2 for side in image.shape[:2])
    image = image[top : top + edge, left : left + edge]
    if min(image.shape[:2]) > SIDE:
        image = resize_short_side(image, SIDE)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be written as JPEG")
    return np.asarray(data, np.uint8).tobytes()
