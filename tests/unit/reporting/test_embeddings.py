"""Samples, nearest and worst frames, and maps: each agrees with its definition."""

import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclecontrast.config import ReportConfig
from cyclecontrast.data.store import FrameStore
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.reporting import embeddings
from cyclecontrast.reporting.embeddings import (
    MAP_MARGIN,
    NUM_COLORS,
    FrameSample,
    Vectors,
    draw_maps,
    draw_sample,
    embed_sample,
    find_neighbors,
    frames_before_same_video,
    most_frequent,
    nearest_of_other_videos,
    place,
    whole_videos,
)
from cyclecontrast.reporting.runs import read_run, read_runs
from cyclecontrast.reporting.sprites import SpriteSheet, shortened
from cyclecontrast.training import run_folder
from tests.make_reports import write_frames, write_run

OPTIONS = ReportConfig(runs=("run",), workers=0, device="cpu")


@pytest.mark.parametrize(
    ("num_videos", "frames", "limit"), [(2000, 9, 1000), (100, 9, 1000), (3, 400, 1000), (2, 1, 4)]
)
def test_a_sample_is_bounded(monkeypatch, num_videos, frames, limit):
    """A sample has at most `limit` frames, several of each video that has them, none twice."""
    monkeypatch.setattr(FrameStore, "starts", np.arange(num_videos + 1) * frames)
    drawn = draw_sample(FrameStore(None, "", None, None), limit, seed=0)
    assert len(drawn) <= limit
    assert len(set(zip(drawn.videos.tolist(), drawn.indices.tolist(), strict=True))) == len(drawn)
    assert np.bincount(drawn.videos)[drawn.videos].min() >= min(frames, 4)
    assert len(drawn) >= min(limit, num_videos * frames, 500) * 0.9


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 5)), min_size=1, max_size=40), st.data())
def test_nearest_of_other_videos(frames, data):
    """The result agrees with going through the frames one by one."""
    similarities, videos = np.array([f[0] for f in frames]), np.array([f[1] for f in frames])
    query = data.draw(st.integers(0, len(frames) - 1))
    num = data.draw(st.integers(1, 6))
    seen, expected = {videos[query]}, []
    for frame in sorted(range(len(frames)), key=lambda i: (-similarities[i], i)):
        if videos[frame] not in seen and len(expected) < num:
            seen.add(videos[frame])
            expected.append(frame)
    assert nearest_of_other_videos(similarities, videos, query, num).tolist() == expected


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=30))
def test_frames_before_the_same_video(frames):
    """The counts agree with counting one by one; ties count, and the only frame of a video has -1."""
    vectors, videos = np.array([f[:2] for f in frames], float), np.array([f[2] for f in frames])
    for query, count in enumerate(frames_before_same_video(vectors, videos)):
        values = [float(vectors[query] @ other) for other in vectors]
        same = [value for i, value in enumerate(values) if videos[i] == videos[query] and i != query]
        before = [v for i, v in enumerate(values) if videos[i] != videos[query] and v >= max(same, default=0)]
        assert count == (len(before) if same else -1)


@pytest.fixture(scope="module")
def half_circle(tmp_path_factory):
    """Six frames of three videos whose vectors lie on a half circle, by hand."""
    store = FrameStore.open(write_frames(tmp_path_factory.mktemp("data") / "tree", ["a", "b", "c"], num_frames=2))
    sample = FrameSample(store, np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 1]))
    angles = np.radians([0, 170, 10, 15, 30, 95])
    return sample, np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_worst_frames(half_circle):
    """The frames with most frames of other videos before their own video come first, one of each video."""
    sample, vectors = half_circle
    models = [Vectors("run", True, vectors), Vectors("random weights", False, vectors[::-1])]
    worst = find_neighbors(sample, models, SpriteSheet("near", 16), seed=0)[1]["queries"]
    assert [query["sprite"].alt for query in worst] == ["a, frame 0", "c, frame 0"]
    assert [query["same_video"].alt for query in worst] == ["a, frame 1", "c, frame 1"]
    assert [query["found"][0]["note"] for query in worst] == ["4 of 4 frames are nearer", "3 of 4 frames are nearer"]
    assert [sprite.alt for sprite, _ in worst[0]["found"][0]["neighbors"]] == ["b, frame 0", "c, frame 0"]


def test_no_worst_frames(half_circle):
    """If every frame is nearest to its own video, or no video has two frames, a sentence says so."""
    sample, _ = half_circle
    apart = np.repeat(np.eye(3), 2, axis=0)
    good = find_neighbors(sample, [Vectors("run", True, apart)], SpriteSheet("near", 16), seed=0)[1]
    assert (good["queries"], good["meaning"].partition(":")[0]) == ([], "None")
    single = sample.subset(np.array([0, 2, 4]))
    alone = find_neighbors(single, [Vectors("run", True, apart[::2])], SpriteSheet("near", 16), seed=0)[1]
    assert (alone["queries"], alone["meaning"].partition(":")[0]) == ([], "Not known")


def test_neighbors_and_map_of_runs(tmp_path, monkeypatch):
    """Runs with different architectures each have a baseline, and each run has its map of the same frames."""
    data = write_frames(tmp_path / "data", [f"video{number}" for number in range(12)])
    (data / "video0" / "0.png").write_bytes(b"damaged")
    folders = [write_run(tmp_path / "run0", data), write_run(tmp_path / "run1", data, temperature=0.3)]
    folders.append(write_run(tmp_path / "run2", data, seed=2, method="intra-video"))
    (folders[2] / "backbone.safetensors").unlink()
    sample, models, problem = embed_sample(read_runs(folders), OPTIONS)
    assert [(model.model, model.is_trained) for model in models] == [
        ("run0", True),
        ("run1", True),
        ("random weights", False),
    ]
    assert "run2: There is no backbone yet" in problem
    assert len(sample) == 12 * 3 - 1
    for query in find_neighbors(sample, models, SpriteSheet("near", 16), seed=0)[0]["queries"]:
        for found in query["found"]:
            videos = [sprite.alt.partition(",")[0] for sprite, _ in found["neighbors"]]
            assert len(set(videos)) == 8
            assert query["sprite"].alt.partition(",")[0] not in videos
            values = [value for _, value in found["neighbors"]]
            assert values == sorted(values, reverse=True)
    shown = draw_maps(sample, models, SpriteSheet("map", 16), 30, seed=0)
    assert [name for name, _ in shown["maps"]] == ["run0", "run1"]
    assert shown["columns"] == ["video", "frame", "x, run0", "y, run0", "x, run1", "y, run1"]
    assert len(shown["rows"]) == 30
    for row, dot in zip(shown["rows"], shown["maps"][1][1], strict=True):
        assert dot["sprite"].alt == f"{row[0]}, frame {row[1]}"
        assert row[4:] == [f"{dot['x']:.1f}", f"{dot['y']:.1f}"]
    assert len({dot["color"] for dot in shown["maps"][0][1]} - {None}) == NUM_COLORS == len(shown["legend"])


@pytest.mark.parametrize(
    ("ids", "legend", "kind"),
    [
        (("day/1/a", "day/1/b", "night/a"), ["day/1", "night"], "folders"),
        (("day/a", "day/b"), ["day/a", "day/b"], "videos"),
    ],
)
def test_a_map_is_colored_by_folder(tmp_path, ids, legend, kind):
    """Dots have the colors of the folders of their videos, or of the videos if they are all in one folder."""
    store = FrameStore.open(write_frames(tmp_path / "data", ids))
    sample = FrameSample(store, np.repeat(np.arange(len(ids)), 3), np.tile(np.arange(3), len(ids)))
    vectors = np.random.default_rng(0).normal(size=(len(sample), 4))
    shown = draw_maps(sample, [Vectors("run", True, vectors)], SpriteSheet("map", 16), 30, seed=0)
    assert sorted(shown["legend"]) == legend
    assert f"Colors mark {len(legend)} of the {kind}" in shown["meaning"]
    for dot, (video, *_) in zip(shown["maps"][0][1], shown["rows"], strict=True):
        assert video.startswith(shown["legend"][dot["color"]])


def test_the_start_of_a_run_stands_beside_it(tmp_path):
    """What a run started from is a baseline, and has a map; one that cannot be loaded is a sentence."""
    data = write_frames(tmp_path / "data", ["a", "b", "c"])
    first = write_run(tmp_path / "first", data)
    starts = {"again": str(first), "gone": "nowhere", "timm": "timm:resnet18"}
    runs = [write_run(tmp_path / name, data, init=init) for name, init in starts.items()]
    sample, models, problem = embed_sample(read_runs(runs), OPTIONS)
    assert [model.model for model in models] == [*starts, f"start ({shortened(str(first))})", "random weights"]
    shown = draw_maps(sample, models, SpriteSheet("map", 16), 30, seed=0)
    assert [name for name, _ in shown["maps"]] == [*starts, f"start ({shortened(str(first))})"]
    assert [model.is_trained for model in models] == [True] * 3 + [False] * 2
    assert re.search("gone: Its start cannot be shown: .*nowhere: no such file or folder", problem)
    words = "timm: Its start cannot be shown: timm:resnet18 may have to be downloaded; to allow it: "
    assert f"{words}cyclecontrast report {runs[2]} --download." in problem


def test_a_start_of_timm_is_shown_with_permission(tmp_path, monkeypatch):
    """With --download, as at the end of a training, the published weights that a run started from are shown."""
    run = write_run(tmp_path / "run", write_frames(tmp_path / "data", ["a", "b", "c"]), init="timm:resnet18")
    monkeypatch.setattr(run_folder, "load_backbone", lambda *_: make_backbone("resnet10-small-w4"))
    _, models, problem = embed_sample(read_runs([run]), OPTIONS.model_copy(update={"download": True}))
    assert [model.model for model in models] == ["run", "start (timm:resnet18)", "random weights"]
    assert problem == ""


def test_frames_that_cannot_be_embedded(tmp_path):
    """Data that are gone, a single video, and unreadable frames are each a sentence."""
    data = write_frames(tmp_path / "data", ["a", "b"])
    run = write_run(tmp_path / "run", data)
    for path in data.rglob("*.png"):
        path.write_bytes(b"damaged")
    assert "none of them can be read" in embed_sample([read_run(run, "run")], OPTIONS)[2]
    shutil.rmtree(data / "b")
    assert "at least two videos" in embed_sample([read_run(run, "run")], OPTIONS)[2]
    shutil.rmtree(data)
    assert "no such folder" in embed_sample([read_run(run, "run")], OPTIONS)[2]


def clusters(num, each, dim=16, spread=0.02, seed=0):
    """Unit vectors around `num` directions, `each` of them."""
    rng = np.random.default_rng(seed)
    vectors = np.repeat(rng.normal(size=(num, dim)), each, axis=0) + spread * rng.normal(size=(num * each, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_map_keeps_neighbors_together():
    """The nearest dot of a frame in a tight group is of the same group; the same seed gives the same map."""
    vectors = clusters(12, 5)
    places = place(vectors, seed=0)
    assert places.shape == (60, 2)
    assert places.min() == MAP_MARGIN
    assert places.max() == 100 - MAP_MARGIN
    distances = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(60)
    assert (distances.argmin(axis=1) // 5 == np.arange(60) // 5).mean() > 0.9
    assert np.array_equal(place(vectors, seed=0), places)


def test_a_map_of_few_frames_is_to_scale():
    """Few frames are placed by PCA: points of a plane keep the ratios of their distances."""
    flat = np.random.default_rng(0).normal(size=(8, 2))
    turned = flat @ np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0][:2]
    places = place(turned, seed=0)
    before, after = (np.linalg.norm(x[:, None] - x, axis=2)[np.triu_indices(8, 1)] for x in (flat, places))
    np.testing.assert_allclose(after / before, (after / before).mean(), rtol=0.02)


@pytest.mark.parametrize("spread", [0, 1e-9, 1e-6])
@pytest.mark.parametrize("num", [2, 15, 60])
def test_a_map_of_collapsed_vectors(num, spread):
    """Vectors that are equal, or nearly, have a map too; equal ones are in its middle."""
    places = place(clusters(1, num, spread=spread), seed=0)
    assert np.isfinite(places).all()
    assert ((places >= 0) & (places <= 100)).all()
    if spread == 0:
        assert (places == 50).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 3))
def test_a_map_has_whole_videos(videos, most, seed):
    """As many frames as allowed are chosen, in order, and at most one video is cut."""
    videos = np.array(sorted(videos))
    chosen = whole_videos(videos, most, seed)
    assert len(chosen) == min(most, len(videos))
    assert (np.diff(chosen) > 0).all()
    shown = {video: (videos[chosen] == video).sum() for video in set(videos[chosen])}
    assert sum(count < (videos == video).sum() for video, count in shown.items()) <= 1


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(0, 3))
def test_colors_mark_the_videos_with_most_frames(videos, seed):
    """No video without a color has more frames on the map than one with a color."""
    videos = np.array(videos)
    counts = np.bincount(videos)
    colored = most_frequent(videos, seed)
    if counts.max() == 1:
        assert len(colored) == 0
        return
    assert len(colored) == min(NUM_COLORS, (counts > 0).sum())
    others = np.delete(counts, colored)
    assert counts[colored].min() >= others.max(initial=0)


def test_real_tracks(shared, tmp_path, monkeypatch):
    """On real tracks each random query has eight neighbors by the run and by random weights."""
    data = shared / "video_frames" / "gtsrb"
    if not data.is_dir():
        pytest.skip("no gtsrb")
    monkeypatch.setattr(embeddings, "MAX_FRAMES_ON_CPU", 240)
    sample, models, problem = embed_sample([read_run(write_run(tmp_path / "run", data), "run")], OPTIONS)
    assert (len(sample), problem) == (240, "")
    sheet = SpriteSheet("near", 96)
    random, worst = find_neighbors(sample, models, sheet, seed=0)
    assert [len(found["neighbors"]) for query in random["queries"] for found in query["found"]] == [8] * 16
    assert len(worst["queries"]) == 8
    assert len(sheet) <= 8 * (1 + 2 * 8) + 8 * (2 + 2 * 8)
