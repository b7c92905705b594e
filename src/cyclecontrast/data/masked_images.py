"""Images with a label per pixel, to segment: which file has which mask; pixels are decoded only when asked for."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.data.labels.text_lines import leads_out, raise_problems
from cyclecontrast.data.masks.codes import Table, to_labels
from cyclecontrast.data.masks.files import read_image, read_mask
from cyclecontrast.data.masks.layouts import Asked, read_layout
from cyclecontrast.data.masks.pairs import Pair
from cyclecontrast.errors import UserError

MAX_CLASSES = 255


@dataclass(frozen=True)
class MaskedSplit:
    """Images of one split, and how their masks are read."""

    root: Path
    pairs: tuple[Pair, ...]
    tables: tuple[Table, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, position: int) -> Pixels:
        """Return RGB and the label, uint8 (height, width, 4); raises UserError naming the file.

        Labels are class numbers, and IGNORE (255) where a pixel counts for nothing.
        """
        pair = self.pairs[position]
        pixels, indices = read_image(self.root / pair.image), read_mask(self.root / pair.mask)
        if pixels.shape[:2] != indices.shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (indices.shape, pixels.shape)]
            raise UserError(
                f"{self.root / pair.mask}: is {sizes[0]}, but its image {self.root / pair.image} is {sizes[1]}; "
                "mend or remove one"
            )
        return np.dstack([pixels, to_labels(indices, self.tables[pair.table], self.root / pair.mask)])


@dataclass(frozen=True)
class MaskedImages:
    """What segmentation is trained and tested on; labels index `classes`.

    `problems` has a line for each image or mask that is not there; `notes` says what the layout left open.
    """

    root: Path
    layout: str
    classes: tuple[str, ...]
    train: MaskedSplit
    test: MaskedSplit
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    @staticmethod
    def open(path: str | Path, asked: Asked = Asked()) -> "MaskedImages":  # noqa: B008
        """Read a folder of images with masks (masks/layouts.py says which); raises UserError."""
        root = Path(path)
        layout = read_layout(root, asked)
        num_classes = len(layout.classes)
        if not 2 <= num_classes <= MAX_CLASSES:
            raise UserError(f"{root}: {num_classes} classes; segmentation takes 2 to {MAX_CLASSES}, see num_classes")
        problems = list(layout.problems)
        train, test = (
            MaskedSplit(root, tuple(_present(root, pairs, problems)), layout.tables)
            for pairs in (layout.train, layout.test)
        )
        for name, split in (("train", train), ("test", test)):
            if not split.pairs:
                raise_problems([f"{root}: has no image with a mask to {name} on", *problems])
        both = len({pair.image for pair in train.pairs} & {pair.image for pair in test.pairs})
        notes = (*layout.notes, *([f"images both trained on and tested on: {both}"] if both else []))
        return MaskedImages(root, layout.name, layout.classes, train, test, notes, tuple(problems))

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: names, sizes and tables of both splits, and the masks' bytes; 16 hex digits."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for table in self.train.tables:
            digest.update(table.tobytes())
        try:
            for split in (self.train, self.test):
                digest.update(repr(len(split)).encode())
                for pair in split.pairs:
                    digest.update(repr((*pair, os.stat(self.root / pair.image).st_size)).encode())
                    digest.update(hashlib.sha256((self.root / pair.mask).read_bytes()).digest())
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from error
        return digest.hexdigest()[:16]


def _present(root: Path, pairs: Sequence[Pair], problems: list[str]) -> Iterator[Pair]:
    for pair in pairs:
        # A path's own method fails where the name is too long.
        absent = [name for name in (pair.image, pair.mask) if not os.path.isfile(root / name)]
        if pair.image != pair.image.encode(errors="replace").decode():
            problems.append(f"{root}: the name {pair.image!r} is not UTF-8; rename it")
        elif leads_out(pair.image) or leads_out(pair.mask):
            problems.append(f"{root}: a list names {pair.image!r}, which leads out of this folder")
        elif not absent:
            yield pair
        elif absent == [pair.mask]:
            problems.append(f"{root / pair.image}: has no mask; {root / pair.mask} is not there")
        else:
            problems.append(f"{root / pair.image}: no such file; its list names it")
