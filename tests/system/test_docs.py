"""The README and the pages in docs/ are true: their blocks run as written, and their tables match the code."""

import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

import cyclecontrast as cc
import mkdocs_commands
from cyclecontrast import loss
from cyclecontrast.cli import COMMANDS, main, read
from cyclecontrast.data.synthetic import SyntheticSpec, make_videos
from cyclecontrast.evaluation import metrics
from tests.system.test_supply import WATCH

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
TEXTS = {path.name: path.read_text() for path in [README, *sorted(DOCS.glob("*.md"))]}
COMMENT = re.compile(r"<!--(?! not run: ).*?-->", re.DOTALL)
FENCE = re.compile(r"(?:^<!-- not run: (.+?) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SNIPPET = re.compile(r'^--8<-- "(examples/\w+\.py)"$', re.MULTILINE)
"""A whole example in place of a block; test_examples.py runs it."""
PLACE = re.compile(r"The\s+blocks\s+of\s+this\s+page\s+run\s+in\s+a\s+folder\s+with\s+(.*?)\.\s", re.DOTALL)
REASONS = {"uses the network", "needs Docker", "needs GPUs", "takes long", "installs packages", "needs Slurm"}
NEEDS_DATA = {"results.md"}
"""Pages whose commands need data that is not part of the project; only their options are checked."""
SMALL = {"backbone": "resnet10-small-w16", "image_size": 32, "steps": 30, "workers": 0, "report": False}
QUICK = "--steps 2 --batch-size 4 --queue-size 16 --cycle-queue-size 16 --support-size 4 --image-size 32 --workers 0"
DRIVER = """
import json, os, re, shlex, subprocess, sys, traceback
from cyclecontrast.cli import main

def run(code, quick):
    lines = code.replace("\\\\\\n", " ").splitlines()
    if any(re.match(r"\\s|(cd|for|if|export|source) |\\w+=|.*<<", line) for line in lines):
        return subprocess.run(["bash", "-euc", code], check=True)
    for line in lines:
        if not re.fullmatch(r"cyclecontrast [^|&;<>$'`]*", line):
            subprocess.run(["bash", "-euc", line], check=True)
            continue
        arguments = shlex.split(line, comments=True)[1:]
        if quick and "--minutes" in arguments:
            at = arguments.index("--minutes")
            del arguments[at : at + 2]
        assert not main([*arguments, *(quick if arguments[0] == "pretrain" else [])]), line

for page in json.load(sys.stdin):
    print("\\npage", page["name"], flush=True)
    os.environ["CALLS"] = page["calls"]
    os.chdir(page["folder"])
    session = {"__name__": "__main__"}
    try:
        for number, (language, code) in enumerate(page["blocks"]):
            print("\\nblock", number, flush=True)
            if language == "python":
                exec(compile(code, f"block {number}", "exec"), session)
            else:
                run(code, page["quick"])
    except BaseException:
        print("\\nfailed\\n" + traceback.format_exc(), flush=True)
"""
"""Runs the blocks of pages: Python as one session per page, plain commands by their function, the rest in a shell.

One process runs many pages, because most of the time of a command is spent importing PyTorch.
"""


class Block(NamedTuple):
    """A block of a page, the reason why it is not run, and the output that the page shows."""

    language: str
    code: str
    reason: str
    shown: str = ""


def blocks_of(text):
    """Return the blocks of a page that can run; a text block is the output of the block before it."""
    found = []
    for reason, language, code in FENCE.findall(COMMENT.sub("", text) + "\n"):
        if language == "text":
            found[-1] = found[-1]._replace(shown=code)
        elif not SNIPPET.match(code):
            found.append(Block(language, code, reason))
    return found


BLOCKS = {name: blocks_of(text) for name, text in TEXTS.items()}
PAGES = [name for name, blocks in BLOCKS.items() if blocks and name not in NEEDS_DATA]


def test_blocks_are_found():
    """A block has its language, its reason and its output; comments are ignored."""
    page = "a\n```sh\nls\n```\n```text\nx\n```\n<!-- not run: takes long -->\n```python\n1\n```\n"
    page += "<!--\n```sh\nhidden\n```\n-->\n"
    assert blocks_of(page) == [Block("sh", "ls\n", "", "x\n"), Block("python", "1\n", "takes long")]


def test_few_blocks_are_not_run():
    """Blocks are shell or Python; at most a fifth is not run, each for a known reason."""
    blocks = [block for page in PAGES for block in BLOCKS[page]]
    assert {block.language for block in blocks} == {"sh", "python"}
    left_out = [block for block in blocks if block.reason]
    assert {block.reason for block in left_out} <= REASONS
    assert 5 * len(left_out) <= len(blocks)


def test_the_readme_is_short():
    """The README has at most 150 lines, links the tutorial at its top, and names no data outside the project."""
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 150
    assert any("docs/tutorial-owners.md" in line for line in lines[:15])
    assert "../shared" not in TEXTS["README.md"] + (ROOT / "Makefile").read_text()


def test_examples_are_shown_completely():
    """The page on extending includes every file of examples/."""
    shown = SNIPPET.findall(TEXTS["extend.md"])
    assert sorted(shown) == [f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.py"))]


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_files_that_a_page_names_exist(page):
    """Every test, benchmark or script that a page names in backticks is a file of the project."""
    folders = "tests|faults|fuzz|benchmarks|studies|examples|notebooks|src|tools"
    named = re.findall(rf"`(?:python )?((?:{folders})/[\w/.]+?)(?: [^`]*)?`", TEXTS[page])
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_commands_on_other_data_are_valid(capsys):
    """The commands behind the figures on other data have options that exist."""
    lines = [line for page in NEEDS_DATA for block in BLOCKS[page] for line in block.code.splitlines()]
    commands = [line.split() for line in lines if line.startswith("cyclecontrast ")]
    assert len(commands) > 20
    for _, *words in commands:
        assert main([*words, "--print-config"]) == 0, capsys.readouterr().err


def test_the_page_of_commands_is_up_to_date():
    """docs/commands.md has the commands and options of today."""
    assert TEXTS["commands.md"] == mkdocs_commands.make_page(), "run: python mkdocs_commands.py"


def test_the_page_of_commands_has_every_option():
    """Each flag in the help of a command is in its section of the page, or among the options of every protocol."""
    sections = dict(re.findall(r"^## ([\w -]+)\n(.*?)(?=^## |\Z)", TEXTS["commands.md"], re.DOTALL | re.MULTILINE))
    assert sections.keys() == {*COMMANDS, "evaluate"}
    for name in COMMANDS:
        shown = sections[name] + sections["evaluate"] * name.startswith("evaluate ")
        flags = re.findall(r"^  (--[\w-]+)", read([*name.split(), "--help"])(), re.MULTILINE)
        assert set(flags) - set(re.findall(r"--[\w-]+", shown)) == {"--config", "--print-config", "--help"}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """What the folder of a page may hold: videos, images in folders of classes, and a run of thirty steps."""
    root = tmp_path_factory.mktemp("material")
    spec = SyntheticSpec(60, num_categories=2, num_train_per_category=6, num_test_per_category=3)
    made = make_videos(root / "made", spec, seed=0, workers=0)
    made.videos.rename(root / "videos")
    empty_box = bytes([0, 0, 0, 8]) + b"free"  # so that it is no copy
    (root / "videos" / "clip0.mp4").write_bytes((root / "videos" / "0000.mp4").read_bytes() + empty_box)
    for split, folder in (("train", "train"), ("test", "val")):
        for line in (made.labeled / f"{split}.txt").read_text().splitlines():
            video = line.split()[0]
            for image in (made.labeled / "frames" / video).iterdir():
                place = root / "labeled" / folder / Path(video).parent
                place.mkdir(parents=True, exist_ok=True)
                image.rename(place / f"{Path(video).name}-{image.name}")
    cc.pretrain(root / "videos", out=root / "run", method="cycle", **SMALL)
    return root


@pytest.fixture(scope="module")
def printed(material, tmp_path_factory):
    """What the blocks of every page printed, each page run in its own folder, by two processes."""
    watch, pages = tmp_path_factory.mktemp("watch"), tmp_path_factory.mktemp("pages")
    (watch / "sitecustomize.py").write_text(WATCH)
    jobs = []
    for name in PAGES:
        (pages / name).mkdir()
        for part in folder_of(name):
            shutil.copytree(material / part, pages / name / part)
        blocks = [block[:2] for block in BLOCKS[name] if not block.reason]
        quick = QUICK.split() if name == "README.md" else []
        folder, calls = str(pages / name), str(watch / f"{name}.calls")
        jobs.append({"name": name, "folder": folder, "calls": calls, "blocks": blocks, "quick": quick})
    jobs.sort(key=lambda job: -len(job["blocks"]))
    with ThreadPoolExecutor(2) as pool:
        output = "".join(pool.map(partial(run_pages, watch), (jobs[::2], jobs[1::2])))
    found = re.split(r"^page (\S+)\n", output, flags=re.MULTILINE)
    assert sorted(found[1::2]) == sorted(PAGES), output
    assert not list(watch.glob("*.calls"))
    return dict(zip(found[1::2], found[2::2], strict=True))


def run_pages(watch, jobs):
    """Run the blocks of some pages in one process, where network calls fail and are recorded; return the output."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(watch), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-u", "-W", "error", "-c", DRIVER]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, input=json.dumps(jobs), env=environment, **pipes).stdout


def folder_of(page):
    """Return the names of what a page says is in its folder."""
    if page == "README.md":
        return ["videos", "labeled"]
    return re.findall(r"`(\w+)`", "".join(PLACE.findall(TEXTS[page])))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_and_prints_what_the_page_shows(page, printed):
    """The blocks of a page run in order, use no network, and print the shown lines; `...` stands for anything."""
    assert "\nfailed\n" not in printed[page], printed[page]
    outputs = re.split(r"^block \d+\n", printed[page], flags=re.MULTILINE)[1:]
    for block, output in zip([block for block in BLOCKS[page] if not block.reason], outputs, strict=True):
        lines = iter(output.splitlines())
        for line in block.shown.splitlines():
            wanted = re.compile(re.escape(line).replace(r"\.\.\.", ".*"))
            assert any(wanted.fullmatch(found) for found in lines), f"{block.code}\n{line!r} is not in\n{output}"


STAND_INS = {
    "sbatch": """
        array=$(sed -n 's/.*--array=1-\\([0-9]*\\).*/\\1/p' $1)
        export SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=2 SLURM_JOB_NODELIST=n[1-2] SLURM_ARRAY_TASK_COUNT=$array
        for task in $(seq ${array:-1}); do SLURM_ARRAY_TASK_ID=$task bash $1 & done
        wait
    """,
    "srun": """
        while [ "${1#-}" != "$1" ]; do shift; done
        for node in 0 1; do SLURM_NODEID=$node "$@" & echo $! >> machines; done
        wait
    """,
    "scontrol": """
        if [ $1 = show ]; then echo 127.0.0.1; else touch $1-$2; fi
    """,
}
"""What stands for Slurm: tasks of an array, and machines, are processes of this one."""


@pytest.mark.long
def test_the_scripts_for_clusters_survive_a_preemption(material, tmp_path):
    """An array fills one store; two machines train, are stopped as Slurm does, ask to be started again and resume."""
    shutil.copytree(material / "videos", tmp_path / "videos")
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text("#!/bin/bash\n" + textwrap.dedent(body))
        (tmp_path / "bin" / name).chmod(0o755)
    programs = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(programs), "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(code):
        return subprocess.Popen(["bash", "-euc", code.replace("29500", port)], cwd=tmp_path, env=environment)

    def status():
        return json.loads((tmp_path / "run" / "run.json").read_text())["status"]

    for block in BLOCKS["clusters.md"][:-2]:
        assert start(block.code).wait() == 0
    videos = pq.read_table(tmp_path / "frames" / "videos.parquet").num_rows
    assert videos == len(list((tmp_path / "videos").iterdir()))
    job = start(BLOCKS["clusters.md"][-2].code)
    while not list((tmp_path / "run").glob("checkpoints/step-*")):
        assert job.poll() is None
        time.sleep(0.05)
    for machine in (tmp_path / "machines").read_text().split():
        children = Path(f"/proc/{machine}/task/{machine}/children").read_text().split()
        for process in (*children, machine):  # Slurm signals all, and torchrun its own once more
            os.kill(int(process), signal.SIGTERM)
    assert job.wait() == 0
    assert status() == "stopped: terminated"
    (tmp_path / "requeue-7").unlink()
    assert start(BLOCKS["clusters.md"][-2].code).wait() == 0
    assert status() == "finished"
    assert not (tmp_path / "requeue-7").exists()
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 100


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


@pytest.mark.parametrize("name", ["videos.parquet", "frames.parquet"])
def test_a_store_has_the_documented_columns(name, material):
    """The tables of a store have the columns and types of the page, in its order."""
    documented = [(column, cells[0]) for column, cells in FILES[name].items()]
    assert documented == [(field.name, str(field.type)) for field in pq.read_schema(material / "run/frames" / name)]


def test_a_run_has_the_documented_files_and_names(material):
    """Everything in a run has a row on the page; what this run lacks is optional."""
    run = material / "run"
    documented = {name.split("/")[0] for name in FILES["A run"]}
    there = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert there <= documented
    assert documented - there == {"best", "results", "report.html", "tensorboard", "wandb"}
    about = json.loads((run / "run.json").read_text())
    assert set(about) <= set(FILES["run.json"])
    assert set(FILES["run.json"]) - set(about) <= {"selected_step", "start"}
    assert set(about["health"]) <= set(re.findall(r"`(\w+)`", FILES["run.json"]["health"][0]))
    assert set(FILES["backbone.json"]) == set(json.loads((run / "backbone.json").read_text()))
    unreadable = re.findall(r"`(\w+)`", FILES["A run"]["unreadable.json"][0])
    assert unreadable[:3] == list(json.loads((run / "unreadable.json").read_text()))
    written = {name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    other_methods = {"same_frame_loss", "order_loss", "self_batch_loss"}
    assert set(FILES["metrics.jsonl"]) - other_methods == written


def test_a_result_and_an_index_have_the_documented_names(material, tmp_path):
    """A result, its record and an index have the names, columns and metadata of the page."""
    run, out = material / "run", tmp_path / "results"
    result = cc.evaluate("knn", run, material / "labeled", k=(3,), out=out, workers=0, baseline="random")
    path = out / f"{result.about.key}.json"
    assert list(FILES["A result"]) == list(json.loads(path.read_text()))
    record = out / "records" / f"{result.about.record_key}.parquet"
    columns = re.findall(r"`([^`]+)`", FILES["Records"]["knn"][1])
    assert [name.replace("<k>", "3") for name in columns] == pq.read_schema(record).names
    for suffix in ("parquet", "npz"):
        cc.embed(run, run / "frames", out=tmp_path / f"index.{suffix}", workers=0)
    schema = pq.read_schema(tmp_path / "index.parquet")
    names = [*schema.names, *(name.decode() for name in schema.metadata)]
    assert list(FILES["An index"]) == names
    assert sorted(np.load(tmp_path / "index.npz")) == sorted(names)


def test_every_public_name_is_documented():
    """The page on Python names every public name of the package, and metrics that exist."""
    text = TEXTS["api.md"]
    assert {name for name in cc.__all__ if f"`{name}" not in text} == set()
    named = re.findall(r"`(\w+)`", text.partition("## Metrics")[2])
    assert len(named) > 15
    assert set(named) <= set(dir(metrics))


def test_the_losses_take_the_documented_arguments():
    """Each loss is documented with its parameters and their defaults."""
    written = re.findall(r"^\| `((\w+)\(.+?\))` \|", TEXTS["api.md"].partition("## The losses")[2], re.MULTILINE)
    assert [name for _, name in written] == ["info_nce", "soft_nearest_neighbor", "cycle_consistency", "KeyQueue"]
    for call, name in written:
        parameters = inspect.signature(getattr(loss, name)).parameters.values()
        assert call == f"{name}({', '.join(str(one.replace(annotation=one.empty)) for one in parameters)})"
