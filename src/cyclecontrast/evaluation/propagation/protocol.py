"""The protocol `propagation`: masks of DAVIS followed through videos on frozen features (protocols.md §g)."""

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from cyclecontrast.config import PropagationConfig
from cyclecontrast.data.davis import LISTS, Davis, MaskedVideo
from cyclecontrast.data.text_lines import raise_problems
from cyclecontrast.evaluation.embeddings import frozen
from cyclecontrast.evaluation.mask_files import unpacked
from cyclecontrast.evaluation.propagation.presets import Preset, preset_for
from cyclecontrast.evaluation.propagation.score import score
from cyclecontrast.evaluation.propagation.videos import USUAL_HEIGHT, How, follow
from cyclecontrast.evaluation.result import DataInfo
from cyclecontrast.evaluation.two_steps import Predictions
from cyclecontrast.evaluation.unfinished import Arrays, Unfinished
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.hardware import pick_device, pick_workers
from cyclecontrast.models.stride import restride

__all__ = ["describe", "open_data", "predict", "score"]

STRIDES = (1, 2, 1, 1)
"""Of the stages, not dilated, unlike those of tracking (protocols.md §g)."""

USUAL_STRIDE = 8


class _Followed(NamedTuple):
    video: MaskedVideo
    part: Arrays

    @property
    def rows(self) -> int:
        """Height of the frames for the network."""
        return int(self.part["size"][0])

    @property
    def stride(self) -> int:
        """Pixels from a cell of the feature map to the next."""
        return round(self.rows / int(self.part["cells"][0]))


def open_data(config: PropagationConfig) -> Davis:
    """Read the list of videos and look for their files; raises UserError."""
    return Davis.open(config.data, config.year)


def describe(data: Davis, config: PropagationConfig) -> DataInfo:
    """Return the origin of the data; nothing is trained, and the test is counted in videos."""
    return DataInfo(str(data.root), data.fingerprint, 0, len(data.videos))


def predict(backbone: Backbone, data: Davis, config: PropagationConfig, unfinished: Unfinished) -> Predictions:
    """Follow the objects of each video's first mask; a video with a file that cannot be read is left out."""
    device = pick_device(config.device)
    preset = preset_for(config.preset, backbone)
    how = How(preset, config.height, config.stage, pick_workers(config.workers, device), device)
    with frozen(restride(backbone, STRIDES), device) as dense:
        parts = [
            unfinished.arrays(f"{number}-{video.name}", lambda v=video: follow(dense, v, how))  # type: ignore[misc]
            for number, video in enumerate(data.videos)
        ]
    problems = [str(problem) for part in parts for problem in part["problems"]]
    followed = [_Followed(*pair) for pair in zip(data.videos, parts, strict=True) if not len(pair[1]["problems"])]
    if not followed:
        none = f"{data.root}: none of the {len(parts)} videos can be followed"
        raise_problems([none, *data.problems, *problems])
    return Predictions(
        pa.concat_tables([_table(*video) for video in followed]),
        f"propagation preset={config.preset} radius={preset.radius} stage={config.stage} "
        f"{_height(config, followed)} davis{data.year}",
        tuple(_notes(data, config, preset, followed)),
        (*data.problems, *problems),
        {"preset": preset._asdict(), "pixels_per_cell": followed[0].stride},
        (0, len(followed)),
        frozenset({"year"}),
    )


def _table(video: MaskedVideo, part: Arrays) -> pa.Table:
    masks = {name: pa.array(unpacked(part, name), pa.binary()) for name in ("predicted", "truth")}
    return pa.table({"video": [video.name] * len(video), "frame": [path.stem for path in video.frames], **masks})


def _height(config: PropagationConfig, followed: list[_Followed]) -> str:
    """Return what the tag says: videos that were not enlarged may not be compared with those that are full size."""
    if config.height is not None:
        return f"height={config.height}"
    return f"height{'=' if all(video.rows == USUAL_HEIGHT for video in followed) else '<='}{USUAL_HEIGHT}"


def _notes(data: Davis, config: PropagationConfig, preset: Preset, followed: list[_Followed]) -> Iterator[str]:
    if config.year is None:
        yield f"year: {data.year}" + ("" if data.year == "2017" else f", there is no {LISTS['2017'][0]}")
    num_small = sum(video.rows < USUAL_HEIGHT for video in followed)
    if config.height is None and num_small:
        yield f"height: frames of {num_small} videos have fewer than {USUAL_HEIGHT} rows, and were not enlarged"
    stride = followed[0].stride
    if stride != USUAL_STRIDE:
        reach = f"the radius of {preset.radius} cells is {preset.radius * stride} pixels"
        yield f"the feature map has a cell every {stride} pixels where the papers have {USUAL_STRIDE}; {reach}"
