"""What the page is drawn from: samples, nearest and worst frames, maps and atlases, each held to its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclecontrast.data.store import FrameStore
from cyclecontrast.reporting import maps, sample
from cyclecontrast.reporting.atlas import PER_ROW, Atlas
from cyclecontrast.reporting.neighbors import find_neighbors, nearest_of_other_videos, strangers_before_own
from cyclecontrast.reporting.pictures import LONGEST_NAME, shortened
from tests.unit.reporting.test_report import decoded, write_frames


@pytest.mark.parametrize(
    ("num_videos", "frames", "limit"), [(2000, 9, 1000), (100, 9, 1000), (3, 400, 1000), (2, 1, 4)]
)
def test_sample_is_bounded(monkeypatch, num_videos, frames, limit):
    """Never more frames than can be paid for, several of each video where it has them, none twice."""
    starts = np.arange(num_videos + 1) * frames
    monkeypatch.setattr(FrameStore, "starts", starts)
    store = FrameStore(None, "", None, None)
    drawn = sample.draw_sample(store, limit, seed=0)
    assert len(drawn) <= limit
    assert len(set(zip(drawn.videos.tolist(), drawn.indices.tolist(), strict=True))) == len(drawn)
    assert np.bincount(drawn.videos)[drawn.videos].min() >= min(frames, 4)
    assert len(drawn) >= min(limit, num_videos * frames, 500) * 0.9


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 5)), min_size=1, max_size=40), st.data())
def test_nearest_of_other_videos(frames, data):
    """Agrees with looking through the frames one by one."""
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
def test_strangers_before_own(frames):
    """Agrees with counting them one by one; ties count, and a lonely frame has -1."""
    vectors, videos = np.array([f[:2] for f in frames], float), np.array([f[2] for f in frames])
    for query, count in enumerate(strangers_before_own(vectors, videos)):
        values = [float(vectors[query] @ other) for other in vectors]
        own = [value for i, value in enumerate(values) if videos[i] == videos[query] and i != query]
        before = [v for i, v in enumerate(values) if videos[i] != videos[query] and v >= max(own, default=0)]
        assert count == (len(before) if own else -1)


def test_worst_frames(tmp_path):
    """By hand: on a half circle, the frame with most strangers before its own video stands first, one of each video."""
    store = FrameStore.open(write_frames(tmp_path / "data", ["a", "b", "c"], num_frames=2))
    frames = sample.Sample(store, np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 1]))
    angles = np.radians([0, 170, 10, 15, 30, 95])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    models = (sample.Vectors("run", True, vectors), sample.Vectors("random weights", False, vectors[::-1]))
    sheet = find_neighbors(sample.Embedded("data", frames, models), Atlas("near", 16), seed=0)
    worst = sheet.groups[1].queries
    assert [query.tile.alt for query in worst] == ["a, frame 0", "c, frame 0"]
    assert [query.own.alt for query in worst] == ["a, frame 1", "c, frame 1"]
    assert [query.found[0].note for query in worst] == ["4 of 4 before its own video", "3 of 4 before its own video"]
    assert [one.tile.alt for one in worst[0].found[0].neighbors] == ["b, frame 0", "c, frame 0"]


def clusters(num, each, dim=16, spread=0.02, seed=0):
    """Unit vectors around `num` directions, `each` of them."""
    rng = np.random.default_rng(seed)
    vectors = np.repeat(rng.normal(size=(num, dim)), each, axis=0) + spread * rng.normal(size=(num * each, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_map_keeps_neighbors_together():
    """Of frames in tight groups the nearest on the map is of the group; the same seed gives the same map."""
    vectors = clusters(12, 5)
    places = maps.place(vectors, seed=0)
    assert places.shape == (60, 2)
    assert places.min() == maps.MARGIN
    assert places.max() == 100 - maps.MARGIN
    distances = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(60)
    assert (distances.argmin(axis=1) // 5 == np.arange(60) // 5).mean() > 0.95
    assert np.array_equal(maps.place(vectors, seed=0), places)


def test_map_of_few_frames_is_to_scale():
    """Few frames are placed along their main axes: points of a plane keep the ratios of their distances."""
    flat = np.random.default_rng(0).normal(size=(8, 2))
    turned = flat @ np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0][:2]
    places = maps.place(turned, seed=0)
    before, after = (np.linalg.norm(x[:, None] - x, axis=2)[np.triu_indices(8, 1)] for x in (flat, places))
    np.testing.assert_allclose(after / before, (after / before).mean(), rtol=0.02)


@pytest.mark.parametrize("spread", [0, 1e-9, 1e-6])
@pytest.mark.parametrize("num", [2, 15, 60])
def test_map_of_a_collapse(num, spread):
    """Vectors that are all the same, or nearly, have a map too; the same place is the middle."""
    places = maps.place(clusters(1, num, spread=spread), seed=0)
    assert np.isfinite(places).all()
    assert ((places >= 0) & (places <= 100)).all()
    if spread == 0:
        assert (places == 50).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 3))
def test_frames_of_the_map_are_of_whole_videos(videos, most, seed):
    """As many frames as there may be, in order, and at most one video is there in part."""
    videos = np.array(sorted(videos))
    chosen = maps.whole_videos(videos, most, seed)
    assert len(chosen) == min(most, len(videos))
    assert (np.diff(chosen) > 0).all()
    shown = {video: (videos[chosen] == video).sum() for video in set(videos[chosen])}
    assert sum(count < (videos == video).sum() for video, count in shown.items()) <= 1


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(0, 3))
def test_colors_go_to_the_videos_with_most_frames(videos, seed):
    """No video without a color has more frames on the map than one with a color."""
    videos = np.array(videos)
    counts = np.bincount(videos)
    colored = maps.most_shown(videos, seed)
    if counts.max() == 1:
        assert len(colored) == 0
        return
    assert len(colored) == min(maps.NUM_COLORS, (counts > 0).sum())
    others = np.delete(counts, colored)
    assert counts[colored].min() >= others.max(initial=0)


def plain_tiles(num, side, seed=0):
    """Images of one color each."""
    colors = np.random.default_rng(seed).integers(0, 256, (num, 1, 1, 3))
    return np.broadcast_to(colors, (num, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("num", [1, PER_ROW, PER_ROW + 1, 100])
def test_atlas_shows_each_tile_at_its_place(num):
    """A browser's arithmetic for background positions in percent finds each tile's own color."""
    atlas, tiles = Atlas("a", 16), plain_tiles(num, 20)
    numbers = [atlas.place(key, tile) for key, tile in enumerate(tiles)]
    assert [atlas.place(key, tiles[0]) for key in range(num)] == numbers
    assert atlas.find(0) == 0
    assert atlas.find(num) is None
    sheet = decoded(atlas.picture(10**7))
    size = [float(part.strip("%")) / 100 for part in atlas.size.split()]
    for number, tile in zip(numbers, tiles, strict=True):
        x, y = (
            (1 - parts) * 16 * float(part.strip("%")) / 100
            for part, parts in zip(atlas.style(number).split(), size, strict=True)
        )
        inside = sheet[round(-y) + 2 : round(-y) + 14, round(-x) + 2 : round(-x) + 14].astype(float)
        assert np.abs(inside - tile[0, 0]).max() < 12


def test_atlas_keeps_to_its_bytes():
    """The picture gets coarser, then smaller, until it fits; where it cannot, that is an error."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3), np.uint8)
    atlas = Atlas("a", 96)
    for key, tile in enumerate(noise):
        atlas.place(key, tile)
    sizes = {}
    for most in (10**7, 400_000, 100_000, 20_000):
        address = atlas.picture(most)
        assert len(address) <= most
        sizes[most] = len(decoded(address))
    assert sizes[10**7] == 2 * 96
    assert sizes[20_000] < 2 * 96
    with pytest.raises(ValueError, match="do not fit"):
        atlas.picture(500)


@pytest.mark.parametrize("name", ["short", "x" * LONGEST_NAME, "y" * (LONGEST_NAME + 1), "a" * 90 + "🐘" * 90])
def test_long_names_are_shortened_in_the_middle(name):
    """Both ends of a name remain."""
    short = shortened(name)
    assert len(short) == min(len(name), LONGEST_NAME)
    assert short[:50] == name[:50]
    assert short[-50:] == name[-50:]
    assert ("…" in short) == (len(name) > LONGEST_NAME)
