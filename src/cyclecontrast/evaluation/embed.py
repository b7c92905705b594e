"""The command `embed`: one row per frame, (video, index, time, vector), as Parquet or npz."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cyclecontrast.config import EmbedConfig
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.embeddings import Embeddings, Loading, embed_batches, parts_of_images
from cyclecontrast.evaluation.image_batches import StoreImages
from cyclecontrast.evaluation.shares import Work, all_gathered, help_embed
from cyclecontrast.files import check_folder, replacing
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone
from cyclecontrast.models.hardware import limited_threads, pick_device
from cyclecontrast.training.distributed import World, joined_world
from cyclecontrast.training.leading import CPU, leading

ROWS_PER_GROUP = 8192


class Embedded(NamedTuple):
    """What `embed` wrote, and a line for each frame that it could not read; its text is what to print."""

    out: Path
    num_frames: int
    num_videos: int
    dim: int
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{self.num_frames:,} frames of {self.num_videos:,} videos, {self.dim} numbers each → {self.out}"
        return "\n".join([f"{line}; {len(self.skipped)} skipped:" if self.skipped else line, *self.skipped])


class _Rows(NamedTuple):
    videos: npt.NDArray[np.object_]
    indices: npt.NDArray[np.int32]
    times: npt.NDArray[np.float64]
    vectors: npt.NDArray[np.float32]


def embed(config: EmbedConfig, backbone: Backbone | None = None) -> Embedded | None:
    """Embed every frame and write the file in one piece; raises UserError with all that is wrong, writing nothing.

    A `backbone` is taken as it is, whatever the config names. Of several processes that torchrun started each
    embeds its share; the first writes, the others return None.
    """
    with joined_world(CPU) as world:
        if world.rank:
            help_embed(lambda: _work(config, *_open(config, backbone)), config.device, world)
            return None
        with leading(world):
            return _embed(config, world, backbone)


def _embed(config: EmbedConfig, world: World, given: Backbone | None) -> Embedded:
    backbone, store = _open(config, given)
    about = {
        "model": _lasting(config.model),
        "seed": str(config.seed),
        "data": config.data if isinstance(config.data, str) else str(config.data.absolute()),
        "model_name": backbone.name,
        "model_source": backbone.source,
        "model_fingerprint": fingerprint(backbone),
        "data_fingerprint": store.fingerprint,
        "image_size": str(config.image_size or backbone.image_size),
    }
    tally = _Tally()
    if world.size == 1:
        batches = embed_batches(backbone, StoreImages(store), Loading.of(config, backbone), "embedding")
    else:
        parts = all_gathered(_work(config, backbone, store), world)
        batches = (Embeddings(part["vectors"], part["positions"], tuple(part["problems"].tolist())) for part in parts)
    rows = tally.counted(batches, store)
    with limited_threads(pick_device(config.device)), replacing(config.out) as aside:
        write = _write_parquet if config.out.suffix.lower() == ".parquet" else _write_npz
        write(aside, rows, about, backbone.dim)
        if tally.num_frames == 0:
            raise UserError(f"{config.data}: none of its {len(tally.skipped)} frames can be read", *tally.skipped[:3])
    return Embedded(config.out, tally.num_frames, len(tally.videos), backbone.dim, tuple(tally.skipped))


def _lasting(model: str) -> str:
    """Return a MODEL by a name that holds in any folder."""
    if model.startswith("random:"):
        return model
    if not model.startswith("timm:"):
        return str(Path(model).absolute())
    name, _, file = model.partition("@")
    return f"{name}@{Path(file).absolute()}" if file else name


def _work(config: EmbedConfig, backbone: Backbone, store: FrameStore) -> Work:
    loading = Loading.of(config, backbone)
    key = f"{fingerprint(backbone)} {store.fingerprint} {loading.image_size} {loading.batch_size}"
    return Work(key, parts_of_images(backbone, StoreImages(store), loading, "embedding"))


class _Tally:
    """Counts what passes, so that rows need not be kept to be counted."""

    def __init__(self) -> None:
        self.num_frames = 0
        self.videos: set[int] = set()
        self.skipped: list[str] = []

    def counted(self, batches: Iterable[Embeddings], store: FrameStore) -> Iterator[_Rows]:
        """Turn positions into rows that name their frame."""
        for batch in batches:
            videos = StoreImages(store).videos(batch.positions)
            self.num_frames += len(videos)
            self.videos.update(videos.tolist())
            self.skipped += batch.problems
            yield _rows(store, videos, batch)


def _rows(store: FrameStore, videos: npt.NDArray[np.integer], batch: Embeddings) -> _Rows:
    index = (batch.positions - store.starts[videos]).astype(np.int32)
    names = np.array([store.video_id(int(video)) for video in videos], np.object_)
    time = np.array([store.time(int(v), int(i)) for v, i in zip(videos, index, strict=True)], np.float64)
    return _Rows(names, index, time, batch.vectors)


def _open(config: EmbedConfig, given: Backbone | None) -> tuple[Backbone, FrameStore]:
    problems: list[str] = []
    backbone = attempt(lambda: given or load_backbone(config.model, config.seed), problems)
    store = attempt(lambda: FrameStore.open(config.data), problems)
    attempt(lambda: check_folder(config.out.absolute().parent), problems)
    if config.out.is_dir():
        problems.append(f"{config.out}: is a folder; name a file to write")
    if backbone is None or store is None or problems:
        raise UserError(*problems)
    return backbone, store


def _write_parquet(path: Path, rows: Iterable[_Rows], about: dict[str, str], dim: int) -> None:
    columns = [
        ("video", pa.string()),
        ("index", pa.int32()),
        ("time", pa.float64()),
        ("vector", pa.list_(pa.float32(), dim)),
    ]
    with pq.ParquetWriter(path, pa.schema(columns, about)) as writer:
        for group in _grouped(rows):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(group.vectors.ravel()), dim)
            arrays = [pa.array(group.videos, pa.string()), pa.array(group.indices), pa.array(group.times), vectors]
            writer.write_table(pa.table(arrays, schema=writer.schema))


def _grouped(rows: Iterable[_Rows]) -> Iterator[_Rows]:
    waiting: list[_Rows] = []
    for batch in rows:
        waiting.append(batch)
        if sum(len(b.indices) for b in waiting) >= ROWS_PER_GROUP:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: Iterable[_Rows]) -> _Rows:
    return _Rows(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def _write_npz(path: Path, rows: Iterable[_Rows], about: dict[str, str], dim: int) -> None:
    columns = _joined(list(rows))
    arrays: dict[str, Any] = {
        **about,
        "video": columns.videos.astype(np.str_),
        "index": columns.indices,
        "time": columns.times,
        "vector": columns.vectors,
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)
