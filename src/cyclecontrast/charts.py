"""The common style of all charts: `new_figure` creates a figure, `save_figure` returns it as a file."""

import io
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

COLORS = ("#1f5fd0", "#c84b11", "#0b7f63", "#8a3fc4", "#94690a", "#be2a62", "#4a7218", "#5a6470")
"""Line colors in their order: --c0 to --c7 of the report's light theme."""
TEXT, MUTED, LINE = "#17191c", "#5d646d", "#e3e5e8"
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": TEXT,
    "figure.constrained_layout.use": True,
    "grid.color": LINE,
    "svg.fonttype": "none",
    "svg.hashsalt": "cyclecontrast",
    "text.color": TEXT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
DPI = 150


def new_figure(width: float = 6.4, height: float = 4.8, panels: int = 1) -> tuple[Any, list[Any]]:
    """Return an empty figure of this size in inches, and the axes of its panels from left to right."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def save_figure(figure: Any, kind: Literal["png", "svg"] = "png") -> bytes:
    """Return the figure as a PNG file, or as an <svg> element with a transparent background and text as text.

    Equal figures give equal bytes.
    """
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        if kind == "png":
            figure.set_dpi(DPI)
            FigureCanvasAgg(figure).print_png(content)
            return content.getvalue()
        for axes in figure.axes:
            if axes.get_legend():
                axes.get_legend().set_frame_on(False)
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    svg = content.getvalue()
    return svg[svg.index(b"<svg") :]  # without the XML header a page can hold it
