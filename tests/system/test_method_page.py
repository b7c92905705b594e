"""docs/method.md matches the code: names, equations, departures from the release, presets, and rules of health."""

import ast
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import cyclecontrast
from cyclecontrast.config import PRESETS, PROTOCOL_CONFIGS, RESOLVED_BY_AUTO, PretrainConfig, SweepConfig
from cyclecontrast.errors import checked
from cyclecontrast.methods import METHODS
from cyclecontrast.reporting.curves import METRICS
from cyclecontrast.sweeping.tables import TABLES
from cyclecontrast.training import verdict
from cyclecontrast.training.auto_settings import DataSize, Machine, resolve

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = Path(cyclecontrast.__file__).parent
PAGE = (DOCS / "method.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
TARGETS = dict(re.findall(r"^\[(\w+)\]: (\S+)$", PAGE, re.MULTILINE))
NAMES = re.findall(r"\[`([\w.]+)`\]\[(\w+)\]", PAGE)
MARK = "Differs from"


def rows_of(section):
    """Return the cells of all rows of a section's tables, with the header rows."""
    lines = re.findall(r"^\| (.*) \|$", SECTIONS[section], re.MULTILINE)
    return [re.split(r" ?\| ?", line) for line in lines if not line.startswith("---")]


def row_of(section, first):
    """Return the other cells of the row that starts with this cell."""
    return next(cells[1:] for cells in rows_of(section) if cells[0] == first)


def module_and_name(name, label):
    """Split a name of the page into its module, which the link must lead to, and the name in the module."""
    module, _, within = name.partition(".")
    path = Path(TARGETS[label]).with_suffix("")
    assert path.name == module, f"{name} is not in {TARGETS[label]}"
    return ".".join(path.parts[path.parts.index("cyclecontrast") :]), within


def test_every_name_exists():
    """Every function, class and constant on the page is defined in the file that its link leads to."""
    assert {label for _, label in NAMES} == set(TARGETS)
    for name, label in NAMES:
        module, within = module_and_name(name, label)
        thing = importlib.import_module(module)
        for part in filter(None, within.split(".")):
            thing = getattr(thing, part)
        assert getattr(thing, "__module__", module) == module, name


def test_every_option_and_command_exists():
    """Every option belongs to the command before it, or to any command; every protocol and table exists."""
    configs = PROTOCOL_CONFIGS | dict.fromkeys(TABLES, SweepConfig)
    spans = [span for span in re.findall(r"`([^`]+)`", PAGE) if re.match(r"--|(pretrain|evaluate|sweep) ", span)]
    assert len(spans) > 40
    for span in spans:
        command, name, *_ = [*span.split(), ""]
        possible = [configs[name]] if command in ("evaluate", "sweep") else [PretrainConfig, *configs.values()]
        known = {option.replace("_", "-") for config in possible for option in config.model_fields}
        assert {option.removeprefix("no-") for option in re.findall(r"--([a-z-]+)", span)} <= known, span


def test_every_equation_has_its_functions():
    """The row of an equation names every loss whose docstring names the equation."""
    found = 0
    for node in ast.walk(ast.parse((SOURCE / "loss" / "losses.py").read_text())):
        if isinstance(node, ast.FunctionDef):
            for numbers in re.findall(r"Eq\. (\d+(?:, \d+)*)", ast.get_docstring(node) or ""):
                for number in numbers.split(", "):
                    found += 1
                    assert f"[`losses.{node.name}`]" in " ".join(row_of("From the paper to the code", f"Eq. {number}"))
    assert found >= 5


def test_every_part_of_the_paper_has_a_row():
    """All equations, the algorithm and the tables have a row with a function and a command."""
    rows = {cells[0]: cells[1:] for cells in rows_of("From the paper to the code")}
    for part in [*(f"Eq. {n}" for n in range(1, 7)), "Algorithm 1", *(f"Table {n}" for n in range(1, 12))]:
        assert "][" in rows[part][1]
        assert rows[part][2].startswith("`")
    for table in TABLES.values():
        assert f"sweep {table.name} " in rows[f"Table {table.number}"][2]


@pytest.mark.parametrize("name", METHODS)
def test_methods_use_what_the_page_says(name):
    """Every method has a row with its class, its numbers of views and keys, and its queues."""
    method = METHODS[name]
    _, described, _, views, queues, _ = row_of("Methods", f"`{name}`")
    assert f".{method.__name__}`]" in described
    teacher = {"teacher": "random:resnet18"} if name == "distill" else {}
    _, extra_frames = method.frames(PretrainConfig(data="d", out="o", method=name, **teacher))
    num_views = 2 + len(extra_frames(np.random.default_rng(0), 0, 9))
    assert views == f"{method.num_queries} / {num_views} / {method.num_enqueued}"
    assert ("intra" in queues, "cycle" in queues) == (method.has_intra, method.has_cycle)


def marked_places():
    """Yield the module, and the name in it, that every mark in the source belongs to."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        module = ".".join(["cyclecontrast", *path.relative_to(SOURCE).with_suffix("").parts])
        for number, line in enumerate(text.splitlines(), start=1):
            if MARK in line:
                yield module, owner_of(ast.parse(text).body, number)


def owner_of(body, line):
    """Return the function, class or constant that contains a line or follows its comment; "" for the module.

    A string below a constant belongs to it.
    """
    before = None
    for statement in body:
        if line <= statement.end_lineno:
            break
        before = statement
    if isinstance(statement, ast.ClassDef) and line > statement.lineno:
        return f"{statement.name}.{owner_of(statement.body, line)}".removesuffix(".")
    if isinstance(statement, ast.Expr) and line >= statement.lineno:
        statement = before
    if isinstance(statement, ast.Assign):
        return statement.targets[0].id
    return "" if statement is None else statement.name


@pytest.mark.parametrize(
    ("source", "owners"),
    [
        ('"""Differs from"""\nA = 1', [""]),
        ('A = 1\n"""Differs from"""\nB = 2', ["A"]),
        ("A = 1\n# Differs from\nB = {}", ["B"]),
        ("A = {\n    # Differs from\n}", ["A"]),
        ('def f():\n    """Differs from"""\n    # Differs from\n    return 1', ["f", "f"]),
        ('class C:\n    """Differs from"""\n\n    def m(self):\n        # Differs from\n        ...', ["C", "C.m"]),
    ],
)
def test_owners_of_marks(source, owners):
    """A mark belongs to the owner of its docstring, to the constant next to it, or to the function around it."""
    lines = [number for number, line in enumerate(source.splitlines(), start=1) if MARK in line]
    assert [owner_of(ast.parse(source).body, line) for line in lines] == owners


def test_every_departure_has_a_row():
    """The rows on departures name exactly the places that the source marks, each as often."""
    first = [cells[0] for cells in rows_of("Differences from the releases")]
    names = [match.groups() for cell in first if (match := re.match(r"\[`(.+?)`\]\[(\w+)\]", cell))]
    assert Counter(module_and_name(*name) for name in names) == Counter(marked_places())


def test_presets_are_those_of_the_code():
    """The table has a row for every setting in which presets differ, with their values."""
    auto = checked(PretrainConfig, {"data": "data", "out": "run"})
    small = resolve(auto, DataSize(1000, 256), Machine(cpu=True)).model_dump()
    large = resolve(auto, DataSize(100_000, 256), Machine(cpu=False)).model_dump()
    usual = {name: field.default for name, field in PretrainConfig.model_fields.items()}
    presets = [usual | PRESETS["paper"], usual | PRESETS["release"], small, large]
    values = {name: [in_words(preset[name]) for preset in presets] for name in {*PRESETS["paper"], *RESOLVED_BY_AUTO}}
    head, *rows = rows_of("Presets")
    assert head[1:5] == ["paper", "release", "auto: 1,000, CPU", "auto: 100,000, GPU"]
    documented = {cells[0].strip("`"): cells[1:5] for cells in rows}
    assert documented == {name: row for name, row in values.items() if len(set(row)) > 1}


def in_words(value):
    """Return a setting as the page writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str | None) else f"{value:,}"


def test_signals_and_verdicts_are_those_of_the_code():
    """Every signal and every verdict has its row, with the thresholds of the code."""
    first = [cells[0] for cells in rows_of("Health")]
    verdicts = re.findall(r'"([a-z -]+)": _', inspect.getsource(verdict.judge))
    signals, neighbors = (
        [f"`{info.key}`" for info in METRICS if info.part == part] for part in ("health", "neighbors")
    )
    assert first == [
        "signal",
        *signals,
        "signal",
        *neighbors,
        "verdict",
        *verdicts,
        "healthy",
        verdict.BETTER,
        verdict.UNCHANGED,
        verdict.WORSE,
    ]
    for threshold in (
        f"more than {verdict.MIN_CHANGE:.2f}".replace("0.", "."),
        f"deviation is below {verdict.COLLAPSED_DEVIATION}",
        f"rank below {verdict.COLLAPSED_RANK}",
        f"below {verdict.LOST_RANK:.0%} of its highest",
        f"over {100 * verdict.MIN_ACCURACY_GAIN:.0f} points",
        f"mean of {verdict.NUM_ROWS} lines",
        f"more than {verdict.NEAR_CHANCE:.0%} of the way",
        f"last {1 - verdict.LATE:.0%} of the run",
        f"fewer than {verdict.MIN_VIDEOS} videos is left out",
    ):
        assert threshold in SECTIONS["Health"].replace("\n", " "), threshold
