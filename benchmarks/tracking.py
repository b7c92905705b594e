"""Frames per second of the SiamFC tracker beside the bare forward pass of the same crops, turn by turn.

    python benchmarks/tracking.py --backbone resnet50 --device cuda

The ratio says what cropping, the head, upsampling and the search for the peak leave of the network's speed.
"""

import cv2
import numpy as np
import torch
from _ours import synchronize
from _turns import Row, parser_of, present, ratios, take_turns, timed

from cyclecontrast.data.images import Pixels
from cyclecontrast.evaluation.tracking.siamfc import RELEASE, SCALES, SEARCH_SIZE, DenseFeatures, SiamFC, make_head
from cyclecontrast.models.backbone import make_backbone


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


def main(arguments: list[str] | None = None) -> None:
    """Let the tracker and the forward pass take turns, frame by frame."""
    parser = parser_of(__doc__, repetitions=20)
    for name, default in (("backbone", "resnet18"), ("device", "cpu")):
        parser.add_argument(f"--{name}", default=default)
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    features = DenseFeatures(make_backbone(asked.backbone), device)
    head = make_head(features.backbone.dim, RELEASE, seed=0).eval()
    tracker = SiamFC(features, head, RELEASE.exemplar_size)
    first, *frames = synthetic_frames(asked.repetitions + 2)
    crops = torch.from_numpy(np.stack([cv2.resize(first, (SEARCH_SIZE, SEARCH_SIZE))] * len(SCALES)))
    pixels, following = crops.movedim(-1, 1), iter(frames)
    tracker.init(first, np.array([101.0, 151.0, 60.0, 60.0]))

    def track() -> None:
        tracker.update(next(following))
        synchronize(device)

    def forward() -> None:
        features(pixels)
        synchronize(device)

    costs = take_turns({"tracker": timed(track), "bare": timed(forward)}, asked.repetitions)
    name = f"SiamFC tracker / bare forward pass of its crops, frames/s, {asked.backbone}"
    present([Row(name, ratios(costs, "bare", "tracker"), 0.9, "higher")], asked)


if __name__ == "__main__":
    main()
