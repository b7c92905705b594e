"""Runs that need no training, their results, and the pages that the report makes of them."""

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np

from cyclecontrast.config import PretrainConfig, ReportConfig
from cyclecontrast.evaluation.predictions import About, Baseline, DataInfo, ModelInfo, Result
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import fingerprint, save_backbone
from cyclecontrast.reporting.curves import METRICS
from cyclecontrast.reporting.page import write_report
from cyclecontrast.training import run_folder

BACKBONE = "resnet10-small-w4"
SIZE = 16
SIGNALS = [info.key for info in METRICS if info.key.startswith("health_")]
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
    """What a browser finds: elements, words, and whether every element is closed in order."""

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
        """Note what is read, without the style sheet."""
        if "style" not in self.open:
            self.words.append(data)

    @property
    def sprites(self):
        """The names of the sprites in their order."""
        return [attrs["aria-label"] for attrs in self.all("span") if "sprite" in attrs.get("class", "").split()]

    @property
    def charts(self):
        """The text alternatives of the charts, by title (of two charts with one title, the last)."""
        return {attrs["aria-label"].partition(". ")[0]: attrs["aria-label"] for attrs in self.all("svg")}

    @property
    def text(self):
        """All words, separated by single spaces."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag):
        """The attributes of all elements with this tag."""
        return [attrs for name, attrs in self.elements if name == tag]

    def rows(self, caption):
        """The rows of the first table with this caption: a list of words for each cell."""
        start = self.html.index(f">{caption}</caption>")
        body = self.html[self.html.index("<tbody>", start) : self.html.index("</tbody>", start)]
        rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
        cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in rows]
        return [[re.sub(r"<[^>]+>", " ", cell).split() for cell in row] for row in cells]


def decoded(url):
    """The RGB image in a data URL."""
    data = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


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


def write_run(folder, data, seed=0, rows=None, about=None, **options):
    """A finished run whose backbone has random weights; `about` changes entries of run.json."""
    settings = {"queue_size": 1024, "cycle_queue_size": 1024, "support_size": 256, "steps": 20, "batch_size": 4}
    settings |= {"backbone": BACKBONE, "image_size": SIZE} | options
    folder.mkdir(parents=True)
    run_folder.write_config(folder, PretrainConfig(data=data, out=folder, seed=seed, **settings))
    entries = {
        "versions": {"python": "3.11.0", "torch": "2.13.0"},
        "device": "cpu (x86_64)",
        "precision": "fp32",
        "num_videos": 12345,
        "num_frames": 67890,
        "num_single_frame_videos": 77,
        "num_steps": 20,
        "status": "finished",
    }
    run_folder.write_about(folder, entries | (about or {}))
    for row in rows if rows is not None else [metrics_row(10), metrics_row(20, intra_loss=4.5)]:
        run_folder.append_metrics(folder, row)
    backbone = make_backbone(BACKBONE, seed + 100, SIZE)
    backbone.source = "trained"
    save_backbone(backbone, folder)
    return folder


def write_result(
    run, metrics, model=None, protocol="knn", tag="knn level=frame", data="labeled", notes=(), start=None, baseline=None
):
    """A result of the run's backbone, whose seed is the last digit of the run's name, of random weights, or of a start.

    A start is the fingerprint of its weights.
    """
    backbone = make_backbone(BACKBONE, 100 + int(run.name[-1]), SIZE) if model is None else make_backbone(model, 7)
    source = "random weights" if model else str(run)
    info = ModelInfo(BACKBONE, source, start or fingerprint(backbone))
    config = {"model": source, "seed": 7, "image_size": None}
    about = About(protocol, tag, config, info, DataInfo(f"/data/{data}", f"{data}-print", 100, 50), notes, (), {})
    Result(about, metrics, {}, baseline and Baseline("start", info, baseline)).save(run / "results")


def report(*runs, **options):
    """Write a report and read it as a page."""
    return Page(write_report(ReportConfig(runs=runs, workers=0, device="cpu", **options)).path)
