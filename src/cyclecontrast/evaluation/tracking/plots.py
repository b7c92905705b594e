"""Success and precision plots as PNG, one line for each tracker, the best first."""

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cyclecontrast.evaluation.metrics import Floats

STYLES = ("-", "--", "-.", ":")
NUM_COLORS = 10
MAX_INSIDE = 12
"""Lines that a legend inside of the plot names without hiding them all."""


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
    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, (name, curve) in enumerate(sorted(curves.items(), key=lambda item: -item[1].number)):
        axes.plot(
            np.linspace(0, end, len(curve.values)),
            curve.values,
            STYLES[place // NUM_COLORS % len(STYLES)],
            color=f"C{place % NUM_COLORS}",
            label=f"{name} [{curve.number:.3f}]",
        )
    axes.set(xlabel=x_label, ylabel=y_label, title=title, xlim=(0, end), ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    if len(curves) > MAX_INSIDE:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.legend()
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
