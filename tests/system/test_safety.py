"""What comes from others cannot run code, lead out of its place, fill the memory or never end: an attempt at each.

Checkpoints that carry code are in test_checkpoint.py, tables that point outside of their shards in test_store.py.
"""

import ast
import io
import json
import os
import re
import shutil
import signal
import struct
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from safetensors.torch import save_file

import cyclecontrast
from cyclecontrast.config import PrepareConfig, PretrainConfig, ReportConfig
from cyclecontrast.data import decode, images
from cyclecontrast.data.decode import EveryKth, SpreadEvenly
from cyclecontrast.data.folders import find_videos
from cyclecontrast.data.images import decode_image, load_image, read_image, read_mask
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError
from cyclecontrast.files import LOCK_FILE
from cyclecontrast.models import checkpoint
from cyclecontrast.models.backbone import import_torchvision, make_backbone
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.reporting.page import write_report
from cyclecontrast.training import run_folder
from tests import make_videos as make
from tests.make_reports import Page

SOURCE = Path(cyclecontrast.__file__).parent
EVIL = '"><script>alert(1)</script>'


@contextmanager
def ending(seconds=60):
    """Fail where the block waits for something that never comes."""

    def stop(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem_of(action, *arguments):
    """The single line that the user gets to see."""
    with ending(), pytest.raises(UserError) as caught:
        action(*arguments)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


# --- the source


def calls():
    """Every call in the source as (file, name, keywords), and every import as (file, name, {})."""
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                values = {word.arg: ast.unparse(word.value) for word in node.keywords}
                yield place, ast.unparse(node.func), values, len(node.args)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None)
                for alias in node.names:
                    yield place, f"import {module or alias.name}", {}, 0


def test_nothing_that_is_read_can_run():
    """Weights are read as weights, arrays without objects, and nothing that unpickles or evaluates is ever called."""
    found = list(calls())
    loads = [values for _, name, values, _ in found if name == "torch.load"]
    assert loads
    assert all(values.get("weights_only") == "True" for values in loads)
    arrays = [values for _, name, values, _ in found if name == "np.load"]
    assert arrays
    assert all(values.get("allow_pickle") == "False" for values in arrays)
    names = {name for _, name, _, _ in found}
    modules = ("marshal", "shelve", "joblib", "yaml", "dill", "cloudpickle", "subprocess", "tarfile.open")
    assert not names & {f"import {module}" for module in modules}
    assert not names & {"eval", "exec", "compile", "os.system", "torch.jit.load", "torch.hub.load", "pd.read_pickle"}
    running = {name for name in names if name.startswith(("pickle.", "os.exec", "os.spawn", "os.popen"))}
    # All of these write or raise; the subclass of pickle.Unpickler is tested in test_foreign_checkpoint.py.
    # The command itself is started again where the locale is not UTF-8.
    assert running == {"pickle.Pickler", "pickle.dumps", "pickle.UnpicklingError", "os.execv"}
    assert {place for place, name, _, _ in found if name == "os.execv"} == {"__main__.py"}
    pickling = {place for place, name, _, _ in found if name == "import pickle"}
    assert pickling == {"data/augment.py", "exporting/formats.py", "models/foreign_checkpoint.py"}


def test_no_archive_is_unpacked():
    """Shards are read by place, and what is zipped is only written or measured: no name in an archive is followed."""
    names = {name.rpartition(".")[2] for _, name, _, _ in calls()}
    assert not names & {"extract", "extractall", "unpack_archive", "TarFile"}
    assert not [name for _, name, _, _ in calls() if name == "tarfile.open"]


def test_images_are_decoded_behind_the_limits_alone():
    """No other file than images.py gives bytes from outside to a decoder; masks of records are of our own making."""
    names = {"cv2.imread", "cv2.imdecode", "Image.open", "cv2.VideoCapture", "cv2.imdecodemulti", "cv2.imreadmulti"}
    assert {place for place, name, _, _ in calls() if name in names} == {"data/images.py", "evaluation/mask_files.py"}


# --- images


def png(width, height):
    """A PNG of four bytes of pixels that says it has this size."""
    parts = [b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(4)), b"IEND"]
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def patched(kind, at, form, width, height):
    """A small image of Pillow's whose header says another size."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    data = bytearray(file.getvalue())
    struct.pack_into(form, data, at(data), width, height)
    return bytes(data)


def tiff(width, height):
    """A TIFF of one strip that says it has this size."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IIH", 12, 0, len(tags)) + entries + bytes(4)


BOMBS = {
    "png": png(60_000, 60_000),
    "jpg": patched("JPEG", lambda data: data.find(b"\xff\xc0") + 5, ">HH", 60_000, 60_000),
    "bmp": patched("BMP", lambda _: 18, "<ii", 60_000, 60_000),
    "gif": patched("GIF", lambda _: 6, "<HH", 60_000, 60_000),
    "webp": patched("WEBP", lambda data: data.find(b"\x9d\x01\x2a") + 3, "<HH", 16_383, 16_383),
    "ppm": b"P6 60000 60000 255\n" + bytes(12),
    "tiff": tiff(60_000, 60_000),
    "long": png(65_501, 400),
    "strip": png(20_100, 100),
    "nothing": png(5, 0),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_that_claims_too_much_is_never_decoded(name, monkeypatch):
    """The header alone decides, whatever the format: no decoder is asked for a size that fills the memory."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match=r"the image (has|does not decode)") as caught:
        decode_image(BOMBS[name])
    if name not in ("webp", "nothing"):
        assert str(caught.value).startswith("the image has ")
        assert "x" in str(caught.value)


def test_the_limits_are_for_bombs_only():
    """A gray image of as many pixels as the largest cameras have, and a strip at the limit, are images."""
    assert images.size_problem(12_000, 9_000, images.MAX_PIXELS) == ""
    strip = cv2.imencode(".png", np.full((3, 600), 7, np.uint8))[1].tobytes()
    assert decode_image(strip).shape == (3, 600, 3)


@pytest.mark.parametrize("read", [load_image, read_image, read_mask])
def test_every_reader_of_image_files_has_the_limits(tmp_path, monkeypatch, read):
    """Labelled images, frames to track in, images with masks and masks: bombs, pipes and huge files are one line."""
    monkeypatch.setattr(ImageFile, "load", lambda _: pytest.fail("was decoded"))
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000))
    assert "more than 128,000,000 pixels (60000x60000)" in problem_of(read, tmp_path / "bomb.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png: is not a regular file" in problem_of(read, tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert "zero.png: is not a regular file" in problem_of(read, tmp_path / "zero.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert "huge.png: has 512,000,001 bytes, more than 512,000,000" in problem_of(read, tmp_path / "huge.png")


@pytest.mark.parametrize(
    "start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"#?RADIANCE\n", b"\0\0\0\x0cjP  "]
)
def test_other_formats_reach_no_decoder(tmp_path, monkeypatch, start):
    """Postscript, which Pillow would give to another program to run, and rare formats are refused by their content."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    (tmp_path / "mask.png").write_bytes(start + bytes(100))
    for read in (read_mask, load_image):
        assert "unknown format" in problem_of(read, tmp_path / "mask.png")


# --- folders of frames


def test_only_files_are_frames(tmp_path):
    """A pipe named like an image is no frame; a link to a file is one, a link to a device is told when it is read."""
    folder = tmp_path / "data" / "v"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "0.jpg")
    (tmp_path / "far.png").write_bytes(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    (folder / "1.png").symlink_to(tmp_path / "far.png")
    (folder / "2.png").symlink_to("/dev/zero")
    with (folder / "3.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with ending():
        store = FrameStore.open(tmp_path / "data")
    assert store.num_frames == 3
    assert store.image(0, 0).shape == (4, 4, 3)
    assert "frame 1 of v: is not a regular file" in problem_of(store.image, 0, 1)
    assert "frame 2 of v: has 512,000,001 bytes" in problem_of(store.image, 0, 2)


def test_folders_that_link_to_one_another_are_searched_once(tmp_path):
    """Twenty folders, each with links to all, have more paths than could ever be walked."""
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "a.gif").touch()
        (tmp_path / f"{number}" / "a.png").touch()
        for other in range(20):
            (tmp_path / f"{number}" / f"to {other}").symlink_to(tmp_path / f"{other}")
    with ending():
        assert len(find_videos(tmp_path)) == 20
        assert FrameStore.open(tmp_path).num_videos == 20


def test_deep_folders_are_no_traceback(tmp_path):
    """More folders, one in the other, than functions may call one another are searched like any."""
    folders = [tmp_path]
    for _ in range(1200):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    files = [folders[-1] / "a.gif", folders[-1] / "a.png"]
    for file in files:
        file.touch()
    try:
        assert len(find_videos(tmp_path)) == 1
        assert FrameStore.open(tmp_path).num_videos == 1
    finally:
        for file in files:
            file.unlink()
        for folder in folders[:0:-1]:
            folder.rmdir()


# --- prepared stores


@pytest.fixture
def store(tmp_path):
    """A store of three videos, prepared by the command, beside them."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        make.write_numbered(videos / f"{number}.mp4", 6)
    run(tmp_path)
    return tmp_path / "store"


def run(folder):
    """Prepare the videos in this folder, or go on with their store."""
    return prepare(PrepareConfig(videos=folder / "videos", out=folder / "store", every=3, workers=0))


def test_shards_on_another_disk_are_read(store, tmp_path):
    """The folder of shards may be a link, and so may the store; a shard may be a link within its folder."""
    expected = FrameStore.open(store).image(2, 1)
    (store / "shards").rename(tmp_path / "other disk")
    (store / "shards").symlink_to(tmp_path / "other disk")
    (tmp_path / "link").symlink_to(store)
    shard = tmp_path / "other disk" / "000000.tar"
    shard.rename(shard.with_name("moved"))
    shard.symlink_to("moved")
    assert np.array_equal(FrameStore.open(tmp_path / "link").image(2, 1), expected)


@pytest.mark.parametrize("name", ["store.json", "frames.parquet", "videos.parquet", "shards/000000.tar"])
@pytest.mark.parametrize("kind", ["link", "device", "pipe"])
def test_files_of_a_store_lie_in_it(store, tmp_path, name, kind):
    """A link that leads out of a store, to a file or a device, and a pipe are refused or replaced, in a line."""
    path = store / name
    path.rename(tmp_path / "secret")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "secret" if kind == "link" else "/dev/zero")
    line = str(run(tmp_path)) if name == "videos.parquet" else problem_of(FrameStore.open, store)
    assert (name if name == "videos.parquet" else str(path)) in line
    assert (tmp_path / "secret").exists()
    if name != "store.json":
        assert ("is not a regular file" if kind == "pipe" else "is a link that leads out of its folder") in line


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_empties_no_other_file(store, tmp_path, kind):
    """A store whose lock is a link to a file of the user's is not written to, for that file would be emptied."""
    (tmp_path / "precious").write_text("precious")
    (store / LOCK_FILE).unlink()
    if kind == "pipe":
        os.mkfifo(store / LOCK_FILE)
    else:
        (store / LOCK_FILE).symlink_to(tmp_path / "precious")
    assert f"{store / LOCK_FILE}: is a link or a device" in problem_of(run, tmp_path)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version": ' + "9" * 10_000 + "}", " " * 2_000_000 + "{}", "[[]]"])
def test_a_strange_description_is_one_line(store, tmp_path, text):
    """Deep, large and foreign JSON for store.json is told by both commands that read it."""
    (store / "store.json").write_text(text)
    assert "store.json: is not of a frame store of version 1; restore it" in problem_of(FrameStore.open, store)
    assert "store.json is not of a frame store of version 1; name" in problem_of(run, tmp_path)


def rewrite(path, column, values, kind=None):
    """Put other values into a column of a table, of its own type or another."""
    table = pq.read_table(path)
    array = pa.array(values, kind or table[column].type)
    pq.write_table(table.set_column(table.column_names.index(column), column, array), path)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("path", "../secret.mp4", "paths that lead out of the folder of videos"),
        ("path", "/etc/passwd", "paths that lead out of the folder of videos"),
        ("path", "a/..", "paths that lead out of the folder of videos"),
        ("status", None, "has gaps in status"),
        ("shard", -1, "has numbers below 0 in shard"),
        ("shard", 2**31 - 1, "numbers of shards that are too large"),
        ("duration", float("-inf"), "has infinite numbers in duration"),
    ],
)
def test_a_table_of_videos_cannot_lead_elsewhere(store, tmp_path, column, value, told):
    """Going on with a store of others reads nothing outside of the videos: the table is made again from the shards."""
    make.write_numbered(tmp_path / "secret.mp4", 4)
    for other, values in (("status", ["pending"] * 3), (column, [value] * 3)):
        rewrite(store / "videos.parquet", other, values)
    expected = FrameStore.open(store).fingerprint
    summary = run(tmp_path)
    assert re.fullmatch(rf"videos.parquet: was damaged \(.*{told}\)", summary.repaired[0])
    assert (summary.num_videos, FrameStore.open(store).fingerprint) == (3, expected)


@pytest.mark.parametrize(("column", "kind"), [("shard", pa.int64()), ("num_frames", pa.float64()), ("id", pa.binary())])
def test_a_table_of_videos_has_the_types_of_its_schema(store, tmp_path, column, kind):
    """A column whose values could be cast, perhaps with a loss, is refused by its name."""
    rewrite(store / "videos.parquet", column, [b"1" if column == "id" else 1] * 3, kind)
    assert f"videos.parquet: was damaged (has {kind} for " in str(run(tmp_path))


def test_a_table_that_unpacks_to_more_than_any_is_told(store):
    """Millions of equal rows take no room in a file and all of it in memory: refused before they are read."""
    table = pq.read_table(store / "frames.parquet").take(np.zeros(4_000_000, np.int8))
    pq.write_table(table, store / "frames.parquet", compression="zstd")
    assert (store / "frames.parquet").stat().st_size < 150_000
    assert "frames.parquet: unpacks to 256,000,000 bytes, more than any table" in problem_of(FrameStore.open, store)


def test_texts_that_unpack_to_more_than_any_are_told(store, tmp_path):
    """One long text, named by every row of a small table, is not copied for each of them."""
    videos = pq.read_table(store / "videos.parquet").take(np.zeros(1_000, np.int8))
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000, np.int32)), pa.array(["x" * 200_000]))
    place = videos.column_names.index("reason")
    pq.write_table(videos.set_column(place, "reason", texts.cast(pa.string())), store / "videos.parquet")
    assert (store / "videos.parquet").stat().st_size < 250_000
    assert "videos.parquet: was damaged (unpacks to 200,012,000 bytes, more than any" in str(run(tmp_path))


def test_an_id_that_is_no_text_is_told(store):
    """Bytes that are not UTF-8 where a table has texts are a line, not a traceback when the id is asked for."""
    table = pq.read_table(store / "frames.parquet")
    ids = pa.array([b"\xff\xfe"] * len(table)).view(pa.string())
    pq.write_table(table.set_column(0, "video", ids), store / "frames.parquet")
    assert "frames.parquet: cannot be read" in problem_of(FrameStore.open, store)


def test_strange_files_beside_the_shards_are_no_tables(store, tmp_path):
    """A file with the suffix of a shard's table and no number is not taken for one."""
    (store / "shards" / "evil.videos.parquet").write_bytes(b"x")
    (store / "shards" / "1e9.frames.parquet").write_bytes(b"x")
    make.write_numbered(tmp_path / "videos" / "new.mp4", 6)
    assert run(tmp_path).num_videos == 4


# --- videos


def test_what_a_header_claims_is_not_waited_for(tmp_path):
    """An AVI that says it has a billion frames and a GIF that repeats forever give the frames that they hold, once."""
    path = make.write_numbered(tmp_path / "a.avi", 6, codec="mpeg4")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.find(b"avih") + 24, 10**9)
    struct.pack_into("<I", data, data.find(b"strh") + 40, 10**9)
    path.write_bytes(data)
    gif = make.write_numbered(tmp_path / "a.gif", 6, codec="gif", pix_fmt="rgb8")
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in gif.read_bytes()
    with ending():
        for file, policy in ((path, EveryKth(1)), (path, SpreadEvenly(6)), (gif, EveryKth(1)), (gif, SpreadEvenly(9))):
            with decode.open_video(file, 10**6) as opened:
                assert len(list(opened.frames(policy, 64))) == 6
    with decode.open_video(path, 10**6) as opened:
        assert opened.frames_in_header == 10**9


def test_a_video_without_end_is_read_up_to_a_limit(tmp_path, monkeypatch):
    """Of more packets than any video has, the first are taken and the rest is told, whatever the policy."""
    monkeypatch.setattr(decode, "MAX_PACKETS", 4)
    path = make.write_numbered(tmp_path / "a.mkv", 9, codec="ffv1", pix_fmt="bgr0")
    for policy in (EveryKth(1), SpreadEvenly(9)):
        with decode.open_video(path, 10**6) as opened:
            assert len(list(opened.frames(policy, 64))) == 4
        assert opened.notice == "stopped at 0.4 s: more than 4 frames"
        assert opened.is_damaged


@pytest.mark.parametrize(("size", "why"), [((640, 64), "on a side"), ((4_100, 20), "unequal")])
def test_videos_of_impossible_shapes_are_skipped(tmp_path, monkeypatch, size, why):
    """Frames that no JPEG holds, or that would grow a thousandfold when they are resized, are refused with a reason."""
    monkeypatch.setattr(images, "MAX_SIDE", 600 if why == "on a side" else images.MAX_SIDE)
    path = make.write_images(tmp_path / "a.mkv", [np.zeros((*size[::-1], 3), np.uint8)], codec="ffv1", pix_fmt="bgr0")
    with (
        pytest.raises(decode.VideoError, match=rf"frames of .*{why}.* \({size[0]}x{size[1]}\)"),
        decode.open_video(path, 10**8) as opened,
    ):
        list(opened.frames(EveryKth(1), 64))


# --- models


def weights():
    """A state dict of a small network."""
    return make_backbone("resnet10-w8").network.state_dict()


@pytest.mark.parametrize("name", ["resnet50-w100000", "resnet50-w999", "timm:hf-hub:evil/model", "timm:local-dir:/tmp"])
def test_a_description_cannot_have_a_huge_or_foreign_network_made(tmp_path, monkeypatch, name):
    """A small file that calls itself terabytes, or what another place describes, is refused before anything is made."""
    about = {"format": "cyclecontrast-backbone", "name": name, "dim": 64, "image_size": 32, "source": "test"}
    about |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    save_file(weights(), tmp_path / "lie.safetensors", {"about": json.dumps(about)})
    import_torchvision()
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("was made"))
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda *_, **__: pytest.fail("was made"))
    with ending(), pytest.raises(UserError) as caught:
        load_backbone(tmp_path / "lie.safetensors")
    assert all(line.startswith(str(tmp_path / "lie.safetensors")) for line in caught.value.problems)


@pytest.mark.parametrize("size", [10**9, 8192])
def test_an_impossible_image_size_is_refused(tmp_path, size):
    """A description that has images made larger than any memory is damaged."""
    about = {"format": "cyclecontrast-backbone", "name": "resnet10-small-w8", "dim": 64, "image_size": size}
    about |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "source": "test"}
    save_file(weights(), tmp_path / "lie.safetensors", {"about": json.dumps(about)})
    assert "its description is damaged (image_size" in problem_of(load_backbone, tmp_path / "lie.safetensors")


HOLLOW = {
    "expanded": lambda shape: torch.zeros(1).expand(shape),
    "sparse": lambda shape: torch.zeros(shape).to_sparse(),
    "without data": lambda shape: torch.zeros(shape, device="meta"),
    "complex": lambda shape: torch.zeros(shape, dtype=torch.complex64),
}


@pytest.mark.parametrize("kind", HOLLOW)
def test_tensors_that_claim_numbers_they_lack_are_refused(tmp_path, kind):
    """A shape costs a file nothing: a tensor that does not hold a number for each place is no weight."""
    state = weights() | {"layer4.0.conv2.weight": HOLLOW[kind]((64, 64, 3, 3))}
    torch.save(state, tmp_path / "hollow.pth")
    line = problem_of(load_backbone, tmp_path / "hollow.pth")
    assert "1 key (layer4.0.conv2.weight) that are sparse, quantized, complex or expanded" in line


@pytest.mark.parametrize("kind", ["compressed", "counted twice"])
def test_a_checkpoint_does_not_unpack_to_more_than_it_is(tmp_path, kind):
    """A small archive of many zeros, or one whose members share their bytes, is refused before it is unpacked."""
    torch.save({"layer1.0.conv1.weight": torch.zeros(2_000_000)}, tmp_path / "plain.pth")
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(bomb, "w") as archive:
        for member in plain.infolist():
            packing = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
            archive.writestr(member.filename, plain.read(member), packing)
        if kind == "counted twice":
            archive.filelist += [archive.getinfo("plain/data/0")] * 9
    assert "it unpacks to " in problem_of(load_backbone, bomb)


def test_a_pipe_is_no_model(tmp_path):
    """A pipe in the place of weights is told and not waited for, named itself or in a run."""
    os.mkfifo(tmp_path / checkpoint.BACKBONE_FILE)
    assert "no such file" in problem_of(load_backbone, tmp_path / checkpoint.BACKBONE_FILE)
    assert "no such file" in problem_of(load_backbone, tmp_path)


# --- pages


def test_names_of_videos_and_runs_are_text_on_the_page(tmp_path):
    """Videos that were skipped, a run's name and a folder of data that is gone are told in words, never in markup."""
    evil = EVIL.replace("/", "\u2215")
    videos, folder = tmp_path / f"videos{evil}", tmp_path / f"run{evil} 🐘'\""
    videos.mkdir()
    for number in range(2):
        make.write_numbered(videos / f"{number}{evil}.mp4", 6)
    (videos / f"no video{evil}🐘.mp4").write_text("text")
    prepare(PrepareConfig(videos=videos, out=folder / "frames", every=3, workers=0))
    sizes = {"queue_size": 64, "cycle_queue_size": 64, "support_size": 16, "steps": 2, "batch_size": 2}
    run_folder.write_config(folder, PretrainConfig(data=videos, out=folder, backbone="resnet10-small-w4", **sizes))
    about = {"num_videos": 2, "num_frames": 4, "num_single_frame_videos": 0, "num_steps": 2, "precision": evil}
    about |= {"versions": {evil: evil}, "device": evil, "verdict": evil, "reason": evil}
    run_folder.write_about(
        folder, about | {"health": {"held_out": False, "views": 4, "videos": 2, "chance": 0.3, "at_start": {}}}
    )
    for _ in range(2):
        page = Page(write_report(ReportConfig(runs=(folder,), workers=0, device="cpu")).path)
        assert page.open == []
        assert "script" not in {tag for tag, _ in page.elements}
        assert all(attribute.isidentifier() or "-" in attribute for _, attrs in page.elements for attribute in attrs)
        assert evil in page.text
        shutil.rmtree(folder / "frames", ignore_errors=True)
        shutil.rmtree(videos, ignore_errors=True)
    assert "cannot be shown" in page.text
