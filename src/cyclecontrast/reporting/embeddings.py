"""A sample of frames embedded by each backbone: nearest neighbors, the worst queries, and a map in two dimensions."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from cyclecontrast.config import ReportConfig
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import Loading, embed_batches
from cyclecontrast.evaluation.metrics import Floats, Integers, dot_products, unit_vectors
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.models.hardware import limited_threads, pick_device, pick_workers
from cyclecontrast.reporting.runs import RunReport, one_per_settings, start_name
from cyclecontrast.reporting.sprites import Sprite, SpriteSheet, frame_name, shortened
from cyclecontrast.training.run_folder import load_start

MAX_FRAMES = 4000
MAX_FRAMES_ON_CPU = 1000
MIN_FRAMES_ON_CPU = 240
CHEAP_SIZE = 64
"""Up to this image size a CPU embeds MAX_FRAMES_ON_CPU frames in seconds."""
FRAMES_PER_VIDEO = 5
MIN_PER_VIDEO = 4
ENOUGH_FRAMES = 600
"""With few videos, more frames of each are drawn, up to this number in all."""
BATCH_SIZE = 128
NUM_QUERIES = 8
NUM_NEIGHBORS = 8
ROWS_AT_ONCE = 512
RANDOM = "random weights"
MAX_DOTS = 600
MAX_DOTS_ON_PAGE = 4800
MIN_DOTS_FOR_TSNE = 20
PERPLEXITY = 30
NUM_COLORS = 7
"""Colored videos on a map; the eighth color is a gray."""
MAP_MARGIN = 2.0
"""Percent of the map around the dots."""


@dataclass(frozen=True)
class FrameSample:
    """Some frames of a store: the video of each and its index in the video."""

    store: FrameStore
    videos: Integers
    indices: Integers

    def __len__(self) -> int:
        return len(self.videos)

    def image(self, position: int) -> Pixels:
        """Return the decoded frame; raises UserError naming it."""
        return self.store.image(int(self.videos[position]), int(self.indices[position]))

    def video_name(self, position: int) -> str:
        """Return the id of a frame's video, shortened if it is long."""
        return shortened(self.store.video_id(int(self.videos[position])))

    def sprite(self, position: int, sheet: SpriteSheet) -> Sprite:
        """Return the frame as a sprite; raises UserError if it cannot be read."""
        name = frame_name(self.video_name(position), int(self.indices[position]))
        return sheet.sprite(position, name, partial(self.image, position))

    def subset(self, positions: Integers) -> "FrameSample":
        """Return some of the frames."""
        return FrameSample(self.store, self.videos[positions], self.indices[positions])


class Vectors(NamedTuple):
    """The unit vectors (num_frames, dim) of a sample by one backbone; what a run has not trained is a baseline."""

    model: str
    is_trained: bool
    vectors: Floats


def embed_sample(runs: list[RunReport], options: ReportConfig) -> tuple[FrameSample | None, list[Vectors], str]:
    """Embed frames of the data that the runs share.

    Returns the sample, its vectors by the first run of each setting, by the weights that it started from and by random
    weights, and a sentence about missing backbones or, if there is no sample (None), the reason.
    """
    store = runs[0].store
    shown = one_per_settings(run for run in runs if run.backbone is not None)
    if store is None or not shown:
        return None, [], runs[0].store_problem if store is None else _why_no_vectors(runs[0])
    if store.num_videos < 2:
        return None, [], "Neighbors in other videos need at least two videos; these data have one."
    models = [(run.name, True, run.backbone, run.backbone.image_size) for run in shown if run.backbone is not None]
    kinds = list(dict.fromkeys((backbone.name, size) for _, _, backbone, size in models))
    starts, missing = _starts(shown, options.download)
    models += starts
    for name, size in kinds:
        title = f"{RANDOM} ({name}, {size} px)" if len(kinds) > 1 else RANDOM
        models.append((title, False, load_backbone(f"random:{name}", options.seed), size))
    limit = _affordable(max(size for *_, size in models), pick_device(options.device))
    sample = draw_sample(store, limit, options.seed)
    embedded: list[Vectors] = []
    readable: Integers = np.arange(len(sample))
    for title, is_trained, backbone, size in models:
        readable, vectors = _embed(backbone, size, sample, title, options)
        embedded.append(Vectors(title, is_trained, vectors))
    if len(readable) == 0:
        return None, [], "The frames cannot be shown: none of them can be read."
    missing += [f"{run.name}: {_why_no_vectors(run)}" for run in runs if run.backbone is None]
    return sample.subset(readable), embedded, " ".join(missing)


def _starts(runs: list[RunReport], download: bool) -> tuple[list[tuple[str, bool, Backbone, int]], list[str]]:
    """Return the weights that runs started from (`init`) as models, and a sentence about each that cannot be loaded."""
    found, missing = [], []
    for init, run in {run.config.init: run for run in reversed(runs)}.items():
        if init is None or run.backbone is None:
            continue
        try:
            found.append((start_name(run), False, load_start(run.folder, download)[1], run.backbone.image_size))
        except UserError as error:
            missing.append(f"{run.name}: Its start cannot be shown: {error}.")
    return found[::-1], missing


def draw_sample(store: FrameStore, limit: int, seed: int) -> FrameSample:
    """Draw a few frames of each video, or of random videos if there are many; at most `limit` in all."""
    rng = np.random.default_rng(seed)
    videos = np.sort(rng.permutation(store.num_videos)[: max(2, limit // MIN_PER_VIDEO)])
    wanted = max(FRAMES_PER_VIDEO, ENOUGH_FRAMES // len(videos))
    each = max(1, min(wanted, limit // len(videos)))
    drawn = [np.sort(rng.permutation(store.frames_in(int(video)))[:each]) for video in videos]
    return FrameSample(store, np.repeat(videos, [len(indices) for indices in drawn]), np.concatenate(drawn))


def _why_no_vectors(run: RunReport) -> str:
    what = "Its neighbors and map cannot be shown" if run.fingerprint else "There is no backbone yet"
    return f"{what}: {run.backbone_problem}"


def _affordable(image_size: int, device: torch.device) -> int:
    """Return the number of frames to embed; on a CPU, fewer frames for larger images."""
    if device.type != "cpu":
        return MAX_FRAMES
    return max(MIN_FRAMES_ON_CPU, int(MAX_FRAMES_ON_CPU * min(1.0, CHEAP_SIZE / image_size) ** 2))


def _embed(
    backbone: Backbone, image_size: int, sample: FrameSample, title: str, options: ReportConfig
) -> tuple[Integers, Floats]:
    """Return the positions of the readable frames and their unit vectors."""
    device = pick_device(options.device)
    loading = Loading(image_size, BATCH_SIZE, pick_workers(options.workers, device), device)
    with limited_threads(device):
        batches = list(embed_batches(backbone, sample, loading, f"report: {title}"))
    positions = np.concatenate([batch.positions for batch in batches])
    return positions, unit_vectors(np.concatenate([batch.vectors for batch in batches]))


def find_neighbors(sample: FrameSample, models: list[Vectors], sheet: SpriteSheet, seed: int) -> list[dict[str, Any]]:
    """Return a group of random queries and one of the worst ones, with their neighbors by each model.

    Raises UserError if a frame cannot be read.
    """
    order = np.random.default_rng(seed).permutation(len(sample))
    queries = [
        {
            "sprite": sample.sprite(query, sheet),
            "found": [_nearest(sample, model, query, sheet) for model in models],
            "same_video": None,
        }
        for query in _of_different_videos(order, sample.videos)
    ]
    meaning = (
        f"{len(queries)} random query frames. For each, the most similar frame of each of the {NUM_NEIGHBORS} nearest "
        "other videos, with the cosine similarity of the backbone's features. Searched: "
        f"{len(sample):,} frames of {len(np.unique(sample.videos)):,} videos."
    )
    return [{"title": "Random frames", "meaning": meaning, "queries": queries}, _worst(sample, models, sheet)]


def _worst(sample: FrameSample, models: list[Vectors], sheet: SpriteSheet) -> dict[str, Any]:
    counts = [frames_before_same_video(model.vectors, sample.videos) for model in models]
    of_trained = [count for count, model in zip(counts, models, strict=True) if model.is_trained]
    mean = np.mean(of_trained, axis=0)
    order = np.argsort(-mean, kind="stable")
    first = next(model for model in models if model.is_trained)
    queries = []
    for query in _of_different_videos(order[mean[order] > 0], sample.videos):
        num_others = int((sample.videos != sample.videos[query]).sum())
        found = [
            _nearest(sample, model, query, sheet, f"{count[query]:,} of {num_others:,} frames are nearer")
            for model, count in zip(models, counts, strict=True)
        ]
        same = np.flatnonzero(sample.videos == sample.videos[query])
        same = same[same != query]
        best = int(same[np.argmax(dot_products(first.vectors[same], first.vectors[query]))])
        sprites = {"sprite": sample.sprite(query, sheet), "same_video": sample.sprite(best, sheet)}
        queries.append(sprites | {"found": found})
    if mean.max() < 0:
        meaning = "Not known: no video has two of the searched frames."
    elif not queries:
        meaning = "None: for every frame, the most similar one is of the same video."
    else:
        meaning = (
            f"The {len(queries)} query frames with the most frames of other videos nearer than the nearest frame of "
            f"their own video{', on average over the runs' * (len(of_trained) > 1)}. This needs no labels."
        )
    return {"title": "Worst frames", "meaning": meaning, "queries": queries}


def _of_different_videos(order: Integers, videos: Integers) -> Iterable[int]:
    """Return the first frames in this order, at most one of each video."""
    firsts = np.unique(videos[order], return_index=True)[1]
    return map(int, order[np.sort(firsts)[:NUM_QUERIES]])


def _nearest(sample: FrameSample, model: Vectors, query: int, sheet: SpriteSheet, note: str = "") -> dict[str, Any]:
    """Return the nearest frames that a model finds for a query, with their cosine similarities, nearest first."""
    similarities = dot_products(model.vectors, model.vectors[query])
    frames = nearest_of_other_videos(similarities, sample.videos, query, NUM_NEIGHBORS)
    neighbors = [(sample.sprite(int(frame), sheet), float(similarities[frame])) for frame in frames]
    return {"model": model.model, "is_trained": model.is_trained, "neighbors": neighbors, "note": note}


def nearest_of_other_videos(similarities: npt.NDArray[np.floating], videos: Integers, query: int, num: int) -> Integers:
    """Return the nearest frame of each of the `num` nearest videos other than the query's, nearest first."""
    order = np.argsort(-similarities, kind="stable")
    order = order[videos[order] != videos[query]]
    firsts = np.sort(np.unique(videos[order], return_index=True)[1])
    nearest: Integers = order[firsts[:num]]
    return nearest


def frames_before_same_video(vectors: Floats, videos: Integers) -> Integers:
    """Count, for each frame, the frames of other videos that are at least as similar as the nearest of its own video.

    Takes unit vectors (num_frames, dim) and their videos (num_frames,); -1 for the only frame of a video.
    """
    counts = np.empty(len(videos), np.int64)
    for start in range(0, len(videos), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(videos)))
        similarities = dot_products(vectors[rows], vectors.T)
        same = videos[rows, None] == videos
        positive = same.copy()
        positive[np.arange(len(rows)), rows] = False
        nearest = np.where(positive, similarities, -np.inf).max(axis=1)
        before = (~same & (similarities >= nearest[:, None])).sum(axis=1)
        counts[rows] = np.where(positive.any(axis=1), before, -1)
    return counts


def draw_maps(
    sample: FrameSample, models: list[Vectors], sheet: SpriteSheet, max_dots: int, seed: int
) -> dict[str, Any]:
    """Draw a map of the same frames, at most `max_dots`, for each run and each start, and their coordinates as a table.

    `legend` names the colored folders, or the videos of a single folder, in the order of their colors; a dot's place
    is in percent from the left and from the top. Raises UserError if a frame cannot be read.
    """
    chosen = whole_videos(sample.videos, max_dots, seed)
    kind, names, groups = groups_of(sample, chosen)
    colored = most_frequent(groups, seed)
    colors = {int(group): color for color, group in enumerate(colored)}
    sprites = [sample.sprite(int(frame), sheet) for frame in chosen]
    maps, columns = [], [[sample.video_name(int(frame)) for frame in chosen], sample.indices[chosen].astype(str)]
    drawn = [model for model in models if model.is_trained or not model.model.startswith(RANDOM)]
    for model in drawn:
        places = place(model.vectors[chosen], seed)
        of_frame = [colors.get(int(group)) for group in groups]
        dots = zip(*places.T.tolist(), of_frame, sprites, strict=True)
        maps.append((model.model, [dict(zip(("x", "y", "color", "sprite"), dot, strict=True)) for dot in dots]))
        columns += [[f"{value:.1f}" for value in column] for column in places.T]
    axes = [f"{axis}, {model.model}" if len(drawn) > 1 else axis for model in drawn for axis in ("x", "y")]
    return {
        "meaning": _meaning_of_map(len(chosen), len(np.unique(sample.videos[chosen])), len(colored), kind),
        "maps": maps,
        "legend": [names[group] for group in colored],
        "columns": ["video", "frame", *axes],
        "rows": [list(row) for row in zip(*columns, strict=True)],
    }


def groups_of(sample: FrameSample, chosen: Integers) -> tuple[str, list[str], Integers]:
    """Return what the groups of the chosen frames are, their names, and the group of each frame.

    They are the folders of the videos, or the videos if all are in one folder.
    """
    ids = [sample.store.video_id(int(video)) for video in sample.videos[chosen]]
    folders, groups = np.unique([video_id.rpartition("/")[0] for video_id in ids], return_inverse=True)
    if len(folders) > 1:
        return "folders", [shortened(folder) or "(no folder)" for folder in folders.tolist()], groups
    videos, groups = np.unique(ids, return_inverse=True)
    return "videos", [shortened(video) for video in videos.tolist()], groups


def _meaning_of_map(num_frames: int, num_videos: int, num_colored: int, kind: str) -> str:
    is_tsne = num_frames >= MIN_DOTS_FOR_TSNE
    way = "t-SNE of cosine distances" if is_tsne else "the two main axes (PCA)"
    reading = (
        "Neighboring dots are similar frames; distances between groups and their sizes mean nothing."
        if is_tsne
        else "Neighboring dots may differ in the other dimensions."
    )
    colors = f"Colors mark {num_colored} of the {kind} with the most frames." if num_colored else ""
    return f"{num_frames} frames of {num_videos} videos, each a dot, placed by {way}. {reading} {colors}"


def whole_videos(videos: Integers, most: int, seed: int) -> Integers:
    """Return the sorted positions of all frames of random videos, at most `most`; the last video may be incomplete."""
    found, of_frame = np.unique(videos, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(found))[of_frame]
    chosen: Integers = np.sort(np.argsort(rank, kind="stable")[:most])
    return chosen


def most_frequent(groups: Integers, seed: int) -> Integers:
    """Return the NUM_COLORS groups with the most frames, ties broken at random; none if each group has one frame."""
    found, counts = np.unique(groups, return_counts=True)
    drawn = np.random.default_rng(seed).permutation(len(found))
    first: Integers = found[np.lexsort((drawn, -counts))[:NUM_COLORS]]
    return first if counts.max() > 1 else first[:0]


def place(vectors: Floats, seed: int) -> Floats:
    """Place unit vectors (num, dim) in the plane (num, 2), in percent of a square: by t-SNE, or few ones by PCA.

    Van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    distinct = len(np.unique(vectors, axis=0))
    if distinct < 2:
        return np.full((len(vectors), 2), 50.0)
    if distinct < MIN_DOTS_FOR_TSNE:
        return _into_square(PCA(2, random_state=0).fit_transform(vectors))
    tsne = TSNE(metric="cosine", init="pca", perplexity=min(PERPLEXITY, distinct / 4), random_state=seed, n_jobs=1)
    return _into_square(tsne.fit_transform(np.asarray(vectors, np.float32)))


def _into_square(places: Floats) -> Floats:
    """Scale both axes alike, so that the longer one fills the square up to its margin; round to a tenth."""
    places = places.astype(np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    scale = (100 - 2 * MAP_MARGIN) / (high - low).max()
    scaled: Floats = np.round(50 + (places - (low + high) / 2) * scale, 1)
    return scaled
