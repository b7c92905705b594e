"""Vectors of images: the crop, the frozen backbone, and the files of `embed`."""

import errno
import os
import tarfile

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import cyclecontrast as cc
from cyclecontrast.config import EmbedConfig, PrepareConfig
from cyclecontrast.data import storage
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation import embed as module
from cyclecontrast.evaluation.embed import Loading, embed, embed_batches, embed_images
from cyclecontrast.evaluation.image_batches import CenterCrop, StoreImages, chunks, load_image_batches
from cyclecontrast.evaluation.predictions import find_records
from cyclecontrast.evaluation.resume_cache import ResumeCache
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import fingerprint
from tests import make_videos as make

MODEL = "resnet10-small-w8"
CPU = torch.device("cpu")


@pytest.fixture
def frames(tmp_path):
    """Two videos of three and two frames, of noise."""
    rng = np.random.default_rng(0)
    for name in ("a/0.png", "a/1.png", "a/10.png", "b c/0.png", "b c/1.png"):
        path = tmp_path / "frames" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (20, 28, 3), np.uint8))
    return tmp_path / "frames"


@pytest.fixture
def cache(tmp_path):
    """A place for parts."""
    return ResumeCache(tmp_path / "unfinished")


def config(frames, out, **changes):
    """Options of `embed` for tiny images."""
    settings = {"image_size": 16, "batch_size": 2, "workers": 0, "device": "cpu"}
    return EmbedConfig(model=f"random:{MODEL}", data=frames, out=out, **{**settings, **changes})


def plain_vectors(frames):
    """Read, resize, crop, normalize and run the network on one image after the other, without our loader."""
    backbone = make_backbone(MODEL, 0).eval()
    vectors = []
    for name in ("a/0.png", "a/1.png", "a/10.png", "b c/0.png", "b c/1.png"):
        image = cv2.cvtColor(cv2.imread(str(frames / name)), cv2.COLOR_BGR2RGB)
        image = cv2.resize(image, (25, 18), interpolation=cv2.INTER_AREA)[1:17, 4:20]
        pixels = (image / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        with torch.no_grad():
            vectors.append(backbone(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None])[0].numpy())
    return np.stack(vectors)


def test_the_middle_of_the_scaled_image_is_seen():
    """The short side becomes 256 for a crop of 224, whichever side it is, and the crop is the middle."""
    ramp = np.broadcast_to(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], (256, 512, 3))
    crop = CenterCrop(224)(ramp, 0)
    assert crop.shape == (224, 224, 3)
    assert (crop == ramp[16:240, 144:368]).all()
    assert (CenterCrop(224)(ramp.transpose(1, 0, 2), 0) == crop.transpose(1, 0, 2)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (37, 5), (300, 301)])
def test_images_of_any_shape_give_the_same_crop_size(shape):
    """Tiny and very long images are enlarged until the crop fits."""
    assert CenterCrop(32)(np.zeros((*shape, 3), np.uint8), 0).shape == (32, 32, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_vectors_equal_those_of_a_plain_loop(frames, cache, workers):
    """Batches, workers and the device change nothing in what the backbone says of an image, nor in the order."""
    store = FrameStore.open(frames)
    embedded = embed_images(make_backbone(MODEL), StoreImages(store), Loading(16, 2, workers, CPU), "", cache)
    np.testing.assert_allclose(embedded.vectors, plain_vectors(frames), rtol=1e-4, atol=1e-6)
    assert embedded.positions.tolist() == [0, 1, 2, 3, 4]
    assert embedded.problems == ()


def test_the_backbone_is_frozen(frames, cache):
    """No parameter and no BatchNorm buffer changes by one bit, and a backbone in training stays in training."""
    backbone = make_backbone(MODEL).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    images = StoreImages(FrameStore.open(frames))
    first, second = (embed_images(backbone, images, Loading(16, 2, 0, CPU), title, cache) for title in "ab")
    assert (first.vectors == second.vectors).all()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(module.training for module in backbone.modules())


def test_images_that_cannot_be_read_are_left_out_and_named(frames, cache):
    """The rest has its vectors, each with its position; batches without any readable image are no problem."""
    expected = plain_vectors(frames)
    for name in ("a/0.png", "a/1.png", "b c/1.png"):
        (frames / name).write_bytes(b"broken")
    images = StoreImages(FrameStore.open(frames))
    backbone = make_backbone(MODEL)
    embedded = embed_images(backbone, images, Loading(16, 1, 0, CPU), "", cache)
    assert embedded.positions.tolist() == [2, 3]
    np.testing.assert_allclose(embedded.vectors, expected[2:4], rtol=1e-4, atol=1e-6)
    assert [line.partition(": ")[2].partition(":")[0] for line in embedded.problems] == [
        "frame 0 of a",
        "frame 1 of a",
        "frame 1 of b c",
    ]
    batches = list(embed_batches(backbone, images, Loading(16, 2, 0, CPU), ""))
    assert [batch.positions.tolist() for batch in batches] == [[], [2, 3], []]
    assert [len(batch.problems) for batch in batches] == [2, 0, 1]


def test_nothing_readable_is_an_error(frames, cache):
    """There is nothing to report on; the line says of what, and the first reasons follow."""
    for path in frames.rglob("*.png"):
        path.write_bytes(b"")
    images = StoreImages(FrameStore.open(frames))
    with pytest.raises(UserError, match="things: none of the 5 images can be read") as caught:
        embed_images(make_backbone(MODEL), images, Loading(16, 2, 0, CPU), "things", cache)
    assert caught.value.problems[4:] == ("and 2 more",)


def test_what_was_embedded_before_a_stop_is_not_embedded_again(frames, cache, monkeypatch):
    """Vectors and reports come together as if nothing had happened; only the part that was stopped is run again."""
    monkeypatch.setattr(module, "IMAGES_PER_PART", 2)
    (frames / "a" / "1.png").write_bytes(b"broken")
    images, backbone = StoreImages(FrameStore.open(frames)), make_backbone(MODEL)
    whole = embed_images(backbone, images, Loading(16, 1, 0, CPU), "whole", cache)
    seen = []

    def encode(backbone, batch, device, real=module.encode):
        seen.extend(batch.positions.tolist())
        if seen == [0, 2, 3]:
            raise KeyboardInterrupt
        return real(backbone, batch, device)

    monkeypatch.setattr(module, "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        embed_images(backbone, images, Loading(16, 1, 0, CPU), "stopped", cache)
    again = embed_images(backbone, images, Loading(16, 1, 0, CPU), "stopped", cache)
    assert seen == [0, 2, 3, 2, 3, 4]
    assert (again.vectors == whole.vectors).all()
    assert (again.positions.tolist(), again.problems) == ([0, 2, 3, 4], whole.problems)


def test_a_backbone_that_gives_nan_is_refused(frames, cache):
    """Broken weights are not scored as if they knew nothing."""
    backbone = make_backbone(MODEL)
    nn.init.constant_(backbone.get_parameter("network.conv1.weight"), float("nan"))
    with pytest.raises(UserError, match="non-finite"):
        embed_images(backbone, StoreImages(FrameStore.open(frames)), Loading(16, 2, 0, CPU), "", cache)


def test_what_lies_beside_the_frames_is_said(frames, tmp_path, capsys):
    """A folder without permission ends nothing; it is named with all else that is left out."""
    cv2.imwrite(str(frames / "cover.png"), np.zeros((8, 8, 3), np.uint8))
    (frames / "a/clip.mp4").touch()
    embedded = embed(config(frames, tmp_path / "vectors.npz"))
    assert embedded.num_frames == 5
    assert capsys.readouterr().err == (
        "left out: 1 image beside the folders of images, such as cover.png; 1 video, such as a/clip.mp4\n"
    )


def test_no_progress_bar_where_nobody_watches(frames, capsys):
    """Standard output stays clean for results, and a log file holds no bar."""
    images = StoreImages(FrameStore.open(frames))
    list(load_image_batches(images, CenterCrop(16), chunks(range(5), 2), 0, "title"))
    assert capsys.readouterr() == ("", "")


def test_parquet_holds_one_row_per_frame(frames, tmp_path):
    """Video, index, time, vector and path, the vector of fixed size, and which model made it at which size."""
    written = embed(config(frames, tmp_path / "new" / "e.parquet"))
    table = pq.read_table(written.out)
    assert table.column_names == ["video", "index", "time", "vector", "path"]
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[64]"
    assert table["video"].to_pylist() == ["a", "a", "a", "b c", "b c"]
    assert table["index"].to_pylist() == [0, 1, 2, 0, 1]
    assert table["path"].to_pylist() == ["a/0.png", "a/1.png", "a/10.png", "b c/0.png", "b c/1.png"]
    assert np.isnan(table["time"].to_numpy()).all()
    np.testing.assert_allclose(np.stack(table["vector"].to_pylist()), plain_vectors(frames), rtol=1e-4, atol=1e-6)
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert about["model_fingerprint"] == fingerprint(make_backbone(MODEL, 0))
    assert (about["model_name"], about["image_size"]) == (MODEL, "16")
    assert written[1:4] == (5, 2, 64)
    assert [path.name for path in written.out.parent.iterdir()] == ["e.parquet"]


def test_npz_holds_the_same_as_parquet(frames, tmp_path):
    """It loads without pickle, and a second run writes the same vectors to the bit."""
    table = pq.read_table(embed(config(frames, tmp_path / "e.parquet")).out)
    with np.load(embed(config(frames, tmp_path / "e.npz")).out, allow_pickle=False) as arrays:
        assert arrays["video"].tolist() == table["video"].to_pylist()
        assert arrays["index"].tolist() == table["index"].to_pylist()
        assert arrays["path"].tolist() == table["path"].to_pylist()
        assert (arrays["vector"] == np.stack(table["vector"].to_pylist())).all()
        assert arrays["time"].shape == (5,)
        assert str(arrays["model_name"]) == MODEL


def test_many_rows_are_written_in_pieces(frames, tmp_path, monkeypatch):
    """Row groups gather batches, so that a long video never lies in memory as a whole; no row is lost."""
    monkeypatch.setattr("cyclecontrast.evaluation.embed.ROWS_PER_GROUP", 3)
    file = pq.ParquetFile(embed(config(frames, tmp_path / "e.parquet")).out)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 1]
    np.testing.assert_allclose(np.stack(file.read()["vector"].to_pylist()), plain_vectors(frames), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_frames_that_do_not_decode_are_skipped_and_named(frames, tmp_path, suffix):
    """The rest is written with its own index, and the summary counts and names what is missing."""
    (frames / "a" / "0.png").write_bytes(b"broken")
    written = embed(config(frames, tmp_path / f"e{suffix}"))
    assert written.num_frames == 4
    assert "4 frames of 2 videos" in str(written)
    assert "1 skipped" in str(written)
    assert "frame 0 of a" in str(written)
    rows = np.load(written.out)["index"] if suffix == ".npz" else pq.read_table(written.out)["index"].to_numpy()
    assert rows.tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_nothing_readable_leaves_nothing_written(frames, tmp_path, suffix):
    """An embedding without rows is an error, and an older file of that name stays as it was."""
    for path in frames.rglob("*.png"):
        path.write_bytes(b"broken")
    (tmp_path / f"e{suffix}").write_text("older")
    with pytest.raises(UserError, match="none of its 5 frames can be read"):
        embed(config(frames, tmp_path / f"e{suffix}"))
    assert (tmp_path / f"e{suffix}").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"e{suffix}", "frames"]


def test_all_mistakes_are_told_before_anything_is_made(tmp_path):
    """An unknown model, absent data and an impossible output in one error; no folder appears."""
    (tmp_path / "file").write_text("")
    settings = config(tmp_path / "absent", tmp_path / "file" / "e.npz").model_copy(update={"model": "random:nothing"})
    with pytest.raises(UserError) as caught:
        embed(settings)
    assert len(caught.value.problems) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_images_is_embedded_too(frames, tmp_path):
    """Each image of a flat folder is a video of one frame, named by its file."""
    table = pq.read_table(embed(config(frames / "a", tmp_path / "e.parquet")).out)
    assert table["video"].to_pylist() == ["0.png", "1.png", "10.png"]
    assert table["index"].to_pylist() == [0, 0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_storage_is_not_an_unreadable_image(frames, workers, monkeypatch):
    """An error of the storage ends the work after its retries; it is not noted for the image, as a broken one is."""
    monkeypatch.setattr(storage, "PAUSES", (0.0,))
    store = FrameStore.open(frames)

    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(type(store.source), "read", failing)
    with pytest.raises(UserError, match=r"input/output error; tried 2 times in 0 s; check the storage"):
        list(load_image_batches(StoreImages(store), CenterCrop(16), chunks(range(4), 2), workers, "title"))


def test_batches_that_do_not_fit_into_memory_are_refused(frames, tmp_path, monkeypatch):
    """A size that a model's description demands is compared with the free memory before images are read."""
    monkeypatch.setattr(module, "free_memory", lambda device: 27 * 2 * 16**2)
    embed(config(frames, tmp_path / "fits.parquet"))
    with pytest.raises(
        UserError, match=r"^image_size: 2 images of 17 px need at least 0.0 GB, and 0.0 are free; lower"
    ):
        embed(config(frames, tmp_path / "out.parquet", image_size=17))
    assert not (tmp_path / "out.parquet").exists()


def test_the_model_in_an_index_is_valid_in_any_folder(tmp_path, monkeypatch):
    """Paths become absolute, also between the name of a network and that of an encoder; names stay."""
    monkeypatch.chdir(tmp_path)
    for model, lasting in (
        ("random:resnet18", "random:resnet18"),
        ("timm:resnet18", "timm:resnet18"),
        ("run", f"{tmp_path}/run"),
        ("timm:resnet18@a.pth", f"timm:resnet18@{tmp_path}/a.pth"),
        ("resnet18-small@a.pth#teacher", f"resnet18-small@{tmp_path}/a.pth#teacher"),
    ):
        assert module._lasting_name(model) == lasting


def test_paths_are_the_ids_of_knn(tmp_path):
    """Labels of a folder of classes can be attached to vectors: records of kNN name the same images, one for one."""
    rng = np.random.default_rng(0)
    for name in ("train/cat/b.png", "train/dog/0.png", "val/cat/10.png", "val/cat/9.png", "val/dog/x y.png"):
        path = tmp_path / "labeled" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (20, 28, 3), np.uint8))
    settings = {"image_size": 16, "workers": 0, "device": "cpu", "k": (1,), "out": tmp_path / "out"}
    cc.evaluate("knn", f"random:{MODEL}", tmp_path / "labeled", **settings)
    (record,) = find_records(tmp_path / "out", "knn")
    paths = pq.read_table(embed(config(tmp_path / "labeled", tmp_path / "e.parquet")).out)["path"].to_pylist()
    assert record.table["id"].to_pylist() == [path for path in paths if path.startswith("val/")]
    assert len(paths) == 5


def test_paths_of_a_store_are_the_names_in_its_shards(tmp_path):
    """Each is a member of a tar file, whose bytes are the frame's."""
    (tmp_path / "videos").mkdir()
    make.write_numbered(tmp_path / "videos" / "a b.mp4")
    prepare(PrepareConfig(videos=tmp_path / "videos", out=tmp_path / "store", frames_per_video=2, workers=0))
    table = pq.read_table(embed(config(tmp_path / "store", tmp_path / "e.parquet")).out)
    with tarfile.open(tmp_path / "store" / "shards" / "000000.tar") as shard:
        assert table["path"].to_pylist() == shard.getnames()


def test_a_folder_of_videos_is_embedded_too(tmp_path, capsys):
    """Its frames are extracted first, two a second as by `prepare`, into a store beside the file, which names it."""
    (tmp_path / "videos").mkdir()
    for name, num_frames in (("a.mp4", 30), ("b.mp4", 10)):
        make.write_numbered(tmp_path / "videos" / name, num_frames)
    written = embed(config(tmp_path / "videos", tmp_path / "e.parquet"))
    table = pq.read_table(written.out)
    assert (table["video"].to_pylist(), table["index"].to_pylist()) == (
        ["a.mp4"] * 6 + ["b.mp4"] * 2,
        [*range(6), 0, 1],
    )
    assert table["time"].to_pylist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 0, 0.5])
    assert table.schema.metadata[b"data"].decode() == str(tmp_path / "e.frames")
    assert f"the frames are in {tmp_path / 'e.frames'}" in capsys.readouterr().err
    again = embed(config(tmp_path / "videos", tmp_path / "e.parquet"))
    assert pq.read_table(again.out) == table
    assert "nothing new: 2 videos, 8 frames" in capsys.readouterr().err


def test_nothing_is_extracted_for_a_command_that_cannot_end(tmp_path):
    """A wrong model is reported before the videos are read."""
    (tmp_path / "videos").mkdir()
    make.write_numbered(tmp_path / "videos" / "a.mp4")
    settings = config(tmp_path / "videos", tmp_path / "e.npz").model_copy(update={"model": "random:nothing"})
    with pytest.raises(UserError, match="nothing"):
        embed(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]
