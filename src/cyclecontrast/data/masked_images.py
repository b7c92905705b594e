"""Images with a label per pixel, for segmentation: which file has which mask; pixels are decoded when they are read."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cyclecontrast.data.images import Indices, Pixels, read_image, read_mask
from cyclecontrast.data.mask_layouts import IGNORE, NUM_VALUES, UNKNOWN, Pair, Table, read_layout
from cyclecontrast.data.storage import file_digest, file_size
from cyclecontrast.data.text_lines import leads_out, raise_problems
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

        Labels are class numbers, and IGNORE (255) where a pixel is not scored.
        """
        pair = self.pairs[position]
        pixels, indices = read_image(self.root / pair.image), read_mask(self.root / pair.mask)
        if pixels.shape[:2] != indices.shape:
            mask_size, image_size = (f"{shape[1]}x{shape[0]}" for shape in (indices.shape, pixels.shape))
            raise UserError(
                f"{self.root / pair.mask}: is {mask_size}, but its image {self.root / pair.image} is {image_size}; "
                "fix or remove one"
            )
        return np.dstack([pixels, _to_labels(indices, self.tables[pair.table], self.root / pair.mask)])


@dataclass(frozen=True)
class MaskedImages:
    """Images to train and test a segmentation on; labels index `classes`.

    `problems` has a line for each image or mask that is not there; `notes` says how the layout was interpreted.
    """

    root: Path
    layout: str
    classes: tuple[str, ...]
    train: MaskedSplit
    test: MaskedSplit
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    @staticmethod
    def open(
        path: str | Path, num_classes: int | None = None, ignore_label: int = IGNORE, train_list: str = "train"
    ) -> "MaskedImages":
        """Read a folder of images with masks (mask_layouts.py has the layouts); raises UserError.

        `num_classes`: None for what the layout says. `ignore_label`: the number in the masks of pixels that are not
        scored. `train_list`: the list to train on, where the layout has several.
        """
        root = Path(path)
        layout = read_layout(root, num_classes, ignore_label, train_list)
        if not 2 <= len(layout.classes) <= MAX_CLASSES:
            raise UserError(
                f"{root}: {len(layout.classes)} classes; segmentation takes 2 to {MAX_CLASSES}, see num_classes"
            )
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
        """Identifier of the content: names, sizes and tables of both splits, and the masks' bytes; 16 hex digits."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for table in self.train.tables:
            digest.update(table.tobytes())
        for split in (self.train, self.test):
            digest.update(repr(len(split)).encode())
            for pair in split.pairs:
                digest.update(repr((*pair, file_size(self.root / pair.image))).encode())
                digest.update(file_digest(self.root / pair.mask))
        return digest.hexdigest()[:16]


def _present(root: Path, pairs: Sequence[Pair], problems: list[str]) -> Iterator[Pair]:
    """Yield the pairs of which both files are there; the others are added to `problems`."""
    for pair in pairs:
        # Path.is_file raises where the name is too long.
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


def _to_labels(indices: Indices, table: Table, path: Path) -> Pixels:
    """Return the labels uint8 (height, width) of a mask; raises UserError where a number has none."""
    high = int(indices.max(initial=0))
    labels = table[indices] if indices.min(initial=0) >= 0 and high < NUM_VALUES else None
    if labels is None or (labels == UNKNOWN).any():
        wrong = high if labels is None else int(indices[labels == UNKNOWN].max())
        raise UserError(f"{path}: holds the label {wrong}, which is none of {_known(table)}; fix or remove it")
    return labels.astype(np.uint8)


def _known(table: Table) -> str:
    numbers = np.flatnonzero(table != UNKNOWN)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
