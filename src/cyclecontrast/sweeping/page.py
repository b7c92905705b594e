"""A sweep → its files: Markdown, one HTML page that needs nothing else, all numbers as JSON, and a plot."""

import base64
import importlib.resources
import json

import jinja2

from cyclecontrast.files import replacing
from cyclecontrast.sweeping.outcome import Sweep, to_json
from cyclecontrast.sweeping.plot import draw
from cyclecontrast.versions import package_versions


def write_files(sweep: Sweep) -> None:
    """Write <folder>/<table>.md, .html, .json, and .png where the setting is a number."""
    plot = draw(sweep)
    numbers = {**to_json(sweep), "versions": package_versions()}
    contents = {
        "md": f"{sweep}\n".encode(),
        "html": render(sweep, plot).encode("utf-8", "replace"),
        "json": json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False).encode(),
        **({} if plot is None else {"png": plot}),
    }
    for suffix, content in contents.items():
        with replacing(sweep.folder / f"{sweep.table.name}.{suffix}") as aside:
            aside.write_bytes(content)


def render(sweep: Sweep, plot: bytes | None) -> str:
    """Return the page as HTML; every text is escaped, the plot lies within."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = (importlib.resources.files("cyclecontrast.sweeping") / "template.html").read_text("utf-8")
    return environment.from_string(template).render(
        sweep=sweep,
        num_ours=2 + len(sweep.metrics),
        plot=None if plot is None else base64.b64encode(plot).decode(),
    )
