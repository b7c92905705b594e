"""The paper's own figures of its ablation tables: other data, other size, for reference alone."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Published:
    """One figure in percent: of which row of which table, by what metric, with what backbone, on what data."""

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
        """Name of the column that it stands in."""
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
