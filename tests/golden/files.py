"""Which files the commands leave behind, and the keys or columns of each; what they say is recorded elsewhere."""

import json
import re
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

import cyclecontrast as cc
from tests.golden import inputs
from tests.golden.trainings import TINY, train

ONLY_NAMES = re.compile(r"(^|/)(checkpoints|huggingface)/")
"""Folders whose files' content is the business of resuming, and of others."""
EXPORTS = {
    "safetensors": "backbone.safetensors",
    "torchvision": "torchvision.pth",
    "timm": "timm.pth",
    "onnx": "backbone.onnx",
    "detectron2": "detectron2.pkl",
    "huggingface": "huggingface",
}


def listing(folder):
    """Return each file below a folder with what of its content is recorded."""
    found = {}
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        plain = re.sub(r"-[0-9a-f]{16}-[0-9a-f]{12}(?=\.)", "-MODEL-KEY", name)
        plain = re.sub(r"tfevents\..*", "tfevents", plain)
        found[plain] = "" if ONLY_NAMES.search(name) else _content_of(path)
    return found


def _content_of(path):
    match path.suffix:
        case ".json":
            return _keys(json.loads(path.read_text()))
        case ".jsonl":
            return sorted({key for line in path.read_text().splitlines() for key in json.loads(line)})
        case ".toml":
            values = tomllib.loads(path.read_text())
            return sorted("method" if key == "objective" else key for key in values)
        case ".parquet":
            return [f"{column.name} {column.type}" for column in pq.read_schema(path)]
        case ".npz":
            with np.load(path) as arrays:
                return [f"{name} {arrays[name].dtype.kind}{arrays[name].ndim}" for name in sorted(arrays)]
        case ".safetensors":
            with safe_open(path, "numpy") as tensors:
                return [f"{name} {tensors.get_slice(name).get_shape()}" for name in sorted(tensors.keys())]
        case _:
            return ""


def _keys(values, depth=2):
    if not isinstance(values, dict) or not depth:
        return ""
    named = {"method" if key == "objective" else key: value for key, value in sorted(values.items())}
    return {key: _keys(value, 0 if key == "versions" else depth - 1) for key, value in named.items()}


def of_trainings(frames, videos, root):
    """Return what a run leaves, measured, reported, logged and evaluated, and a run that prepares its own frames."""
    changes = {"backbone": "resnet10-small-w8", "steps": 6}
    run = train(frames, root / "run", "health", **changes, log_to=["tensorboard"], checkpoint_every=3, report=True)
    found = {"run": listing(run)}
    made = {key: value for key, value in TINY.items() if key not in ("batch_size", "bn_groups")}
    small = {"backbone": "resnet10-small-w8", "steps": 2, "batch_size": 2, "bn_groups": 1}
    cc.pretrain(videos, out=root / "of videos", **made | small)
    found["run of videos"] = {name: keys for name, keys in listing(root / "of videos").items() if "frames/" in name}
    for index in ("vectors.parquet", "vectors.npz"):
        cc.embed(run, frames, out=root / "index" / index, workers=0, device="cpu")
    cv2.imwrite(str(root / "query.png"), inputs.stripes(5, 9))
    hits = cc.search(
        root / "index/vectors.parquet", image=root / "query.png", top=3, format="json", html=root / "p.html"
    )
    found["search"] = _keys(json.loads(str(hits)))
    found["index"] = listing(root / "index")
    cc.report(run, out=root / "page" / "report.html", workers=0, device="cpu")
    found["report"] = listing(root / "page")
    found["runs ls"] = _keys(json.loads(str(cc.runs.ls(root, json=True)))[0], 1)
    return found


def of_export(root, format):
    """Return what a format of `export` leaves."""
    model = (
        "random:resnet18"
        if format in ("torchvision", "timm", "detectron2", "huggingface")
        else "random:resnet10-small-w8"
    )
    cc.export(model, format=format, out=root / format / EXPORTS[format])
    return listing(root / format)
