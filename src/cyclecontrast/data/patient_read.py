"""A frame's bytes from a storage that may fail for a while; a file that is gone is told from a store that is lost."""

import os
from collections.abc import Callable
from pathlib import Path

from cyclecontrast.data.frame_bytes import Shards
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.remote import NoRangesError, RemoteShards
from cyclecontrast.errors import UserError

PAUSES = (0.1, 0.4, 1.6, 6.4, 25.6)
"""Seconds between the attempts to read."""


def read_patiently(store: FrameStore, video: int, index: int, sleep: Callable[[float], object]) -> bytes:
    """Return the encoded image; what fails is tried again after growing pauses, from files opened anew.

    Raises ValueError where the frame's own file is gone and the store is there; UserError where the storage still
    fails after the last pause, and at once where a server sends whole files for frames. A local read that hangs is not
    interrupted.
    """
    for pause in (*PAUSES, None):
        try:
            return store.read(video, index)
        except (OSError, UserError) as error:
            if isinstance(error, NoRangesError):
                raise
            if isinstance(error, FileNotFoundError) and store.layout != "store" and _is_filled(Path(store.root)):
                raise ValueError("the file is gone") from error
            if pause is None:
                raise UserError(_explain(error, store, video, index)) from error
        if isinstance(store.source, Shards | RemoteShards):
            store.source.forget()
        sleep(pause)
    raise AssertionError


def _explain(error: OSError | UserError, store: FrameStore, video: int, index: int) -> str:
    tried = f"{len(PAUSES) + 1} times in {sum(PAUSES):.0f} s"
    if isinstance(error, UserError):
        return f"{error} (tried {tried})"
    place = error.filename or _file_of(store, int(store.starts[video]) + index)
    return f"{place}: cannot be read ({error.strerror or error}; tried {tried}); mend the storage"


def _file_of(store: FrameStore, frame: int) -> Path | str:
    return store.source.file_of(frame) if isinstance(store.source, Shards | RemoteShards) else store.root


def _is_filled(root: Path) -> bool:
    """Whether the folder holds anything: that of a disk that was unmounted is gone or empty."""
    try:
        with os.scandir(root) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
