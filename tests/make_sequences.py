"""Sequences of a moving square, and data sets laid out as OTB and GOT-10k, for tests of tracking."""

import math
import os

import cv2
import numpy as np


def moving_square(num_frames, growth=1.0):
    """Yield frames and boxes of a textured square that moves over a smooth background."""
    rng = np.random.default_rng(0)
    smooth = rng.integers(90, 166, (15, 20, 3)).astype(np.uint8)
    background = cv2.resize(smooth, (320, 240), interpolation=cv2.INTER_CUBIC)
    texture = rng.integers(0, 255, (5, 5, 3)).astype(np.uint8)
    for number in range(num_frames):
        x, y, side = 80 + 5 * number, 120 + 40 * math.sin(number / 6), 44 * growth**number
        left, top, size = round(x - side / 2), round(y - side / 2), round(side)
        frame = background.copy()
        frame[top : top + size, left : left + size] = cv2.resize(texture, (size, size), interpolation=cv2.INTER_NEAREST)
        yield frame, np.array([left + 1.0, top + 1, size, size])


def write_frames(folder, num, digits=4, first=1, size=(40, 60)):
    """Write images that are one file on the disk."""
    folder.mkdir(parents=True)
    one = folder / f"{first:0{digits}}.png"
    cv2.imwrite(str(one), np.full((*size, 3), 90, np.uint8))
    for number in range(first + 1, first + num):
        os.link(one, folder / f"{number:0{digits}}.png")


def write_otb(root, name, boxes):
    """Write a sequence as OTB lays it out."""
    write_frames(root / name / "img", len(boxes))
    text = "".join(",".join(f"{number:g}" for number in box) + "\n" for box in boxes)
    (root / name / "groundtruth_rect.txt").write_text(text)


def write_got10k(root, split, name, boxes, cover=None):
    """Write a sequence as GOT-10k lays it out, and add it to the split's list."""
    write_frames(root / split / name, max(len(boxes), len(cover or ())), digits=8)
    text = "".join(",".join(f"{number:.4f}" for number in box) + "\n" for box in boxes)
    (root / split / name / "groundtruth.txt").write_text(text)
    if cover is not None:
        (root / split / name / "cover.label").write_text("".join(f"{value}\n" for value in cover))
    with (root / split / "list.txt").open("a") as file:
        file.write(f"{name}\n")
