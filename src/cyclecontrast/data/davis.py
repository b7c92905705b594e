"""DAVIS: videos with a mask of objects for each frame; pixels are decoded when they are read.

A mask holds the number of the object at each pixel, 0 for the background. DAVIS-2016 has one object per video.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

import numpy as np

from cyclecontrast.data.folders import is_image, natural_order
from cyclecontrast.data.images import Pixels, read_image, read_mask
from cyclecontrast.data.storage import file_digest, file_size, is_outside, raise_problems, read_lines
from cyclecontrast.errors import UserError, attempt

LISTS = {
    "2017": ("ImageSets/2017/val.txt",),
    "2016": ("ImageSets/2016/val.txt", "ImageSets/480p/val.txt"),
}
FRAMES, MASKS = "JPEGImages/480p", "Annotations/480p"
VOID = 255
MIN_FRAMES = 3


@dataclass(frozen=True)
class MaskedVideo:
    """The frames of a video and their masks, in the same order. If `is_binary`, all objects count as one."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    is_binary: bool

    def __len__(self) -> int:
        return len(self.frames)

    def image(self, position: int) -> Pixels:
        """Return the decoded frame, RGB (height, width, 3); raises UserError naming the file."""
        return read_image(self.frames[position])

    def objects(self) -> list[Pixels]:
        """Return the number of the object at each pixel (height, width) of each frame; raises UserError.

        If all masks are black and white, there is one object, 1. Otherwise 255 is DAVIS's void label, which is no
        object.
        """
        masks = [read_mask(path) for path in self.masks]
        for path, mask in zip(self.masks, masks, strict=True):
            if mask.shape != masks[0].shape:
                sizes = "{1}x{0}, the first mask {3}x{2}".format(*mask.shape, *masks[0].shape)
                raise UserError(f"{path}: is {sizes}; a video has one size")
            if mask.max() > VOID:
                raise UserError(f"{path}: holds the number {mask.max()}; objects have numbers from 1 to {VOID - 1}")
        if not masks[0].any():
            raise UserError(f"{self.masks[0]}: contains no object; the first mask must show the objects to track")
        is_black_and_white = not any(((mask > 0) & (mask < VOID)).any() for mask in masks)
        if self.is_binary or is_black_and_white:
            return [(mask > 0).astype(np.uint8) for mask in masks]
        return [np.where(mask == VOID, 0, mask).astype(np.uint8) for mask in masks]


@dataclass(frozen=True)
class Davis:
    """The validation videos of a year; `problems` has a line for each listed video that cannot be used."""

    root: Path
    year: str
    videos: tuple[MaskedVideo, ...]
    problems: tuple[str, ...]

    @staticmethod
    def open(path: str | Path, year: str | None = None) -> "Davis":
        """Read the list of a year, by default that of 2017 where there is one; raises UserError."""
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; name a DAVIS root with {FRAMES}, {MASKS} and ImageSets")
        year, names = _read_list(root, year)
        problems: list[str] = []
        opened = [attempt(partial(_open_video, root, name, year == "2016"), problems) for name in names]
        videos = tuple(video for video in opened if video is not None)
        if not videos:
            raise_problems([f"{root}: none of the {len(names)} videos can be used", *problems])
        return Davis(root, year, videos, tuple(problems))

    @cached_property
    def fingerprint(self) -> str:
        """Identifier of the content: year, videos, each frame's name and size, each mask's bytes; 16 hex digits."""
        digest = hashlib.sha256(self.year.encode())
        for video in self.videos:
            digest.update(f"\n{video.name}".encode(errors="surrogateescape"))
            for frame, mask in zip(video.frames, video.masks, strict=True):
                names = f"\n{frame.name} {file_size(frame)} {mask.name} "
                digest.update(names.encode(errors="surrogateescape") + file_digest(mask))
        return digest.hexdigest()[:16]


def _read_list(root: Path, year: str | None) -> tuple[str, list[str]]:
    """Return the year, and the names of its videos: one a line, or the paths of a frame and its mask."""
    lists = {key: root / name for key in reversed(LISTS) for name in LISTS[key] if (root / name).exists()}
    if not lists:
        raise UserError(f"{root}: holds none of {', '.join(name for names in LISTS.values() for name in names)}")
    year = year or max(lists)
    if year not in lists:
        raise UserError(f"{root / LISTS[year][0]}: no such file; {lists.popitem()[1]} is there, leave --year out")
    problems: list[str] = []
    lines = read_lines(lists[year], problems)
    if problems or not lines:
        raise UserError(*(problems or [f"{lists[year]}: lists no video"]))
    paths = [PurePosixPath(text.split()[0]) for _, text in lines]
    return year, list(dict.fromkeys(path.parent.name if is_image(path.name) else path.as_posix() for path in paths))


def _open_video(root: Path, name: str, is_binary: bool) -> MaskedVideo:
    if is_outside(name):
        raise UserError(f"{root}: its list contains {name!r}, a path outside of {FRAMES}; use a folder below it")
    frames, masks = _images_in(root / FRAMES / name), _images_in(root / MASKS / name)
    if len(frames) < MIN_FRAMES:
        raise UserError(f"{root / FRAMES / name}: holds {len(frames)} frames; the first and the last are not scored")
    unpaired = sorted(set(frames) ^ set(masks), key=natural_order)
    if unpaired:
        raise UserError(
            f"{root / MASKS / name}: {len(masks)} masks for {len(frames)} frames, {unpaired[0]!r} is the first without "
            "a counterpart; each frame needs a mask"
        )
    order = sorted(frames, key=natural_order)
    return MaskedVideo(name, tuple(frames[stem] for stem in order), tuple(masks[stem] for stem in order), is_binary)


def _images_in(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by their names without suffix."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder, though its video is listed")
    return {path.stem: path for path in folder.iterdir() if is_image(path.name) and path.is_file()}
