"""The common style of charts."""

import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest

from cyclecontrast.charts import COLORS, new_figure, save_figure


def draw(panels=1):
    """Return a figure with a line and a legend in each panel."""
    figure, all_axes = new_figure(6, 4, panels)
    for axes in all_axes:
        axes.plot([0, 1, 2], [3, 1, 2], label="a <name>")
        axes.legend()
    return figure


def test_a_png_has_the_size_in_inches():
    """A PNG file has 150 pixels per inch, and lines in the first color of the style."""
    image = cv2.imdecode(np.frombuffer(save_figure(draw(), "png"), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image.shape == (600, 900, 3)
    first = np.array([int(COLORS[0][at : at + 2], 16) for at in (1, 3, 5)])
    assert (image == first).all(axis=2).sum() > 100


def test_an_svg_can_be_put_into_a_page():
    """An SVG is one element, with text as text and without a background."""
    svg = save_figure(draw(panels=2), "svg")
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "a <name>" in [element.text for element in root.iter() if element.tag.endswith("text")]
    visible = [element for element in root.iter() if "opacity: 0" not in element.get("style", "").split("; ")]
    assert not any("fill: #ffffff" in element.get("style", "") for element in visible)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_figures_give_equal_files(kind):
    """The file does not hold the time or random identifiers."""
    assert save_figure(draw(), kind) == save_figure(draw(), kind)
