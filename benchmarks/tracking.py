"""Frames per second of the SiamFC tracker beside the bare forward pass of the same crops, turn by turn.

    python benchmarks/tracking.py [backbone] [frames] [device]

The ratio says what cropping, the head, upsampling and the search for the peak leave of the network's speed.
"""

import statistics
import sys

import cv2
import numpy as np
import torch
from _turns import seconds

from cyclecontrast.data.images import Pixels
from cyclecontrast.evaluation.tracking.siamfc import RELEASE, SCALES, SEARCH_SIZE, DenseFeatures, SiamFC, make_head
from cyclecontrast.models.backbone import make_backbone

WARM_UP = 2


def synthetic_frames(num_frames: int) -> list[Pixels]:
    """Draw frames of 640 x 360 in which a textured square moves to the right."""
    rng = np.random.default_rng(0)
    background = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (640, 360), interpolation=cv2.INTER_CUBIC)
    square = cv2.resize(rng.integers(0, 256, (5, 5, 3), np.uint8), (60, 60), interpolation=cv2.INTER_NEAREST)
    frames = []
    for number in range(num_frames):
        frame = background.copy()
        left = 100 + 3 * number % 400
        frame[150:210, left : left + 60] = square
        frames.append(frame)
    return frames


def main(name: str = "resnet18", num_frames: str = "20", device_name: str = "cpu") -> None:
    """Print the median of both and their ratio."""
    device = torch.device(device_name)
    features = DenseFeatures(make_backbone(name), device)
    head = make_head(features.backbone.dim, RELEASE, seed=0).eval()
    tracker = SiamFC(features, head, RELEASE.exemplar_size)
    frames = synthetic_frames(int(num_frames) + WARM_UP)
    crops = torch.from_numpy(np.stack([cv2.resize(frames[0], (SEARCH_SIZE, SEARCH_SIZE))] * len(SCALES)))
    pixels = crops.movedim(-1, 1)
    tracker.init(frames[0], np.array([101.0, 151.0, 60.0, 60.0]))
    tracked, bare = [], []
    for frame in frames:
        tracked.append(seconds(lambda frame=frame: tracker.update(frame), device))
        bare.append(seconds(lambda: features(pixels), device))
    with_all, alone = (statistics.median(times[WARM_UP:]) for times in (tracked, bare))
    print(f"{name} on {device}: tracker {1 / with_all:.1f} frames/s, bare forward {1 / alone:.1f}, ", end="")
    print(f"ratio {alone / with_all:.3f} (median of {num_frames}, {torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main(*sys.argv[1:])
