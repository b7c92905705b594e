"""Views by a function of the user's: a copy of the frame and the view's own random numbers in, a checked view out."""

import pickle
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError

Augmentation: TypeAlias = Callable[[Pixels, np.random.Generator, int], Pixels]
"""A frame RGB uint8 (height, width, 3), the generator of this view alone and the side → RGB uint8 (side, side, 3)."""


def make_own_view(augmentation: Augmentation, image: Pixels, rng: np.random.Generator, size: int) -> Pixels:
    """Return a view of a frame, which stays as it is; raises UserError where it is no view of this size."""
    view: object = augmentation(image.copy(), rng, size)
    if not isinstance(view, np.ndarray):
        raise UserError(f"augmentation: gives a {type(view).__name__}, not an array uint8 ({size}, {size}, 3)")
    if view.dtype != np.uint8 or view.shape != (size, size, 3):
        raise UserError(f"augmentation: gives {view.dtype} {view.shape}, not uint8 ({size}, {size}, 3)")
    return view


def try_augmentation(augmentation: Augmentation, image: Pixels, size: int) -> None:
    """Make one view of an image twice; raises UserError where that fails, or where the two differ."""
    try:
        first, second = (
            make_own_view(augmentation, image, np.random.Generator(np.random.Philox(key=0)), size) for _ in range(2)
        )
    except UserError:
        raise
    except Exception as error:  # whatever the user's code leads to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"augmentation: fails on a frame {image.shape} ({type(error).__name__}: {reason})") from error
    if not np.array_equal(first, second):
        raise UserError(
            "augmentation: gives two views of one frame and one generator that differ; draw from the generator alone, "
            "or no run could be repeated"
        )


def check_sendable(name: str, function: object) -> None:
    """Raise UserError where a function cannot be sent to worker processes: some systems start them afresh."""
    try:
        pickle.dumps(function)
    except Exception as error:  # pickle raises many kinds
        raise UserError(
            f"{name}: cannot be sent to the processes that load data ({str(error).partition(chr(10))[0]}); define it "
            "with def or class at the top of a file, or set workers=0"
        ) from error
