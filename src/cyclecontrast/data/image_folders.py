"""Folders of images read in place as videos: a tree of frames, the R2V2 layout, or a flat folder of images."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cyclecontrast.data.folders import (
    IMAGE_SUFFIXES,
    LeftOut,
    is_dataset_text,
    is_image,
    is_video,
    natural_order,
    walk,
)
from cyclecontrast.data.images import MAX_BYTES
from cyclecontrast.data.storage import read_regular
from cyclecontrast.errors import UserError

R2V2_NAME = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{6}\.jpg")
TEXTS_PER_PIECE = 4_096


@dataclass(frozen=True)
class ImageFiles:
    """Frames that are files below a root; `notes` says what else lies there."""

    root: Path
    names: pa.StringArray
    notes: tuple[str, ...] = ()

    def read(self, frame: int) -> bytes:
        """Return the bytes of a frame's file.

        Raises ValueError if only this file is missing, OSError if the storage fails.
        """
        try:
            return read_regular(self.root / str(self.names[frame]), MAX_BYTES)
        except FileNotFoundError as error:
            if self.root.is_dir() and any(self.root.iterdir()):  # an unmounted folder is gone or empty
                raise ValueError("the file no longer exists") from error
            raise

    def reopen(self) -> None:
        """Do nothing: each read opens its file."""

    def file_of(self, frame: int) -> Path:
        """Return the path of a frame's file."""
        return self.root / str(self.names[frame])

    def time(self, frame: int) -> float:
        """Return nan: images have no time."""
        return float("nan")

    def pieces(self) -> Iterator[bytes]:
        """Yield the names."""
        return text_pieces(self.names)


def text_pieces(texts: pa.Array) -> Iterator[bytes]:
    """Yield the texts, one per line, encoded, in chunks of some thousand."""
    for start in range(0, len(texts), TEXTS_PER_PIECE):
        yield "\n".join([*texts[start : start + TEXTS_PER_PIECE].to_pylist(), ""]).encode()


def open_image_folder(root: Path) -> tuple[str, pa.StringArray, npt.NDArray[np.int64], ImageFiles]:
    """Return the layout, the ids and `starts` of the videos, and the images below a folder; raises UserError.

    Links are followed, wherever they lead. Pipes and devices are not images; the target of a link is checked when the
    frame is read.
    """
    left_out = LeftOut(root)
    folders = list(_folders_of_images(root, left_out))
    flat = len(folders) == 1 and folders[0][0] == "."
    if flat:
        videos = [(name, [name]) for name in folders[0][1]]
    else:
        videos = [video for folder, names in folders if folder != "." for video in _videos_of(folder, names)]
        beside = folders[0][1] if folders and folders[0][0] == "." else []
        left_out.add("image beside the folders of images", root, beside)
    if not videos:
        raise UserError(
            f"{root}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and no store.json; "
            "videos must be prepared first: cyclecontrast prepare" + "".join(f"; {note}" for note in left_out.notes)
        )
    starts = np.cumsum([0, *(len(frames) for _, frames in videos)], dtype=np.int64)
    try:
        names = pa.array([name for _, frames in videos for name in frames], pa.large_string())
        ids = pa.array([video_id for video_id, _ in videos], pa.string())
    except UnicodeEncodeError as error:
        raise UserError(f"{root}: the name {error.object!r} is not UTF-8; rename it") from error
    return "flat folder of images" if flat else "tree of frames", ids, starts, ImageFiles(root, names, left_out.notes)


def _folders_of_images(root: Path, left_out: LeftOut) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with images, and these, as posix paths below the root; raises UserError for the root only."""

    def note(folder: Path, error: OSError) -> None:
        if folder == root:
            raise UserError(f"{folder}: cannot be listed ({error.strerror}); fix it or name another") from error
        left_out.add_unlisted(folder, error)

    for folder, entries in walk(root, note, left_out):
        relative = folder.relative_to(root)
        images = [
            entry.name
            for entry in entries
            if is_image(entry.name) and (entry.is_symlink() or entry.is_file(follow_symlinks=False))
        ]
        others = [entry.name for entry in entries if not is_image(entry.name) and not is_dataset_text(entry.name)]
        left_out.add("video", folder, list(filter(is_video, others)))
        left_out.add("file without the suffix of an image", folder, [name for name in others if not is_video(name)])
        if images:
            images.sort(key=natural_order)
            yield relative.as_posix(), [(relative / name).as_posix() for name in images]


def _videos_of(folder: str, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the videos of a folder: one, or in the R2V2 layout one for each YouTube id in the names."""
    parent, _, prefix = f"/{folder}".rpartition("/")
    videos: dict[str, list[str]] = {}
    for path in names:
        name = path.rpartition("/")[2]
        # A file system that ignores case keeps AB and ab in one folder.
        in_r2v2 = R2V2_NAME.fullmatch(name) and name[:2].lower() == prefix.lower()
        videos.setdefault(f"{parent}/{name[:11]}"[1:] if in_r2v2 else folder, []).append(path)
    yield from videos.items()
