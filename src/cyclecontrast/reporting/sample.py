"""Some frames of each data set, and their vectors by every backbone shown: made once, for neighbors and maps."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from cyclecontrast.config import ReportConfig
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import Loading, embed_batches
from cyclecontrast.evaluation.metrics import Floats, Integers, unit_vectors
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.models.hardware import limited_threads, pick_device, pick_workers
from cyclecontrast.reporting.atlas import Atlas, Tile
from cyclecontrast.reporting.pictures import frame_name, shortened
from cyclecontrast.reporting.runs import DataGroup, RunReport, one_per_method

MOST_FRAMES = 4000
MOST_ON_A_CPU = 1000
FEWEST_ON_A_CPU = 240
CHEAP_SIZE = 64
"""Up to this image size a CPU embeds MOST_ON_A_CPU frames in seconds."""
FRAMES_PER_VIDEO = 5
FEWEST_PER_VIDEO = 4
ENOUGH_FRAMES = 600
"""Where the videos are few, more frames of each are drawn, up to so many in all."""
BATCH_SIZE = 128


@dataclass(frozen=True)
class Sample:
    """Some frames of a store, by position."""

    store: FrameStore
    videos: Integers
    indices: Integers

    def __len__(self) -> int:
        return len(self.videos)

    def image(self, position: int) -> Pixels:
        """Return the decoded frame; raises UserError naming it."""
        return self.store.image(int(self.videos[position]), int(self.indices[position]))

    def video(self, position: int) -> str:
        """Return the id of a frame's video, shortened where it is long."""
        return shortened(self.store.video_id(int(self.videos[position])))

    def name(self, position: int) -> str:
        """Return what a frame is called."""
        return frame_name(self.video(position), int(self.indices[position]))

    def tile(self, position: int, atlas: Atlas) -> Tile:
        """Return the frame as a tile of an atlas of this sample; raises UserError where it cannot be read."""
        known = atlas.find(position)
        number = atlas.place(position, self.image(position)) if known is None else known
        return Tile(atlas, number, self.name(position))

    def only(self, positions: Integers) -> "Sample":
        """Return these frames of it."""
        return Sample(self.store, self.videos[positions], self.indices[positions])


class Vectors(NamedTuple):
    """What one backbone makes of the frames of a sample: unit vectors (num_frames, dim)."""

    model: str
    is_trained: bool
    vectors: Floats


class Embedded(NamedTuple):
    """A data set's sample with its vectors by the runs and by random weights; `problem` says of whom there is none."""

    data: str
    sample: Sample | None
    models: tuple[Vectors, ...]
    problem: str = ""

    @property
    def trained(self) -> list[Vectors]:
        """Those of the runs."""
        return [one for one in self.models if one.is_trained]


class _Model(NamedTuple):
    name: str
    is_trained: bool
    backbone: Backbone
    image_size: int


def embed_group(group: DataGroup, options: ReportConfig) -> Embedded:
    """Embed frames of one data set by the first run of each method on it, and by random weights of their kinds."""
    shown = one_per_method(run for run in group.runs if run.trained.backbone is not None)
    store = group.frames.store
    if store is None or not shown:
        return _nothing(group, group.frames.problem if store is None else _why_none(group.runs[0]))
    if store.num_videos < 2:
        return _nothing(group, "There is one video only, so no frame has a neighbor in another.")
    models = [*_trained(shown), *_random(shown, options.seed)]
    sample = draw_sample(store, _affordable(models, pick_device(options.device)), options.seed)
    try:
        missing = [f"{run.name}: {_why_none(run)}" for run in group.runs if run.trained.backbone is None]
        return _embed(group.data, sample, models, options)._replace(problem=" ".join(missing))
    except UserError as error:
        return _nothing(group, f"The frames cannot be shown: {error}")


def draw_sample(store: FrameStore, limit: int, seed: int) -> Sample:
    """Draw some frames of each video, or of some videos where there are many; at most `limit` in all."""
    rng = np.random.default_rng(seed)
    videos = np.sort(rng.permutation(store.num_videos)[: max(2, limit // FEWEST_PER_VIDEO)])
    wanted = max(FRAMES_PER_VIDEO, ENOUGH_FRAMES // len(videos))
    each = max(1, min(wanted, limit // len(videos)))
    drawn = [np.sort(rng.permutation(store.frames_in(int(video)))[:each]) for video in videos]
    return Sample(store, np.repeat(videos, [len(indices) for indices in drawn]), np.concatenate(drawn))


def _why_none(run: RunReport) -> str:
    what = "Its neighbors and map cannot be shown" if run.trained.fingerprint else "There is no backbone yet"
    return f"{what}: {run.trained.problem}"


def _nothing(group: DataGroup, problem: str) -> Embedded:
    return Embedded(group.data, None, (), problem)


def _trained(runs: Iterable[RunReport]) -> Iterator[_Model]:
    for run in runs:
        if run.trained.backbone is not None:
            yield _Model(run.name, True, run.trained.backbone, run.trained.backbone.image_size)


def _random(runs: Iterable[RunReport], seed: int) -> list[_Model]:
    """Return the baseline of every architecture and image size among the runs."""
    kinds = dict.fromkeys((model.backbone.name, model.image_size) for model in _trained(runs))
    several = len(kinds) > 1
    return [
        _Model(
            f"random weights ({name}, {size} px)" * several or "random weights",
            False,
            load_backbone(f"random:{name}", seed),
            size,
        )
        for name, size in kinds
    ]


def _affordable(models: Iterable[_Model], device: torch.device) -> int:
    """Return how many frames to embed: all that are wanted on a GPU, on a CPU the fewer the larger they are."""
    if device.type != "cpu":
        return MOST_FRAMES
    largest = max(CHEAP_SIZE, *(model.image_size for model in models))
    return max(FEWEST_ON_A_CPU, int(MOST_ON_A_CPU * (CHEAP_SIZE / largest) ** 2))


def _embed(data: str, sample: Sample, models: Sequence[_Model], options: ReportConfig) -> Embedded:
    """Embed the sample by every model; frames that cannot be read are left out."""
    device = pick_device(options.device)
    workers = pick_workers(options.workers, device)
    made, readable = [], np.arange(len(sample))
    for model in models:
        loading = Loading(model.image_size, BATCH_SIZE, workers, device)
        with limited_threads(device):
            batches = list(embed_batches(model.backbone, sample, loading, f"report: {model.name}"))
        readable = np.concatenate([batch.positions for batch in batches])
        vectors = unit_vectors(np.concatenate([batch.vectors for batch in batches]))
        made.append(Vectors(model.name, model.is_trained, vectors))
    if len(readable) == 0:
        raise UserError("none of them can be read")
    return Embedded(data, sample.only(readable), tuple(made))
