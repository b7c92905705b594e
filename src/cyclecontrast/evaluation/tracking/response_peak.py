"""Where the target is in the responses of three scales (protocols.md §a, "Tracking"); it knows no image."""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

SCALE_PENALTY = 0.9745
WINDOW_INFLUENCE = 0.176
UPSAMPLING = 16
UPSAMPLED_SIZE = 17 * UPSAMPLING
"""The release takes a response for 17 cells wide; it has 18 with an exemplar of 120 pixels, 17 with one of 127."""

Responses = npt.NDArray[np.float32]


class Peak(NamedTuple):
    """The best place of the upsampled response at the best scale: the scale's number, and pixels from the middle."""

    scale: int
    dy: float
    dx: float


def make_window() -> npt.NDArray[np.float64]:
    """Return the Hann window of the upsampled response; it sums to 1."""
    window = np.outer(np.hanning(UPSAMPLED_SIZE), np.hanning(UPSAMPLED_SIZE))
    normalised: npt.NDArray[np.float64] = window / window.sum()
    return normalised


WINDOW = make_window().astype(np.float32)


def find_peak(responses: Responses, fix_scale_penalty: bool = False) -> Peak:
    """Upsample the responses of three scales (3, h, w), choose a scale, and find its peak under the window.

    A change of scale is penalised by a factor, which rewards it where peaks are negative, as those of a focal loss
    often are; `fix_scale_penalty` lowers these too.
    """
    size = (UPSAMPLED_SIZE, UPSAMPLED_SIZE)
    upsampled = [cv2.resize(response, size, interpolation=cv2.INTER_CUBIC) for response in responses]
    peaks = np.array([float(response.max()) for response in upsampled])
    penalised = peaks - (1 - SCALE_PENALTY) * (np.abs(peaks) if fix_scale_penalty else peaks)
    penalised[1] = peaks[1]
    scale = int(penalised.argmax())
    # The factor of the penalty drops out where the chosen response is brought to sum 1.
    response = upsampled[scale] - upsampled[scale].min()
    response *= (1 - WINDOW_INFLUENCE) / (response.sum() + 1e-16)
    response += WINDOW_INFLUENCE * WINDOW
    row, column = np.unravel_index(int(response.argmax()), response.shape)
    middle = (UPSAMPLED_SIZE - 1) / 2
    return Peak(scale, row - middle, column - middle)
