"""Searching an index: hits equal brute force, both file formats work, damaged files and mistakes give one line each."""

import importlib
import json
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import EmbedConfig, PrepareConfig, SearchConfig
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.embed import embed
from cyclecontrast.evaluation.metrics import unit_vectors
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.searching import index as index_module
from cyclecontrast.searching.command import layer_bytes
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.nearest import LoadedVectors, allowed_rows, load_vectors, nearest_rows
from cyclecontrast.searching.results import moment
from tests import make_videos as make

MODEL = "random:resnet10-small-w16"
NAMES = ("a/one.mp4", "a/two.mp4", "three.mp4")


def write_index(path, vectors, videos, about=None, indices=None, times=None):
    """Write vectors (num_rows, dim) as an index without our own code; `videos` are the ids by row."""
    videos = list(videos)
    indices = [videos[:row].count(video) for row, video in enumerate(videos)] if indices is None else indices
    times = [index / 2 for index in indices] if times is None else times
    vectors, indices, times = np.asarray(vectors, np.float32), np.array(indices, np.int32), np.array(times, np.float64)
    if path.suffix == ".npz":
        np.savez(path, video=np.array(videos, str), index=indices, time=times, vector=vectors, **(about or {}))
        return path
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"video": pa.array(videos, pa.string()), "index": indices, "time": times, "vector": lists})
    pq.write_table(table.replace_schema_metadata(about), path, row_group_size=7)
    return path


def brute_force(query, vectors, videos, allowed, top, per_video):
    """Return the hits by a plain loop over all rows, ordered by products in double precision, then by row."""
    products = [float(np.dot(query.astype(np.float64), vector.astype(np.float64))) for vector in vectors]
    taken = []
    for row in sorted(range(len(vectors)), key=lambda row: (-products[row], row)):
        same = sum(videos[other] == videos[row] for other in taken)
        if allowed[row] and len(taken) < top and (per_video is None or same < per_video):
            taken.append(row)
    return taken


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_nearest_rows_equal_brute_force(seed, num_rows, num_kinds, top, other_videos):
    """With many equal rows, any size of block, and with or without a limit per video."""
    rng = np.random.default_rng(seed)
    kinds = unit_vectors(rng.standard_normal((num_kinds, 5), dtype=np.float32))
    vectors, videos = kinds[rng.integers(0, num_kinds, num_rows)], rng.integers(0, 4, num_rows)
    row = int(rng.integers(num_rows)) if rng.random() < 0.7 else None
    query = vectors[row] if row is not None else unit_vectors(rng.standard_normal((1, 5), dtype=np.float32))[0]
    per_video = int(rng.integers(1, 4)) if rng.random() < 0.5 else None
    allowed = [
        r != row and not (other_videos and row is not None and videos[r] == videos[row]) for r in range(num_rows)
    ]
    assert allowed_rows(videos, row, other_videos).tolist() == allowed
    size = int(rng.integers(1, num_rows + 1))
    blocks = [(start, vectors[start : start + size]) for start in range(0, num_rows, size)]
    rows, similarities = nearest_rows(query, blocks, videos, np.array(allowed), top, per_video)
    expected = brute_force(query, vectors, videos, allowed, top, per_video)
    assert rows.tolist() == expected
    np.testing.assert_allclose(similarities, [query @ vectors[r] for r in expected], atol=1e-6)
    in_memory = LoadedVectors(vectors, videos).search(query, np.array(allowed), top, per_video)
    assert in_memory[0].tolist() == expected


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_search_by_frame_ranks_by_cosine_similarity(suffix, tmp_path, monkeypatch):
    """Both formats, read in small blocks: the length of vectors does not matter, the query itself is left out."""
    monkeypatch.setattr(index_module, "ROWS_PER_BLOCK", 4)
    rng = np.random.default_rng(0)
    vectors, videos = rng.standard_normal((23, 6)) * rng.uniform(0.1, 9, (23, 1)), [NAMES[row % 3] for row in range(23)]
    path = write_index(tmp_path / f"i{suffix}", vectors, videos)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in (0, 8, 22):
        found = cc.search(path, video=videos[row], frame=row // 3, top=30)
        order = [other for other in np.argsort(-(unit @ unit[row])) if other != row]
        assert [(hit.video, hit.frame) for hit in found.hits] == [(videos[other], other // 3) for other in order]
        np.testing.assert_allclose([hit.similarity for hit in found.hits], (unit @ unit[row])[order], atol=1e-6)
        assert [hit.rank for hit in found.hits] == list(range(1, 23))
    others = cc.search(path, video=NAMES[1], frame=0, top=30, other_videos=True, per_video=2)
    assert sorted(hit.video for hit in others.hits) == [NAMES[0]] * 2 + [NAMES[2]] * 2


def test_equal_frames_keep_the_order_of_the_file(tmp_path):
    """A collapsed network gives the first rows; a vector of zeros is similar to nothing."""
    path = write_index(tmp_path / "i.npz", [[1, 1]] * 9 + [[0, 0]], ["a"] * 10)
    hits = cc.search(path, video="a", frame=2, top=99).hits
    assert [hit.frame for hit in hits] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert [round(hit.similarity, 6) for hit in hits] == [1.0] * 8 + [0.0]


def test_a_time_selects_the_nearest_frame(tmp_path):
    """Frames without a time are not considered; an index without times says so."""
    times = [0.0, 0.5, 1.0, np.nan]
    path = write_index(tmp_path / "i.parquet", np.eye(4), ["a"] * 4, times=times)
    for asked, frame in ((0.7, 1), ("0:00:00.8", 2), ("1:05", 2), (0, 0)):
        assert cc.search(path, video="a", time=asked).query == f"a at {moment(times[frame], frame)}"
    path = write_index(tmp_path / "j.parquet", np.eye(4), ["a"] * 4, times=[np.nan] * 4)
    with pytest.raises(UserError, match="has no times for a; select a frame by its index"):
        cc.search(path, video="a", time=1)
    assert cc.search(path, video="a", frame=3).hits[0].time is None
    assert "frame 0" in str(cc.search(path, video="a", frame=3))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00.0"),
        (12.5, "0:00:12.5"),
        (59.96, "0:01:00.0"),
        (3599.94, "0:59:59.9"),
        (36000, "10:00:00.0"),
        (-0.01, "0:00:00.0"),
        (-61.5, "-0:01:01.5"),
    ],
)
def test_times_are_shown_with_tenths(seconds, text):
    """Tenths are rounded before they are split into minutes and hours."""
    assert moment(seconds, 3) == text


@pytest.mark.parametrize(("text", "seconds"), [("1:02:03.5", 3723.5), ("2:03", 123), ("12.5", 12.5), (7, 7)])
def test_times_can_be_given_as_they_are_shown(text, seconds):
    """`--time` accepts the format of the results, shorter ones, and seconds."""
    assert SearchConfig(index="i.npz", video="a", time=text).time == seconds


def test_the_table_escapes_names(tmp_path, capsys):
    """Control characters and markup in a name do not reach the terminal, and long names are not cut."""
    names = ["q", "\x1b[31mred\n\u2028", "gpj\u202e.exe\u2066", "[bold]b[/bold]", "x" * 200, "עברית 🦊"]
    path = write_index(tmp_path / "i.npz", [[1, row] for row in range(6)], names)
    assert main(["search", str(path), "--video", "q", "--frame", "0"]) == 0
    shown = capsys.readouterr().out
    assert not {"\x1b", "\u202e", "\u2066"} & set(shown)
    assert all(
        text in shown
        for text in (r"\x1b[31mred\n\u2028", r"gpj\u202e.exe\u2066", "[bold]b[/bold]", "x" * 200, "עברית 🦊")
    )
    assert len(shown.splitlines()) == 3 + 5
    assert str(UserError("gpj\u202a.exe\u2069")) == r"gpj\u202a.exe\u2069"


def test_results_are_printed_as_json(tmp_path, capsys):
    """`--format json` prints query and hits; an unknown time is null."""
    path = write_index(tmp_path / "i.npz", np.eye(3) + 0.5, ["a", "b", "b"], times=[1, 2.5, np.nan])
    assert main(["search", str(path), "--video", "a", "--frame", "0", "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["query"] == "a at 0:00:01.0"
    assert [(hit["rank"], hit["video"], hit["frame"], hit["time"]) for hit in printed["frames"]] == [
        (1, "b", 0, 2.5),
        (2, "b", 1, None),
    ]
    assert printed["frames"][0]["similarity"] == pytest.approx((1.5 * 0.5 * 2 + 0.25) / (1.5**2 + 2 * 0.5**2))


def test_an_index_of_one_frame_has_no_hits(tmp_path):
    """This is not an error, and the output says so."""
    path = write_index(tmp_path / "i.npz", [[1, 0]], ["a"])
    assert str(cc.search(path, video="a", frame=0)).endswith("no other frames")


def test_a_search_by_frame_does_not_import_torch(tmp_path):
    """Nor other packages that take seconds to import."""
    path = write_index(tmp_path / "i.parquet", np.eye(3), NAMES)
    code = (
        "import sys, cyclecontrast as cc; cc.search(sys.argv[1], video='three.mp4', frame=0); "
        "assert not {'torch', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_vectors_of_a_parquet_file_are_read_in_blocks(tmp_path, monkeypatch):
    """20 MB of vectors in blocks of 0.5 MB never take more than 10 MB of memory."""
    monkeypatch.setattr(index_module, "ROWS_PER_BLOCK", 1024)
    vectors = np.random.default_rng(0).standard_normal((40_000, 128), dtype=np.float32)
    numbers = np.arange(len(vectors), dtype=np.int32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 128)
    columns = {"video": pa.array(["a"] * len(vectors)), "index": numbers, "time": numbers / 2, "vector": lists}
    pq.write_table(pa.table(columns), tmp_path / "i.parquet", row_group_size=8192)
    index = FrameIndex.open(tmp_path / "i.parquet")
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        assert sum(len(block) for _, block in index.blocks()) == 40_000
        assert tracemalloc.get_traced_memory()[1] + pool.max_memory() < 10e6
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


# --- mistakes


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("INDEX", ["give one of --image FILE and --video ID, or --serve to search in the browser"]),
        ("INDEX --image q.png --video a", ["give one of", "--video needs one of --frame N and --time SECONDS"]),
        ("INDEX --video a --frame 1 --time 2", ["--video needs one of --frame N and --time SECONDS"]),
        ("INDEX --image q.png --time 2 --other-videos", ["--frame and --time need --video", "--other-videos needs"]),
        ("INDEX --video a --frame 0 --faiss --port 80", ["--faiss needs --serve", "--port needs --serve"]),
        ("INDEX --video a --frame 0 --data .", ["--data needs --html or --serve"]),
        ("INDEX --image q.png --videos .", ["--videos needs --serve"]),
        (f"INDEX --video a --frame 0 --model {MODEL} --html p.html", ["--model needs --image or --serve"]),
        (f"INDEX --video a --frame 0 --device cpu --model {MODEL}", ["--model and --device need --image or --serve"]),
        (
            "INDEX --serve --videos none --data none",
            ["videos: none: no such folder; name", "data: none: no such"],
        ),
        (
            "INDEX --serve --image q.png --html p.html",
            ["with --serve, queries come from the web page; remove --image, --html"],
        ),
        (
            "INDEX --serve --top 3 --per-video 1 --other-videos",
            ["with --serve, queries come from the web page; remove --top, --per-video, --other-videos"],
        ),
        ("INDEX --video a --frame 0 --html p.txt --top 0", ["html: must end in .html", "top: input should be"]),
        ("INDEX --video a --time soon", ["time: input should be a valid number"]),
        (
            "none.npz --image none.png --html p.html --data none",
            ["data: none", "index: none.npz: no such", "image: none.png: no such"],
        ),
        ("i.txt --video a --frame 0", ["index: must end in .parquet or .npz"]),
        ("INDEX --video a/on.mp4 --frame 0", ["a/on.mp4 is not in INDEX; did you mean a/one.mp4?"]),
        ("INDEX --video two --frame 0", ["two is not in INDEX; did you mean a/two.mp4?"]),
        ("INDEX --video three.mp4 --frame 7", ["three.mp4 has no frame 7 in INDEX; it has 1, from 0 to 0"]),
        ("INDEX --image q.png", ["INDEX does not say which model made its vectors; search it with --video"]),
        ("INDEX --image q.png --html .", ["html: must end in .html"]),
        (
            "INDEX --video x --frame 0 --html p.html",
            ["video: x is not in", "data: INDEX does not contain the path of its frames"],
        ),
    ],
)
def test_all_mistakes_are_reported_at_once(words, lines, tmp_path, monkeypatch, capsys):
    """Each in one line that says what to do, with exit code 2; nothing is written."""
    monkeypatch.chdir(tmp_path)
    write_index(Path("INDEX.npz"), np.eye(3), NAMES)
    cv2.imwrite("q.png", np.zeros((8, 8, 3), np.uint8))
    before = sorted(Path().iterdir())
    assert main(["search", *words.replace("INDEX", "INDEX.npz").split()]) == 2
    reported = capsys.readouterr().err.splitlines()
    assert len(reported) == len(lines), reported
    for line in lines:
        assert any(line.replace("INDEX", "INDEX.npz") in one for one in reported), (line, reported)
    assert sorted(Path().iterdir()) == before


def damaged_files(folder):
    """Yield damaged or hostile index files, each with words of the message."""
    good = write_index(folder / "good.npz", np.eye(3), NAMES)
    for suffix in (".npz", ".parquet"):
        whole = write_index(folder / f"whole{suffix}", np.eye(3), NAMES).read_bytes()
        (folder / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
        yield folder / f"cut{suffix}", "cannot be read"
        (folder / f"text{suffix}").write_text("hello")
        yield folder / f"text{suffix}", "cannot be read"
        yield write_index(folder / f"nan{suffix}", [[1, np.nan]], NAMES[:1]), "not finite"
        yield write_index(folder / f"inf{suffix}", [[1, 0]], ["a"], times=[np.inf]), "infinite numbers in time"
        yield write_index(folder / f"late{suffix}", [[1, 0]], ["a"], times=[-1e308]), f"late{suffix}: has times of more"
        yield write_index(folder / f"low{suffix}", [[1, 0]], ["a"], indices=[-1]), "numbers below 0 in index"
        yield write_index(folder / f"empty{suffix}", np.empty((0, 2)), []), "holds no frames"
    columns = dict(np.load(good, allow_pickle=False))
    np.savez(folder / "lack.npz", video=columns["video"])
    yield folder / "lack.npz", "lacks index, time, vector"
    np.savez(folder / "double.npz", **columns | {"vector": np.eye(3)})
    yield folder / "double.npz", "has float64 of shape (3, 3)"
    np.savez(folder / "far.npz", **columns | {"index": np.array([0, 2**31 + 5, 1])})
    yield folder / "far.npz", "numbers above 2,147,483,647 in index"
    np.savez(folder / "short.npz", **columns | {"time": np.zeros(2)})
    yield folder / "short.npz", "has float64 of shape (2,) in time for 3 vectors"
    np.savez_compressed(folder / "bomb.npz", **columns | {"vector": np.zeros((20_000, 2000), np.float32)})
    yield folder / "bomb.npz", "unpacks to"
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 10**6)}
    with zipfile.ZipFile(folder / "giant.npz", "w") as archive:
        for name in columns:
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(file, header)
    yield folder / "giant.npz", "cannot be read (Unable to allocate"
    np.savez(folder / "object.npz", **columns | {"video": np.array([{}, [], 1], object)})
    yield folder / "object.npz", "Object arrays cannot be loaded"
    table = pq.read_table(write_index(folder / "whole.parquet", np.eye(3), NAMES))
    pq.write_table(table.drop(["time"]), folder / "lack.parquet")
    yield folder / "lack.parquet", "lacks time"
    pq.write_table(table.set_column(3, "vector", pa.array([[1.0]] * 3)), folder / "ragged.parquet")
    yield folder / "ragged.parquet", "has list<"
    gaps = pa.array([[1, None], [0, 1], [1, 1]], pa.list_(pa.float32(), 2))
    pq.write_table(table.set_column(3, "vector", gaps), folder / "gaps.parquet")
    yield folder / "gaps.parquet", "gaps in vector"


def test_a_damaged_index_gives_one_line(tmp_path):
    """No traceback, no memory out of proportion to the file, and nothing is unpickled."""
    for path, words in damaged_files(tmp_path):
        with pytest.raises(UserError) as caught:
            cc.search(path, video=NAMES[0], frame=0)
        assert len(caught.value.problems) == 1, path
        assert words in str(caught.value), (path, caught.value)


# --- from videos to hits


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Three videos of patterns, the frames prepared from them, and an index of each format."""
    root = tmp_path_factory.mktemp("footage")
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (8, 4, 6, 3), np.uint8)
        images = [cv2.resize(image, (96, 64), interpolation=cv2.INTER_NEAREST) for image in coarse]
        make.write_images(path, images, rate=2, options={"crf": "4"})
        assert number < 3
    prepare(PrepareConfig(videos=root / "videos", out=root / "frames", every=1, workers=0))
    for suffix in (".parquet", ".npz"):
        settings = {"image_size": 32, "workers": 0, "device": "cpu", "out": root / f"index{suffix}"}
        embed(EmbedConfig(model=MODEL, data=root / "frames", **settings))
    return root


def rows_of(path):
    """Read an index by plain means: (video, index) by row, and vectors of length 1 in double precision."""
    table = pq.read_table(path)
    vectors = np.stack(table["vector"].to_pylist()).astype(np.float64)
    names = list(zip(table["video"].to_pylist(), table["index"].to_pylist(), strict=True))
    return names, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_an_image_of_a_frame_finds_that_frame(footage, suffix, tmp_path, monkeypatch):
    """The model is found from any folder by what the index says about it."""
    monkeypatch.chdir(tmp_path)
    store = FrameStore.open(footage / "frames")
    names, unit = rows_of(footage / "index.parquet")
    for video, frame in ((0, 3), (2, 7)):
        cv2.imwrite("q.png", cv2.cvtColor(store.image(video, frame), cv2.COLOR_RGB2BGR))
        row = names.index((store.video_id(video), frame))
        order = sorted(range(len(names)), key=lambda other: -(unit @ unit[row])[other])
        hits = cc.search(footage / f"index{suffix}", image="q.png", top=4).hits
        assert [(hit.video, hit.frame) for hit in hits] == [names[other] for other in order[:4]]
        assert hits[0].similarity == pytest.approx(1, abs=1e-5)
        assert [hit.time for hit in hits] == [store.time(store.find(hit.video), hit.frame) for hit in hits]


def test_an_index_records_its_model_and_data(footage, tmp_path, monkeypatch):
    """By absolute paths, or the name and seed of a random network, so that a search works from any folder."""
    cc.export(MODEL, out=tmp_path / "b.safetensors", seed=3)
    monkeypatch.chdir(tmp_path)
    settings = {"image_size": 32, "workers": 0, "device": "cpu"}
    Path("frames").symlink_to(footage / "frames")
    cc.embed("b.safetensors", "frames", out="e.parquet", **settings)
    about = pq.read_schema("e.parquet").metadata
    assert (about[b"model"].decode(), about[b"data"].decode()) == (f"{tmp_path}/b.safetensors", f"{tmp_path}/frames")
    cc.embed(MODEL, "frames", out="r.npz", seed=3, **settings)
    cv2.imwrite("q.png", np.full((40, 40, 3), 90, np.uint8))
    monkeypatch.chdir(footage)
    by_file, by_name = (cc.search(tmp_path / name, image=tmp_path / "q.png") for name in ("e.parquet", "r.npz"))
    assert [hit.row for hit in by_file.hits] == [hit.row for hit in by_name.hits]


def stripped(footage, out, **changes):
    """Write the index again with other metadata; None removes an entry."""
    table = pq.read_table(footage / "index.parquet")
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items() if b"ARROW" not in key}
    about = {key: value for key, value in (about | changes).items() if value is not None}
    pq.write_table(table.replace_schema_metadata(about), out)
    return out


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({}, {"model": "random:resnet10-small-w8"}, "model: random:resnet10-small-w8 is not the model that made"),
        ({"seed": "1"}, {}, "is not the model that made"),
        ({"model": None}, {}, "does not contain the path of its model; pass it with --model MODEL"),
        ({"model": "/gone/run"}, {}, "model: /gone/run, the model of"),
        ({"model": "timm:resnet10t"}, {}, "which timm may have to download; to allow it: --model timm:resnet10t"),
        ({"model": "random:resnet50-w999"}, {}, "which may take gigabytes; to allow it: --model random:resnet50-w999"),
        (
            {"model": "random:timm:vit_giant_patch14_224"},
            {},
            "which may take gigabytes; to allow it: --model random:timm",
        ),
        ({"image_size": "8192"}, {}, f"one takes at least 8.6 GB in {MODEL}; to allow it: --model {MODEL}"),
        ({"image_size": "many"}, {}, "does not say which model made its vectors"),
        ({"image_size": "0" * 12 + "9" * 12}, {}, "does not say which model made its vectors"),
        ({"data": None}, {}, "does not contain the path of its frames; pass it with --data DATA"),
        ({"data": "/gone/frames"}, {}, "data: /gone/frames, with the frames of"),
        ({"data": "https://example.org/frames"}, {}, "to allow the download: --data https://example.org/frames"),
        ({"data_fingerprint": "0" * 16}, {}, "is not the data that"),
    ],
)
def test_another_model_or_other_data_are_refused(footage, tmp_path, changes, settings, words):
    """The fingerprints must match, and what only the file names is never downloaded."""
    cv2.imwrite(str(tmp_path / "q.png"), np.full((40, 40, 3), 90, np.uint8))
    path = stripped(footage, tmp_path / "i.parquet", **changes)
    with pytest.raises(UserError) as caught:
        cc.search(path, image=tmp_path / "q.png", html=tmp_path / "p.html", **settings)
    assert len(caught.value.problems) == 1
    assert words in str(caught.value)
    assert not (tmp_path / "p.html").exists()


def test_the_memory_of_a_query_is_known_before_it_is_taken():
    """The input and output of the largest layer, for one image: the first ones of a small ResNet."""
    backbone = make_backbone("resnet10-small-w8")
    assert layer_bytes(backbone, 100) == 4 * 2 * 8 * 100 * 100
    assert layer_bytes(backbone, 50_000) == 4 * 2 * 8 * 50_000 * 50_000
    assert {weight.device.type for weight in backbone.parameters()} == {"cpu"}


@pytest.mark.parametrize("settings", [{"image": "q.png"}, {"serve": True, "port": 0}], ids=["once", "served"])
def test_vectors_of_another_dimension_than_the_models_are_refused(footage, tmp_path, monkeypatch, settings):
    """In one line, not with an error of the matrix product."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("q.png", np.full((40, 40, 3), 90, np.uint8))
    table = pq.read_table(footage / "index.parquet")
    short = pa.array([vector[:9] for vector in table["vector"].to_pylist()], pa.list_(pa.float32(), 9))
    pq.write_table(table.set_column(3, pa.field("vector", short.type), short), "i.parquet")
    with pytest.raises(UserError, match=r"index: i.parquet has 9-dimensional vectors, but .* gives 128") as caught:
        cc.search("i.parquet", **settings)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("words", [["search", "i.npz", "--video", "a", "--frame", "0"], ["runs", "ls", "."]])
def test_a_closed_output_is_not_an_error(words, tmp_path, monkeypatch):
    """Python has no sys.stdout where a caller closed it; commands end well all the same."""
    monkeypatch.chdir(tmp_path)
    write_index(tmp_path / "i.npz", np.eye(3), ["a"] * 3)
    (tmp_path / "run").mkdir()
    for name in ("config.toml", "run.json"):
        (tmp_path / "run" / name).write_text("damaged")
    monkeypatch.setattr(sys, "stdout", None)
    assert main(words) == 0


def test_model_and_data_of_an_older_index_can_be_named(footage, tmp_path):
    """--model and --data replace what the file does not say, with the same hits."""
    cv2.imwrite(str(tmp_path / "q.png"), np.full((40, 40, 3), 90, np.uint8))
    old = stripped(footage, tmp_path / "i.parquet", model=None, data=None, seed=None)
    asked = {"image": tmp_path / "q.png", "html": tmp_path / "p.html"}
    found = cc.search(old, model=MODEL, data=footage / "frames", **asked)
    assert found.hits == cc.search(footage / "index.parquet", **asked).hits
    assert "data:image/jpeg;base64," in (tmp_path / "p.html").read_text()


def test_the_page_reports_unreadable_frames(tmp_path):
    """A damaged frame is reported on its card, the others are shown, and names are escaped."""
    for number in range(3):
        path = tmp_path / "frames" / "<i>a&b" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((30, 300, 3), 80 * number, np.uint8))
    embed(EmbedConfig(model=MODEL, data=tmp_path / "frames", out=tmp_path / "i.npz", image_size=32, workers=0))
    (tmp_path / "frames" / "<i>a&b" / "1.png").write_bytes(b"broken")
    cc.search(tmp_path / "i.npz", video="<i>a&b", frame=0, html=tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert page.count('<li class="card">') == 2
    assert page.count('class="gone"') == 1
    assert "<i>" not in page
    assert "&lt;i&gt;a&amp;b" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("faiss", r"faiss: is not installed; pip install 'cyclecontrast\[faiss\]'"),
        ("starlette", r"serve: needs Starlette and uvicorn; pip install 'cyclecontrast\[search\]'"),
        ("uvicorn", r"serve: needs Starlette and uvicorn; pip install 'cyclecontrast\[search\]'"),
    ],
)
def test_a_missing_extra_is_named(footage, monkeypatch, package, words):
    """One line says what to install; a search without the page works without it."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(UserError, match=words) as error:
        cc.search(footage / "index.parquet", serve=True, port=0, faiss=True)
    assert len(error.value.problems) == 1
    assert cc.search(footage / "index.parquet", video=NAMES[0], frame=0).hits


def test_faiss_finds_the_same_in_a_small_index(footage):
    """A small index is a single cell, so the hits are the exact ones."""
    pytest.importorskip("faiss")
    index = FrameIndex.open(footage / "index.parquet")
    exact, approximate = (load_vectors(index, use_faiss) for use_faiss in (False, True))
    for row, per_video, others in ((0, None, False), (5, 1, False), (9, 2, True)):
        allowed = allowed_rows(index.video, row, others)
        ours, theirs = (each.search(exact.vectors[row], allowed, 6, per_video)[0] for each in (exact, approximate))
        assert ours.tolist() == theirs.tolist()


def test_serving_reports_missing_model_and_frames_together(footage, tmp_path):
    """Each in one line, before anything is served."""
    path = stripped(footage, tmp_path / "i.parquet", model=None, data=None)
    with pytest.raises(UserError) as caught:
        cc.search(path, serve=True, port=0)
    assert [line.partition(":")[0] for line in caught.value.problems] == ["data", "model"]
