"""The protocol `retrieval` end to end, its scores, and which frames it looks at."""

import importlib.util
from collections import Counter
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

import cyclecontrast as cc
from cyclecontrast.config import RetrievalConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation import retrieval
from cyclecontrast.evaluation.metrics import average_precision, hit_at_k, similarity_blocks, unit_vectors
from cyclecontrast.evaluation.predictions import find_records
from cyclecontrast.evaluation.retrieval import Retrieval, VideoItems, clip_indices, embed_videos, frame_indices
from cyclecontrast.models.backbone import make_backbone
from tests.make_videos import write_images

SEEDS = st.integers(0, 2**32 - 1)
MODEL = "random:resnet10-small-w8"
SETTINGS = {"image_size": 16, "workers": 0, "device": "cpu", "batch_size": 7, "per_video": 3, "clip_length": 4}
LENGTHS = {"train": (9, 5, 3, 11, 6, 8, 2), "test": (7, 2, 10, 5, 1)}
CLASSES = ("Archery", "HandstandPushups", "Yo Yo")


@pytest.fixture
def data(tmp_path):
    """A UCF101 root of seven and five lossless videos of three classes; the first frame of each is in it twice."""
    return make_data(tmp_path / "data")


def make_data(root):
    """Write videos of noise around a color by class, and the lists."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "classInd.txt").write_text("".join(f"{i} {x}\n" for i, x in enumerate(CLASSES, 1)))
    for split, lengths in LENGTHS.items():
        lines = []
        for number, length in enumerate(lengths):
            name = f"{CLASSES[number % 3]}/v_{split}_g{number:02d}_c01.avi"
            (root / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
            color = 60 * (number % 3) + rng.integers(0, 256, (1, 18, 23, 3)) // 2
            images = np.clip(color + rng.normal(0, 40, (length, 18, 23, 3)), 0, 255).astype(np.uint8)
            images[1:2] = images[:1]
            write_images(root / "videos" / name, list(images), codec="ffv1", pix_fmt="bgr0")
            lines.append(f"{name} {number % 3 + 1}\n" if split == "train" else f"{name}\n")
        (root / "annotations" / f"{split}list01.txt").write_text("".join(lines))
    return root


def run(data, tmp_path, **settings):
    """Evaluate into a folder of the test."""
    return cc.evaluate("retrieval", MODEL, data, **{"out": tmp_path / "out", "k": (1, 2, 5), **SETTINGS, **settings})


def table_of(tmp_path):
    """Return the only record's table."""
    (record,) = find_records(tmp_path / "out", "retrieval")
    return record.table


def frames_of(path):
    """Decode with OpenCV and cut 16 from the middle of the 18 rows: all frames of a video, normalized."""
    capture, crops = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        crops.append(read[1][1:17, 4:20, ::-1])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.tensor((np.stack(crops) / 255 - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)


def items_of(data, split, level):
    """Vectors of items in double precision and their labels, as the protocol says."""
    backbone, items, labels = make_backbone("resnet10-small-w8", 0).eval(), [], []
    for number, line in enumerate((data / "annotations" / f"{split}list01.txt").read_text().splitlines()):
        frames = frames_of(data / "videos" / line[: line.index(".avi") + 4])
        with torch.no_grad():
            vectors = [backbone(frame[None])[0].numpy().astype(float) for frame in frames]
        if level == "frame":
            own = [vectors[int(i)] for i in np.linspace(0, len(vectors) - 1, 3)]
        else:
            starts = [max(0, int(c - 2)) for c in np.linspace(2, len(vectors) - 2, 3)] if len(vectors) > 4 else [0] * 3
            own = [np.mean([vectors[min(s + i, len(vectors) - 1)] for i in range(4)], axis=0) for s in starts]
        items += [np.mean(own, axis=0)] if level == "video" else own
        labels += [number % 3] * (1 if level == "video" else 3)
    return np.array(items), np.array(labels)


def by_hand(data, level, center, ks):
    """Hits and mean average precision, one query and one gallery item at a time."""
    (gallery, labels), (queries, query_labels) = (items_of(data, split, level) for split in ("train", "test"))
    if center:
        gallery, queries = gallery - gallery.mean(axis=0), queries - queries.mean(axis=0)
    hits, precisions = Counter(), []
    for query, label in zip(queries, query_labels, strict=True):
        cosines = [query @ x / np.linalg.norm(query) / np.linalg.norm(x) for x in gallery]
        # Equal frames give equal items up to the last bits of the loop above.
        order = sorted(range(len(gallery)), key=lambda i: (-round(cosines[i], 7), i))
        hits.update(k for k in ks if label in labels[order[:k]])
        precisions.append(average_precision_score(labels == label, np.round(cosines, 7)))
    return {f"hit@{k}": hits[k] / len(queries) for k in ks} | {"mAP": np.mean(precisions)}


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("level", ["frame", "clip", "video"])
def test_metrics_equal_those_computed_by_hand(data, tmp_path, level, center):
    """From video files to the numbers, at each level, with and without centring; the tag says which."""
    result = run(data, tmp_path, level=level, center=center, k=(1, 2, 5), batch_size=1)
    assert result.metrics == pytest.approx(by_hand(data, level, center, (1, 2, 5)), abs=1e-5)
    middle = " center" if center else ""
    assert result.tag == f"retrieval level={level} per_video=3 clip_length=4{middle} image_size=16"
    assert result.about.data[2:] == ((7, 5) if level == "video" else (21, 15))


def test_the_paper_is_the_default(data):
    """Single clips, ten of 16 frames for each video, of split 1, exactly searched, not centered."""
    config = RetrievalConfig(model=MODEL, data=data)
    assert Retrieval(config)._tag() == "retrieval level=clip"
    chosen = ("level", "per_video", "clip_length", "split", "ann", "center", "k")
    assert [getattr(config, name) for name in chosen] == ["clip", 10, 16, 1, "exact", False, (1, 5, 10, 20, 50)]


@pytest.mark.parametrize("num_frames", [*range(29, 60), 186, 1776])
def test_frames_and_clips_are_those_of_the_protocol(num_frames):
    """Ten frames int(linspace(0, n-1, 10)); ten clips of 16 frames around linspace(8, n-8, 10), all inside."""
    step = (num_frames - 1) / 9
    frames = frame_indices(num_frames, 10)
    assert all(abs(frame - step * i) < 1 for i, frame in enumerate(frames))
    assert frames.tolist() == [int(x) for x in np.linspace(0, num_frames - 1, 10)]
    clips = clip_indices(num_frames, 10, 16)
    starts = [int(center - 8) for center in np.linspace(8, num_frames - 8, 10)]
    assert clips.tolist() == [list(range(start, start + 16)) for start in starts]
    assert (clips[0, 0], clips[-1, -1]) == (0, num_frames - 1)


def test_frames_and_clips_of_cases_done_on_paper():
    """A hundred frames; 25, in which each clip begins one later; and one shorter than a clip."""
    assert frame_indices(100, 10).tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert frame_indices(2, 4).tolist() == [0, 0, 0, 1]
    assert frame_indices(1, 3).tolist() == [0, 0, 0]
    assert clip_indices(25, 10, 16)[:, 0].tolist() == list(range(10))
    assert clip_indices(3, 2, 5).tolist() == [[0, 1, 2, 2, 2]] * 2
    assert clip_indices(5, 2, 5).tolist() == [[0, 1, 2, 3, 4]] * 2


@given(SEEDS, st.integers(1, 30), st.integers(1, 12), st.integers(1, 6))
def test_hits_grow_with_k_and_equal_a_loop(seed, num_neighbors, num_queries, num_classes):
    """Looking at more neighbors loses no hit, and each value is that of a plain loop."""
    rng = np.random.default_rng(seed)
    found, labels = (
        rng.integers(0, num_classes, (num_queries, num_neighbors)),
        rng.integers(0, num_classes, num_queries),
    )
    values = [hit_at_k(found, labels, k) for k in range(1, num_neighbors + 1)]
    assert values == sorted(values)
    for k, value in enumerate(values, 1):
        assert value == pytest.approx(
            sum(label in row[:k] for row, label in zip(found, labels, strict=True)) / len(labels)
        )
    for k in (0, num_neighbors + 1):
        with pytest.raises(ValueError, match=f"hit@{k} of {num_neighbors}"):
            hit_at_k(found, labels, k)


@given(SEEDS, st.integers(1, 40), st.integers(1, 5), st.sampled_from([3, 1000]))
def test_average_precision_is_that_of_scikit_learn(seed, num_gallery, num_queries, steps):
    """With many ties or none, in any order of the gallery; nan where the class has nothing in the gallery."""
    rng = np.random.default_rng(seed)
    similarities = (rng.integers(0, steps, (num_queries, num_gallery)) / 1000).astype(np.float32)
    labels, query_labels = rng.integers(0, 3, num_gallery), rng.integers(0, 4, num_queries)
    ours = average_precision(similarities, labels, query_labels)
    for row, label, value in zip(similarities, query_labels, ours, strict=True):
        if label in labels:
            assert value == pytest.approx(average_precision_score(labels == label, row))
        else:
            assert np.isnan(value)
    order = rng.permutation(num_gallery)
    np.testing.assert_array_equal(average_precision(similarities[:, order], labels[order], query_labels), ours)


def test_average_precision_of_a_case_done_by_hand():
    """Right items on places 1 and 3 of four: (1/1 + 2/3) / 2."""
    value = average_precision(np.array([[0.9, 0.8, 0.7, 0.1]]), np.array([5, 2, 5, 2]), np.array([5]))
    assert value.tolist() == pytest.approx([5 / 6])


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_no_item_is_dropped_by_batches(data, tmp_path, batch_size):
    """Each clip of each video has its row, in the order of the lists, whatever the batch does not divide."""
    run(data, tmp_path, batch_size=batch_size)
    table = table_of(tmp_path)
    paths = (data / "annotations" / "testlist01.txt").read_text().splitlines()
    assert table["id"].to_pylist() == [f"videos/{path}#{clip}" for path in paths for clip in range(3)]
    assert table["label"].to_pylist() == [number % 3 for number in range(5) for _ in range(3)]
    for row in table.to_pylist():
        assert sorted(row["neighbors"]) == list(range(21))
        assert row["neighbor_labels"] == [item // 3 % 3 for item in row["neighbors"]]


def test_frames_are_embedded_once_in_full_batches(data):
    """Overlapping clips share their frames; batches run on over the ends of videos, and all are full but the last."""
    config = RetrievalConfig(model=MODEL, data=data, **SETTINGS)
    sizes, backbone = [], make_backbone("resnet10-small-w8")
    backbone.register_forward_hook(lambda _, images, __: sizes.append(len(images[0])))
    items = embed_videos(backbone, Retrieval(config).open().train, config, "train", NothingBefore())
    distinct = [len(np.unique(clip_indices(n, 3, 4))) for n in LENGTHS["train"]]
    assert sum(sizes) == sum(distinct) < 12 * 7
    assert set(sizes[:-1]) == {7}
    assert items.vectors.shape == (21, 64)
    assert items.numbers.tolist() == list(range(21))


class NothingBefore:
    """Parts that are made each time."""

    def arrays(self, name, make):
        """Make the part."""
        return make()


def test_equal_items_are_ranked_by_their_number():
    """Items that are there twice stand side by side, the earlier one first, and count as one step of precision."""
    rng = np.random.default_rng(0)
    vectors = unit_vectors(rng.standard_normal((20, 64), dtype=np.float32))
    places = rng.permutation(np.repeat(np.arange(20), 2))
    gallery = VideoItems(vectors[places], places % 3, np.arange(40), ())
    queries = VideoItems(unit_vectors(rng.standard_normal((13, 64), dtype=np.float32)), np.arange(13) % 3, None, ())
    ranking = retrieval.rank(gallery, queries, 40, NothingBefore())
    pairs = ranking["indices"].reshape(13, 20, 2)
    assert (places[pairs[..., 0]] == places[pairs[..., 1]]).all()
    assert (pairs[..., 0] < pairs[..., 1]).all()
    cosines = queries.vectors.astype(float) @ vectors.T.astype(float)
    expected = [average_precision_score(places % 3 == i % 3, row[places]) for i, row in enumerate(cosines)]
    assert ranking["average_precision"].tolist() == pytest.approx(expected)


def test_near_duplicates_are_ranked_as_in_double_precision():
    """mAP and hit@k order items by the same products, also where single precision cannot tell them apart."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.standard_normal((5, 512)), 40, axis=0) + 1e-6 * rng.standard_normal((200, 512))
    vectors = unit_vectors(vectors.astype(np.float32))
    labels = rng.integers(0, 3, 200)
    gallery, queries = VideoItems(vectors, labels, None, ()), VideoItems(vectors[::20], labels[::20], None, ())
    ranking = retrieval.rank(gallery, queries, 200, NothingBefore())
    cosines = queries.vectors.astype(float) @ vectors.T.astype(float)
    assert (ranking["indices"] == np.argsort(-cosines, axis=1, kind="stable")).all()
    exact, single = (
        [average_precision_score(labels == label, row) for label, row in zip(queries.labels, rows, strict=True)]
        for rows in (cosines, queries.vectors @ vectors.T)
    )
    assert ranking["average_precision"].tolist() == pytest.approx(exact, abs=1e-12)
    assert single != pytest.approx(exact, abs=1e-4)


def test_the_size_of_blocks_changes_nothing(data, tmp_path, monkeypatch):
    """Two queries at once, in parts of five: each is compared with its own class."""
    run(data, tmp_path / "whole")
    monkeypatch.setattr(retrieval, "QUERIES_PER_PART", 5)
    monkeypatch.setattr(retrieval, "similarity_blocks", partial(similarity_blocks, similarities_at_once=2 * 21))
    run(data, tmp_path)
    ours, whole = table_of(tmp_path), table_of(tmp_path / "whole")
    assert ours.drop(["average_precision"]).equals(whole.drop(["average_precision"]))
    np.testing.assert_allclose(ours["average_precision"], whole["average_precision"], rtol=1e-12)


def test_the_backbone_stays_as_it_was(data, tmp_path):
    """No parameter and no BatchNorm buffer changes by one bit, and a backbone in training stays in training."""
    backbone = make_backbone("resnet10-small-w8").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    cc.evaluate("retrieval", backbone, data, out=tmp_path / "out", **SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(module.training for module in backbone.modules())


def test_a_stopped_evaluation_ends_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    """Stopped while embedding, then while ranking, then run to the end: the same record, and nothing done twice."""
    monkeypatch.setattr(retrieval, "IMAGES_PER_PART", 24)
    monkeypatch.setattr(retrieval, "QUERIES_PER_PART", 4)
    whole = run(data, tmp_path / "whole")
    encoded, ranked = Stopping(retrieval.encode, 4), Stopping(retrieval.average_precision, 3)
    monkeypatch.setattr(retrieval, "encode", encoded)
    monkeypatch.setattr(retrieval, "average_precision", ranked)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path)
    again = run(data, tmp_path)
    assert table_of(tmp_path).equals(table_of(tmp_path / "whole"))
    assert (again.metrics, again.per_item) == (whole.metrics, whole.per_item)
    assert ranked.done == 4
    assert not (tmp_path / "out" / "unfinished").exists()
    repeated = encoded.done
    run(data, tmp_path / "anew")
    assert encoded.done - repeated < repeated <= encoded.done - repeated + 2


class Stopping:
    """A function that is interrupted at the start of its n-th call, once."""

    def __init__(self, function, at):
        self.function, self.left, self.done = function, at, 0

    def __call__(self, *arguments):
        """Call it, or stop."""
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        self.done += 1
        return self.function(*arguments)


def test_other_numbers_of_neighbors_need_no_model(data, tmp_path):
    """The record holds enough to score it for another k; one beyond the gallery becomes the gallery, and it is said."""
    first = run(data, tmp_path, k=(1, 2))
    again = run(data, tmp_path, k=(2, 21, 30, 99), score_only=True)
    assert list(again.metrics) == ["hit@2", "hit@21", "mAP"]
    assert again.metrics["hit@2"] == first.metrics["hit@2"]
    assert again.metrics["hit@21"] == 1
    assert "k=30, 99 are more than the 21 gallery items: 21 used" in str(again)
    assert run(data, tmp_path, k=(30,)).metrics["hit@21"] == 1


def test_more_neighbors_than_were_recorded_are_refused(data, tmp_path, monkeypatch):
    """The record cannot tell; the error says what to do."""
    monkeypatch.setattr(retrieval, "RECORDED", 4)
    assert list(run(data, tmp_path, k=(1,)).metrics) == ["hit@1", "mAP"]
    assert list(run(data, tmp_path, k=(4,), score_only=True).metrics) == ["hit@4", "mAP"]
    with pytest.raises(UserError, match="k: the record holds the 4 nearest, not 5; use less"):
        run(data, tmp_path, k=(1, 5), score_only=True)
    with pytest.raises(UserError, match="k: 5 is more than the 4 nearest that are computed; use less"):
        run(data, tmp_path / "none", k=(1, 5))
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(retrieval, "RECORDED", 5)
    with pytest.raises(UserError, match="the record holds the 4 nearest, not 5; use less"):
        run(data, tmp_path, k=(5,), score_only=True)


def test_a_smaller_k_takes_nothing_from_the_record(data, tmp_path, monkeypatch):
    """A record has the same name and neighbors for each k: a larger k can be scored later."""
    monkeypatch.setattr(retrieval, "RECORDED", 15)
    large = run(data, tmp_path, k=(15,))
    before = table_of(tmp_path)
    run(data, tmp_path, k=(1,))
    assert table_of(tmp_path).equals(before)
    assert run(data, tmp_path, k=(15,), score_only=True).metrics == large.metrics


def test_no_k_is_refused():
    """There would be nothing to tell."""
    with pytest.raises(UserError, match="k: give one number or more"):
        checked(RetrievalConfig, {"model": MODEL, "data": ".", "k": ()})


def test_the_breakdown_by_class_adds_up(data, tmp_path):
    """Hits by class, weighted by the queries of each, are hit@1."""
    result = run(data, tmp_path)
    assert result.per_item["classes"] == list(CLASSES)
    assert result.per_item["num_items"] == [6, 6, 3]
    assert np.average(result.per_item["hit@1"], weights=[6, 6, 3]) == pytest.approx(result.metrics["hit@1"])


def test_a_class_without_gallery_counts_for_hits_and_not_for_map(data, tmp_path):
    """Where no training video of a class can be read, its queries are misses, and mAP says how many it leaves out."""
    lost = [path for path in (data / "videos" / "Yo Yo").iterdir() if "train" in path.name]
    for path in lost:
        path.write_bytes(b"broken")
    result = run(data, tmp_path)
    assert table_of(tmp_path)["average_precision"].null_count == 3
    assert "mAP is without 3 queries whose class has nothing in the gallery" in result.about.notes
    assert result.metrics["hit@5"] <= 12 / 15
    assert result.per_item["hit@1"][2] == 0
    assert len(result.about.problems) == len(lost)
    assert result.about.data[2:] == (21 - 3 * len(lost), 15)
    assert {0, 1, 2, 3, 4, 5} & set(table_of(tmp_path)["neighbors"].to_pylist()[0])
    assert not {6, 7, 8, 15, 16, 17} & set(table_of(tmp_path)["neighbors"].to_pylist()[0])


def test_nothing_readable_is_an_error(data, tmp_path):
    """Without any test video there is nothing to score; the first reasons are reported."""
    for path in (data / "videos").rglob("v_test*"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="none of the 5 videos can be read") as caught:
        run(data, tmp_path)
    assert [*caught.value.problems[4:]] == ["and 2 more"]


def test_faiss_is_asked_for_by_its_extra(data, tmp_path, monkeypatch):
    """Where it is not installed one line says how to get it, before anything is computed; scoring needs none."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cyclecontrast\[faiss\]'"):
        run(data, tmp_path, ann="faiss")
    assert not (tmp_path / "out").exists()


def test_faiss_finds_the_same_in_a_small_gallery(data, tmp_path):
    """One cell is all there is: neighbors equal the exact ones, mAP is not given, and the tag says faiss."""
    pytest.importorskip("faiss")
    exact = run(data, tmp_path / "exact")
    result = run(data, tmp_path, ann="faiss")
    assert result.metrics == {name: value for name, value in exact.metrics.items() if name != "mAP"}
    assert "ann=faiss" in result.tag
    assert "ann=faiss searches 1 of 1 cells and finds 100.0% of the 21 nearest; no mAP" in result.about.notes
    assert table_of(tmp_path)["average_precision"].null_count == 15
    assert run(data, tmp_path, ann="faiss", score_only=True).metrics == result.metrics


def test_a_missing_and_a_truncated_video_are_left_out_and_reported(data, tmp_path):
    """Both are named; all other queries and items are there."""
    train, test = ((data / "annotations" / f"{x}list01.txt").read_text().splitlines() for x in ("train", "test"))
    whole = run(data, tmp_path / "whole")
    broken, missing = data / "videos" / test[0], data / "videos" / train[0].removesuffix(" 1")
    broken.write_bytes(broken.read_bytes()[:200])
    missing.unlink()
    result = run(data, tmp_path)
    assert whole.about.problems == ()
    assert len(result.about.problems) == 2
    assert all(any(str(path) in line for line in result.about.problems) for path in (broken, missing))
    assert table_of(tmp_path)["id"].to_pylist() == table_of(tmp_path / "whole")["id"].to_pylist()[3:]
    assert result.about.data[2:] == (18, 12)
    assert (whole.about.details["num_gallery"], result.about.details["num_gallery"]) == (21, 18)
