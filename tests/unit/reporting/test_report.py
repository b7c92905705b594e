"""The page says what the run's files say, needs nothing else, and trusts no name that comes from data."""

import base64
import inspect
import json
import math
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from cyclecontrast.training.open_data import make_pairs
from hypothesis import given
from hypothesis import strategies as st

from cyclecontrast.config import PrepareConfig, PretrainConfig, ReportConfig
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.data.prepare import prepare
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation.predictions import About, DataInfo, ModelInfo, Result
from cyclecontrast.loss import baseline_objectives, objectives
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import fingerprint, save_backbone
from cyclecontrast.reporting import curves, inputs, maps, page
from cyclecontrast.reporting.atlas import Atlas
from cyclecontrast.reporting.page import Section, write_report
from cyclecontrast.reporting.runs import read_run
from cyclecontrast.training import run_folder
from tests.make_videos import write_numbered

BACKBONE = "resnet10-small-w4"
SIZE = 16
SIGNALS = [quantity.key for quantity in curves.QUANTITIES if quantity.part == "health"]
TERMS = ("same_frame_loss", "order_loss", "self_batch_loss")
HEALTH = {
    "verdict": "collapsed",
    "reason": "all videos get <nearly> the same vector",
    "num_held_out": 1234,
    "health": {
        "held_out": True,
        "videos": 256,
        "views": 512,
        "chance": 0.0625,
        "cycle_chance": 0.03125,
        "at_start": dict.fromkeys(SIGNALS, 0.125),
    },
}
VOID = {"img", "meta", "br", "line", "input"}


class Page(HTMLParser):
    """What a browser would find: elements, words, and whether every element is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text("utf-8")
        self.elements, self.open, self.words = [], [], []
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        """Note an element that opens."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Note an element without content."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        """Check that it closes the innermost open element."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Note what is read, leaving out the style sheet."""
        if "style" not in self.open:
            self.words.append(data)

    @property
    def tiles(self):
        """The names of the tiles, as they are shown."""
        return [attrs["aria-label"] for attrs in self.all("span") if "tile" in attrs.get("class", "").split()]

    @property
    def text(self):
        """All words, one space apart."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag):
        """The attributes of all elements with this tag."""
        return [attrs for name, attrs in self.elements if name == tag]


def write_frames(root, ids, num_frames=3, seed=0):
    """A tree of frames of random colors, one color for each video."""
    rng = np.random.default_rng(seed)
    for video in ids:
        folder = root / video
        folder.mkdir(parents=True)
        color = rng.integers(0, 256, 3)
        for index in range(num_frames):
            noise = rng.integers(-20, 20, (24, 32, 3))
            cv2.imwrite(str(folder / f"{index}.png"), np.clip(color + noise, 0, 255).astype(np.uint8))
    return root


def metrics_row(step, **more):
    """A line of metrics.jsonl."""
    return {
        "step": step,
        "learning_rate": 0.06,
        "loss": 5.0,
        "intra_loss": 4.9,
        **dict.fromkeys(TERMS, 0.5),
        "cycle_loss": 5.1,
        "cycle_weight": 0.1,
        "intra_accuracy": 0.25,
        "cycle_closed": 0.125,
        "gradient_norm": 1.5,
        **dict.fromkeys(SIGNALS, 0.375),
    } | more


def write_run(folder, data, seed=0, rows=None, **options):
    """A finished run whose backbone has random weights."""
    settings = {"queue_size": 1024, "cycle_queue_size": 1024, "support_size": 256, "steps": 20, "batch_size": 4}
    settings |= {"backbone": BACKBONE, "image_size": SIZE} | options
    folder.mkdir(parents=True)
    run_folder.write_config(folder, PretrainConfig(data=data, out=folder, seed=seed, **settings))
    about = {
        "versions": {"python": "3.11.0", "torch": "2.13.0"},
        "device": "cpu (x86_64)",
        "precision": "fp32",
        "num_videos": 12345,
        "num_frames": 67890,
        "num_single_frame_videos": 77,
        "num_steps": 20,
        "status": "finished",
    }
    run_folder.write_about(folder, about)
    for row in rows if rows is not None else [metrics_row(10), metrics_row(20, intra_loss=4.5)]:
        run_folder.append_metrics(folder, row)
    backbone = make_backbone(BACKBONE, seed + 100, SIZE)
    backbone.source = "trained"
    save_backbone(backbone, folder)
    return folder


def write_result(run, metrics, model=None, protocol="knn", tag="knn level=frame", data="labeled", notes=()):
    """A result of the run's backbone, or of random weights."""
    backbone = make_backbone(BACKBONE, 100 + int(run.name[-1]), SIZE) if model is None else make_backbone(model, 7)
    source = "random weights" if model else str(run)
    info = ModelInfo(BACKBONE, source, fingerprint(backbone))
    config = {"model": source, "seed": 7, "image_size": None}
    about = About(protocol, tag, config, info, DataInfo(f"/data/{data}", f"print-of-{data}", 100, 50), notes, (), {})
    Result(about, metrics, {}).save(run / "results")


def report(*runs, **options):
    """Write a report and read it as a page."""
    return Page(write_report(ReportConfig(runs=runs, workers=0, device="cpu", **options)).path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on ten videos with two results, and its page."""
    root = tmp_path_factory.mktemp("report")
    data = write_frames(root / "data", [f"video{number}" for number in range(10)])
    run = write_run(root / "run0", data)
    run_folder.change_about(run, **HEALTH)
    write_result(run, {"top1": 0.625, "top5": 0.875}, notes=("a note on the result",))
    write_result(run, {"top1": 0.375, "top5": 0.5}, model=BACKBONE)
    return run, report(run)


def table_rows(page, caption):
    """The rows of the first table with this caption, as texts."""
    start = page.html.index(f">{caption}</caption>")
    body = page.html[page.html.index("<tbody>", start) : page.html.index("</tbody>", start)]
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    return [[re.sub(r"<[^>]+>", " ", c).split() for c in re.findall(r"<t[hd].*?</t[hd]>", r, re.DOTALL)] for r in rows]


def test_page_stands_alone(made):
    """The page runs no script, names no address outside itself, and is small."""
    _, page = made
    assert page.open == []
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "link", "base"}
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in page.all("img"))
    assert all(attrs["href"].startswith("#") for attrs in page.all("a"))
    assert not re.search(r"https?:|url\((?!data:image/jpeg;base64,)|@import|\son\w+=", page.html)
    assert len(page.html) < 2_000_000


def test_page_is_accessible(made):
    """Pictures and charts say what they show, every chart has its numbers, and links lead somewhere."""
    _, page = made
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert all(attrs["aria-label"] for _, attrs in page.elements if attrs.get("role") == "img")
    charts = page.all("svg")
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    assert page.html.count("Numbers<span") - 1 == len(charts) == len(curves.QUANTITIES)
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {attrs["href"][1:] for attrs in page.all("a")} <= ids
    assert page.all("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in page.html
    assert all(attrs.get("tabindex") == "0" for attrs in page.all("div") if "scroll" in attrs.get("class", ""))


def test_page_says_what_went_in(made):
    """Numbers of the data, settings and versions stand on the page as the run recorded them."""
    run, page = made
    for words in (
        "12,345",
        "67,890",
        "Single-frame 77 videos",
        "2.13.0",
        f"cyclecontrast pretrain --config {run}/config.toml",
    ):
        assert words in page.text
    assert (run / "config.toml").read_text().strip() in "".join(page.words)


def test_results_beside_their_baseline(made):
    """The baseline comes first, each model has its own row, and the best of a column is marked."""
    _, page = made
    rows = table_rows(page, "Accuracy and other metrics by model")
    assert [row[0][0] for row in rows] == ["random", "run0"]
    assert [row[1] for row in rows] == [["37.5", "%"], ["62.5", "%", "(best)"]]
    full = table_rows(page, "knn level=frame on /data/labeled, 100 train and 50 test")
    assert [[cell[0] for cell in row[1:]] for row in full] == [["37.5", "50.0"], ["62.5", "87.5"]]
    assert "run0: a note on the result" in page.text


def test_results_that_may_not_be_compared(tmp_path):
    """Different tags, and different data of one name, never share a column."""
    run = write_run(tmp_path / "run1", write_frames(tmp_path / "data", ["a", "b"]))
    write_result(run, {"top1": 0.1}, tag="linear probe=sgd")
    write_result(run, {"top1": 0.2}, tag="linear probe=lbfgs", protocol="linear")
    write_result(run, {"top1": 0.3}, tag="linear probe=lbfgs", protocol="linear", data="other/labeled")
    (row,) = table_rows(report(run), "Accuracy and other metrics by model")
    assert sorted(cell[0] for cell in row[1:]) == ["10.0", "20.0", "30.0"]


def test_no_results_yet(tmp_path):
    """A run that was not evaluated shows the command that does it."""
    run = write_run(tmp_path / "run", write_frames(tmp_path / "data", ["a", "b"]))
    assert f"cyclecontrast evaluate knn {run}" in report(run).text.split("Nearest neighbors")[0]


def test_names_are_escaped(tmp_path):
    """Names of videos, runs and notes are text on the page, never markup."""
    evil = "<script>alert(1)</script>"
    data = write_frames(tmp_path / "data", [evil, '"><img src=x onerror=alert(2)>', "עברית 🐘" + 60 * "x"])
    run = write_run(tmp_path / "<b>run2", data)
    write_result(run, {"top1": 0.5}, notes=("<i>note</i>",))
    section = Section("<u>title</u>", ("<u>text</u>",), ("<u>a</u>",), (("<u>b</u>",),))
    options = ReportConfig(runs=(run,), workers=0, device="cpu")
    page = Page(write_report(options, [section]).path)
    assert page.open == []
    assert not {tag for tag, _ in page.elements} & {"script", "b", "i", "u"}
    assert all(attrs["src"].startswith("data:") and "onerror" not in attrs for attrs in page.all("img"))
    assert any(evil in attrs["alt"] for attrs in page.all("img"))
    assert any(evil in name for name in page.tiles)
    for words in ("<b>run2", "<i>note</i>", "<u>title</u>", "<u>text</u>", "<u>a</u>", "<u>b</u>"):
        assert words in page.text


def test_data_is_gone(tmp_path):
    """Without its frames a run still has its page, which says so in place of the pictures."""
    data = write_frames(tmp_path / "data", ["a", "b"])
    run = write_run(tmp_path / "run", data)
    shutil.rmtree(data)
    page = report(run)
    assert page.all("img") == []
    assert len(page.all("svg")) == len(curves.QUANTITIES)
    for part in (page.text.split("Nearest neighbors")[1], page.text.split("Views")[-1]):
        assert f"cannot be shown: {data}: no such folder" in part


def test_data_has_changed(tmp_path):
    """Pictures of other data than the run's are marked as such."""
    data = write_frames(tmp_path / "data", ["a", "b"])
    run = write_run(tmp_path / "run", data)
    run_folder.change_about(run, data_fingerprint=FrameStore.open(data).fingerprint)
    assert "has changed since the run" not in report(run).text
    write_frames(data, ["c"])
    assert "has changed since the run" in report(run).text


def test_run_has_only_begun(tmp_path):
    """A run without metrics and without a backbone has a page that says what is missing."""
    run = write_run(tmp_path / "run", write_frames(tmp_path / "data", ["a", "b"]), rows=[])
    (run / "backbone.safetensors").unlink()
    page = report(run)
    assert "No step has been logged yet" in page.text
    assert "There is no backbone yet" in page.text
    assert "0 of 20" in page.text


def test_skipped_videos_and_their_reasons(tmp_path):
    """Videos that could not be read are listed with the reason, from the store beside the run."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        write_numbered(videos / f"{number}.mp4", 5 + number)
    (videos / "no video.mp4").write_text("text")
    run = write_run(tmp_path / "run", videos)
    prepare(PrepareConfig(videos=videos, out=run / "frames", frames_per_video=2, workers=0))
    page = report(run)
    (row,) = table_rows(page, "Skipped videos")
    assert " ".join(row[0]) == "no video.mp4"
    assert len(row[1]) > 1
    assert "1 video skipped" in page.text
    assert {"0.mp4", "1.mp4", "2.mp4"} <= set(page.tiles)


def test_views_are_those_of_the_training(made):
    """The pairs on the page are the first samples of the run's own data set."""
    run, page = made
    config = read_run(run, "run").config
    pairs = make_pairs(config, FrameStore.open(config.data))
    shown = [decoded(a["src"]) for a in page.all("img") if a["alt"].startswith(("query", "positive"))]
    expected = [view for position in range(10) for view in pairs[position][:2]]
    assert len(shown) == len(expected)
    for found, view in zip(shown, expected, strict=True):
        assert np.abs(found.astype(float).mean((0, 1)) - view.mean((0, 1))).max() < 6


def decoded(source):
    """The RGB image of a data address."""
    data = np.frombuffer(base64.b64decode(source.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def query_blocks(page, title):
    """The queries below a title, as HTML."""
    return page.html.split(f"<h3>{title}</h3>")[1].split("<h3")[0].split("</section>")[0].split('class="query"')[1:]


def test_neighbors_are_of_other_videos(made):
    """Each query is shown with frames of different other videos, by the run and by random weights."""
    _, page = made
    blocks = query_blocks(page, "Random frames")
    assert len(blocks) == 8
    for block in blocks:
        own, *others = re.findall(r'aria-label="(\w+), frame \d', block)
        trained, baseline = others[:8], others[8:16]
        for found in (trained, baseline):
            assert len(set(found)) == 8
            assert own not in found
        values = [float(value) for value in re.findall(r">(-?\d\.\d{3})</li>", block)]
        assert values[:8] == sorted(values[:8], reverse=True)
    assert "random weights" in blocks[0]


def test_unreadable_frames_are_left_out(tmp_path):
    """A damaged frame costs its own picture, not the page."""
    data = write_frames(tmp_path / "data", ["a", "b", "c"], num_frames=2)
    (data / "a" / "0.png").write_bytes(b"damaged")
    page = report(write_run(tmp_path / "run", data))
    assert "b, frame 0" in page.tiles
    assert "a, frame 0" not in page.tiles


def test_same_runs_same_page(made, tmp_path):
    """The page is a function of what is on disk."""
    run, page = made
    assert report(run, out=tmp_path / "again.html").html == page.html


def test_several_runs_side_by_side(tmp_path):
    """Runs are told apart by name; repetitions share a color, and their results have a mean and a deviation."""
    data = write_frames(tmp_path / "data", ["a", "b", "c"])
    runs = [write_run(tmp_path / "x" / f"run{seed}", data, seed) for seed in (0, 1)]
    runs.append(write_run(tmp_path / "y" / "run1", data, method="intra-video", rows=[metrics_row(20, cycle_loss=None)]))
    for run, value in zip(runs, (0.5, 0.7, 0.2), strict=True):
        write_result(run, {"top1": value}, data="labeled" if run != runs[2] else "other")
    page = report(*runs)
    for name in ("x/run0", "x/run1", "y/run1"):
        assert name in page.text
    rows = table_rows(page, "Accuracy and other metrics by model")
    (mean,) = [row for row in rows if row[0][0] == "mean"]
    assert mean[0][:4] == ["mean", "of", "2", "seeds"]
    assert mean[1] == ["60.0", "%", "±", "14.1"]
    colors = re.findall(r'<path class="(c\d)', page.html)
    assert colors[:3] == ["c0", "c0", "c1"]
    assert page.html.count("<title>") == 1
    assert len(page.html) < 2_000_000


@pytest.mark.parametrize("missing", ["config.toml", "run.json"])
def test_folder_that_is_no_run(tmp_path, made, missing):
    """All folders that are no runs are named at once, and nothing is written."""
    for name in ("one", "two"):
        shutil.copytree(made[0], tmp_path / name)
        (tmp_path / name / missing).unlink()
    with pytest.raises(UserError) as caught:
        report(tmp_path / "one", tmp_path / "two", out=tmp_path / "page.html")
    assert [missing in problem for problem in caught.value.problems] == [True, True]
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["config.toml", "run.json", "metrics.jsonl"])
def test_damaged_run(tmp_path, made, name):
    """A file of the run that does not parse is a clear error that names the run."""
    run = tmp_path / "run"
    shutil.copytree(made[0], run)
    (run / name).write_text("{damaged\n")
    before = (run / "report.html").read_bytes()
    with pytest.raises(UserError, match=f"{run}.*damaged"):
        report(run)
    assert (run / "report.html").read_bytes() == before


def test_same_run_twice(made):
    """A run cannot be compared with itself."""
    with pytest.raises(UserError, match="twice"):
        report(made[0], made[0])


def test_output_and_its_text(tmp_path, made):
    """The command's text is the path of the page; a folder is refused as output."""
    path = tmp_path / "new" / "page.html"
    assert str(write_report(ReportConfig(runs=(made[0],), out=path, workers=0, device="cpu"))) == str(path)
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        report(made[0], out=tmp_path / "folder.html")
    with pytest.raises(UserError, match=r"must end in \.html"):
        checked(ReportConfig, {"runs": (made[0],), "out": tmp_path / "notes.txt"})


@pytest.mark.parametrize("value", ["1e300", "-Infinity", "NaN", "[]"])
def test_numbers_that_nothing_measures_are_told(tmp_path, made, value):
    """A line of metrics that would break a chart is named."""
    run = shutil.copytree(made[0], tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 99, "loss": {value}}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl: line \d+ is damaged \(no number in loss\)"):
        report(run)


def test_chance_lines(made):
    """Guessing gives log(number of candidates) as loss: the keys and the positive."""
    _, page = made
    assert f"chance {math.log(1024 + 1):.2f}" in page.text
    assert f"chance {math.log(1024 - 256 + 1):.2f}" in page.text


def test_chance_lines_count_the_keys_of_the_step(tmp_path):
    """Guessing is also among the step's keys where they are candidates; cycles need no intra loss for their line."""
    options = {"method": "cycle-only", "batch_keys": True}
    page = report(write_run(tmp_path / "run", write_frames(tmp_path / "data", ["a", "b"]), **options))
    assert f"chance {math.log(1024 + 3 - 256 + 1):.2f}" in page.text
    assert f"chance {math.log(1024 + 3 + 1):.2f}" not in page.text


@pytest.mark.parametrize(
    ("title", "chance"),
    [
        ("Positives found", 1 / (4 + 3 + 1)),
        ("Intra loss", math.log(4 + 3 + 1)),
        ("Positives found in the queue", 1 / (4 + 1)),
        ("Loss against the queue", math.log(4 + 1)),
    ],
)
def test_chance_of_health_is_among_the_queue_alone(tmp_path, title, chance):
    """Training also guesses among the three other keys of its step, health only among the four of the queue."""
    run = write_run(tmp_path / "run", write_frames(tmp_path / "data", ["a", "b"]), batch_keys=True, queue_size=4)
    (label,) = [chart["aria-label"] for chart in report(run).all("svg") if chart["aria-label"].startswith(f"{title}. ")]
    assert label.endswith(f"; chance: {chance:.2f}." if chance > 1 else f"; chance: {100 * chance:.1f} %.")


def test_the_verdict_and_what_it_rests_on(made):
    """The page says how the run went and why, escaped, on what that was measured, and how it was before training."""
    _, page = made
    assert "collapsed : all videos get <nearly> the same vector. Measured without labels on 512 views" in page.text
    assert "of 256 videos that were held out." in page.text
    assert "Held out 1,234 videos" in page.text
    assert "chance 6.2 %" in page.text
    assert "chance 3.1 %" in page.text
    (label,) = [chart["aria-label"] for chart in page.all("svg") if chart["aria-label"].startswith("Same video found")]
    assert label == "Same video found. run0: 12.5 % at step 0, 37.5 % at step 20; chance: 6.2 %."
    assert page.html.count('class="verdict problem"') == 1


def test_a_run_without_health_has_none_on_its_page(tmp_path):
    """A run from before health was measured has no verdict, no charts of it, and a page as it was."""
    rows = [metrics_row(step, **dict.fromkeys(SIGNALS)) for step in (10, 20)]
    page = report(write_run(tmp_path / "run", write_frames(tmp_path / "data", ["a", "b"]), rows=rows))
    assert len(page.all("svg")) == len(curves.QUANTITIES) - len(SIGNALS)
    assert "Health" not in page.text
    assert "held out" not in page.text


@pytest.mark.parametrize(("objective", "words"), [("simsiam", "two views that predict each other"), ("seco", "order")])
def test_every_objective_has_its_words(tmp_path, objective, words):
    """The page says what a run learned from; without a queue there is no chance of guessing a key."""
    rows = [metrics_row(step, cycle_loss=None, cycle_closed=None) for step in (10, 20)]
    run = write_run(tmp_path / "run", write_frames(tmp_path / "data", ["a", "b"]), rows=rows, method=objective)
    text = report(run).text
    assert words in text.split("12,345 videos, by ")[1].split(".")[0]
    assert ("chance" in text) == (objective == "seco")
    assert "(λ)" not in text


@pytest.mark.parametrize("objective", ["cycle", "cycle-only", "intra-video"])
def test_a_weight_is_shown_where_there_is_one(tmp_path, objective):
    """λ has a chart only where it weighs a cycle loss against another, whatever older runs have noted."""
    run = write_run(tmp_path / "run", write_frames(tmp_path / "data", ["a", "b"]), method=objective)
    assert ("Weight of the cycle loss (λ)" in report(run).text) == (objective == "cycle")


def test_every_term_of_a_loss_has_a_chart():
    """Each named term of an objective's loss is drawn where it was logged."""
    source = inspect.getsource(baseline_objectives) + inspect.getsource(objectives)
    terms = {f"{name}_loss" for name in re.findall(r'Term\("(\w+)"', source)}
    assert terms == set(TERMS)
    assert terms <= {quantity.key for quantity in curves.QUANTITIES}


@pytest.fixture(scope="module")
def some_run(made):
    """The run as the page reads it."""
    return read_run(made[0], "run")


values = st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=350)


@given(values, values)
def test_charts_of_any_numbers(some_run, first, second):
    """Whatever was measured, lines and ticks lie inside the chart, and the table holds means of all values."""
    runs = [
        with_metrics(some_run, f"run{number}", [{"step": 5 * i + 5, "loss": value} for i, value in enumerate(column)])
        for number, column in enumerate((first, second))
    ]
    charts = curves.draw_charts(runs, [0, 1])
    measured = [column for column in (first, second) if any(value is not None for value in column)]
    assert len(charts) == bool(measured)
    for chart in charts:
        assert len(chart.lines) == len(measured)
        places = [tuple(map(float, p.split())) for line in chart.lines for p in line.path[1:].split("L")]
        assert all(curves.LEFT <= x <= curves.WIDTH - curves.RIGHT for x, _ in places)
        assert all(curves.TOP <= y <= curves.HEIGHT - curves.BOTTOM for _, y in places)
        assert all(curves.TOP <= tick.at <= curves.HEIGHT - curves.BOTTOM for tick in chart.y_ticks)
        assert 1 <= len(chart.y_ticks) <= 9
        assert len(chart.rows) <= 2 * curves.MAX_POINTS


def with_metrics(run, name, rows):
    """The run with other metrics."""
    return type(run)(**{**run.__dict__, "name": name, "metrics": tuple(rows)})


def test_long_runs_are_averaged(some_run):
    """A thousand logged steps become a hundred points, each the mean of its ten."""
    rows = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    (chart,) = curves.draw_charts([with_metrics(some_run, "run", rows)], [0])
    assert len(chart.rows) == 100
    assert chart.rows[0] == ("10", "5.50")
    assert chart.rows[-1] == ("1,000", "995.50")


def test_gaps_are_told(some_run):
    """A step that one run did not log is a dash in its column."""
    runs = [with_metrics(some_run, name, [{"step": step, "loss": 2.0}]) for name, step in (("a", 5), ("b", 7))]
    (chart,) = curves.draw_charts(runs, [0, 1])
    assert chart.columns == ("step", "a", "b")
    assert chart.rows == (("5", "2.00", "–"), ("7", "–", "2.00"))
    assert "a: 2.00 at step 5" in chart.alt


def test_no_frame_fails_or_can(tmp_path):
    """Where videos have one frame each, or nothing is confused, the page says so in place of the worst frames."""
    single = write_frames(tmp_path / "single", ["a", "b", "c"], num_frames=1)
    assert "No video has two frames" in report(write_run(tmp_path / "run0", single)).text
    same = write_frames(tmp_path / "same", ["a", "b", "c"], num_frames=1)
    for video in "abc":
        shutil.copy(same / video / "0.png", same / video / "1.png")
    shown = report(write_run(tmp_path / "run1", same))
    assert "No frame fails" in shown.text
    assert query_blocks(shown, "Worst frames") == []


def test_map_on_the_page(made):
    """Each embedded frame is a dot inside the map and a row of the table, with the same name and numbers."""
    _, shown = made
    dots = [attrs for attrs in shown.all("span") if attrs.get("class", "").split()[:1] == ["dot"]]
    rows = table_rows(shown, "Frames on the map")
    assert len(dots) == len(rows) == 30
    for dot, (video, frame, x, y) in zip(dots, rows, strict=True):
        assert dot["data-name"] == f"{video[0]}, frame {frame[0]}"
        assert dot["style"].startswith(f"left:{x[0]}%;top:{y[0]}%;")
        assert ("left" in dot["class"].split()) == (float(x[0]) > 50)
    assert sum(" c" in dot["class"] for dot in dots) == 3 * maps.NUM_COLORS


def test_contact_sheet_is_spread_over_the_videos(tmp_path):
    """One frame of each of sixty equal parts of the videos, by the seed alone; of few videos, each."""
    ids = [f"video{number:03}" for number in range(150)]
    store = FrameStore.open(write_frames(tmp_path / "data", ids, num_frames=1))
    names = {}
    for seed in (0, 0, 1):
        shown = inputs._shown(store, Atlas("inputs", 16), seed).tiles
        numbers = [int(tile.alt[5:]) for tile in shown]
        assert all(150 * part // 60 <= number < 150 * (part + 1) // 60 for part, number in enumerate(numbers))
        assert len(numbers) == 60
        assert names.setdefault(seed, numbers) == numbers
    assert names[0] != names[1]


def test_contact_sheet_tells_what_is_missing(tmp_path):
    """Every video of few is shown once; one that cannot be read is counted; the longest and shortest are named."""
    data = write_frames(tmp_path / "data", ["a", "b", "c"], num_frames=2)
    write_frames(data, ["long"], num_frames=7)
    for path in (data / "b").iterdir():
        path.write_bytes(b"damaged")
    shown = report(write_run(tmp_path / "run", data))
    assert shown.tiles.count("a") == shown.tiles.count("long") == 1
    assert "b" not in shown.tiles
    assert "of every video: 3 of 4. 1 drawn frames cannot be read." in shown.text
    rows = table_rows(shown, "Videos with fewest and with most frames")
    assert [row[0][0] for row in rows] == ["a", "b", "c", "long"]
    assert [row[1][0] for row in rows] == ["2", "2", "2", "7"]
    assert "Frames per video 2 to 7, median 2" in shown.text


def test_page_is_small_enough_for_mail(tmp_path, monkeypatch):
    """Eight methods on frames of pure noise, with names as long as can be, stay below 15 MB."""
    monkeypatch.setattr(maps, "FEWEST_FOR_TSNE", 10_000)
    rng, data = np.random.default_rng(0), tmp_path / "data"
    for number in range(150):
        folder = data / f"{number:03}{'<' * 200}"
        folder.mkdir(parents=True)
        for index in range(4):
            cv2.imwrite(str(folder / f"{index}.bmp"), rng.integers(0, 256, (100, 100, 3), np.uint8))
    runs = [write_run(tmp_path / f"run{n}", data, temperature=0.1 + n / 100) for n in range(8)]
    made = write_report(ReportConfig(runs=runs, out=tmp_path / "page.html", workers=0, device="cpu"))
    assert 5_000_000 < made.path.stat().st_size <= 15_000_000
    shown = Page(made.path)
    assert shown.html.count('class="dot') == 8 * 600
    assert 'url("' not in shown.html
    monkeypatch.setattr(page, "MOST_BYTES", 5_000_000)
    with pytest.raises(UserError, match="too many for one page"):
        write_report(ReportConfig(runs=runs, out=tmp_path / "never.html", workers=0, device="cpu"))
    assert not (tmp_path / "never.html").exists()


def test_gtsrb_report(shared, tmp_path):
    """On real tracks the page shows signs, their neighbors and views, below the size that mail accepts."""
    data = shared / "video_frames" / "gtsrb"
    if not data.is_dir():
        pytest.skip("no gtsrb")
    page = report(write_run(tmp_path / "run", data))
    assert len(page.all("img")) == 2 * 10
    assert len(page.tiles) == 60 + 8 * (1 + 2 * 8) + 8 * (2 + 2 * 8)
    assert page.html.count('class="dot') == 600
    assert len(page.html) < 2_500_000
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_a_run_that_stopped_says_so(tmp_path):
    """The page of a run that ended with an error, or is still running, tells its status; that of a finished one not."""
    run = write_run(tmp_path / "run0", write_frames(tmp_path / "data", ["one", "two"]))
    run_folder.change_about(run, status="finished")
    assert "Status" not in report(run).html
    run_folder.change_about(run, status="stopped: the <disk> is full")
    assert "stopped: the &lt;disk&gt; is full" in report(run).html


def test_a_stopped_run_beside_a_finished_one(tmp_path):
    """The table of runs has a status for each where one of them is not finished."""
    data = write_frames(tmp_path / "data", ["one", "two"])
    runs = [write_run(tmp_path / f"run{number}", data, seed=number) for number in range(2)]
    run_folder.change_about(runs[1], status="stopped: no disk")
    shown = report(*runs)
    assert [" ".join(row[-1]) for row in table_rows(shown, "The runs")] == ["finished", "stopped: no disk"]
