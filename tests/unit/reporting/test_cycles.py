"""The cycle explorer shows the cycles that health measured: the same ones, with the paths that plain loops find."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from cyclecontrast.training.watched_cycles import MOST_KEPT, Cycles, closed, is_kept, read_cycles, supports
from safetensors.torch import load_file, save_file

import cyclecontrast as cc
from cyclecontrast.data.frames import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.reporting.atlas import PER_ROW, Atlas
from cyclecontrast.reporting.cycle_paths import choose, follow
from cyclecontrast.reporting.cycles import MOST_STAGES, explore
from cyclecontrast.reporting.runs import read_run
from tests.browser import PHONE, chromium, opened, overflow
from tests.unit.reporting.test_report import write_frames
from tests.unit.training.test_health import TINY

NUM_VIDEOS = 36
TERRIBLE = ("<b>bold<b> & 'quoted'", "🐘" * 20, "עברית " * 10, "long-" * 40)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Videos of one color each, some of terrible names."""
    names = [*TERRIBLE, *(f"video {number}" for number in range(NUM_VIDEOS - len(TERRIBLE)))]
    return write_frames(tmp_path_factory.mktemp("cycles") / "tree", names)


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory):
    """A run of a few steps that measured health often."""
    out = tmp_path_factory.mktemp("cycles") / "run"
    return cc.pretrain(tree, out=out, **(TINY | {"steps": 24, "checkpoint_every": 12})).folder


@pytest.fixture(scope="module")
def page(run):
    """The report of the run."""
    return cc.report(run, workers=0).path.as_uri()


def draw_cycles(num=24, dim=2, num_videos=8, seed=0):
    """Draw the cycles of a measurement: three pairs of each video."""
    generator = torch.Generator().manual_seed(seed)
    query, positive = torch.nn.functional.normalize(torch.randn(2, num, dim, generator=generator), dim=2)
    return Cycles(query, positive, torch.arange(num) % num_videos * 5, torch.zeros(num, 2, dtype=torch.int64))


def test_paths_agree_with_loops():
    """Weights, ways back and closing are what plain float64 loops over queries and candidates give."""
    cycles, temperature = draw_cycles(), 0.1
    paths = follow(cycles, temperature)
    query, positive = cycles.query.double().tolist(), cycles.positive.double().tolist()
    video = cycles.video.tolist()
    order = sorted(set(video))
    through = [order.index(v) % 2 == 0 for v in video]
    assert supports(cycles.video).tolist() == through
    ends = 0
    for i, vector in enumerate(query):
        dot = [sum(a * b for a, b in zip(vector, key, strict=True)) for key in positive]
        raw = [math.exp(d / temperature) * (t and v != video[i]) for d, t, v in zip(dot, through, video, strict=True)]
        weights = [value / sum(raw) for value in raw]
        assert paths.weights[i] == pytest.approx(weights, abs=1e-6)
        mean = [sum(w * key[k] for w, key in zip(weights, positive, strict=True)) for k in range(2)]
        length = math.sqrt(sum(x * x for x in mean))
        back = [sum(a * b for a, b in zip(mean, key, strict=True)) / length for key in positive]
        rivals = [b for b, t, v in zip(back, through, video, strict=True) if not t and v != video[i]]
        assert paths.home[i] == pytest.approx(back[i], abs=1e-6)
        assert sorted(paths.back[i][np.isfinite(paths.back[i])]) == pytest.approx(sorted(rivals), abs=1e-6)
        assert paths.closed[i] == (back[i] > max(rivals))
        assert paths.margin[i] == pytest.approx(back[i] - max(rivals), abs=1e-6)
        ends += bool(paths.closed[i])
    assert 0 < ends < len(query)


def test_chosen_queries_are_telling():
    """Confident ones close, failed ones do not, improved ones failed at first; each video is shown once."""
    first, last = (follow(draw_cycles(120, num_videos=40, seed=seed), 0.1) for seed in (1, 2))
    video = draw_cycles(120, num_videos=40).video.numpy()
    chosen = choose(first, last, video, 2)
    assert all(chosen)
    assert all(last.closed[query] for query in (*chosen.confident, *chosen.improved))
    assert not any(first.closed[query] for query in chosen.improved)
    assert not any(last.closed[query] for query in chosen.failed)
    everything = [query for kind in chosen for query in kind]
    assert len({int(video[query]) for query in everything}) == len(everything)
    assert list(last.margin[list(chosen.confident)]) == sorted(last.margin[list(chosen.confident)], reverse=True)


def test_cycles_kept_are_those_measured(run):
    """The cycles of each step on disk close as often as the metrics of that step say."""
    kept = read_cycles(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    said = {row["step"]: row["health_cycle_closed"] for row in rows if "health_cycle_closed" in row}
    start = json.loads((run / "run.json").read_text())["health"]["at_start"]["health_cycle_closed"]
    temperature = read_run(run, "run").config.temperature
    found = {step: float(closed(cycles, temperature).float().mean()) for step, cycles in kept.items()}
    assert found == said | {0: start}
    assert len(found) == 24 / TINY["health_every"] + 1


@pytest.mark.parametrize(("every", "num_steps"), [(1, 1000), (7, 1000), (50, 1000), (3, 8), (1000, 10)])
def test_only_so_many_cycles_are_kept(every, num_steps):
    """However often health is measured, a run keeps a few dozen at most, and always the last."""
    kept = [done for done in {*range(every, num_steps + 1, every), num_steps} if is_kept(done, every, num_steps)]
    assert num_steps in kept
    assert len(kept) <= MOST_KEPT + 1


def test_a_resumed_run_keeps_the_same_cycles(tree, run, tmp_path):
    """Stopped at a checkpoint and resumed, a run has the cycles of one undisturbed, to the bit, and no later ones."""
    other = tmp_path / "run"
    shutil.copytree(run, other)
    shutil.rmtree(other / "checkpoints" / "step-00000024")
    stray = other / "cycles" / "step-00000023.safetensors"
    shutil.copy(other / "cycles" / "step-00000024.safetensors", stray)
    cc.pretrain(resume=other)
    names = sorted(path.name for path in (run / "cycles").iterdir())
    assert sorted(path.name for path in (other / "cycles").iterdir()) == names
    for name in names:
        ours, theirs = load_file(other / "cycles" / name), load_file(run / "cycles" / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_explorer_shows_what_was_measured(run):
    """Each query has up to eight stages, whose shares sum to 100 % as shown; home comes first where it closed."""
    sheet = explore(read_run(run, "run"), "cycles")
    assert sheet.problem == ""
    stages = [stage for kind in sheet.kinds for query in kind.queries for stage in query.stages]
    assert {stage.step for stage in stages} >= {0, 24}
    assert len({stage.step for stage in stages}) == MOST_STAGES
    for stage in stages:
        shown = [
            float(text.removesuffix(" %")) for text in (*(part.percent for part in stage.parts), stage.rest) if text
        ]
        assert sum(shown) == pytest.approx(100, abs=0.05) or (not stage.rest and 100 < sum(shown) < 100.5)
        assert sum(end.is_home for end in stage.ends) == 1
        assert stage.ends[0].is_home == stage.closed


def test_what_cannot_be_explored_is_told(run, tree, tmp_path):
    """A damaged file, other data, no kept cycles and lost frames are each a sentence on the page, no end of it."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "cycles" / "step-00000024.safetensors"
    held = load_file(file)
    for name, damage in (
        ("video", held["video"] + 1000),
        ("frames", held["frames"] + 1),
        ("video", held["video"].flip(0)),
    ):
        save_file(held | {name: damage}, file)
        assert explore(read_run(copy, "run"), "cycles").problem.startswith("The cycles cannot be shown: they ")
    for content in (b"nothing", b""):
        file.write_bytes(content)
        assert "is damaged" in explore(read_run(copy, "run"), "cycles").problem
    save_file(held | {"query": held["query"] * torch.nan}, file)
    assert "finite" in explore(read_run(copy, "run"), "cycles").problem
    shutil.rmtree(copy / "cycles")
    assert "No cycles were kept" in explore(read_run(copy, "run"), "cycles").problem
    assert "No cycles were kept" in cc.report(copy, workers=0).path.read_text()


def test_the_atlas_gives_back_what_it_holds():
    """A tile lies where its style says, keys are kept once, and one tile alone or a full row is in its place too."""
    for number in (1, PER_ROW, PER_ROW + 3):
        atlas = Atlas("test", 8)
        colors = [np.full((16, 24, 3), value * 5, np.uint8) for value in range(number)]
        assert [atlas.place(value, color) for value, color in enumerate(colors)] == list(range(number))
        assert atlas.place(0, colors[-1]) == 0
        assert atlas.num_rows == math.ceil(number / PER_ROW)
        across, down = (float(part[:-1]) for part in atlas.style(number - 1).split())
        assert round(across / 100 * (PER_ROW - 1)) == (number - 1) % PER_ROW
        assert round(down / 100 * max(1, atlas.num_rows - 1)) == (number - 1) // PER_ROW


def test_the_explorer_by_keyboard(page):
    """With the Tab key and the arrows alone, another query and another step are chosen and their way is shown."""
    with chromium() as browser, opened(browser, page) as tab:
        shown = tab.locator(".path:visible")
        first = shown.get_attribute("id")
        tab.locator(".queries input").first.focus()
        tab.keyboard.press("ArrowRight")
        assert shown.count() == 1
        assert shown.get_attribute("id") != first
        assert shown.locator(".stage:visible").count() == 1
        last = shown.locator(".stage:visible").get_attribute("class")
        tab.keyboard.press("Tab")
        tab.keyboard.press("ArrowLeft")
        assert shown.locator(".stage:visible").count() == 1
        assert shown.locator(".stage:visible").get_attribute("class") != last
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        assert shown.locator("table").is_visible()


def test_the_explorer_on_a_phone(page):
    """At a phone's width nothing is wider than the window, in dark mode as in light, whatever videos are called."""
    with chromium() as browser:
        for scheme in ("light", "dark"):
            with opened(browser, page, PHONE, color_scheme=scheme) as tab:
                assert overflow(tab) == 0
                tiles = tab.locator(".path:visible .stage:visible .tile")
                assert tiles.count() > 4
                assert all(tile.bounding_box()["width"] > 40 for tile in tiles.all())
                assert all(tile.get_attribute("aria-label") for tile in tiles.all())


def test_frames_that_cannot_be_read_are_told(run, tree, tmp_path):
    """A frame that is gone leaves the explorer out, with the reason."""
    shown = read_run(run, "run")
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    store = FrameStore.open(copy)
    for path in copy.rglob("*.*"):
        path.write_bytes(b"")
    sheet = explore(type(shown)(**{**vars(shown), "frames": shown.frames._replace(store=store)}), "cycles")
    assert sheet.problem.startswith("The cycles cannot be shown: ")


def test_a_file_of_cycles_is_no_code(tmp_path):
    """What is read of a run's cycles is numbers alone: another format is a line, and names the file."""
    (tmp_path / "cycles").mkdir()
    file = tmp_path / "cycles" / "step-00000001.safetensors"
    torch.save({"query": 1}, file)
    with pytest.raises(UserError, match=r"step-00000001\.safetensors: is damaged"):
        read_cycles(tmp_path)
