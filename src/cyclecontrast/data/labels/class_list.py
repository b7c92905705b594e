"""Which classes of a larger set are meant: a text file with one name a line, as ImageNet-100 is published."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from cyclecontrast.data.labels.text_lines import raise_problems, read_lines


class ClassList(NamedTuple):
    """Where each class is listed; labels are places among the sorted names, the order of the list means nothing."""

    where: dict[str, str]

    @staticmethod
    def read(path: Path) -> "ClassList":
        """Read a list of classes; raises UserError for one that is empty or names a class twice."""
        problems: list[str] = []
        where: dict[str, str] = {}
        for line in read_lines(path, problems):
            if line.text in where:
                problems.append(f"{line.where}: class {line.text!r} is listed before, in {where[line.text]}")
            where.setdefault(line.text, line.where)
        if not where and not problems:
            problems.append(f"{path}: lists no class; it takes one name a line, as the folders of classes are named")
        raise_problems(problems)
        return ClassList(where)

    def absent(self, there: Collection[str], place: str | Path) -> list[str]:
        """Return a line for each listed class that is not there."""
        return [
            f"{where}: class {name!r} is not in {place}; add it there, or leave it out of the list"
            for name, where in self.where.items()
            if name not in there
        ]
