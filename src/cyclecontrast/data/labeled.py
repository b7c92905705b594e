"""Labeled images to evaluate on: which file, which class, which video.

Three layouts: folders of classes (`train/<class>`, `val/<class>`), the same with ImageNet's flat `val`, and a frame
tree with lists of labeled videos (`train.txt`, `test.txt`).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cyclecontrast.data.labels.class_folders import open_folders
from cyclecontrast.data.labels.class_list import ClassList
from cyclecontrast.data.labels.split import Numbers, Split
from cyclecontrast.data.labels.video_lists import open_lists
from cyclecontrast.errors import UserError

__all__ = ["LabeledImages", "Numbers", "Split"]


@dataclass(frozen=True)
class LabeledImages:
    """What a classification protocol is trained and tested on; labels index `classes`."""

    root: Path
    classes: tuple[str, ...]
    train: Split
    test: Split

    @staticmethod
    def open(path: str | Path, classes: Path | None = None) -> "LabeledImages":
        """Read any of the layouts; `classes` is a text file of those to use, None: all.

        Raises UserError with all that is wrong.
        """
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; name one with train/<class> and val/<class>, or a frame tree")
        chosen = None if classes is None else ClassList.read(classes)
        if (root / "train.txt").exists() or (root / "test.txt").exists():
            return LabeledImages(root, *open_lists(root, chosen))
        if (root / "train").is_dir() or (root / "val").is_dir():
            return LabeledImages(root, *open_folders(root, chosen))
        raise UserError(
            f"{root}: holds neither train/<class> and val/<class> nor train.txt and test.txt "
            "(lines `<video folder> <label>`)"
        )

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: classes, and each image's path, size in bytes, label and video; 16 hex digits."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for split in (self.train, self.test):
            digest.update("\n".join(split.names.to_pylist()).encode())
            digest.update(split.labels.tobytes() + split.videos.tobytes() + split.file_sizes().tobytes())
        return digest.hexdigest()[:16]
