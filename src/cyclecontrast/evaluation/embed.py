"""Embedding of images with a frozen backbone, also distributed over processes; and the command `embed`.

Vectors are computed in fp32 with deterministic algorithms.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cyclecontrast.config import (
    ActionConfig,
    ClassifyConfig,
    EmbedConfig,
    FinetuneConfig,
    PrepareConfig,
    RetrievalConfig,
    ShapeBiasConfig,
)
from cyclecontrast.config.types import is_named, split_model
from cyclecontrast.data.device_augment import on_device
from cyclecontrast.data.folders import find_videos
from cyclecontrast.data.images import CROP_MARGIN
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.data.store_format import STORE
from cyclecontrast.distributed import World, command_process_group, gather_objects, rank_0_first
from cyclecontrast.errors import UserError, attempt, checked, some
from cyclecontrast.evaluation.image_batches import (
    CenterCrop,
    ImageBatch,
    Images,
    StoreImages,
    chunks,
    load_image_batches,
)
from cyclecontrast.evaluation.predictions import column_to_matrix, matrix_to_column
from cyclecontrast.evaluation.protocol import Part
from cyclecontrast.evaluation.resume_cache import Arrays, ResumeCache
from cyclecontrast.files import atomic_write, check_folder
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import fingerprint, load_backbone
from cyclecontrast.models.hardware import free_memory, limited_threads, pick_device, pick_workers
from cyclecontrast.output import join_lines, say

IMAGES_PER_PART = 2**14
ROWS_PER_GROUP = 8192
BYTES_PER_PIXEL = 3 * (1 + 4 + 4)
"""A batch as bytes, and twice as floats while it is normalized."""


class Loading(NamedTuple):
    """Settings of image loading and inference; `image_size` is the side of the crop in pixels, `margin` its margin."""

    image_size: int
    batch_size: int
    workers: int
    device: torch.device
    margin: float = CROP_MARGIN

    @staticmethod
    def of(
        config: ClassifyConfig | ShapeBiasConfig | RetrievalConfig | ActionConfig | EmbedConfig, backbone: Backbone
    ) -> "Loading":
        """Return the settings with defaults resolved. Raises UserError if the device or the size does not fit."""
        size = config.image_size or backbone.image_size
        backbone.check_size(size)
        device = pick_device(config.device)
        margin = 1.0 if isinstance(config, FinetuneConfig) and config.preset == "gbcu" else CROP_MARGIN
        return Loading(size, config.batch_size, pick_workers(config.workers, device), device, margin)


class Embeddings(NamedTuple):
    """Vectors float32 (num_images, dim), the position of each, and a line for each unreadable image."""

    vectors: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int64]
    problems: tuple[str, ...]


@contextlib.contextmanager
def frozen(backbone: Backbone, device: torch.device) -> Iterator[Backbone]:
    """Yield the backbone in evaluation mode on the device, with deterministic fp32 convolutions.

    Afterwards, its device and the mode of each module are restored.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    home = next(backbone.parameters()).device
    backbone.eval().to(device)
    with exact_convolutions():
        try:
            yield backbone
        finally:
            backbone.to(home)
            for module, mode in modes:
                module.training = mode


def exact_convolutions() -> contextlib.AbstractContextManager[None]:
    """Return a context in which cuDNN convolutions are deterministic and do not use TF32."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def check_finite(values: Tensor, backbone: Backbone) -> None:
    """Raise UserError where a backbone's features, or what was computed from them, are not finite."""
    if not bool(values.isfinite().all()):
        raise UserError(f"{backbone.source}: the backbone returns non-finite values; its weights are invalid")


def encode(backbone: Backbone, batch: ImageBatch, device: torch.device) -> Tensor:
    """Return the representations of a batch (batch, dim); raises UserError where they are not finite."""
    with torch.inference_mode():
        (pixels,) = on_device(device, batch.pixels)
        features: Tensor = backbone(backbone.normalize(pixels)).float()
        check_finite(features, backbone)
    return features


def embed_batches(
    backbone: Backbone, images: Images, loading: Loading, title: str, batches: Sequence[Sequence[int]] | None = None
) -> Iterator[Embeddings]:
    """Embed the center crops of all images, or of these batches of positions, batch by batch in order."""
    batches = chunks(range(len(images)), loading.batch_size) if batches is None else batches
    _check_memory(max(map(len, batches), default=0), loading)
    loaded = load_image_batches(images, CenterCrop(loading.image_size, loading.margin), batches, loading.workers, title)
    with frozen(backbone, loading.device):
        for batch in loaded:
            size = len(batch.positions)
            vectors = encode(backbone, batch, loading.device).cpu() if size else torch.empty(0, backbone.dim)
            yield Embeddings(vectors.numpy(), batch.positions.numpy(), batch.problems)


def _check_memory(most: int, loading: Loading) -> None:
    """Raise UserError if a batch of so many images does not fit into memory; the size may be that of a model's file."""
    needed = BYTES_PER_PIXEL * most * loading.image_size**2
    free = free_memory(loading.device)
    if needed > free:
        raise UserError(
            f"image_size: {most} images of {loading.image_size} px need at least {needed / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} are free; lower --batch-size or --image-size"
        )


def embed_images(backbone: Backbone, images: Images, loading: Loading, title: str, cache: ResumeCache) -> Embeddings:
    """Return the embeddings of all readable images, reusing cached parts. Raises UserError if no image is readable."""
    parts = concatenated(compute_parts(image_parts(backbone, images, loading, title), cache))
    positions, problems = parts["positions"], parts["problems"].tolist()
    if len(positions) == 0:
        raise UserError(f"{title}: none of the {len(images):,} images can be read", *some(problems))
    return Embeddings(parts["vectors"], positions, tuple(problems))


def image_parts(backbone: Backbone, images: Images, loading: Loading, title: str) -> list[Part]:
    """Return the work of embedding all images as parts; the items of a part are batches of positions."""
    batches = chunks(range(len(images)), loading.batch_size)
    per_part = max(1, IMAGES_PER_PART // loading.batch_size)
    make = partial(_embed_part, backbone, images, loading, title)
    return [Part(f"{title}-{group[0][0]}-{group[-1][-1]}", group, make) for group in chunks(batches, per_part)]


def _embed_part(
    backbone: Backbone, images: Images, loading: Loading, title: str, batches: Sequence[Sequence[int]]
) -> Arrays:
    title = f"{title}, images {batches[0][0] + 1:,} to {batches[-1][-1] + 1:,} of {len(images):,}"
    made = list(embed_batches(backbone, images, loading, title, batches))
    return {
        "vectors": np.concatenate([batch.vectors for batch in made]),
        "positions": np.concatenate([batch.positions for batch in made]),
        "problems": np.array([problem for batch in made for problem in batch.problems], dtype=str),
    }


def compute_parts(parts: Sequence[Part], cache: ResumeCache) -> list[Arrays]:
    """Return the arrays of all parts, from the cache or computed now."""
    return [cache.arrays(part.name, partial(part.make, part.items)) for part in parts]


def check_same_work(key: str, world: World) -> None:
    """Raise UserError unless all processes have the same model, data and settings, which `key` identifies."""
    keys = gather_objects(key, world)
    odd = [rank for rank, other in enumerate(keys) if other != keys[0]]
    if odd:
        raise UserError(
            f"process {odd[0]} has a different model, data or settings; start all processes with the same options"
        )


def gather_part(part: Part, world: World) -> Arrays | None:
    """Compute a part in parallel: each process embeds a contiguous slice.

    Returns the part on rank 0, None elsewhere.
    """
    start, end = (len(part.items) * rank // world.size for rank in (world.rank, world.rank + 1))
    slices = gather_objects(part.make(part.items[start:end]) if end > start else None, world)
    return concatenated([arrays for arrays in slices if arrays is not None]) if world.rank == 0 else None


def concatenated(parts: Sequence[Arrays]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of all parts, concatenated by name."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Embedded(NamedTuple):
    """What `embed` wrote, and a line for each frame that it could not read; its text is what to print."""

    out: Path
    num_frames: int
    num_videos: int
    dim: int
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        frames = f"{self.num_frames:,} frame{'s' * (self.num_frames != 1)}"
        videos = f"{self.num_videos:,} video{'s' * (self.num_videos != 1)}"
        line = f"{frames} of {videos}, {self.dim}-dimensional vectors → {self.out}"
        return join_lines([f"{line}; {len(self.skipped)} skipped:" if self.skipped else line, *self.skipped])


def embed(config: EmbedConfig, backbone: Backbone | None = None) -> Embedded | None:
    """Embed every frame and write one file with a row per frame: (video, index, time, vector, path).

    The frames of a folder of videos are first extracted into a store beside the file.

    A given `backbone` is used instead of `config.model`. Under torchrun, each process embeds a share of the frames;
    rank 0 writes the file, the others return None. Raises UserError with all problems before anything is written.
    """
    with command_process_group("embed") as world:
        backbone, store = _open(config, backbone, world)
        with limited_threads(pick_device(config.device)):
            batches = _embed_store(config, backbone, store, world)
            if world.rank == 0:
                say(*store.notes)
                return _write(config, backbone, store, batches)
            assert not list(batches)
    return None


def _open(config: EmbedConfig, given: Backbone | None, world: World) -> tuple[Backbone, FrameStore]:
    problems: list[str] = []
    no_frames: list[str] = []
    backbone = attempt(lambda: given or load_backbone(config.model, config.seed), problems)
    store = attempt(lambda: FrameStore.open(config.data), no_frames)
    are_videos = store is None and _holds_videos(config.data)
    problems += no_frames if not are_videos else ()
    attempt(lambda: check_folder(config.out.absolute().parent), problems)
    if config.out.is_dir():
        problems.append(f"{config.out}: is a folder; name a file to write")
    if backbone is None or problems:
        raise UserError(*problems)
    with rank_0_first(world):
        return backbone, store or _extract_frames(config, world)


def _holds_videos(data: Path | str) -> bool:
    try:
        return isinstance(data, Path) and not (data / STORE).exists() and bool(find_videos(data))
    except OSError:
        return False


def _extract_frames(config: EmbedConfig, world: World) -> FrameStore:
    """Prepare the videos into OUT's name with `.frames`, and open that store; run again, it resumes."""
    frames = config.out.with_suffix(".frames")
    if world.rank == 0:
        summary = prepare(checked(PrepareConfig, {"videos": config.data, "out": frames, "workers": config.workers}))
        say(*str(summary).split("\n"), f"the frames are in {frames}")
    return FrameStore.open(frames)


def _embed_store(config: EmbedConfig, backbone: Backbone, store: FrameStore, world: World) -> Iterator[Embeddings]:
    loading, images = Loading.of(config, backbone), StoreImages(store)
    if world.size == 1:
        yield from embed_batches(backbone, images, loading, "embedding")
        return
    check_same_work(f"{fingerprint(backbone)} {store.fingerprint} {loading.image_size} {loading.batch_size}", world)
    for part in image_parts(backbone, images, loading, "embedding"):
        arrays = gather_part(part, world)
        if arrays is not None:
            yield Embeddings(arrays["vectors"], arrays["positions"], tuple(arrays["problems"].tolist()))


def _write(config: EmbedConfig, backbone: Backbone, store: FrameStore, batches: Iterator[Embeddings]) -> Embedded:
    origin = {
        "model": _lasting_name(config.model),
        "seed": str(config.seed),
        "data": store.root if isinstance(store.root, str) else str(store.root.absolute()),
        "model_name": backbone.name,
        "model_source": backbone.source,
        "model_fingerprint": fingerprint(backbone),
        "data_fingerprint": store.fingerprint,
        "image_size": str(config.image_size or backbone.image_size),
    }
    vector = pa.list_(pa.float32(), backbone.dim)
    columns = {"video": pa.string(), "index": pa.int32(), "time": pa.float64(), "vector": vector, "path": pa.string()}
    schema = pa.schema(list(columns.items()), origin)
    seen: list[npt.NDArray[np.integer]] = []
    skipped: list[str] = []

    def tables() -> Iterator[pa.Table]:
        for batch in batches:
            seen.append(StoreImages(store).videos(batch.positions))
            skipped.extend(batch.problems)
            yield _table(store, seen[-1], batch, schema)

    with atomic_write(config.out) as aside:
        write = _write_parquet if config.out.suffix.lower() == ".parquet" else _write_npz
        write(aside, tables(), schema)
        videos = np.concatenate(seen)
        if not len(videos):
            raise UserError(f"{config.data}: none of its {len(skipped)} frames can be read", *some(skipped))
    return Embedded(config.out, len(videos), len(np.unique(videos)), backbone.dim, tuple(skipped))


def _lasting_name(model: str) -> str:
    """Return a MODEL with absolute paths, valid in any working directory."""
    if is_named(model):
        return model
    architecture, path, encoder = split_model(model)
    return f"{architecture}@" * bool(architecture) + str(Path(path).absolute()) + f"#{encoder}" * bool(encoder)


def _table(store: FrameStore, videos: npt.NDArray[np.integer], batch: Embeddings, schema: pa.Schema) -> pa.Table:
    indices = (batch.positions - store.starts[videos]).astype(np.int32)
    frames = list(zip(videos.tolist(), indices.tolist(), strict=True))
    columns = {
        "video": [store.video_id(video) for video in videos.tolist()],
        "index": indices,
        "time": pa.array((store.time(*frame) for frame in frames), pa.float64()),
        "vector": matrix_to_column(batch.vectors),
        "path": [store.frame_path(*frame) for frame in frames],
    }
    return pa.table(columns, schema=schema)


def _write_parquet(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(table)
            if sum(map(len, waiting)) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _write_npz(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    table = pa.concat_tables(tables)
    origin = {name.decode(): text.decode() for name, text in schema.metadata.items()}
    arrays: dict[str, Any] = {
        **origin,
        **{name: table[name].to_numpy() for name in ("index", "time")},
        **{name: table[name].to_numpy().astype(np.str_) for name in ("video", "path")},
        "vector": column_to_matrix(table["vector"]),
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)
