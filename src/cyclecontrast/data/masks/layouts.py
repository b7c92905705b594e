"""Which image belongs to which mask, in the folders of VOC, ADE20K and DAVIS, and in plain ones."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cyclecontrast.data.image_folders import IMAGE_SUFFIXES
from cyclecontrast.data.labeled import LabeledImages, Split
from cyclecontrast.data.labels.text_lines import whole_number
from cyclecontrast.data.masks.codes import IGNORE, Table, black_and_white, figure, labels_as_they_are, labels_from_one
from cyclecontrast.data.masks.files import read_mask
from cyclecontrast.data.masks.pairs import Pair, beside, images_below, pair_of_paths, read_list
from cyclecontrast.errors import UserError

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


class Asked(NamedTuple):
    """What the user decides about the reading; None for what the layout decides."""

    num_classes: int | None = None
    ignore_label: int = IGNORE
    train_list: str = "train"


class Layout(NamedTuple):
    """The pairs of both splits before anybody has looked whether the files are there."""

    name: str
    classes: tuple[str, ...]
    tables: tuple[Table, ...]
    train: Sequence[Pair]
    test: Sequence[Pair]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def read_layout(root: Path, asked: Asked) -> Layout:
    """Recognise the layout by its folders and list its pairs; raises UserError."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name one with {KNOWN}")
    holds = {name for name in SIGNS if (root / name).is_dir()}
    for is_it, read in (
        (holds & {"SegmentationClass", "ImageSets/Segmentation"}, _voc),
        (holds & {"annotations/training", "images/training"}, _ade20k),
        (holds & {"Annotations/480p"}, _davis),
        (holds >= {"frames", "masks"}, _frames),
        (holds & {"train/images", "train/masks"}, _folders),
        (holds & {"images", "masks"}, _lists),
    ):
        if is_it:
            if asked.train_list != "train" and read not in (_voc, _lists):
                raise UserError(f"train_list: {asked.train_list}, but the layout of {root} has no such lists")
            return read(root, asked)
    raise UserError(f"{root}: holds no layout of images with masks; there are: {KNOWN}")


def _voc(root: Path, asked: Asked) -> Layout:
    num_classes = asked.num_classes or len(VOC_CLASSES)
    classes = VOC_CLASSES if num_classes == len(VOC_CLASSES) else map(str, range(num_classes))
    train, test = (
        [_voc_pair(root, line) for line in read_list(root / "ImageSets" / "Segmentation" / f"{name}.txt")]
        for name in (asked.train_list, "val")
    )
    return Layout("voc", tuple(classes), (labels_as_they_are(num_classes, asked.ignore_label),), train, test)


def _voc_pair(root: Path, line: str) -> Pair:
    """Return the pair of a line: an id, or two paths; masks of the extended list lie in a folder beside."""
    if len(line.split()) == 2:
        return pair_of_paths(line)
    masks = [f"{folder}/{line}.png" for folder in ("SegmentationClass", "SegmentationClassAug")]
    # A path's own method fails where the name is too long.
    return Pair(f"JPEGImages/{line}.jpg", next((mask for mask in masks if os.path.exists(root / mask)), masks[0]))


def _ade20k(root: Path, asked: Asked) -> Layout:
    num_classes = asked.num_classes or NUM_ADE_CLASSES
    problems: list[str] = []
    train, test = (beside(root, f"images/{s}", f"annotations/{s}", problems) for s in ("training", "validation"))
    table = labels_from_one(num_classes, asked.ignore_label)
    return Layout("ade20k", _ade_names(root, num_classes), (table,), train, test, (), tuple(problems))


def _ade_names(root: Path, num_classes: int) -> tuple[str, ...]:
    """Return the first name of each class in objectInfo150.txt, else its number."""
    path = root / "objectInfo150.txt"
    rows = [line.split("\t") for line in read_list(path)[1:]] if path.exists() else []
    names = {whole_number(row[0]): row[-1].split(",")[0].strip() for row in rows}
    return tuple(names.get(number, str(number)) for number in range(1, num_classes + 1))


def _davis(root: Path, asked: Asked) -> Layout:
    _refuse_other(root, asked, 2, "DAVIS tells figure and background apart")
    folders = [root / "ImageSets" / name for name in DAVIS_LISTS]
    folder = next((folder for folder in folders if (folder / "val.txt").exists()), None)
    if folder is None:
        raise UserError(f"{root / 'ImageSets'}: holds val.txt in none of {', '.join(DAVIS_LISTS)}")
    problems: list[str] = []
    notes = [f"lists of {folder.relative_to(root)}; every object is figure, the rest background"]
    name, test = "davis", read_list(folder / "val.txt")
    if (folder / "train.txt").exists():
        train = read_list(folder / "train.txt")
    else:
        name = "davis-val-split"
        sequences = sorted({_sequence(line) for line in test})
        learned, tested = sequences[::2], sequences[1::2]
        notes.append(
            f"{folder / 'train.txt'} is not there: the 1st, 3rd, ... sequence of val.txt by name are trained on "
            f"({', '.join(learned)}), the others tested on ({', '.join(tested)})"
        )
        train, test = ([line for line in test if _sequence(line) in chosen] for chosen in (learned, tested))
    pairs = [list(_davis_pairs(root, lines, problems)) for lines in (train, test)]
    return Layout(name, ("background", "figure"), (figure(1),), pairs[0], pairs[1], tuple(notes), tuple(problems))


def _sequence(line: str) -> str:
    return Path(line.split()[0]).parent.name if len(line.split()) == 2 else line


def _davis_pairs(root: Path, lines: Iterable[str], problems: list[str]) -> Iterator[Pair]:
    for line in lines:
        if len(line.split()) == 2:
            yield pair_of_paths(line)
        else:
            yield from beside(root, f"JPEGImages/480p/{line}", f"Annotations/480p/{line}", problems)


def _frames(root: Path, asked: Asked) -> Layout:
    """Read a frame tree whose masks show one figure each: the figure has the label of its video, plus one."""
    images = LabeledImages.open(root)
    _refuse_other(root, asked, len(images.classes) + 1, "its lists name one less, and background is one")
    train, test = (
        [
            Pair(name, str(Path("masks", *Path(name).parts[1:]).with_suffix(".png")), int(label))
            for name, label in zip(split.names.to_pylist(), split.labels, strict=True)
        ]
        for split in (images.train, images.test)
    )
    names = images.classes if (root / "classes.txt").exists() else tuple(_folder_names(images.train, images.classes))
    tables = tuple(figure(label + 1) for label in range(len(names)))
    return Layout("frames", ("background", *names), tables, train, test)


def _folder_names(split: Split, classes: Sequence[str]) -> Iterator[str]:
    for label, name in enumerate(classes):
        videos = (str(video) for video in split.video_ids.filter(split.video_labels == label))
        folders = {Path(video).parts[0] for video in videos}
        yield folders.pop() if len(folders) == 1 else name


def _folders(root: Path, asked: Asked) -> Layout:
    problems: list[str] = []
    train, test = (beside(root, f"{s}/images", f"{s}/masks", problems) for s in ("train", "val"))
    return _plain("folders", root, asked, train, test, problems)


def _lists(root: Path, asked: Asked) -> Layout:
    images = {str(Path(name).with_suffix("")): name for name in images_below(root / "images")}
    train, test = (
        [_plain_pair(images, line) for line in read_list(root / f"{name}.txt")] for name in (asked.train_list, "val")
    )
    return _plain("lists", root, asked, train, test, [])


def _plain_pair(images: dict[str, str], line: str) -> Pair:
    """Return the pair of a line: a name below images/, with or without its suffix."""
    stem = str(Path(line).with_suffix("")) if Path(line).suffix.lower() in IMAGE_SUFFIXES else line
    return Pair(f"images/{images.get(stem, line)}", f"masks/{stem}.png")


def _plain(
    name: str, root: Path, asked: Asked, train: Sequence[Pair], test: Sequence[Pair], problems: list[str]
) -> Layout:
    """Make a layout of masks that hold labels; without a number of classes, the training masks are asked."""
    notes: tuple[str, ...] = ()
    num_classes = asked.num_classes
    if num_classes is None:
        holders = _holders(root, train)
        found = set(holders)
        if found == {0, IGNORE} and asked.ignore_label == IGNORE:
            text = "the training masks hold 0 and 255 alone: read as background and figure; num_classes says otherwise"
            classes = ("background", "figure")
            return Layout(name, classes, (black_and_white(),), train, test, (text,), tuple(problems))
        num_classes = max(found - {asked.ignore_label}, default=0) + 1
        masks = holders.get(num_classes - 1)
        where = f" (in {len(masks)} of {len(train)}, first in {masks[0]})" if masks else ""
        text = f"num_classes: {num_classes}, for the highest label of the training masks is {num_classes - 1}{where}"
        notes = (text,)
    table = labels_as_they_are(min(num_classes, IGNORE), asked.ignore_label)
    return Layout(name, tuple(map(str, range(num_classes))), (table,), train, test, notes, tuple(problems))


def _holders(root: Path, pairs: Iterable[Pair]) -> dict[int, list[str]]:
    """Return the masks that hold each number; what cannot be read is told of when it is loaded."""
    found: dict[int, list[str]] = {}
    for pair in pairs:
        try:
            numbers = np.unique(read_mask(root / pair.mask)).tolist()
        except UserError:
            continue
        for number in numbers:
            found.setdefault(number, []).append(pair.mask)
    return found


def _refuse_other(root: Path, asked: Asked, num_classes: int, why: str) -> None:
    if asked.num_classes not in (None, num_classes):
        raise UserError(f"num_classes: {asked.num_classes}, but {root} has {num_classes} ({why}); leave it out")
