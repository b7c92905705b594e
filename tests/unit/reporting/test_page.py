"""The page says what the run's files say, is self-contained, and shows names that come from data as text."""

import re
import shutil

import cv2
import numpy as np
import pytest

from cyclecontrast.config import ReportConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.reporting import embeddings, page
from cyclecontrast.reporting.curves import METRICS
from cyclecontrast.reporting.embeddings import NUM_COLORS
from cyclecontrast.reporting.page import write_report
from cyclecontrast.reporting.runs import read_runs
from tests.make_reports import BACKBONE, HEALTH, Page, metrics_row, report, write_frames, write_result, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on ten videos with two results, and its page."""
    root = tmp_path_factory.mktemp("report")
    data = write_frames(root / "data", [f"video{number}" for number in range(10)])
    run = write_run(root / "run0", data, about=HEALTH)
    write_result(run, {"top1": 0.625, "top5": 0.875}, notes=("a note on the result",))
    write_result(run, {"top1": 0.375, "top5": 0.5}, model=BACKBONE)
    return run, report(run)


def query_blocks(shown, title):
    """The queries below a title, as HTML."""
    return shown.html.split(f"<h3>{title}</h3>")[1].split("<h3")[0].split("</section>")[0].split('class="query"')[1:]


def test_the_page_is_self_contained(made):
    """The page runs no script, refers to nothing outside itself, and is small."""
    _, shown = made
    assert shown.open == []
    assert not {tag for tag, _ in shown.elements} & {"script", "iframe", "object", "embed", "link", "base"}
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in shown.all("img"))
    assert all(attrs["href"].startswith("#") for attrs in shown.all("a"))
    assert not re.search(r"https?:|url\((?!data:image/jpeg;base64,)|@import|\son\w+=", shown.html)
    assert len(shown.html) < 2_000_000


def test_the_page_is_accessible(made):
    """Images and charts have text alternatives, every chart has its numbers, and links lead somewhere."""
    _, shown = made
    assert all(attrs["alt"] for attrs in shown.all("img"))
    assert all(attrs["aria-label"] for _, attrs in shown.elements if attrs.get("role") == "img")
    charts = shown.all("svg")
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    assert shown.html.count("Numbers<span") - 1 == len(charts) == len(METRICS)
    ids = [attrs["id"] for _, attrs in shown.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in shown.all("a")} <= set(ids)
    assert shown.all("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in shown.html
    assert all(attrs.get("tabindex") == "0" for attrs in shown.all("div") if "scroll" in attrs.get("class", ""))


def test_the_page_describes_the_run(made):
    """Numbers of the data, method, settings and versions are on the page as the run recorded them."""
    run, shown = made
    for words in (
        "67,890 frames of 12,345 videos. It learns from frames of the same video and cycles across videos.",
        "Single-frame 77 videos",
        "Held out 1,234 videos",
        "2.13.0",
        f"cyclecontrast pretrain --config {run}/config.toml",
    ):
        assert words in shown.text
    assert (run / "config.toml").read_text().strip() in "".join(shown.words)
    assert "Status" not in shown.html


def test_the_verdict_and_what_it_is_based_on(made):
    """The verdict, its reason and the videos that it was measured on are on the page."""
    _, shown = made
    assert "collapsed : all videos get <nearly> the same vector. Measured without labels on 512 views" in shown.text
    assert "of 256 held-out videos." in shown.text
    assert shown.html.count('class="verdict problem"') == 1
    for label in ("chance 6.2 %", "chance 3.1 %"):
        assert label in shown.text


def test_an_undertrained_run_is_no_alarm(tmp_path):
    """Longer training may solve it: it stands out, but not in the color of problems."""
    data = write_frames(tmp_path / "data", ["a", "b"])
    run = write_run(tmp_path / "run", data, about=HEALTH | {"verdict": "undertrained"})
    shown = report(run)
    assert shown.html.count('class="verdict notice"') == 1
    assert 'class="verdict problem"' not in shown.html


def test_a_kept_start_on_the_page(tmp_path):
    """No clear change is no alarm; a run that kept its start says so and is not compared with it."""
    changes = {"verdict": "no clear change from its start", "selected_step": 0}
    data = write_frames(tmp_path / "data", ["a", "b"])
    run = write_run(tmp_path / "run", data, about=HEALTH | changes, init="random:resnet10-small-w4")
    html = page.render(read_runs([run], with_data=False), [])
    assert 'class="verdict"' in html
    assert "The final backbone is the start of the run, because training made it worse." in html
    assert "--baseline start" not in html


def test_results_on_the_page(made):
    """The summary marks the best model; the full table has all metrics and the notes."""
    _, shown = made
    rows = shown.rows("Accuracy and other metrics by model")
    assert [row[0][0] for row in rows] == ["random", "run0"]
    assert [row[1] for row in rows] == [["37.5", "%"], ["62.5", "%", "(best)"]]
    full = shown.rows("knn level=frame on /data/labeled, 100 train and 50 test")
    assert [[cell[0] for cell in row[1:]] for row in full] == [["37.5", "50.0"], ["62.5", "87.5"]]
    assert "run0: a note on the result" in shown.text


def test_neighbors_on_the_page(made):
    """Each query is shown with frames of eight other videos, by the run and by random weights, nearest first."""
    _, shown = made
    blocks = query_blocks(shown, "Random frames")
    assert len(blocks) == 8
    for block in blocks:
        query, *others = re.findall(r'aria-label="(\w+), frame \d', block)
        for found in (others[:8], others[8:16]):
            assert len(set(found)) == 8
            assert query not in found
        values = [float(value) for value in re.findall(r">(-?\d\.\d{3})<small>", block)]
        assert values[:8] == sorted(values[:8], reverse=True)
        names = re.findall(r"<small><bdi>(\w+), frame \d</bdi></small>", block)
        assert names == others[: len(names)], "a phone shows no titles"
    assert "random weights" in blocks[0]


def test_the_map_on_the_page(made):
    """Each embedded frame is a dot inside of the map and a row of the table, with the same name and numbers."""
    _, shown = made
    dots = [attrs for attrs in shown.all("span") if attrs.get("class", "").split()[:1] == ["dot"]]
    rows = shown.rows("Frames on the map")
    assert len(dots) == len(rows) == 30
    for dot, (video, frame, x, y) in zip(dots, rows, strict=True):
        assert dot["data-name"] == f"{video[0]}, frame {frame[0]}"
        assert dot["style"].startswith(f"left:{x[0]}%;top:{y[0]}%;")
        assert ("left" in dot["class"].split()) == (float(x[0]) > 50)
    assert sum(" c" in dot["class"] for dot in dots) == 3 * NUM_COLORS


def test_the_page_is_a_function_of_the_files(made, tmp_path):
    """The same runs give the same page; the text of the result is its path, and no other file is left."""
    run, shown = made
    path = tmp_path / "new" / "page.html"
    assert str(write_report(ReportConfig(runs=(run,), out=path, workers=0, device="cpu"))) == str(path)
    assert Page(path).html == shown.html
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_nothing_is_written_if_something_is_wrong(tmp_path, made):
    """A folder as output, another suffix, and a damaged run are errors, and an earlier page stays as it was."""
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        report(made[0], out=tmp_path / "folder.html")
    with pytest.raises(UserError, match=r"must end in \.html"):
        checked(ReportConfig, {"runs": (made[0],), "out": tmp_path / "notes.txt"})
    run = shutil.copytree(made[0], tmp_path / "run")
    (run / "run.json").write_text("{damaged\n")
    before = (run / "report.html").read_bytes()
    with pytest.raises(UserError, match="damaged"):
        report(run)
    assert (run / "report.html").read_bytes() == before


def test_names_are_text(tmp_path):
    """Names of videos, runs and notes are text on the page, never markup."""
    evil = "<script>alert(1)</script>"
    data = write_frames(tmp_path / "data", [evil, '"><img src=x onerror=alert(2)>', "עברית 🐘" + 60 * "x"])
    run = write_run(tmp_path / "<b>run2", data)
    write_result(run, {"top1": 0.5}, notes=("<i>note</i>",))
    shown = report(run)
    assert shown.open == []
    assert not {tag for tag, _ in shown.elements} & {"script", "b", "i"}
    assert all(attrs["src"].startswith("data:") and "onerror" not in attrs for attrs in shown.all("img"))
    assert any(evil in attrs["alt"] for attrs in shown.all("img"))
    assert any(evil in name for name in shown.sprites)
    for words in ("<b>run2", "<i>note</i>"):
        assert words in shown.text


def test_a_run_that_stopped_early(tmp_path):
    """A run without metrics, backbone, results and data has a page that says what is missing and that it stopped."""
    data = write_frames(tmp_path / "data", ["a", "b"])
    run = write_run(tmp_path / "run", data, rows=[], about={"status": "stopped: the <disk> is full"})
    (run / "backbone.safetensors").unlink()
    shutil.rmtree(data)
    shown = report(run)
    assert shown.all("img") == shown.all("svg") == []
    for part in (shown.text.split("Nearest neighbors")[1], shown.text.split("Views")[-1]):
        assert f"cannot be shown: {data}: no such folder" in part
    for words in ("No step has been logged yet", "0 of 20", "stopped: the <disk> is full"):
        assert words in shown.text
    assert f"cyclecontrast evaluate knn {run}" in shown.text.split("Nearest neighbors")[0]
    assert not re.search(r"Health|held.out views", shown.text)


def test_several_runs_side_by_side(tmp_path):
    """Runs have different names; repetitions share a color; each has its status if one did not finish."""
    data = write_frames(tmp_path / "data", ["a", "b", "c"])
    runs = [write_run(tmp_path / "x" / f"run{seed}", data, seed) for seed in (0, 1)]
    rows, stopped = [metrics_row(20, cycle_loss=None)], {"status": "stopped: no disk"}
    runs.append(write_run(tmp_path / "y" / "run1", data, method="intra-video", rows=rows, about=stopped))
    for run, value in zip(runs, (0.5, 0.7, 0.2), strict=True):
        write_result(run, {"top1": value}, data="labeled" if run != runs[2] else "other")
    shown = report(*runs)
    table = shown.rows("The runs")
    assert [row[0] for row in table] == [["x/run0"], ["x/run1"], ["y/run1"]]
    assert [" ".join(row[-1]) for row in table] == ["finished", "finished", "stopped: no disk"]
    (mean,) = [row for row in shown.rows("Accuracy and other metrics by model") if row[0][0] == "mean"]
    assert mean[1] == ["60.0", "%", "±", "14.1"]
    assert re.findall(r"stroke: var\(--(c\d)\)", shown.html)[:3] == ["c0", "c0", "c1"]
    assert shown.html.count("<title>") == 1


def test_the_page_fits_into_a_mail(tmp_path, monkeypatch):
    """Two methods on frames of noise with the longest names stay below the limit, or are refused."""
    monkeypatch.setattr(embeddings, "MIN_DOTS_FOR_TSNE", 10_000)
    monkeypatch.setattr(page, "MAX_BYTES", 2_000_000)
    rng, data = np.random.default_rng(0), tmp_path / "data"
    for number in range(80):
        folder = data / f"{number:03}{'<' * 200}"
        folder.mkdir(parents=True)
        for index in range(3):
            cv2.imwrite(str(folder / f"{index}.bmp"), rng.integers(0, 256, (100, 100, 3), np.uint8))
    runs = [write_run(tmp_path / f"run{n}", data, temperature=0.1 + n / 100) for n in range(2)]
    shown = report(*runs, out=tmp_path / "page.html")
    assert 1_000_000 < (tmp_path / "page.html").stat().st_size <= 2_000_000
    assert shown.html.count('class="dot') == 2 * 240
    assert 'url("' not in shown.html
    monkeypatch.setattr(page, "MAX_BYTES", 700_000)
    with pytest.raises(UserError, match="too many for one page"):
        report(*runs, out=tmp_path / "never.html")
    assert not (tmp_path / "never.html").exists()
