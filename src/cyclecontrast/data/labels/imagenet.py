"""ImageNet's validation images as they are unpacked: one flat folder, whose labels stand in two files beside it.

`ILSVRC2012_validation_ground_truth.txt` has the id of each image's class, `meta_clsloc.mat` the WordNet id of each id
(protocols.md §b).
"""

import re
from collections.abc import Mapping
from pathlib import Path

from cyclecontrast.data.labels.mat_file import read_records
from cyclecontrast.data.labels.text_lines import read_lines, whole_number

FLAT_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS = ("meta_clsloc.mat", "meta.mat")


def is_flat(folder: Path) -> bool:
    """Whether the images lie in the folder itself."""
    return folder.is_dir() and any(FLAT_IMAGE.fullmatch(path.name) for path in folder.iterdir())


def read_flat(root: Path, problems: list[str]) -> dict[str, list[str]]:
    """Return the images of <root>/val by class, paths below the root; what is wrong is added to `problems`."""
    images = _images(root / "val")
    synsets, ground_truth = _find(root, SYNSETS, problems), _find(root, (GROUND_TRUTH,), problems)
    if synsets is None or ground_truth is None:
        return {}
    wnids = _read_synsets(synsets, problems)
    labels = _read_ids(ground_truth, wnids, problems) if wnids else []
    if wnids and len(labels) != len(images):
        problems.append(
            f"{ground_truth}: has {len(labels):,} lines for the {len(images):,} images of {root / 'val'}; "
            "unpack all of them again"
        )
    gaps = sorted(set(range(1, len(images) + 1)) - images.keys())
    if gaps:
        problems.append(f"{root / 'val'}: image number {gaps[0]} of {len(images):,} is missing; unpack it again")
    by_class: dict[str, list[str]] = {wnid: [] for wnid in labels}
    for number, wnid in enumerate(labels, 1):
        if number in images:
            by_class[wnid].append(f"val/{images[number]}")
    return by_class


def _images(folder: Path) -> dict[int, str]:
    found = (FLAT_IMAGE.fullmatch(path.name) for path in folder.iterdir())
    return {int(match[1]): match[0] for match in found if match}


def _find(root: Path, names: tuple[str, ...], problems: list[str]) -> Path | None:
    folders = [root / "val", root, *sorted(path / "data" for path in root.glob("*devkit*"))]
    for path in (folder / name for name in names for folder in folders):
        if path.exists():
            return path
    problems.append(
        f"{root / 'val' / names[0]}: no such file; images in one flat folder need it, there, in {root} or in "
        "devkit/data"
    )
    return None


def _read_synsets(path: Path, problems: list[str]) -> Mapping[int, str]:
    try:
        return {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in read_records(path, "synsets")}
    except (OSError, ValueError, KeyError, OverflowError) as error:
        problems.append(f"{path}: cannot be read as synsets with ILSVRC2012_ID and WNID ({error})")
        return {}


def _read_ids(path: Path, wnids: Mapping[int, str], problems: list[str]) -> list[str]:
    """Return the class of each line; "" for a line that is wrong, so that the count stays."""
    found = []
    for line in read_lines(path, problems):
        number = whole_number(line.text)
        if number is None:
            problems.append(f"{line.where}: {line.text!r} is no number of a class")
        elif number not in wnids:
            problems.append(f"{line.where}: class {number} is none of the {len(wnids):,} of the .mat file beside it")
        found.append("" if number is None else wnids.get(number, ""))
    return found
