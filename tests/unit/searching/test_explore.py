"""Exploring an index: each finding equals a plain loop, tables and page show them, mistakes give one line each."""

import csv
import json
import re

import cv2
import numpy as np
import pytest

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import ExploreConfig
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.metrics import unit_vectors
from cyclecontrast.searching import explore, labeling_tools
from cyclecontrast.searching import index as index_module
from cyclecontrast.searching.index import FrameIndex
from tests.browser import DESKTOP, PHONE, chromium, opened, overflow
from tests.unit.searching.test_search import write_index

VIDEOS = ("red/<b>one", "red/two", "blue/three", "blue/four")
NUM_FRAMES = 6


def write_footage(root):
    """Write folders of frames, and an index in which videos of a folder point in one direction; returns the index."""
    rng = np.random.default_rng(0)
    for number, video in enumerate(VIDEOS):
        (root / "frames" / video).mkdir(parents=True)
        for frame in range(NUM_FRAMES):
            image = np.full((40, 60, 3), (200, 30, 30) if number > 1 else (30, 30, 200), np.uint8)
            cv2.putText(image, f"{number}{frame}", (5, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255))
            cv2.imwrite(str(root / "frames" / video / f"{frame}.png"), image)
    store = FrameStore.open(root / "frames")
    ids = [store.video_id(video) for video in range(store.num_videos) for _ in range(NUM_FRAMES)]
    vectors = np.array([[5, 0, 0, 0] if video.startswith("red") else [0, 5, 0, 0] for video in ids], np.float32)
    vectors += rng.standard_normal(vectors.shape)
    place = str(root / "frames")
    about = {"data": place, "data_fingerprint": store.fingerprint, "model_fingerprint": "f" * 16, "image_size": "32"}
    return write_index(root / "i.parquet", vectors, ids, about)


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """The folder of that footage and its index."""
    root = tmp_path_factory.mktemp("footage")
    write_footage(root)
    return root


def table(path):
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def unit(num, dim, seed, num_kinds=None):
    """Return random vectors of length 1; with `num_kinds`, around so many directions."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((num, dim))
    if num_kinds:
        noise = rng.standard_normal((num_kinds, dim))[rng.integers(0, num_kinds, num)] + 0.15 * noise
    return unit_vectors(noise).astype(np.float32)


@pytest.mark.parametrize("most", [1, 5, 17, 40, 99])
def test_frames_are_drawn_from_all_videos_in_turn(most):
    """No video gives two frames more than another one that has frames left."""
    videos = np.random.default_rng(0).permutation(np.repeat(np.arange(6), [1, 2, 5, 9, 9, 14]))
    rows = explore.draw_rows(videos, most, seed=1)
    assert (np.diff(rows) > 0).all()
    assert len(rows) == min(most, len(videos))
    drawn, total = np.bincount(videos[rows], minlength=6), np.bincount(videos)
    assert drawn[drawn < total].min(initial=99) >= drawn.max() - 1
    assert (explore.draw_rows(videos, most, seed=1) == rows).all()


@pytest.mark.parametrize("rows_at_once", [1, 7, 512])
@pytest.mark.parametrize("threshold", [0.9, 0.98])
def test_near_duplicates_equal_a_plain_loop(rows_at_once, threshold, monkeypatch):
    """A frame is a near-duplicate of the most similar kept frame before it, whatever the size of a block."""
    monkeypatch.setattr(explore, "ROWS_AT_ONCE", rows_at_once)
    vectors = unit(60, 8, 0, num_kinds=7)
    vectors[40] = vectors[3]
    kept, expected = [], []
    for number, vector in enumerate(vectors):
        similar = [float(vector @ vectors[other]) for other in kept]
        if similar and max(similar) >= threshold - 1e-6:
            expected.append(kept[int(np.argmax(similar))])
        else:
            expected.append(-1)
            kept.append(number)
    original, likeness = explore.near_duplicates(vectors, threshold)
    assert original.tolist() == expected
    assert -1 in expected
    assert max(expected) > 0
    found = original >= 0
    np.testing.assert_allclose(likeness[found], (vectors[found] * vectors[original[found]]).sum(axis=1), atol=1e-5)


@pytest.mark.parametrize("num_videos", [1, 5])
def test_the_nearest_frames_are_of_other_videos(num_videos, monkeypatch):
    """With one video, they are the other frames; where there are fewer than wanted, the rest is -inf."""
    monkeypatch.setattr(explore, "ROWS_AT_ONCE", 7)
    vectors, videos = unit(23, 6, 0), np.arange(23) % num_videos
    found, similar = explore.nearest_others(vectors, videos, 4)
    for row in range(23):
        others = [r for r in range(23) if (r != row if num_videos == 1 else videos[r] != videos[row])]
        order = sorted(others, key=lambda r: -float(vectors[r] @ vectors[row]))[:4]
        assert found[row].tolist() == order
        np.testing.assert_allclose(similar[row], vectors[order] @ vectors[row], atol=1e-6)
    _, few = explore.nearest_others(vectors[:3], np.array([0, 0, 1]), 3)
    assert np.isfinite(few).sum(axis=1).tolist() == [1, 1, 2]
    assert explore.similarity_to_others(vectors[:1], np.zeros(1, int)).tolist() == [1]


def test_the_sample_is_greedy_k_centre():
    """Each frame is the one least similar to all chosen before; equal frames are chosen once."""
    vectors = unit(40, 5, 0)
    chosen, covered = explore.cover(vectors, 6)
    expected = [int(np.argmax([float(vector @ vectors.sum(axis=0)) for vector in vectors]))]
    while len(expected) < 6:
        nearest = [max(float(vector @ vectors[one]) for one in expected) for vector in vectors]
        expected.append(int(np.argmin(nearest)))
    assert chosen.tolist() == expected
    assert covered == pytest.approx(min(max(float(v @ vectors[one]) for one in expected) for v in vectors), abs=1e-6)
    assert len(explore.cover(np.repeat(vectors[:3], 4, axis=0), 10)[0]) == 3


def test_the_oddest_quarter_is_not_chosen_for_labeling(tmp_path):
    """Greedy k-centre would take a frame that is like no other first; it is an outlier instead."""
    vectors = unit(40, 5, 0, num_kinds=4)
    vectors[7] = -vectors.mean(axis=0)
    path = write_index(tmp_path / "i.npz", vectors, [f"v{row % 5}" for row in range(40)])
    found = explore.find(FrameIndex.open(path), ExploreConfig(index=path, sample=40))
    assert found.outliers[0] == 7
    order = np.argsort(found.others)
    assert set(found.sample) <= set(order[10:])
    best = (vectors[order[10:]] @ vectors[found.sample].T).max(axis=1)
    assert found.covered == pytest.approx(best.min(), abs=1e-5)


def test_groups_are_found_in_a_part_and_given_to_all(tmp_path, monkeypatch):
    """Two kinds of frames are two groups, the larger one is number 1, also for frames that are not compared."""
    monkeypatch.setattr(index_module, "ROWS_PER_BLOCK", 8)
    kinds = np.array([0] * 10 + [1] * 30)
    vectors = np.eye(4)[kinds] + 0.05 * np.random.default_rng(0).standard_normal((40, 4))
    path = write_index(tmp_path / "i.npz", vectors, [f"v{row % 8}" for row in range(40)])
    found = explore.find(FrameIndex.open(path), ExploreConfig(index=path, groups=2, max_frames=16, sample=3))
    assert found.group.tolist() == [2] * 10 + [1] * 30
    assert [(group.num_frames, group.num_videos) for group in found.groups] == [(30, 8), (10, 8)]
    assert len(found.rows) == 16
    for group in found.groups:
        assert set(group.typical) <= set(found.rows)
        own = np.flatnonzero(found.group[found.rows] == group.number)
        center = found.vectors[own].mean(axis=0)
        distances = {int(found.rows[row]): float(((found.vectors[row] - center) ** 2).sum()) for row in own}
        assert int(group.typical[0]) == min(distances, key=distances.get)


def test_tables_hold_what_was_found(footage, tmp_path):
    """Every frame has a group; the frames to label have an empty column for their class."""
    done = cc.explore(footage / "i.parquet", out=tmp_path / "out", groups=2, sample=5, duplicates=0.9)
    frames = table(done.out / "frames.csv")
    assert len(frames) == done.num_frames == len(VIDEOS) * NUM_FRAMES
    assert len({(row["video"].split("/")[0], row["group"]) for row in frames}) == 2
    sample = table(done.out / "sample.csv")
    assert len(sample) == done.num_sample == 5
    assert {row["class"] for row in sample} == {""}
    doubles = table(done.out / "duplicates.csv")
    assert len(doubles) == done.num_duplicates > 0
    assert all(float(row["similarity"]) >= 0.9 for row in doubles)
    assert sum(row["video"] != row["like_video"] for row in doubles) == done.num_duplicates_of_other_videos
    worth = [float(row["similarity_to_others"]) for row in table(done.out / "outliers.csv")]
    assert worth == sorted(worth)
    assert len(table(done.out / "groups.csv")) == 2 * explore.NUM_TYPICAL
    assert f"page: {done.out / 'index.html'}" in str(done)


def test_the_page_can_be_browsed(footage, tmp_path):
    """On a phone and a wide screen: dots and pictures show their frame, its time and its neighbors; names are text."""
    out = cc.explore(footage / "i.parquet", out=tmp_path / "out", groups=2, sample=5, duplicates=0.9).out
    page = (out / "index.html").read_text()
    assert "<b>one" not in page
    assert not re.search(r"(src|href)=\"?(http|/)", page)
    with chromium() as browser:
        for size in (PHONE, DESKTOP):
            with opened(browser, (out / "index.html").as_uri(), size) as view:
                assert overflow(view) == 0
                view.locator("#map").click()
                assert view.locator("#name").inner_text() in VIDEOS
                assert view.locator("#moment").inner_text().startswith("0:00:0")
                before = view.locator("#name").inner_text()
                view.locator("#near .tile").first.click()
                assert view.locator("#name").inner_text() != before
                view.keyboard.press("Escape")
                assert not view.locator("#chosen").is_visible()
                view.locator("#color").select_option("folder")
                assert view.locator("#legend bdi").all_inner_texts() == ["blue", "red"]
                assert view.locator("#sample .tile").count() == 5


def test_frames_to_label_are_written_for_other_tools(footage, tmp_path):
    """Every tool gets the same images; lightly-studio and FiftyOne get the group as class, Label Studio no class."""
    tools = ("label-studio", "fiftyone", "lightly-studio")
    out = cc.explore(footage / "i.parquet", out=tmp_path / "out", groups=2, sample=5, format=tools).out
    images = sorted(path.name for path in (out / "images").iterdir())
    assert len(images) == 5
    assert all(cv2.imread(str(out / "images" / name)).shape == (40, 60, 3) for name in images)
    tasks = json.loads((out / "label-studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d=out/images/{n}" for n in images] or len(
        {task["data"]["image"] for task in tasks}
    ) == 5
    assert not any("predictions" in task or "annotations" in task for task in tasks)
    one = json.loads((out / "fiftyone.json").read_text())
    assert one["classes"] == ["group 1", "group 2"]
    assert sorted(one["labels"]) == [name.removesuffix(".png") for name in images]
    coco = json.loads((out / "lightly-studio.json").read_text())
    assert sorted(image["file_name"] for image in coco["images"]) == images
    assert {tuple(box["bbox"]) for box in coco["annotations"]} == {(0, 0, 60, 40)}


def test_mistakes_give_one_line_each_and_write_nothing(footage, tmp_path, capsys, monkeypatch):
    """An existing folder may hold labels that a person filled in, so it is not written to; a failure leaves nothing."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sample.csv").touch()
    index = str(footage / "i.parquet")
    assert main(["explore", index, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"error: out: {tmp_path / 'out'} already exists; name another folder with --out, or remove it\n"
    )
    moved = write_index(tmp_path / "moved.npz", np.eye(2), ["a", "b"], {"data": str(tmp_path / "gone")})
    assert main(["explore", str(moved)]) == 2
    assert "no longer exists; pass the new path with --data DATA" in capsys.readouterr().err
    assert main(["explore", index, "--groups", "0", "--sample", "0", "--duplicates", "2"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    monkeypatch.setattr(labeling_tools, "MAX_IMAGES", 3)
    with pytest.raises(UserError, match="5 frames are too many"):
        cc.explore(index, out=tmp_path / "new" / "er", sample=5, format=("fiftyone",))
    monkeypatch.setattr(explore, "make_page", lambda *_: (_ for _ in ()).throw(UserError("no page")))
    with pytest.raises(UserError, match="no page"):
        cc.explore(index, out=tmp_path / "new" / "er")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved.npz", "out"]


def test_few_frames_and_unreadable_ones_are_shown(footage, tmp_path, capsys):
    """One frame is one group; a frame that cannot be read is gray and counted."""
    (tmp_path / "frames" / "one").mkdir(parents=True)
    (tmp_path / "frames" / "one" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    store = FrameStore.open(tmp_path / "frames")
    about = {"data": str(tmp_path / "frames"), "data_fingerprint": store.fingerprint}
    index = write_index(tmp_path / "i.npz", [[1, 2]], [store.video_id(0)], about, times=[np.nan])
    done = cc.explore(index)
    assert (done.out, done.num_groups, done.num_sample) == (tmp_path / "i.explore", 1, 1)
    assert "1 frames cannot be shown" in capsys.readouterr().err
    assert table(done.out / "frames.csv") == [{"video": store.video_id(0), "frame": "0", "time": "", "group": "1"}]
