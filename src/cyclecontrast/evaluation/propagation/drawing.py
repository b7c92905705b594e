"""A picture of masks for people: a row a video, and in each frame what was found, missed and invented."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.evaluation.mask_files import draw_legend, encode_mask

WIDTH = 240
NUM_FRAMES = 4
GAP = 4
RIGHT, MISSED, INVENTED, CONFUSED = (60, 170, 60), (220, 120, 40), (50, 50, 220), (40, 200, 240)
"""Colours (blue, green, red) of an object's pixels, of pixels not found or found where nothing is, and of another's."""
LEGEND = "green: right, blue: missed, red: invented, yellow: another object"


class VideoMasks(NamedTuple):
    """Masks of object numbers (height, width) of all frames of a video."""

    name: str
    predicted: list[Pixels]
    truth: list[Pixels]


def draw_sheet(rows: Sequence[Pixels]) -> bytes:
    """Return a PNG file of drawn videos, one below the other, under words that say what the colours mean."""
    rows = [draw_legend(LEGEND), *rows]
    height, width = sum(row.shape[0] for row in rows), max(row.shape[1] for row in rows)
    sheet = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for row in rows:
        sheet[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0]
    return encode_mask(sheet)


def draw_video(video: VideoMasks) -> Pixels:
    """Return a row of frames, spread evenly."""
    positions = np.linspace(0, len(video.truth) - 1, NUM_FRAMES + 1).round().astype(int)[1:]
    frames = [_frame(video.predicted[position], video.truth[position]) for position in positions]
    cv2.putText(frames[0], video.name, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate(
        [np.pad(frame, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for frame in frames], axis=1
    )


def _frame(predicted: Pixels, truth: Pixels) -> Pixels:
    height, width = truth.shape
    drawn = np.zeros((height, width, 3), np.uint8)
    drawn[(truth > 0) & (predicted == 0)] = MISSED
    drawn[(truth == 0) & (predicted > 0)] = INVENTED
    drawn[(truth > 0) & (predicted > 0)] = CONFUSED
    drawn[(truth > 0) & (predicted == truth)] = RIGHT
    size = (WIDTH, max(1, round(height * WIDTH / width)))
    return cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)  # type: ignore[no-any-return]
