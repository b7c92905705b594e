"""The paper's ablation tables: what each row changes in a pretraining, how it is evaluated, and the paper's figures."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from cyclecontrast.data.layouts import Kind

QUEUE_SIZE = 65_536
SUPPORT_SIZE = 16_384
METHODS = {"intra-image": "intra-image", "intra-video": "intra-video", "cycle": "full"}
"""The methods compared in the tables of losses, with their row names."""
SUPPORT_SIZES = {"table5": (128, 256, 512, 16_384), "table6": (256, 1024, 4096, 16_384)}
SIZE_TABLES = ("table5", "table6", "table7")
"""Tables whose rows are sizes, which --small scales with the queue."""
TOP_KS = (8, 16, 32, 128, 256)
WEIGHTS = (0.05, 0.1, 0.3, 0.5, 0.7, 1.0)


class Row(NamedTuple):
    """A row of a table.

    Its key in the paper, its displayed name, the name of its run folders, its settings, and its value if the setting is
    a number. `papers` is the paper's value if ours is scaled.
    """

    key: str
    name: str
    folder: str
    settings: dict[str, Any]
    value: float | None = None
    papers: str = ""

    @property
    def full_name(self) -> str:
        """The name, with the paper's number."""
        return f"{self.name} (paper: {self.papers})" if self.papers else self.name


class Metric(NamedTuple):
    """A column: a metric of a protocol (for kNN with any k), and its title."""

    protocol: str
    key: str
    title: str

    def pick(self, metrics: dict[str, dict[str, float]]) -> float | None:
        """Return this metric, of fractions by protocol, in percent; None where it is missing."""
        named = metrics.get(self.protocol, {}).items()
        return next(
            (100 * value for name, value in named if name == self.key or name.startswith(f"{self.key}_k")), None
        )


class Table(NamedTuple):
    """A table: its kinds of data, protocols and metrics; `chosen` is the row that the paper finds best.

    `axis` names the setting where it is a number, and `log` its scale in a chart.
    """

    number: int
    title: str
    kinds: tuple[Kind, ...]
    evaluations: tuple[tuple[str, dict[str, Any]], ...]
    metrics: tuple[Metric, ...]
    chosen: str
    axis: str = ""
    log: bool = False

    @property
    def name(self) -> str:
        """The name on the command line."""
        return f"table{self.number}"


IMAGES: dict[str, Any] = {
    "kinds": ("images",),
    "evaluations": (("knn", {"k": (20,)}), ("linear", {})),
    "metrics": (
        Metric("knn", "top1", "kNN top-1"),
        Metric("linear", "top1", "linear top-1"),
        Metric("linear", "top5", "linear top-5"),
    ),
}
TABLES = {
    table.name: table
    for table in (
        Table(
            2,
            "Losses, by tracking",
            ("otb", "got10k"),
            (("tracking", {}),),
            (Metric("tracking", "precision", "precision"), Metric("tracking", "success", "success")),
            "cycle",
        ),
        Table(4, "Losses, by image classification", **IMAGES, chosen="cycle"),
        Table(5, "Cycle loss alone, size of U", **IMAGES, chosen="256", axis="keys in U", log=True),
        Table(6, "Full method, size of U", **IMAGES, chosen="16384", axis="keys in U", log=True),
        Table(7, "Full method, the K most similar of U", **IMAGES, chosen="all", axis="K", log=True),
        Table(8, "Full method, weight λ of the cycle loss", **IMAGES, chosen="0.1", axis="λ"),
        Table(
            10,
            "Losses, by action recognition on frozen features",
            ("videos",),
            (("action", {"mode": "linear"}),),
            (Metric("action", "video_top1", "linear top-1"),),
            "cycle",
        ),
    )
}


def rows_of(table: str, queue_size: int | None = None) -> tuple[Row, ...]:
    """Return the rows of a table, with the paper's sizes or scaled to a queue of this many keys."""
    fraction, queue = 1.0, dict[str, Any]()
    if queue_size is not None:
        fraction, queue = queue_size / QUEUE_SIZE, {"cycle_queue_size": queue_size}
    if table in SUPPORT_SIZES:
        return tuple(_support_rows(table, fraction, queue))
    if table == "table7":
        return tuple(_top_k_rows(fraction, queue))
    if table == "table8":
        return tuple(
            Row(f"{weight}", f"λ = {weight}", f"weight-{weight}", {"method": "cycle", "cycle_weight": weight}, weight)
            for weight in WEIGHTS
        )
    return tuple(Row(key, name, name, {"method": key}) for key, name in METHODS.items())


def scaled(sizes: Sequence[int], fraction: float) -> tuple[int, ...]:
    """Return the sizes scaled by `fraction`, or by a larger factor so that the smallest is 1."""
    factor = max(fraction, 1 / min(sizes))
    return tuple(round(size * factor) for size in sizes)


def _support_rows(table: str, fraction: float, queue: dict[str, Any]) -> Iterator[Row]:
    rows = []
    for papers, size in zip(SUPPORT_SIZES[table], scaled(SUPPORT_SIZES[table], fraction), strict=True):
        settings = {"method": "cycle", "support_size": size, **queue}
        if table == "table5":
            settings |= {"method": "cycle-only", "query_frame_in_support": True}
        rows.append(Row(f"{papers}", f"U = {size:,}", f"support-{size}", settings, size, _if_other(papers, size)))
    yield from rows
    if table == "table5":
        like = rows[1]
        key, name, folder = f"{like.key} without k++", f"{like.name} without k++", f"{like.folder}-without"
        yield Row(key, name, folder, like.settings | {"query_frame_in_support": False}, papers=like.papers)


def _top_k_rows(fraction: float, queue: dict[str, Any]) -> Iterator[Row]:
    (support_size,) = scaled((SUPPORT_SIZE,), fraction)
    cycle = {"method": "cycle", "support_size": support_size}
    for papers, k in zip(TOP_KS, scaled(TOP_KS, support_size / SUPPORT_SIZE), strict=True):
        settings = {**cycle, "top_k": k, **queue}
        yield Row(f"{papers}", f"K = {k:,}", f"k-{k}", settings, k, _if_other(papers, k))
    name, scaled_from = f"all {support_size:,} of U", _if_other(SUPPORT_SIZE, support_size)
    yield Row("all", name, "all", cycle | queue, papers=scaled_from)


def _if_other(papers: int, ours: int) -> str:
    return "" if ours == papers else f"{papers:,}"


class Published(NamedTuple):
    """A figure of the paper in percent, with its row, metric, backbone and data; `note` says more about it."""

    table: str
    row: str
    metric: str
    percent: float
    backbone: str
    pretrained_on: str
    evaluated_on: str
    note: str

    @property
    def column(self) -> str:
        """Name of its column."""
        return f"paper ({self.backbone}, {self.pretrained_on} → {self.evaluated_on}) {self.metric}"

    @property
    def text(self) -> str:
        """The figure with as many digits as the paper gives in this table."""
        return f"{self.percent:.{2 if self.evaluated_on == 'ImageNet-100' else 1}f}"


@cache
def load_published() -> tuple[Published, ...]:
    """Return the figures of the paper's Tables 2, 4, 5, 6, 7, 8 and 10, and those that its text adds to them."""
    text = files("cyclecontrast.sweeping").joinpath("ablations.json").read_text(encoding="utf-8")
    return tuple(Published(**row) for row in json.loads(text))


def published_in(table: str) -> tuple[Published, ...]:
    """Return the figures of one table."""
    return tuple(one for one in load_published() if one.table == table)
