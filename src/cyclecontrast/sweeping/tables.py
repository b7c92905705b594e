"""The rows of the paper's ablation tables: what each changes in a pretraining, and how it is evaluated."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cyclecontrast.data.layouts import Kind

QUEUE = 65_536
SUPPORT = 16_384
OBJECTIVES = {"intra-image": "intra-image", "intra-video": "intra-video", "cycle": "full"}
SUPPORTS = {"table5": (128, 256, 512, 16_384), "table6": (256, 1024, 4096, 16_384)}
TOP_KS = (8, 16, 32, 128, 256)
WEIGHTS = (0.05, 0.1, 0.3, 0.5, 0.7, 1.0)


class Row(NamedTuple):
    """A setting: the paper's name of it, ours, that of its runs, what it changes, and its number where it is one.

    `papers` is the paper's number where ours is another.
    """

    key: str
    name: str
    folder: str
    settings: dict[str, Any]
    value: float | None = None
    papers: str = ""

    @property
    def full_name(self) -> str:
        """Its name with the paper's number."""
        return f"{self.name} (paper: {self.papers})" if self.papers else self.name


class Metric(NamedTuple):
    """A column: a protocol, its metric (for kNN whatever k is behind it), and what people call it."""

    protocol: str
    key: str
    title: str

    def pick(self, metrics: dict[str, float]) -> float | None:
        """Return the metric in percent; None where the result has none."""
        return next(
            (100 * value for name, value in metrics.items() if name == self.key or name.startswith(f"{self.key}_k")),
            None,
        )


class Table(NamedTuple):
    """What is studied, on which kind of data, by which protocols; `chosen` is the row that the paper finds best."""

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
        """Its name on the command line."""
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


def rows_of(table: str, queue: int | None = None) -> tuple[Row, ...]:
    """Return a table's rows, with the paper's sizes, or scaled to a queue of this many keys."""
    if table in SUPPORTS:
        return _supports(table, SUPPORTS[table], queue)
    if table == "table7":
        return _top_ks(queue)
    if table == "table8":
        return tuple(
            Row(str(weight), f"λ = {weight}", f"weight-{weight}", _cycle(cycle_weight=weight), weight)
            for weight in WEIGHTS
        )
    return tuple(Row(key, name, name, {"method": key}) for key, name in OBJECTIVES.items())


def scaled(sizes: Sequence[int], share: float) -> tuple[int, ...]:
    """Return this share of each size; where the smallest would fall below 1, all are larger by the same factor."""
    factor = max(share, 1 / min(sizes))
    return tuple(round(size * factor) for size in sizes)


def _supports(table: str, sizes: Sequence[int], queue: int | None) -> tuple[Row, ...]:
    ours = sizes if queue is None else scaled(sizes, queue / QUEUE)
    keys = {} if queue is None else {"cycle_queue_size": queue}
    rows = []
    for size, own in zip(sizes, ours, strict=True):
        settings = _cycle(support_size=own, **keys)
        if table == "table5":
            settings |= {"method": "cycle-only", "query_frame_in_support": True}
        rows.append(Row(str(size), f"U = {own:,}", f"support-{own}", settings, own, _other(own, size)))
    if table == "table5":
        like = rows[1]
        key, name, folder = f"{like.key} without k++", f"{like.name} without k++", f"{like.folder}-without"
        rows.append(Row(key, name, folder, like.settings | {"query_frame_in_support": False}, papers=like.papers))
    return tuple(rows)


def _top_ks(queue: int | None) -> tuple[Row, ...]:
    support, keys = SUPPORT, {}
    if queue is not None:
        (support,) = scaled((SUPPORT,), queue / QUEUE)
        keys = {"cycle_queue_size": queue}
    ours = TOP_KS if queue is None else scaled(TOP_KS, support / SUPPORT)
    rows = [
        Row(str(k), f"K = {own:,}", f"k-{own}", _cycle(support_size=support, top_k=own, **keys), own, _other(own, k))
        for k, own in zip(TOP_KS, ours, strict=True)
    ]
    whole = Row(
        "all", f"all {support:,} of U", "all", _cycle(support_size=support, **keys), None, _other(support, SUPPORT)
    )
    return (*rows, whole)


def _cycle(**settings: Any) -> dict[str, Any]:
    return {"method": "cycle", **settings}


def _other(ours: int, papers: int) -> str:
    return "" if ours == papers else f"{papers:,}"
