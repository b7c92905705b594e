"""Prepared stores: which frames are kept, when they were shown, where their bytes lie, and what they look like."""

import hashlib
import io

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

import cyclecontrast as cc

POLICIES = {
    "frames per video": {"frames_per_video": 4},
    "fps": {"fps": 1.0},
    "every": {"every": 3, "size": 24},
    "keyframes": {"keyframes": True, "quality": 50},
    "by default": {},
}
CELLS = 4
"""Along each side of the mean colors that are recorded of a frame."""


def prepare(videos, out, name):
    """Prepare a store by the policy of this name."""
    cc.prepare(videos, out=out, workers=0, **POLICIES[name])
    return out


def content_of(store):
    """Return the tables' rows, and of each frame its mean colors and the checksum of its JPEG."""
    videos = pq.read_table(store / "videos.parquet").to_pylist()
    frames = pq.read_table(store / "frames.parquet").to_pylist()
    for video in videos:
        video["reason"] = bool(video["reason"])
        video["duration"] = None if video["duration"] != video["duration"] else video["duration"]
    found = []
    for frame in frames:
        jpeg = _bytes_of(store, frame)
        pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        assert pixels.shape[:2] == (frame["height"], frame["width"])
        colors = cv2.resize(pixels.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        row = {name: value for name, value in frame.items() if name not in ("offset", "size")}
        checksum = hashlib.sha256(jpeg).hexdigest()[:16]
        place = [frame["offset"], frame["size"]]
        found.append(
            {"row": row, "place": place, "jpeg": checksum, "colors": np.rint(colors).astype(int).ravel().tolist()}
        )
    return {"opencv": cv2.__version__, "videos": videos, "frames": found}


def _bytes_of(store, frame):
    shard = (store / "shards" / f"{frame['shard']:06}.tar").read_bytes()
    return shard[frame["offset"] : frame["offset"] + frame["size"]]
