"""J, F and J&F of a record, as the evaluation of DAVIS-2017 computes them; it knows no network."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from cyclecontrast.config import PropagationConfig
from cyclecontrast.data.images import Pixels
from cyclecontrast.evaluation.mask_files import decode_mask
from cyclecontrast.evaluation.metrics import boundary_f, region_similarity
from cyclecontrast.evaluation.predictions import Record
from cyclecontrast.evaluation.propagation.drawing import VideoMasks, draw_sheet, draw_video
from cyclecontrast.evaluation.protocol import Score

RECALL_FROM = 0.5


class ObjectScore(NamedTuple):
    """Means over the frames between the first and the last; recall is the part of them above one half."""

    j_mean: float
    j_recall: float
    f_mean: float
    f_recall: float


def score(record: Record, config: PropagationConfig) -> Score:
    """Score each object of the first masks in all frames but the first and the last; objects count alike.

    J is the intersection over union of regions, F that of boundaries within .008 of the diagonal (protocols.md §g).
    """
    scores: dict[str, dict[int, ObjectScore]] = {}
    repeated: list[float] = []
    rows: list[Pixels] = []
    for video in _videos(record):
        scores[video.name] = score_objects(video.predicted, video.truth)
        repeated += _j_of_repeating(video.truth)
        rows.append(draw_video(video))
    means = ObjectScore(*np.mean([item for video in scores.values() for item in video.values()], axis=0).tolist())
    per_item = {
        name: {str(number): item._asdict() for number, item in objects.items()} for name, objects in scores.items()
    }
    return Score(
        {"j_and_f": (means.j_mean + means.f_mean) / 2, **means._asdict()},
        per_item,
        notes=(f"repeating the first mask gives a j_mean of {100 * np.mean(repeated):.2f} %",),
        files={"masks.png": draw_sheet(rows)},
    )


def score_objects(predicted: Sequence[Pixels], truth: Sequence[Pixels]) -> dict[int, ObjectScore]:
    """Score each object of a video's first mask, by its number."""
    scores = {}
    for number in _numbers(truth):
        pairs = [(ours == number, theirs == number) for ours, theirs in zip(predicted, truth, strict=True)][1:-1]
        j = np.array([region_similarity(*pair) for pair in pairs])
        f = np.array([boundary_f(*pair) for pair in pairs])
        scores[number] = ObjectScore(*(float(x.mean()) for x in (j, j > RECALL_FROM, f, f > RECALL_FROM)))
    return scores


def _j_of_repeating(truth: Sequence[Pixels]) -> list[float]:
    """Return J of each object for a prediction in which nothing moves."""
    return [
        float(np.mean([region_similarity(truth[0] == number, mask == number) for mask in truth[1:-1]]))
        for number in _numbers(truth)
    ]


def _numbers(truth: Sequence[Pixels]) -> range:
    return range(1, int(truth[0].max()) + 1)


def _videos(record: Record) -> Iterator[VideoMasks]:
    for name, rows in groupby(record.table.to_pylist(), key=lambda row: row["video"]):
        files = [(row["predicted"], row["truth"]) for row in rows]
        yield VideoMasks(name, *([decode_mask(file) for file in column] for column in zip(*files, strict=True)))
