"""A prepared store of any size that has no pictures: its table of frames as `prepare` writes it, and sparse shards."""

import os
import string

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cyclecontrast.data.store_format import FRAME_SCHEMA, shard_path, write_settings
from cyclecontrast.data.store_writer import ROWS_PER_GROUP

BLOCK, LARGEST = 512, 90_000
LETTERS = np.frombuffer(bytes(sorted(f"-_{string.digits}{string.ascii_letters}".encode())), np.uint8)


def make_index(root, num_videos, frames_per_video=4, num_shards=100):
    """Write a store of so many videos and return it; ids ascend, in folders by their first letters as in R2V2."""
    (root / "shards").mkdir(parents=True)
    write_settings(root, {})
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(root / "frames.parquet", FRAME_SCHEMA) as writer:
        tables = []
        for shard, videos in enumerate(np.array_split(np.arange(num_videos), num_shards)):
            tables.append(_rows(rng, _ids(rng, videos, num_videos), frames_per_video, shard))
            _write_sparse(shard_path(root, shard), len(tables[-1]) * (LARGEST + 2 * BLOCK))
            if sum(map(len, tables)) >= ROWS_PER_GROUP or shard == num_shards - 1:
                writer.write_table(pa.concat_tables(tables))
                tables.clear()
    return root


def _ids(rng, videos, num_videos):
    step = 2**60 // num_videos
    numbers = videos * step + rng.integers(0, step, len(videos))
    letters = LETTERS[(numbers[:, None] >> 6 * np.arange(9, -1, -1)) & 63]
    ids = np.concatenate([letters[:, :2], _column(b"/", videos), letters, _column(b"A.mp4", videos)], axis=1)
    ends = np.arange(len(videos) + 1, dtype=np.int32) * ids.shape[1]
    return pa.StringArray.from_buffers(len(videos), pa.py_buffer(ends), pa.py_buffer(ids.tobytes()))


def _column(text, videos):
    return np.tile(np.frombuffer(text, np.uint8), (len(videos), 1))


def _rows(rng, ids, frames_per_video, shard):
    """Return the rows of a shard: each frame behind a header, in whole blocks."""
    num_rows = len(ids) * frames_per_video
    size = rng.integers(10_000, LARGEST, num_rows, np.int32)
    blocks = size + -size % BLOCK
    index = np.tile(np.arange(frames_per_video, dtype=np.int32), len(ids))
    columns = {
        "video": ids.take(pa.array(np.repeat(np.arange(len(ids)), frames_per_video))),
        "index": index,
        "time": 5.0 * index,
        "shard": np.full(num_rows, shard, np.int32),
        "offset": np.cumsum(BLOCK + blocks, dtype=np.int64) - blocks,
        "size": size,
        "width": np.full(num_rows, 455, np.int32),
        "height": np.full(num_rows, 256, np.int32),
    }
    return pa.table(columns, schema=FRAME_SCHEMA)


def _write_sparse(path, size):
    """Write a file of zeros, which takes no room."""
    path.touch()
    os.truncate(path, size)
