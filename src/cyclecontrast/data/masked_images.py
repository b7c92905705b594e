"""Images with a label per pixel, for segmentation: VOC, ADE20K, DAVIS and plain folders.

Opening a dataset pairs images with masks and defines the label of each mask value; images are decoded on access.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.folders import IMAGE_SUFFIXES, images_below, natural_order
from cyclecontrast.data.images import Indices, Pixels, read_image, read_mask
from cyclecontrast.data.labeled_images import LabeledImages
from cyclecontrast.data.storage import file_digest, file_size, is_outside, parse_digits, raise_problems, read_lines
from cyclecontrast.errors import UserError, attempt

MAX_CLASSES = 255
MAX_INFERRED = 200
"""More classes are taken for smoothed edges unless the number is set."""
SHOWN = 3
IGNORE = 255
"""The label of pixels that are not scored. Mask files may use another value."""
UNKNOWN = -1
NUM_VALUES = 256
Table = npt.NDArray[np.int16]
"""Lookup table (256,) from mask value to label: a class, IGNORE, or UNKNOWN."""

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
NUM_ADE_CLASSES = 150
DAVIS_LISTS = ("2017", "2016", "480p")
KNOWN = (
    "JPEGImages + SegmentationClass + ImageSets/Segmentation (VOC), "
    "images/training + annotations/training (ADE20K), JPEGImages/480p + Annotations/480p + ImageSets (DAVIS), "
    "train/images + train/masks + val/images + val/masks, images + masks + train.txt + val.txt, "
    "or frames + masks + train.txt + test.txt"
)


class Pair(NamedTuple):
    """An image and its mask, as paths below the root; `table` is the index of its lookup table."""

    image: str
    mask: str
    table: int = 0


class _Layout(NamedTuple):
    """The pairs of both splits, before it is known whether the files are there."""

    name: str
    classes: tuple[str, ...]
    tables: tuple[Table, ...]
    train: Sequence[Pair]
    test: Sequence[Pair]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class _Options(NamedTuple):
    num_classes: int | None
    ignore_label: int
    train_list: str


@dataclass(frozen=True)
class MaskedSplit:
    """Images of one split, and how their masks are read."""

    root: Path
    pairs: tuple[Pair, ...]
    tables: tuple[Table, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self) -> Iterator[str]:
        """Yield the path of each image."""
        return (f"{self.root}/{pair.image}" for pair in self.pairs)

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
        """Read a folder of images with masks of a known layout; raises UserError.

        `num_classes`: None for what the layout says. `ignore_label`: the number in the masks of pixels that are not
        scored. `train_list`: the list to train on, where the layout has several.
        """
        root = Path(path)
        layout = _read_layout(root, _Options(num_classes, ignore_label, train_list))
        problems = list(layout.problems)
        train, test = (
            MaskedSplit(root, tuple(_present(root, pairs, problems)), layout.tables)
            for pairs in (layout.train, layout.test)
        )
        for name, split in (("train", train), ("test", test)):
            if not split.pairs:
                raise_problems([f"{root}: has no image with a mask to {name} on", *problems])
        if not 2 <= len(layout.classes) <= MAX_CLASSES:
            raise UserError(
                f"{root}: {len(layout.classes)} classes; segmentation takes 2 to {MAX_CLASSES}, see num_classes"
            )
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
        absent = [name for name in (pair.image, pair.mask) if not os.path.isfile(root / name)]
        if pair.image != pair.image.encode(errors="replace").decode():
            problems.append(f"{root}: the name {pair.image!r} is not UTF-8; rename it")
        elif is_outside(pair.image) or is_outside(pair.mask):
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
        numbers = np.flatnonzero(table != UNKNOWN)
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
        known = ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
        raise UserError(f"{path}: holds the label {wrong}, which is none of {known}; fix or remove it")
    return labels.astype(np.uint8)


def _read_layout(root: Path, options: _Options) -> _Layout:
    """Recognize the layout by its folders and list its pairs; raises UserError."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name one with {KNOWN}")
    found = {name for names, _ in SIGNS for name in names if (root / name).is_dir()}
    for names, read in SIGNS:
        if found.issuperset(names) if read is _frame_tree else found.intersection(names):
            if options.train_list != "train" and read not in (_voc, _lists):
                raise UserError(f"train_list: {options.train_list}, but the layout of {root} has no such lists")
            return read(root, options)
    raise UserError(f"{root}: holds no layout of images with masks; the known ones are: {KNOWN}")


def _table(labels: npt.NDArray[np.integer], ignore_label: int) -> Table:
    """Return the table in which number i has `labels[i]`, and one number is to be ignored."""
    table = np.full(NUM_VALUES, UNKNOWN, np.int16)
    table[: len(labels)] = labels
    table[ignore_label] = IGNORE
    return table


def _foreground_table(label: int) -> Table:
    """Return the lookup table of a foreground object: 0 is background, all other values have this label."""
    table: Table = np.full(NUM_VALUES, label, np.int16)
    table[0] = 0
    return table


# --- pairs, by folder or by list


def _pair_folders(root: Path, images: str, masks: str, problems: list[str]) -> list[Pair]:
    """Pair the images below a folder with the masks of the same names, but for the suffix, below another."""
    if not os.path.isdir(root / images):
        problems.append(f"{root / images}: no such folder of images")
        return []
    names = sorted(images_below(root / images), key=natural_order)
    found = _by_stem(root / masks)
    stems = (str(PurePosixPath(name).with_suffix("")) for name in names)
    pairs = [
        Pair(f"{images}/{name}", f"{masks}/{found.get(stem, f'{stem}.png')}")
        for name, stem in zip(names, stems, strict=True)
    ]
    used = {pair.mask for pair in pairs}
    alone = (f"{masks}/{name}" for name in images_below(root / masks))
    problems += [f"{root / mask}: is a mask without an image in {root / images}" for mask in alone if mask not in used]
    return pairs


def _by_stem(folder: Path) -> dict[str, str]:
    """Return the images below a folder by their paths without suffix; of several, the PNG."""
    names = sorted(images_below(folder), key=lambda name: (name.lower().endswith(".png"), name))
    return {str(PurePosixPath(name).with_suffix("")): name for name in names}


def _pair_of_paths(line: str) -> Pair:
    """Return the pair of a line with the paths of an image and its mask, which may begin with a slash."""
    image, mask = (path.lstrip("/") for path in line.split())
    return Pair(image, mask)


def _read_list(path: Path) -> list[str]:
    problems: list[str] = []
    lines = [text for _, text in read_lines(path, problems)]
    if problems or not lines:
        what = problems[0] if problems else f"{path}: is empty"
        raise UserError(f"{what}; it lists the images of a split, one a line")
    return lines


# --- the layouts


def _voc(root: Path, options: _Options) -> _Layout:
    """Read lists of ids or of two paths; masks of the extended list lie in another folder."""
    num_classes = options.num_classes or len(VOC_CLASSES)
    classes = VOC_CLASSES if num_classes == len(VOC_CLASSES) else map(str, range(num_classes))

    def pair(line: str) -> Pair:
        if len(line.split()) == 2:
            return _pair_of_paths(line)
        masks = [f"{folder}/{line}.png" for folder in ("SegmentationClass", "SegmentationClassAug")]
        return Pair(f"JPEGImages/{line}.jpg", next((mask for mask in masks if os.path.exists(root / mask)), masks[0]))

    lists = (root / "ImageSets/Segmentation" / f"{name}.txt" for name in (options.train_list, "val"))
    train, test = ([pair(line) for line in _read_list(path)] for path in lists)
    return _Layout("voc", tuple(classes), (_table(np.arange(num_classes), options.ignore_label),), train, test)


def _ade20k(root: Path, options: _Options) -> _Layout:
    """Classes are numbered from 1, and 0 is to be ignored."""
    num_classes = options.num_classes or NUM_ADE_CLASSES
    problems: list[str] = []
    train, test = (_pair_folders(root, f"images/{s}", f"annotations/{s}", problems) for s in ("training", "validation"))
    table = _table(np.r_[IGNORE, np.arange(num_classes)], options.ignore_label)
    path = root / "objectInfo150.txt"  # the first name of each class, by number
    rows = [line.split("\t") for line in _read_list(path)[1:]] if path.exists() else []
    names = {parse_digits(row[0]): row[-1].split(",")[0].strip() for row in rows}
    classes = tuple(names.get(number, str(number)) for number in range(1, num_classes + 1))
    return _Layout("ade20k", classes, (table,), train, test, (), tuple(problems))


def _davis(root: Path, options: _Options) -> _Layout:
    _check_num_classes(root, options, 2, "DAVIS has figure and background")
    folders = [root / "ImageSets" / name for name in DAVIS_LISTS]
    folder = next((folder for folder in folders if (folder / "val.txt").exists()), None)
    if folder is None:
        raise UserError(f"{root / 'ImageSets'}: holds val.txt in none of {', '.join(DAVIS_LISTS)}")
    problems: list[str] = []
    notes = [f"lists of {folder.relative_to(root)}; every object is figure, the rest background"]
    name, test = "davis", _read_list(folder / "val.txt")
    if (folder / "train.txt").exists():
        train = _read_list(folder / "train.txt")
    else:
        name = "davis-val-split"
        sequences = sorted({_sequence(line) for line in test})
        trained, tested = sequences[::2], sequences[1::2]
        notes.append(
            f"{folder / 'train.txt'} is not there: the 1st, 3rd, ... sequence of val.txt by name are trained on "
            f"({', '.join(trained)}), the others tested on ({', '.join(tested)})"
        )
        train, test = ([line for line in test if _sequence(line) in chosen] for chosen in (trained, tested))
    pairs = [list(_davis_pairs(root, lines, problems)) for lines in (train, test)]
    tables = (_foreground_table(1),)
    return _Layout(name, ("background", "figure"), tables, pairs[0], pairs[1], tuple(notes), tuple(problems))


def _sequence(line: str) -> str:
    return Path(line.split()[0]).parent.name if len(line.split()) == 2 else line


def _davis_pairs(root: Path, lines: Iterable[str], problems: list[str]) -> Iterator[Pair]:
    for line in lines:
        if len(line.split()) == 2:
            yield _pair_of_paths(line)
        else:
            yield from _pair_folders(root, f"JPEGImages/480p/{line}", f"Annotations/480p/{line}", problems)


def _frame_tree(root: Path, options: _Options) -> _Layout:
    """Read a frame tree whose masks show one figure each: the figure has the label of its video, plus one."""
    images = LabeledImages.open(root)
    _check_num_classes(root, options, len(images.classes) + 1, "its lists name one less, and background is one")
    train, test = (
        [
            Pair(name, str(Path("masks", *Path(name).parts[1:]).with_suffix(".png")), int(label))
            for name, label in zip(split.names.to_pylist(), split.labels, strict=True)
        ]
        for split in (images.train, images.test)
    )
    names = images.classes
    if not (root / "classes.txt").exists():  # a class is named after the folder that all its videos lie in
        by_label: dict[int, set[str]] = {}
        for video, label in zip(images.train.video_ids.to_pylist(), images.train.video_labels.tolist(), strict=True):
            by_label.setdefault(label, set()).add(Path(video).parts[0])
        folders = [by_label.get(label, set()) for label in range(len(names))]
        names = tuple(min(inside) if len(inside) == 1 else name for inside, name in zip(folders, names, strict=True))
    tables = tuple(_foreground_table(label + 1) for label in range(len(names)))
    return _Layout("frames", ("background", *names), tables, train, test)


def _folders(root: Path, options: _Options) -> _Layout:
    problems: list[str] = []
    train, test = (_pair_folders(root, f"{s}/images", f"{s}/masks", problems) for s in ("train", "val"))
    return _plain("folders", root, options, train, test, problems)


def _lists(root: Path, options: _Options) -> _Layout:
    """Read lists of names below images/, with or without their suffixes."""
    images, masks = _by_stem(root / "images"), _by_stem(root / "masks")

    def pair(line: str) -> Pair:
        stem = str(Path(line).with_suffix("")) if Path(line).suffix.lower() in IMAGE_SUFFIXES else line
        return Pair(f"images/{images.get(stem, line)}", f"masks/{masks.get(stem, f'{stem}.png')}")

    lists = (root / f"{name}.txt" for name in (options.train_list, "val"))
    train, test = ([pair(line) for line in _read_list(path)] for path in lists)
    return _plain("lists", root, options, train, test, [])


def _plain(
    name: str, root: Path, options: _Options, train: Sequence[Pair], test: Sequence[Pair], problems: list[str]
) -> _Layout:
    """Make a layout of masks that hold labels; without a number of classes, the training masks decide."""
    notes: tuple[str, ...] = ()
    num_classes = options.num_classes
    if num_classes is None:
        unreadable: list[str] = []
        holders = _holders(root, train, unreadable)
        if unreadable and not holders:
            raise UserError(f"{root}: none of its training masks can be read", *unreadable[:SHOWN])
        found = set(holders)
        if found == {0, IGNORE} and options.ignore_label == IGNORE:
            note = "the training masks hold 0 and 255 alone: read as background and figure, unless num_classes is set"
            table = np.full(NUM_VALUES, UNKNOWN, np.int16)
            table[[0, 255]] = 0, 1
            return _Layout(name, ("background", "figure"), (table,), train, test, (note,), tuple(problems))
        num_classes = max(found - {options.ignore_label}, default=0) + 1
        masks = holders.get(num_classes - 1)
        where = f" (in {len(masks)} of {len(train)}, first in {masks[0]})" if masks else ""
        if num_classes > MAX_INFERRED:
            raise UserError(
                f"{root}: the training masks hold {len(found)} numbers up to {num_classes - 1}{where}; if they are "
                "labels and no smooth edges, set num_classes; otherwise save masks with one number for each class"
            )
        notes = (
            f"num_classes: {num_classes}, for the highest label of the training masks is {num_classes - 1}{where}",
        )
        figures = [mask for mask in holders.get(IGNORE, ()) if mask not in (masks or ())]
        if num_classes == 2 and options.ignore_label == IGNORE and figures:
            notes = (*notes, f"in {len(figures)} masks, 255 is ignored and no pixel is 1, such as in {figures[0]}")
    tables = (_table(np.arange(min(num_classes, IGNORE)), options.ignore_label),)
    return _Layout(name, tuple(map(str, range(num_classes))), tables, train, test, notes, tuple(problems))


def _holders(root: Path, pairs: Iterable[Pair], unreadable: list[str]) -> dict[int, list[str]]:
    """Return the masks that hold each number; why others cannot be read is added to `unreadable`."""
    found: dict[int, list[str]] = {}
    for pair in pairs:
        if os.path.isfile(root / pair.mask):
            values = attempt(partial(read_mask, root / pair.mask), unreadable)
            for number in np.unique(values).tolist() if values is not None else ():
                found.setdefault(number, []).append(pair.mask)
    return found


def _check_num_classes(root: Path, options: _Options, num_classes: int, why: str) -> None:
    if options.num_classes not in (None, num_classes):
        raise UserError(f"num_classes: {options.num_classes}, but {root} has {num_classes} ({why}); leave it out")


SIGNS: tuple[tuple[tuple[str, ...], Callable[[Path, _Options], _Layout]], ...] = (
    (("SegmentationClass", "ImageSets/Segmentation"), _voc),
    (("annotations/training", "images/training"), _ade20k),
    (("Annotations/480p",), _davis),
    (("frames", "masks"), _frame_tree),
    (("train/images", "train/masks"), _folders),
    (("images", "masks"), _lists),
)
"""A layout is recognized by any of these folders, a frame tree by both."""
