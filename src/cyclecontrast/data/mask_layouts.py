"""Which image belongs to which mask, and what the numbers in masks mean: VOC, ADE20K, DAVIS, and plain folders."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cyclecontrast.data.folders import IMAGE_SUFFIXES, images_below, natural_order
from cyclecontrast.data.images import read_mask
from cyclecontrast.data.labeled_images import LabeledImages, Split
from cyclecontrast.data.text_lines import read_lines, whole_number
from cyclecontrast.errors import UserError

IGNORE = 255
"""The label of pixels that are not scored, whatever number they have in the file."""
UNKNOWN = -1
NUM_VALUES = 256
Table = npt.NDArray[np.int16]
"""Label of each number in a mask's file (256,): a class, IGNORE, or UNKNOWN."""

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
NUM_ADE_CLASSES = 150
DAVIS_LISTS = ("2017", "2016", "480p")
SIGNS = (
    *("SegmentationClass", "ImageSets/Segmentation", "annotations/training", "images/training", "Annotations/480p"),
    *("frames", "masks", "images", "train/images", "train/masks"),
)
KNOWN = (
    "JPEGImages + SegmentationClass + ImageSets/Segmentation (VOC), "
    "images/training + annotations/training (ADE20K), JPEGImages/480p + Annotations/480p + ImageSets (DAVIS), "
    "train/images + train/masks + val/images + val/masks, images + masks + train.txt + val.txt, "
    "or frames + masks + train.txt + test.txt"
)


class Pair(NamedTuple):
    """An image and its mask, as paths below the root; `table` is the number of the table for the mask."""

    image: str
    mask: str
    table: int = 0


class Layout(NamedTuple):
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


def read_layout(root: Path, num_classes: int | None, ignore_label: int, train_list: str) -> Layout:
    """Recognize the layout by its folders and list its pairs; raises UserError."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name one with {KNOWN}")
    found = {name for name in SIGNS if (root / name).is_dir()}
    options = _Options(num_classes, ignore_label, train_list)
    for is_it, read in (
        (found & {"SegmentationClass", "ImageSets/Segmentation"}, _voc),
        (found & {"annotations/training", "images/training"}, _ade20k),
        (found & {"Annotations/480p"}, _davis),
        (found >= {"frames", "masks"}, _frame_tree),
        (found & {"train/images", "train/masks"}, _folders),
        (found & {"images", "masks"}, _lists),
    ):
        if is_it:
            if train_list != "train" and read not in (_voc, _lists):
                raise UserError(f"train_list: {train_list}, but the layout of {root} has no such lists")
            return read(root, options)
    raise UserError(f"{root}: holds no layout of images with masks; the known ones are: {KNOWN}")


# --- the meaning of the numbers in masks


def _table(labels: npt.NDArray[np.integer], ignore_label: int) -> Table:
    """Return the table in which number i has `labels[i]`, and one number is to be ignored."""
    table = np.full(NUM_VALUES, UNKNOWN, np.int16)
    table[: len(labels)] = labels
    table[ignore_label] = IGNORE
    return table


def _figure_table(label: int) -> Table:
    """Return the table of a figure on a background: 0 stays, and every other number is this label."""
    table: Table = np.full(NUM_VALUES, label, np.int16)
    table[0] = 0
    return table


def _black_and_white_table() -> Table:
    """Return the table of masks that hold 0 for the background and 255 for the figure."""
    table: Table = np.full(NUM_VALUES, UNKNOWN, np.int16)
    table[[0, NUM_VALUES - 1]] = 0, 1
    return table


# --- pairs, by folder or by list


def _pair_folders(root: Path, images: str, masks: str, problems: list[str]) -> list[Pair]:
    """Pair the images below a folder with the masks of the same names below another."""
    if not os.path.isdir(root / images):  # Path.is_dir raises where the name is too long
        problems.append(f"{root / images}: no such folder of images")
        return []
    names = _sorted_images(root / images)
    pairs = [Pair(f"{images}/{name}", f"{masks}/{PurePosixPath(name).with_suffix('.png')}") for name in names]
    used = {pair.mask for pair in pairs}
    alone = (f"{masks}/{name}" for name in _sorted_images(root / masks))
    problems += [f"{root / mask}: is a mask without an image in {root / images}" for mask in alone if mask not in used]
    return pairs


def _sorted_images(folder: Path) -> list[str]:
    return sorted(images_below(folder), key=natural_order)


def _pair_of_paths(line: str) -> Pair:
    """Return the pair of a line with the paths of an image and its mask, which may begin with a slash."""
    image, mask = (path.lstrip("/") for path in line.split())
    return Pair(image, mask)


def _read_list(path: Path) -> list[str]:
    problems: list[str] = []
    lines = [line.text for line in read_lines(path, problems)]
    if problems or not lines:
        what = problems[0] if problems else f"{path}: is empty"
        raise UserError(f"{what}; it lists the images of a split, one a line")
    return lines


# --- the layouts


def _voc(root: Path, options: _Options) -> Layout:
    num_classes = options.num_classes or len(VOC_CLASSES)
    classes = VOC_CLASSES if num_classes == len(VOC_CLASSES) else map(str, range(num_classes))
    train, test = (
        [_voc_pair(root, line) for line in _read_list(root / "ImageSets" / "Segmentation" / f"{name}.txt")]
        for name in (options.train_list, "val")
    )
    return Layout("voc", tuple(classes), (_table(np.arange(num_classes), options.ignore_label),), train, test)


def _voc_pair(root: Path, line: str) -> Pair:
    """Return the pair of a line: an id, or two paths; masks of the extended list lie in another folder."""
    if len(line.split()) == 2:
        return _pair_of_paths(line)
    masks = [f"{folder}/{line}.png" for folder in ("SegmentationClass", "SegmentationClassAug")]
    # Path.exists raises where the name is too long.
    return Pair(f"JPEGImages/{line}.jpg", next((mask for mask in masks if os.path.exists(root / mask)), masks[0]))


def _ade20k(root: Path, options: _Options) -> Layout:
    """Classes are numbered from 1, and 0 is to be ignored."""
    num_classes = options.num_classes or NUM_ADE_CLASSES
    problems: list[str] = []
    train, test = (_pair_folders(root, f"images/{s}", f"annotations/{s}", problems) for s in ("training", "validation"))
    table = _table(np.r_[IGNORE, np.arange(num_classes)], options.ignore_label)
    return Layout("ade20k", _ade_names(root, num_classes), (table,), train, test, (), tuple(problems))


def _ade_names(root: Path, num_classes: int) -> tuple[str, ...]:
    """Return the first name of each class in objectInfo150.txt, else its number."""
    path = root / "objectInfo150.txt"
    rows = [line.split("\t") for line in _read_list(path)[1:]] if path.exists() else []
    names = {whole_number(row[0]): row[-1].split(",")[0].strip() for row in rows}
    return tuple(names.get(number, str(number)) for number in range(1, num_classes + 1))


def _davis(root: Path, options: _Options) -> Layout:
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
    tables = (_figure_table(1),)
    return Layout(name, ("background", "figure"), tables, pairs[0], pairs[1], tuple(notes), tuple(problems))


def _sequence(line: str) -> str:
    return Path(line.split()[0]).parent.name if len(line.split()) == 2 else line


def _davis_pairs(root: Path, lines: Iterable[str], problems: list[str]) -> Iterator[Pair]:
    for line in lines:
        if len(line.split()) == 2:
            yield _pair_of_paths(line)
        else:
            yield from _pair_folders(root, f"JPEGImages/480p/{line}", f"Annotations/480p/{line}", problems)


def _frame_tree(root: Path, options: _Options) -> Layout:
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
    names = images.classes if (root / "classes.txt").exists() else tuple(_folder_names(images.train, images.classes))
    tables = tuple(_figure_table(label + 1) for label in range(len(names)))
    return Layout("frames", ("background", *names), tables, train, test)


def _folder_names(split: Split, classes: Sequence[str]) -> Iterator[str]:
    """Yield the folder that all videos of a class lie in, or the name of the class where there are several."""
    for label, name in enumerate(classes):
        videos = (str(video) for video in split.video_ids.filter(split.video_labels == label))
        folders = {Path(video).parts[0] for video in videos}
        yield folders.pop() if len(folders) == 1 else name


def _folders(root: Path, options: _Options) -> Layout:
    problems: list[str] = []
    train, test = (_pair_folders(root, f"{s}/images", f"{s}/masks", problems) for s in ("train", "val"))
    return _plain("folders", root, options, train, test, problems)


def _lists(root: Path, options: _Options) -> Layout:
    images = {str(Path(name).with_suffix("")): name for name in _sorted_images(root / "images")}
    train, test = (
        [_plain_pair(images, line) for line in _read_list(root / f"{name}.txt")] for name in (options.train_list, "val")
    )
    return _plain("lists", root, options, train, test, [])


def _plain_pair(images: dict[str, str], line: str) -> Pair:
    """Return the pair of a line: a name below images/, with or without its suffix."""
    stem = str(Path(line).with_suffix("")) if Path(line).suffix.lower() in IMAGE_SUFFIXES else line
    return Pair(f"images/{images.get(stem, line)}", f"masks/{stem}.png")


def _plain(
    name: str, root: Path, options: _Options, train: Sequence[Pair], test: Sequence[Pair], problems: list[str]
) -> Layout:
    """Make a layout of masks that hold labels; without a number of classes, the training masks decide."""
    notes: tuple[str, ...] = ()
    num_classes = options.num_classes
    if num_classes is None:
        holders = _holders(root, train)
        found = set(holders)
        if found == {0, IGNORE} and options.ignore_label == IGNORE:
            note = "the training masks hold 0 and 255 alone: read as background and figure, unless num_classes is set"
            classes, tables = ("background", "figure"), (_black_and_white_table(),)
            return Layout(name, classes, tables, train, test, (note,), tuple(problems))
        num_classes = max(found - {options.ignore_label}, default=0) + 1
        masks = holders.get(num_classes - 1)
        where = f" (in {len(masks)} of {len(train)}, first in {masks[0]})" if masks else ""
        notes = (
            f"num_classes: {num_classes}, for the highest label of the training masks is {num_classes - 1}{where}",
        )
    tables = (_table(np.arange(min(num_classes, IGNORE)), options.ignore_label),)
    return Layout(name, tuple(map(str, range(num_classes))), tables, train, test, notes, tuple(problems))


def _holders(root: Path, pairs: Iterable[Pair]) -> dict[int, list[str]]:
    """Return the masks that hold each number; masks that cannot be read are reported when they are loaded."""
    found: dict[int, list[str]] = {}
    for pair in pairs:
        try:
            numbers = np.unique(read_mask(root / pair.mask)).tolist()
        except UserError:
            continue
        for number in numbers:
            found.setdefault(number, []).append(pair.mask)
    return found


def _check_num_classes(root: Path, options: _Options, num_classes: int, why: str) -> None:
    if options.num_classes not in (None, num_classes):
        raise UserError(f"num_classes: {options.num_classes}, but {root} has {num_classes} ({why}); leave it out")
