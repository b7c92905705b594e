"""docs/method.md is true: what it names exists, what the source says of itself is on it, its figures are the code's."""

import ast
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest
from cyclecontrast.loss.objectives import OBJECTIVES

import cyclecontrast
from cyclecontrast.config import DECIDED_BY_AUTO, PRESETS, PretrainConfig, SweepConfig
from cyclecontrast.errors import checked
from cyclecontrast.evaluation.protocol import CONFIGS
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
    """Return the cells of all rows of a section's tables, headings aside."""
    lines = re.findall(r"^\| (.*) \|$", SECTIONS[section], re.MULTILINE)
    return [re.split(r" ?\| ?", line) for line in lines if not line.startswith("---")]


def row_of(section, first):
    """Return the other cells of the row that begins with this cell."""
    return next(cells[1:] for cells in rows_of(section) if cells[0] == first)


def parts_of(name, label):
    """Part a name of the page into the module that its link leads to and what is within that."""
    path = Path(TARGETS[label]).with_suffix("").parts
    module, words = path[path.index("cyclecontrast") :], name.split(".")
    length = next((n for n in range(len(words), 0, -1) if tuple(words[:n]) == module[-n:]), None)
    assert length, f"{name} is not in {TARGETS[label]}"
    return ".".join(module), ".".join(words[length:])


@pytest.mark.parametrize(("name", "label"), sorted(set(NAMES)))
def test_every_name_exists(name, label):
    """A module, function or constant that is named is in the file that its link leads to, and not imported there."""
    module, within = parts_of(name, label)
    thing = importlib.import_module(module)
    for part in filter(None, within.split(".")):
        thing = getattr(thing, part)
    assert getattr(thing, "__module__", module) == module


def test_every_dotted_name_is_a_link():
    """No function is named in passing, where the test above would not find it."""
    modules = {path.stem for path in SOURCE.rglob("*.py")}
    bare = re.findall(r"(?<!\[)`([\w.]+)`", PAGE)
    assert not [name for name in bare if "." in name and name.split(".")[0] in modules and not name.endswith(".py")]


def test_links_lead_somewhere():
    """Every link is a file of the project, every label has a link, and no link is left over."""
    targets = [*TARGETS.values(), *re.findall(r"\]\((?!https?://)([^)#]+)\)", PAGE)]
    assert targets
    for target in targets:
        assert (DOCS / target).exists(), target
    assert {label for _, label in NAMES} == set(TARGETS)


def test_every_option_and_command_exists():
    """Each option is one of the command before it, or without a command of any; each protocol and table runs."""
    configs = CONFIGS | dict.fromkeys(TABLES, SweepConfig)
    spans = [span for span in re.findall(r"`([^`]+)`", PAGE) if re.match(r"--|(pretrain|evaluate|sweep) ", span)]
    assert len(spans) > 40
    for span in spans:
        command, name, *_ = [*span.split(), ""]
        asked = [configs[name]] if command in ("evaluate", "sweep") else [PretrainConfig, *configs.values()]
        known = {option.replace("_", "-") for config in asked for option in config.model_fields}
        assert {option.removeprefix("no-") for option in re.findall(r"--([a-z-]+)", span)} <= known, span


def docstrings_of(path):
    """Return the docstring of each function and class of a file by name."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {n.name: ast.get_docstring(n) or "" for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def test_every_equation_has_its_functions():
    """The row of an equation names each function of the losses whose docstring names the equation."""
    found = 0
    for path in (SOURCE / "loss").glob("*.py"):
        for name, docstring in docstrings_of(path).items():
            for number in re.findall(r"\d+", " ".join(re.findall(r"Eq\. \d+(?:, \d+)*", docstring))):
                found += 1
                assert f"[`{path.stem}.{name}`]" in " ".join(row_of("From the paper to the code", f"Eq. {number}"))
    assert found


def test_every_part_of_the_paper_has_a_row():
    """All six equations, the algorithm and the eleven tables are there, each with a function and a way to run it."""
    rows = {cells[0]: cells[1:] for cells in rows_of("From the paper to the code")}
    parts = [f"Eq. {n}" for n in range(1, 7)] + ["Algorithm 1"] + [f"Table {n}" for n in range(1, 12)]
    for part in parts:
        says, function, command = rows[part]
        assert says
        assert "](" in function.replace("][", "](")
        assert command.startswith("`")
    for table in TABLES.values():
        assert f"sweep {table.name} " in rows[f"Table {table.number}"][2]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_need_what_the_page_says(name):
    """Each objective has a row, with the views and keys and queues that it asks for."""
    _, loss, _, views, queues, _ = row_of("Methods", f"`{name}`")
    needs = OBJECTIVES[name].needs
    assert "losses." in loss
    assert views == f"{len(needs.queries)} / {len(needs.keys)} / {needs.num_enqueued}"
    assert ("intra" in queues, "cycle" in queues) == (needs.has_intra, needs.has_cycle)


def marked_places():
    """Yield the module and the name of what each mark in the source speaks of."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        module = ".".join(["cyclecontrast", *path.relative_to(SOURCE).with_suffix("").parts])
        for number, line in enumerate(text.splitlines(), start=1):
            if MARK in line:
                yield module, owner_of(ast.parse(text).body, number)


def owner_of(body, line):
    """Name the function, class or constant that a line is in or that a comment stands above; nothing for a module.

    A string below a constant is about it, the first one of a module or class about that.
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
def test_marks_are_found_wherever_they_stand(source, owners):
    """A mark belongs to its docstring's owner, to the constant beside it, or to the function around it."""
    lines = [number for number, line in enumerate(source.splitlines(), start=1) if MARK in line]
    assert [owner_of(ast.parse(source).body, line) for line in lines] == owners


def test_every_departure_has_a_row():
    """The rows on departures name exactly the places that the source marks, each as often as it does."""
    first = [cells[0] for cells in rows_of("Where the code departs from a release")]
    named = Counter(parts_of(*match.groups()) for cell in first if (match := re.match(r"\[`(.+?)`\]\[(\w+)\]", cell)))
    assert named == Counter(marked_places())


def in_words(value):
    """Return a setting as the page writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str | None) else f"{value:,}"


def test_presets_are_those_of_the_code():
    """The table has a row for each setting in which presets differ, and its values are theirs."""
    auto = checked(PretrainConfig, {"data": "data", "out": "run"})
    small = resolve(auto, DataSize(1000, 256), Machine(cpu=True)).model_dump()
    large = resolve(auto, DataSize(100_000, 256), Machine(cpu=False)).model_dump()
    usual = {name: field.default for name, field in PretrainConfig.model_fields.items()}
    presets = [usual | PRESETS["paper"], usual | PRESETS["release"], small, large]
    settings = {name: [in_words(preset[name]) for preset in presets] for name in {*PRESETS["paper"], *DECIDED_BY_AUTO}}
    head, *rows = rows_of("Presets")
    assert head[1:5] == ["paper", "release", "auto: 1,000, CPU", "auto: 100,000, GPU"]
    written = {cells[0].strip("`"): cells[1:5] for cells in rows}
    assert written == {name: values for name, values in settings.items() if len(set(values)) > 1}


def test_signals_and_words_of_health_are_those_of_the_code():
    """Every signal and every verdict has its row, and the thresholds are the ones that are judged by."""
    first = [cells[0] for cells in rows_of("Health")]
    words = re.findall(r'"([a-z -]+)": _', inspect.getsource(verdict.judge))
    signals = [f"`{info.key}`" for info in METRICS if info.part == "health"]
    assert first == ["signal", *signals, "word", *words, "healthy"]
    for threshold in (
        f"more than {verdict.LEAST_CHANGE:.2f}".replace("0.", "."),
        f"deviation is below {verdict.SAME}",
        f"rank below {verdict.LEAST_RANK}",
        f"below {verdict.LOST_RANK:.0%} of its highest",
        f"over {100 * verdict.MORE_FOUND:.0f} points",
        f"mean of {verdict.FEW_LINES} lines",
        f"more than {verdict.NEAR_GUESSING:.0%} of the way",
        f"last {1 - verdict.LATE:.0%} of the run",
    ):
        assert threshold in SECTIONS["Health"], threshold
