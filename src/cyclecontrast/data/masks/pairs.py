"""Pairs of an image and its mask, found by folder or by list."""

import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cyclecontrast.data.folder_walk import natural_order
from cyclecontrast.data.image_folders import IMAGE_SUFFIXES
from cyclecontrast.data.labels.text_lines import read_lines
from cyclecontrast.errors import UserError


class Pair(NamedTuple):
    """An image and its mask, as paths below the root; `table` is the number of the table that reads the mask."""

    image: str
    mask: str
    table: int = 0


def beside(root: Path, images: str, masks: str, problems: list[str]) -> list[Pair]:
    """Pair the images below a folder with the masks of the same names below another."""
    if not os.path.isdir(root / images):  # a path's own method fails where the name is too long
        problems.append(f"{root / images}: no such folder of images")
        return []
    names = images_below(root / images)
    pairs = [Pair(f"{images}/{name}", f"{masks}/{PurePosixPath(name).with_suffix('.png')}") for name in names]
    used = {pair.mask for pair in pairs}
    alone = (f"{masks}/{name}" for name in images_below(root / masks))
    problems += [f"{root / mask}: is a mask without an image in {root / images}" for mask in alone if mask not in used]
    return pairs


def images_below(folder: Path) -> list[str]:
    """Return the images in a folder and in its subfolders, as paths below it, in natural order."""
    files = folder.rglob("*") if os.path.isdir(folder) else ()
    found = (path.relative_to(folder) for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted((path.as_posix() for path in found if not any(p[0] == "." for p in path.parts)), key=natural_order)


def pair_of_paths(line: str) -> Pair:
    """Return the pair of a line that holds the paths of an image and of its mask, with or without a slash before."""
    image, mask = (path.lstrip("/") for path in line.split())
    return Pair(image, mask)


def read_list(path: Path) -> list[str]:
    """Return the lines of a list that are not blank; raises UserError."""
    problems: list[str] = []
    found = read_lines(path, problems)
    if problems or not found:
        what = problems[0] if problems else f"{path}: is empty"
        raise UserError(f"{what}; it lists the images of a split, one a line")
    return [line.text for line in found]
