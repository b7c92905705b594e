"""Short trainings through `cc.pretrain`, and what of them is recorded: every line of metrics, and the weights."""

import inspect
import itertools
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

import cyclecontrast as cc

METHOD = "method" if "method" in inspect.signature(cc.pretrain).parameters else "objective"
METHODS = (
    "intra-image",
    "intra-video",
    "cycle",
    "cycle-only",
    "vince",
    "seco",
    "simclr",
    "simsiam",
    "byol",
    "diet",
    "nnclr",
)
TEACHER = "random:resnet10-small-w4"
TINY = {
    "preset": "paper",
    "image_size": 16,
    "batch_size": 8,
    "steps": 20,
    "queue_size": 32,
    "cycle_queue_size": 32,
    "support_size": 8,
    "projector_dim": 16,
    "bn_groups": 2,
    "learning_rate": 0.003,
    "momentum": 0.9,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "log_every": 1,
    "health_every": 0,
    "report": False,
}
"""Settings of every run; the presets' own values are recorded as they are printed."""

RUNS = {method: {METHOD: method} for method in METHODS} | {
    "health": {METHOD: "cycle", "health_every": 5, "holdout": 0.25},
    "health selects": {METHOD: "intra-video", "health_every": 5, "holdout": 0.25, "select": "health"},
    "release": {METHOD: "cycle", "preset": "release"},
    "release vince": {METHOD: "vince", "preset": "release"},
    "cycle-only with k++": {METHOD: "cycle-only", "own_key_in_support": True},
    "simclr of videos": {METHOD: "simclr", "positives": "video"},
    "simsiam of videos": {METHOD: "simsiam", "positives": "video"},
    "byol of videos": {METHOD: "byol", "positives": "video"},
    "vince with its batch": {METHOD: "vince", "self_batch": True},
    "top_k": {METHOD: "cycle", "cycle_weight": 1.0, "top_k": 4},
    "split by video": {METHOD: "cycle", "cycle_weight": 1.0, "split_by": "video"},
    "own video not masked": {METHOD: "cycle", "cycle_weight": 1.0, "mask_own_video": False},
    "batch keys": {METHOD: "cycle", "cycle_weight": 1.0, "batch_keys": True},
    "cycle starts later": {METHOD: "cycle", "cycle_start": 0.5, "cycle_weight": 1.0, "momentum_ramp": 10},
    "same frames": {METHOD: "cycle", "distinct_frames": False, "flip": False, "min_crop": 0.6},
    "optimizer": {METHOD: "cycle", "warmup": 0.25, "schedule": "cosine", "gradient_clip": 1.0, "weight_decay": 0.01},
    "large projector": {METHOD: "cycle", "projector": "mlp3-bn", "seed": 7},
}
RESNETS = {
    "resnet cycle": {METHOD: "cycle", "backbone": "resnet10-small-w8", "image_size": 32},
    "resnet byol": {METHOD: "byol", "backbone": "resnet10-small-w8", "image_size": 32},
    "resnet auto": {METHOD: "cycle", "backbone": "resnet10-small-w8", "image_size": 32, "preset": "auto"},
}
"""Built-in networks: where a processor rounds otherwise, a ReLU may open or shut, and gradients jump."""
RANKS = {
    "cycle by two": {METHOD: "cycle"},
    "vince by two": {METHOD: "vince"},
    "byol by two": {METHOD: "byol"},
}
ACCUMULATED = {"cycle by parts": {METHOD: "cycle", "accumulate": 2}, "seco by parts": {METHOD: "seco", "accumulate": 2}}
LONG = (*METHODS, "health", "health selects", "release")
"""Runs of 20 steps; the others have 8."""
TIMES = {"images_per_second", "data_wait", "memory_gb"}


class Flat(nn.Module):
    """Mean over all places: a map becomes a vector."""

    def forward(self, maps):
        """Return (batch, channels)."""
        return maps.mean(dim=(2, 3))


def smooth_network():
    """Return a network without kinks, in which a rounding stays as small as it is; with weights from integers."""
    widths = (3, 8, 16, 32)
    layers = []
    for before, width in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.Tanh()]
    network = nn.Sequential(*layers, Flat())
    rng = np.random.default_rng(0)
    for layer in layers[::3]:
        drawn = rng.integers(-1000, 1001, tuple(layer.weight.shape)) / (600 * layer.weight[0].numel() ** 0.5)
        layer.weight.data = torch.from_numpy(drawn.astype(np.float32))
    return network


def settings_of(name):
    """Return the settings of a run by its name."""
    steps = {} if name in LONG else {"steps": 8}
    return TINY | {"backbone": smooth_network()} | steps | (RUNS | RESNETS | RANKS | ACCUMULATED)[name]


def train(frames, out, name, **changes):
    """Train the run of this name."""
    cc.pretrain(frames, out=out, **(settings_of(name) | changes))
    return out


def lines_of(run):
    """Return the lines of metrics of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trace_of(run):
    """Return every quantity of a run as a list over its steps, and the norm and the sum of each tensor."""
    rows = lines_of(run)
    names = dict.fromkeys(name for row in rows for name in row if name not in TIMES)
    columns = {name: [_short(row.get(name)) for row in rows] for name in names}
    tensors = {name: _summary(value) for name, value in sorted(load_file(run / "backbone.safetensors").items())}
    about = json.loads((run / "run.json").read_text())
    kept = ("verdict", "selected_step", "num_steps", "num_videos", "num_frames", "num_held_out")
    return {"metrics": columns, "about": {name: about.get(name) for name in kept}, "tensors": tensors}


def _short(value):
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _summary(values):
    values = values.astype(np.float64)
    return [float(f"{np.linalg.norm(values):.8g}"), float(f"{values.sum():.8g}")]


class FirstPixels:
    """An augmentation that writes down which frame it is given, and what the view's generator draws first."""

    def __init__(self, frames):
        paths = sorted(frames.rglob("*.png"))
        self.names = {cv2.imread(str(path))[..., ::-1].tobytes(): f"{path.parent.name}/{path.stem}" for path in paths}
        self.calls = []

    def __call__(self, frame, rng, side):
        """Return the upper left part of a frame."""
        self.calls.append((self.names[frame.tobytes()], int(rng.integers(2**31))))
        return np.ascontiguousarray(frame[:side, :side])


def sampling_of(frames, out, method):
    """Return for each step which frames its views are of, each with the first draw of its random numbers."""
    seen = FirstPixels(frames)
    cc.pretrain(
        frames, out=out, augmentation=seen, **(TINY | {"backbone": smooth_network(), METHOD: method, "steps": 4})
    )
    views = len(seen.calls) // 4
    calls = seen.calls[len(seen.calls) - 4 * views :]
    return [[f"{name} {draw}" for name, draw in sorted(calls[at : at + views])] for at in range(0, 4 * views, views)]


def end_when_lines(run, num_lines, number):
    """Send this process a signal, from a thread, once a run has so many lines of metrics."""
    thread = threading.Thread(target=_await, args=(Path(run) / "metrics.jsonl", num_lines, number), daemon=True)
    thread.start()
    return thread


def _await(metrics, num_lines, number):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(OSError):
            if metrics.read_bytes().count(b"\n") >= num_lines:
                return os.kill(os.getpid(), number)
        time.sleep(0.001)
    return None


def main():
    """Run as a process of its own: `kill FRAMES OUT NAME`, or as one of several, `ranks FRAMES ROOT PORT...`."""
    torch.set_num_threads(1)
    what, frames, out, *rest = sys.argv[1:]
    if what == "kill":
        end_when_lines(out, 12, signal.SIGKILL)
        train(Path(frames), Path(out), rest[0], checkpoint_every=5)
    else:
        for number, (name, port) in enumerate(zip(RANKS, rest, strict=True)):
            os.environ["MASTER_PORT"] = port
            train(Path(frames), Path(out) / str(number), name)


if __name__ == "__main__":
    main()
