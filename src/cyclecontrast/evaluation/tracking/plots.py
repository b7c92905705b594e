"""Success and precision plots as PNG, one line for each tracker, the best first."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cyclecontrast.charts import COLORS, new_figure, save_figure
from cyclecontrast.evaluation.metrics import Floats

STYLES = ("-", "--", "-.", ":")
MAX_INSIDE = 12
"""Number of lines up to which the legend is inside the plot."""


class Curve(NamedTuple):
    """A tracker's curve, and the number that is read from it."""

    values: Floats
    number: float


def plot_success(curves: Mapping[str, Curve]) -> bytes:
    """Draw the part of frames above each overlap; the number is the mean of the curve."""
    return _plot(curves, 1.0, "overlap threshold", "success rate", "Success")


def plot_precision(curves: Mapping[str, Curve]) -> bytes:
    """Draw the part of frames within each center error; the number is that at 20 pixels."""
    return _plot(curves, 50.0, "center error threshold, pixels", "precision", "Precision")


def _plot(curves: Mapping[str, Curve], end: float, x_label: str, y_label: str, title: str) -> bytes:
    figure, (axes,) = new_figure()
    for place, (name, curve) in enumerate(sorted(curves.items(), key=lambda item: -item[1].number)):
        axes.plot(
            np.linspace(0, end, len(curve.values)),
            curve.values,
            STYLES[place // len(COLORS) % len(STYLES)],
            label=f"{name} [{curve.number:.3f}]",
        )
    axes.set(xlabel=x_label, ylabel=y_label, title=title, xlim=(0, end), ylim=(0, 1.01))
    if len(curves) > MAX_INSIDE:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.legend()
    return save_figure(figure)
