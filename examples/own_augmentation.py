"""Your own augmentation: a function from a frame and random numbers to a view.

python examples/own_augmentation.py FOLDER
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

import cyclecontrast as cc
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos

Pixels = npt.NDArray[np.uint8]
SPEC = SyntheticSpec(num_videos=16, num_categories=4, num_train_per_category=1, num_test_per_category=1)


def crop_and_cover(image: Pixels, rng: np.random.Generator, size: int) -> Pixels:
    """Cut a random square out of an RGB frame, change its colors, cover a part of it.

    All randomness comes from `rng`, which belongs to this view only, so that runs can be repeated and resumed exactly.
    """
    height, width = image.shape[:2]
    side = int(rng.integers(min(height, width) // 2, min(height, width) + 1))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    cut = cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    view: Pixels = np.clip(cut * rng.uniform(0.6, 1.4, size=3), 0, 255).astype(np.uint8)
    row, column = rng.integers(size - size // 4, size=2)
    view[row : row + size // 4, column : column + size // 4] = 127
    return view


def main(folder: Path) -> None:
    """Make videos and train on these views."""
    made = make_videos(folder / "made", SPEC, seed=0, workers=0)
    run = cc.pretrain(
        made.videos,
        out=folder / "run",
        augmentation=crop_and_cover,
        backbone="resnet10-small-w8",
        image_size=32,
        batch_size=8,
        steps=15,
        workers=1,
    )
    print(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
