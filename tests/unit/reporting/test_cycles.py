"""The cycle explorer shows the cycles that health measured, with the paths that plain loops find."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cyclecontrast as cc
from cyclecontrast.data.store import FrameStore
from cyclecontrast.reporting.cycles import MAX_STAGES, choose, explore, follow
from cyclecontrast.reporting.runs import read_run
from cyclecontrast.training.health import Cycles, is_support
from cyclecontrast.training.run_folder import read_cycles
from tests.unit.reporting.conftest import HEALTH_EVERY, STEPS


def draw_cycles(num=24, dim=2, num_videos=8, seed=0):
    """Random cycles of a measurement, with three pairs of each video."""
    generator = torch.Generator().manual_seed(seed)
    query, positive = torch.nn.functional.normalize(torch.randn(2, num, dim, generator=generator), dim=2)
    return Cycles(query, positive, torch.arange(num) % num_videos * 5, torch.zeros(num, 2, dtype=torch.int64))


def test_paths_agree_with_loops():
    """Weights, similarities on the way back and closing are what float64 loops over queries and candidates give."""
    cycles, temperature = draw_cycles(), 0.1
    paths = follow(cycles, temperature)
    query, positive = cycles.query.double().tolist(), cycles.positive.double().tolist()
    video = cycles.video.tolist()
    order = sorted(set(video))
    through = [order.index(v) % 2 == 0 for v in video]
    assert is_support(cycles.video).tolist() == through
    ends = 0
    for i, vector in enumerate(query):
        dot = [sum(a * b for a, b in zip(vector, key, strict=True)) for key in positive]
        raw = [math.exp(d / temperature) * (t and v != video[i]) for d, t, v in zip(dot, through, video, strict=True)]
        weights = [value / sum(raw) for value in raw]
        assert paths.weights[i] == pytest.approx(weights, abs=1e-6)
        mean = [sum(w * key[k] for w, key in zip(weights, positive, strict=True)) for k in range(2)]
        length = math.sqrt(sum(x * x for x in mean))
        back = [sum(a * b for a, b in zip(mean, key, strict=True)) / length for key in positive]
        negatives = [b for b, t, v in zip(back, through, video, strict=True) if not t and v != video[i]]
        assert paths.positive[i] == pytest.approx(back[i], abs=1e-6)
        assert sorted(paths.back[i][np.isfinite(paths.back[i])]) == pytest.approx(sorted(negatives), abs=1e-6)
        assert paths.closed[i] == (back[i] > max(negatives))
        assert paths.margin[i] == pytest.approx(back[i] - max(negatives), abs=1e-6)
        ends += bool(paths.closed[i])
    assert 0 < ends < len(query)


def test_chosen_queries():
    """Queries are in the group whose definition they fulfil, best first, and no video is shown twice."""
    first, last = (follow(draw_cycles(120, num_videos=40, seed=seed), 0.1) for seed in (1, 2))
    video = draw_cycles(120, num_videos=40).video.numpy()
    chosen = choose(first, last, video, 2)
    closing, failing, improved = chosen.values()
    assert all(chosen.values())
    assert all(last.closed[query] for query in (*closing, *improved))
    assert not any(first.closed[query] for query in improved)
    assert not any(last.closed[query] for query in failing)
    everything = [*closing, *failing, *improved]
    assert len({int(video[query]) for query in everything}) == len(everything)
    assert list(last.margin[closing]) == sorted(last.margin[closing], reverse=True)


def test_saved_cycles_are_those_measured(trained):
    """The cycles of each step on disk close as often as the metrics of that step say."""
    saved = read_cycles(trained)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    measured = {row["step"]: row["health_cycle_closed"] for row in rows if "health_cycle_closed" in row}
    start = json.loads((trained / "run.json").read_text())["health"]["at_start"]["health_cycle_closed"]
    temperature = read_run(trained, "run").config.temperature
    found = {step: float(cycles.closed(temperature).float().mean()) for step, cycles in saved.items()}
    assert found == measured | {0: start}
    assert len(found) == STEPS / HEALTH_EVERY + 1


def test_a_resumed_run_has_the_same_cycles(trained, tmp_path):
    """A run that resumes from a checkpoint has the same cycles to the bit, and none of later steps."""
    other = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(other / "checkpoints" / f"step-{STEPS:08}")
    shutil.copy(
        other / "cycles" / f"step-{STEPS:08}.safetensors", other / "cycles" / f"step-{STEPS - 1:08}.safetensors"
    )
    cc.pretrain(resume=other, report=False)
    names = sorted(path.name for path in (trained / "cycles").iterdir())
    assert sorted(path.name for path in (other / "cycles").iterdir()) == names
    for name in names:
        found, expected = load_file(other / "cycles" / name), load_file(trained / "cycles" / name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_explorer_shows_what_was_measured(trained):
    """Each query has up to eight stages whose weights sum to 100 % as shown; the positive is first if it closes."""
    shown = explore(read_run(trained, "run"), "cycles")
    assert shown.problem == ""
    stages = [stage for queries in shown.groups.values() for query in queries for stage in query["stages"]]
    assert {stage["step"] for stage in stages} >= {0, STEPS}
    assert len({stage["step"] for stage in stages}) == MAX_STAGES
    for stage in stages:
        weights = [float(f"{100 * weight:.1f}") for _, weight in stage["weights"]]
        total = sum(weights) + float(stage["rest"].removesuffix(" %") or 0)
        assert total == pytest.approx(100, abs=0.05) or (not stage["rest"] and 100 < total < 100.5)
        assert sum(is_positive for _, _, is_positive in stage["ends"]) == 1
        assert stage["ends"][0][2] == stage["closed"]


def test_cycles_that_cannot_be_shown(trained, tree, tmp_path):
    """Other data, unreadable frames, a file that is not safetensors and no saved cycles are each a sentence."""
    run = read_run(trained, "run")
    copy = shutil.copytree(trained, tmp_path / "run")
    file = copy / "cycles" / "step-00000000.safetensors"
    held = load_file(file)
    for name in ("video", "frames"):
        save_file(held | {name: held[name] + 1000}, file)
        assert "no longer exist in the data" in explore(read_run(copy, "run"), "cycles").problem
    file.write_bytes(b"nothing")
    assert f"The cycles cannot be shown: {file}" in explore(read_run(copy, "run"), "cycles").problem
    shutil.rmtree(copy / "cycles")
    assert "No cycles were saved" in explore(read_run(copy, "run"), "cycles").problem
    frames = shutil.copytree(tree, tmp_path / "tree")
    for path in frames.rglob("*.*"):
        path.write_bytes(b"")
    unreadable = explore(dataclasses.replace(run, store=FrameStore.open(tree)), "cycles")
    assert unreadable.problem == ""
    unreadable = explore(dataclasses.replace(run, store=FrameStore.open(frames)), "cycles")
    assert unreadable.problem.startswith("The cycles cannot be shown: ")
