"""The documentation is true: each block on its pages runs as written, and what it says of files and functions is so."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from cyclecontrast.exporting.command import Export
from cyclecontrast.reporting.quantities import QUANTITIES

import cyclecontrast as cc
from cyclecontrast import loss
from cyclecontrast.config import PROTOCOL_CONFIGS
from cyclecontrast.data.prepare import PrepareSummary
from cyclecontrast.data.store_files import FRAME_SCHEMA, VIDEO_SCHEMA
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos
from cyclecontrast.demo_run import Demo
from cyclecontrast.evaluation import metrics
from cyclecontrast.evaluation.embed import Embedded
from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.evaluation.protocol import find_protocol
from cyclecontrast.evaluation.tracking.scores import SCHEMA as TRACKING
from cyclecontrast.models.checkpoint import Architecture
from cyclecontrast.reporting.page import Report
from cyclecontrast.training.pretrain import Run
from cyclecontrast.training.run_folder import About, Health
from tests.system.test_supply import WATCH

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXTS = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}
COMMENT = re.compile(r"<!--(?! not run: ).*?-->", re.DOTALL)
FENCE = re.compile(r"(?:^<!-- not run: (.+?) -->\n)?^```(.*?)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SNIPPET = re.compile(r'^--8<-- "(examples/\w+\.py)"$', re.MULTILINE)
"""A whole file in place of a block; test_examples.py runs it."""
PLACE = re.compile(r"The\s+blocks\s+of\s+this\s+page\s+run\s+in\s+a\s+folder\s+with\s+(.*?)\.\s", re.DOTALL)
REASONS = {"asks a network", "needs Docker", "needs GPUs", "takes long"}
MOST_NOT_RUN = 6
OTHERS = {"evaluation.md"}
"""Pages of commands on data beside the project, which test_readme.py looks at."""
SMALL = {"backbone": "resnet10-small-w16", "image_size": 32, "steps": 30, "workers": 0, "report": False}
DRIVER = """
import json, subprocess, sys
session = {"__name__": "__main__"}
for number, (language, code) in enumerate(json.load(sys.stdin)):
    print(f"\\nblock {number} of the page", flush=True)
    if language == "python":
        exec(compile(code, f"block {number}", "exec"), session)
    else:
        subprocess.run(["bash", "-euc", code], check=True)
"""
"""Runs the blocks of a page: each of a shell by itself, those of Python as one session."""


class Block(NamedTuple):
    """A block of a page, why it is not run, and what the page says that it prints."""

    language: str
    code: str
    reason: str
    shown: str = ""


def blocks_of(text):
    """Return the blocks of a page; a block of text belongs to the one before it."""
    found = []
    for reason, language, code in FENCE.findall(COMMENT.sub("", text) + "\n"):
        if language == "text" and found:
            found[-1] = found[-1]._replace(shown=code)
        else:
            found.append(Block(language, code, reason))
    return [block for block in found if not SNIPPET.match(block.code)]


BLOCKS = {name: blocks_of(text) for name, text in TEXTS.items() if name not in OTHERS}
PAGES = [name for name, blocks in BLOCKS.items() if blocks]


def test_blocks_are_found():
    """A block knows its language, its reason and its output; what a comment hides is none."""
    page = "a\n```sh\nls\n```\n```text\nx\n```\n<!-- not run: takes long -->\n```python\n1\n```\n"
    page += "<!--\n```sh\nhidden\n```\n-->\n"
    assert blocks_of(page) == [Block("sh", "ls\n", "", "x\n"), Block("python", "1\n", "takes long")]


def test_few_blocks_are_not_run_and_each_says_why():
    """Every block is of a kind that is run; those that cannot be are few, for one of few reasons, and still parse."""
    blocks = [block for page in PAGES for block in BLOCKS[page]]
    assert len(blocks) > 40
    assert {block.language for block in blocks} == {"sh", "python"}
    left_out = [block for block in blocks if block.reason]
    assert {block.reason for block in left_out} <= REASONS
    assert len(left_out) <= MOST_NOT_RUN
    for block in left_out:
        subprocess.run(["bash", "-n", "-c", block.code], check=True)


def test_no_other_page_of_the_site_has_blocks():
    """What is not run here is looked at by test_readme.py: the README, and commands on data beside the project."""
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        assert blocks_of((ROOT / name).read_text()) == []
    for name in OTHERS:
        assert all("../shared" in line for block in blocks_of(TEXTS[name]) for line in block.code.splitlines())


def test_examples_are_shown_whole():
    """The page on extending shows every example, as the file that test_examples.py runs."""
    shown = SNIPPET.findall(TEXTS["extend.md"])
    assert sorted(shown) == [f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.py"))]
    assert len(shown) == 4


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """What a page may say lies in its folder: videos, images in folders of classes, and a run of thirty steps."""
    root = tmp_path_factory.mktemp("material")
    spec = SyntheticSpec(60, num_categories=2, num_train_per_category=6, num_test_per_category=3)
    made = make_videos(root / "made", spec, seed=0, workers=0)
    made.videos.rename(root / "videos")
    for split, folder in (("train", "train"), ("test", "val")):
        for line in (made.labeled / f"{split}.txt").read_text().splitlines():
            video = line.split()[0]
            for image in (made.labeled / "frames" / video).iterdir():
                place = root / "labeled" / folder / Path(video).parent
                place.mkdir(parents=True, exist_ok=True)
                image.rename(place / f"{Path(video).name}-{image.name}")
    cc.pretrain(root / "videos", out=root / "run", **SMALL)
    return root


@pytest.fixture(scope="module")
def done(material, tmp_path_factory):
    """Every page, run in a folder of its own from the first block to the last: two pages at a time."""
    watch = tmp_path_factory.mktemp("watch")
    (watch / "sitecustomize.py").write_text(WATCH)
    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(partial(run_page, material, watch, tmp_path_factory.mktemp("pages")), PAGES))


def run_page(material, watch, pages, name):
    """Run a page with what it says lies there; returns its name, and the process with the calls to a network."""
    folder, calls = pages / name, watch / f"{name}.calls"
    folder.mkdir()
    for part in re.findall(r"`(\w+)`", "".join(PLACE.findall(TEXTS[name]))):
        shutil.copytree(material / part, folder / part)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(watch), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CALLS": str(calls),
        "OMP_NUM_THREADS": "1",
    }
    blocks = json.dumps([block[:2] for block in BLOCKS[name] if not block.reason])
    process = subprocess.run(
        [sys.executable, "-u", "-W", "error", "-c", DRIVER],
        input=blocks,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return name, (process, calls.read_text() if calls.exists() else "")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_and_prints_what_the_page_says(page, done):
    """The blocks of a page run one after the other, ask no network, and print the lines that are shown, in order.

    Of a shown line `...` stands for anything.
    """
    process, calls = done[page]
    assert process.returncode == 0, process.stdout
    assert calls == ""
    printed = re.split(r"^block \d+ of the page\n", process.stdout, flags=re.MULTILINE)[1:]
    for block, output in zip([block for block in BLOCKS[page] if not block.reason], printed, strict=True):
        lines = iter(output.splitlines())
        for line in block.shown.splitlines():
            wanted = re.compile(re.escape(line).replace(r"\.\.\.", ".*"))
            assert any(wanted.fullmatch(found) for found in lines), f"{block.code}\n{line!r} is not in\n{output}"


def test_every_page_says_where_its_blocks_run():
    """A page names what must lie in its folder, and only what the tests put there; of the tutorial that is nothing."""
    known = {"videos", "labeled", "run"}
    for page in PAGES:
        named = set(re.findall(r"`(\w+)`", "".join(PLACE.findall(TEXTS[page]))))
        assert named <= known, page
        assert bool(named) == (page != "tutorial-owners.md"), page


def tables_of(page):
    """Return {heading: {first cell: other cells}} of a page; a first cell may hold several names."""
    tables, heading = {}, ""
    for line in TEXTS[page].splitlines():
        if line.startswith("#"):
            heading = line.strip("# ").replace("`", "")
        elif line.startswith("| `"):
            first, *rest = [cell.strip() for cell in line.strip("|").split(" | ")]
            tables.setdefault(heading, {}).update(dict.fromkeys(re.findall(r"`([^`]+)`", first), rest))
    return tables


FILES = tables_of("formats.md")


@pytest.mark.parametrize(("heading", "schema"), [("videos.parquet", VIDEO_SCHEMA), ("frames.parquet", FRAME_SCHEMA)])
def test_columns_of_a_store_are_the_codes(heading, schema, material):
    """The tables of videos and frames have the columns of the code, in its order and types, and so have the files."""
    named = [(name, cells[0]) for name, cells in FILES[heading].items()]
    assert named == [(field.name, str(field.type)) for field in schema]
    written = pq.read_schema(material / "run" / "frames" / heading)
    assert named == [(field.name, str(field.type)) for field in written]


def test_a_run_holds_what_is_said_of_it(material):
    """Each file of a run and each name in its files has a row, and what a run wrote is among them."""
    run = material / "run"
    said = {name.split("/")[0] for name in FILES["A run"]}
    there = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert there <= said
    assert said - there == {"best", "results", "report.html", "tensorboard", "wandb"}
    assert set(FILES["run.json"]) == set(About.__annotations__)
    assert set(json.loads((run / "run.json").read_text())) <= set(FILES["run.json"])
    health = re.findall(r"`(\w+)`", FILES["run.json"]["health"][0])
    assert set(health) == set(Health.__annotations__)
    written = set(json.loads((run / "backbone.json").read_text()))
    assert set(FILES["backbone.json"]) == set(Architecture._fields) == written
    unreadable = re.findall(r"`(\w+)`", FILES["A run"]["unreadable.json"][0])
    assert unreadable[:3] == list(json.loads((run / "unreadable.json").read_text()))


def test_metrics_are_those_that_are_written(material):
    """metrics.jsonl has the columns that the page names: all that a report draws, and all that a run wrote."""
    lines = [json.loads(line) for line in (material / "run" / "metrics.jsonl").read_text().splitlines()]
    written = {name for line in lines for name in line}
    drawn = {quantity.key for quantity in QUANTITIES}
    unseen = {"same_frame_loss", "order_loss", "self_batch_loss"}
    assert set(FILES["metrics.jsonl"]) == written | drawn
    assert drawn - written == unseen


def test_results_and_records_are_as_said(material, tmp_path):
    """A result has the parts that the page names, a record the columns; of those not made here the code names them."""
    result = cc.evaluate("knn", material / "run", material / "labeled", k=(3,), out=tmp_path, workers=0)
    (path,) = tmp_path.glob("*.json")
    assert list(FILES["A result"]) == list(json.loads(path.read_text()))
    columns = {name: re.findall(r"`([^`]+)`", cells[1]) for name, cells in FILES["Records"].items()}
    assert set(columns) == set(PROTOCOL_CONFIGS)
    (record,) = (tmp_path / "records").iterdir()
    assert [name.replace("<k>", "3") for name in columns["knn"]] == pq.read_schema(record).names
    assert b"about" in pq.read_schema(record).metadata
    assert columns["tracking"] == TRACKING.names
    for name in ("retrieval", "action", "segmentation", "propagation"):
        module = Path(sys.modules[find_protocol(name).__module__].__file__).read_text()
        assert all(f'"{column}"' in module for column in columns[name]), name
    assert result.about.protocol == "knn"


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_an_index_is_as_said(material, tmp_path, suffix):
    """What `embed` writes has the columns and says of itself what the page says, in either form."""
    path = tmp_path / f"index.{suffix}"
    cc.embed(material / "run", material / "run" / "frames", out=path, workers=0)
    named = ["model", "seed", "data", "model_name", "model_source"]
    about = [*named, "model_fingerprint", "data_fingerprint", "image_size"]
    columns = ["video", "index", "time", "vector"]
    assert list(FILES["An index"]) == columns + about
    if suffix == "npz":
        assert sorted(np.load(path)) == sorted(columns + about)
        return
    schema = pq.read_schema(path)
    assert schema.names == columns
    assert [name.decode() for name in schema.metadata] == about
    assert [str(field.type) for field in schema][:3] == [FILES["An index"][name][0] for name in columns[:3]]


def test_every_public_name_is_documented():
    """The page on Python names each public name of the package, and scores that there are."""
    text = TEXTS["api.md"]
    assert {name for name in cc.__all__ if f"`{name}" not in text} == set()
    scores = re.findall(r"`(\w+)`", text.partition("## Scores")[2])
    assert len(scores) > 15
    assert set(scores) <= set(metrics.__all__)


def test_the_losses_take_what_the_page_says():
    """Each function of the losses is written with its parameters and their defaults."""
    written = re.findall(r"^\| `((\w+)\(.+?\))` \|", TEXTS["api.md"].partition("## The losses")[2], re.MULTILINE)
    assert [name for _, name in written] == ["info_nce", "soft_nearest_neighbor", "cycle_consistency", "KeyQueue"]
    for call, name in written:
        parameters = inspect.signature(getattr(loss, name)).parameters.values()
        told = ", ".join(str(one.replace(annotation=one.empty)) for one in parameters)
        assert call == f"{name}({told})"


def test_what_functions_give_back_has_what_the_page_says():
    """Each name behind a kind of result is one of its fields."""
    kinds = (PrepareSummary, Run, Result, Embedded, Export, Report, Demo)
    rows = dict(re.findall(r"\| `(\w+)`: (.+) \|$", TEXTS["api.md"], re.MULTILINE))
    for kind in kinds:
        fields = re.findall(r"`(\w+)`", rows[kind.__name__])
        assert fields
        assert all(name in kind.__annotations__ or hasattr(kind, name) for name in fields), kind
