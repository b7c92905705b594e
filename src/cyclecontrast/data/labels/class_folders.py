"""Folders of classes: train/<class> and val/<class>, or ImageNet's flat val (imagenet.py); a list may choose some."""

from collections.abc import Mapping
from pathlib import Path

from cyclecontrast.data.labels.class_list import ClassList
from cyclecontrast.data.labels.imagenet import is_flat, read_flat
from cyclecontrast.data.labels.split import Contents, Split, Video, images_below, is_visible, make_split
from cyclecontrast.data.labels.text_lines import raise_problems
from cyclecontrast.errors import UserError


def open_folders(root: Path, chosen: ClassList | None) -> Contents:
    """Read all classes, or those chosen; labels are places in the sorted names. Raises UserError."""
    absent = [split for split in ("train", "val") if not (root / split).is_dir()]
    if absent:
        raise UserError(f"{root / absent[0]}: no such folder; train/<class> and val/<class> belong together")
    problems: list[str] = []
    flat = read_flat(root, problems) if is_flat(root / "val") else None
    raise_problems(problems)
    train, val = _classes(root / "train"), _classes(root / "val") if flat is None else set(flat)
    problems += _mismatched(root, train, val) if chosen is None else _absent(root, train, val, chosen)
    classes = tuple(sorted(train & val if chosen is None else train & val & chosen.where.keys()))
    images = {name: list(images_below(root, f"train/{name}")) for name in classes}
    train_split = _split(root, "train", images, problems)
    if flat is None:
        images = {name: list(images_below(root, f"val/{name}")) for name in classes}
    else:
        images = {name: flat[name] for name in classes}
    val_split = _split(root, "val", images, problems)
    raise_problems(problems)
    return Contents(classes, train_split, val_split)


def _classes(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and is_visible(entry.name)}


def _absent(root: Path, train: set[str], val: set[str], chosen: ClassList) -> list[str]:
    return [*chosen.absent(train, root / "train"), *chosen.absent(val, root / "val")]


def _mismatched(root: Path, train: set[str], val: set[str]) -> list[str]:
    problems = [
        f"{root / there}: class {name!r} is not in {root / other}; both need the same classes, "
        "or name those to use with --classes FILE"
        for there, other, names in (("train", "val", train - val), ("val", "train", val - train))
        for name in sorted(names)
    ]
    return problems if train | val else [f"{root / 'train'}: holds no folders of classes"]


def _split(root: Path, split: str, images: Mapping[str, list[str]], problems: list[str]) -> Split:
    problems += [f"{root / split / name}: holds no images" for name, found in images.items() if not found]
    return make_split(
        root, [Video(image, label, [image]) for label, name in enumerate(images) for image in images[name]]
    )
