"""The kinds of arrays that scores are computed from."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.integer]
Masks = npt.NDArray[np.bool_]
