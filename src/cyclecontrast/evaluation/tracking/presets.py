"""Whose SiamFC: sizes of crops and head, and how the head is trained (protocols.md §a); it knows no image."""

from dataclasses import dataclass
from typing import Literal

SEARCH_SIZE = 255
"""Side of the search crop of the test in pixels; that of the exemplar belongs to the preset."""


@dataclass(frozen=True)
class Preset:
    """Sizes in pixels of the crops; `positive_distance` is |dx| + |dy| from the target, in pixels of the search crop.

    `final_learning_rate` is what an exponential decay ends at; None: a tenth after each quarter of the epochs.
    `jitter` scales the shift of exemplar and search crop as part of their side; None: both are crops of a larger one.
    `head_dim` and `head_scale` are None where they follow the width of the backbone.
    """

    exemplar_size: int
    train_size: int
    positive_distance: float
    optimizer: Literal["adam", "sgd"]
    loss: Literal["focal", "balanced"]
    learning_rate: float
    final_learning_rate: float | None
    weight_decay: float
    epochs: int
    batch_size: int
    pairs_per_sequence: int
    head_dim: int | None = None
    head_scale: float | None = None
    jitter: tuple[float, float] | None = None


RELEASE = Preset(
    exemplar_size=120,
    train_size=239,
    positive_distance=16,
    optimizer="adam",
    loss="focal",
    learning_rate=1e-3,
    final_learning_rate=1e-5,
    weight_decay=0,
    epochs=50,
    batch_size=8,
    pairs_per_sequence=1,
)
"""The tracking of the paper's release."""

SIAMFC = Preset(
    exemplar_size=127,
    train_size=239,
    positive_distance=16,
    optimizer="sgd",
    loss="balanced",
    learning_rate=1e-2,
    final_learning_rate=1e-5,
    weight_decay=5e-4,
    epochs=50,
    batch_size=8,
    pairs_per_sequence=1,
)
"""The original SiamFC's geometry, loss and optimizer.

Differs from the release: the original trains an AlexNet with no convolution behind it; here a frozen backbone has the
two 1x1 convolutions of the preset `release`, and only these are trained.
"""

VINCE = Preset(
    exemplar_size=120,
    train_size=247,
    positive_distance=20,
    optimizer="adam",
    loss="balanced",
    learning_rate=1e-2,
    final_learning_rate=None,
    weight_decay=0,
    epochs=40,
    batch_size=256,
    pairs_per_sequence=25,
    head_dim=256,
    head_scale=1e-3,
    jitter=(0.05, 0.33),
)
"""The tracking of VINCE; computed in single precision."""

PRESETS = {"release": RELEASE, "siamfc": SIAMFC, "vince": VINCE}


def head_shape(dim: int, preset: Preset) -> tuple[int, float]:
    """Return the width of the head and the factor on its response, for a backbone of this width.

    2048 gives 1024 and 1e-5, 512 gives 512 and 1e-3 (protocols.md §a). For other widths, which no release has, the
    factor grows as the width of the head shrinks, so that sums over it stay alike.
    """
    out_dim = preset.head_dim or (dim // 2 if dim > 512 else dim)
    like = 1024 * 1e-5 if dim > 512 else 512 * 1e-3
    return out_dim, preset.head_scale or like / out_dim
