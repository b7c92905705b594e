"""A store behind a URL gives what the folder gives, frame by frame, and errors are one line."""

import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import zlib
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.config import EmbedConfig, KnnConfig, PrepareConfig, PretrainConfig
from cyclecontrast.data import remote, storage
from cyclecontrast.data.augment import RECIPES
from cyclecontrast.data.dataset import ViewDataset
from cyclecontrast.data.loader import StepSampler, load_batches
from cyclecontrast.data.store import FrameStore
from cyclecontrast.errors import UserError, checked
from cyclecontrast.reporting import page
from cyclecontrast.reporting.runs import read_runs
from tests import make_videos as make
from tests.make_runs import run

FRAMES_PER_VIDEO = 8


class Handler(BaseHTTPRequestHandler):
    """Serves files below a folder, with ranges, as S3 and web servers do; what it is to do wrong stands in `about`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, about, *arguments):
        self.about = about
        super().__init__(*arguments)

    def log_message(self, *_):
        """Log nothing."""

    def do_HEAD(self):
        """Send the size."""
        self.do_GET()

    def do_GET(self):
        """Answer, and note the method, the path, the status and the bytes sent."""
        if kind := self.about.sends.get(self.path):
            return self.answer_without_end(kind)
        file, fault = self.about.root / self.path.lstrip("/"), self.about.fault
        fault = fault(self) if callable(fault) else fault
        if fault == "hangs":
            self.about.ends.wait()
        if isinstance(fault, int) or not file.is_file():
            return self.answer(fault or 404, b"")
        data, status, headers = file.read_bytes(), 200, {"Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and fault != "ignores ranges":
            start, last = map(int, asked.groups())
            headers["Content-Range"] = f"bytes {start}-{min(last, len(data) - 1)}/{len(data)}"
            data, status = data[start : last + 1], 206
        if fault == "sends less" and asked:
            data = data[:-1]
        self.answer(status, data, headers, fault == "breaks off" and asked, fault != "hides sizes" or asked)

    def answer_without_end(self, kind):
        """Send zeros until the client hangs up, or 256 MB of them in 256 kB."""
        self.send_response(206)
        if kind == "gzip":
            self.send_header("Content-Encoding", "gzip")
            packer = zlib.compressobj(9, wbits=31)
            parts = [*(packer.compress(bytes(2**20)) for _ in range(256)), packer.flush()]
        else:
            parts = repeat(bytes(2**16))
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            for part in parts:
                self.wfile.write(part)
                self.about.sent += len(part)

    def answer(self, status, data, headers=(), cut=False, tells_size=True):
        """Send a status, headers and, of data, all or the first half."""
        self.send_response(status)
        for name, value in {**dict(headers), "ETag": '"1"', "Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}.items():
            self.send_header(name, value)
        if tells_size:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        data = b"" if self.command == "HEAD" else data[: len(data) // 2] if cut else data
        self.about.requests.append((self.command, self.path, status, len(data)))
        self.wfile.write(data)
        self.close_connection = bool(cut) or not tells_size


@contextmanager
def served(root):
    """Serve a folder; gives its URL, the requests, and where to set a fault."""
    about = SimpleNamespace(root=root, fault=None, sends={}, sent=0, requests=[], ends=threading.Event())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, about)) as server:
        server.handle_error = lambda *_: None  # clients hang up on purpose
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        about.url = f"http://127.0.0.1:{server.server_address[1]}/store"
        try:
            yield about
        finally:
            about.ends.set()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that is served: `store` in it was prepared from six videos, each in a shard of its own."""
    root = tmp_path_factory.mktemp("served")
    (root / "videos").mkdir()
    for number in range(6):
        make.write_noise(root / "videos" / f"{number}.mp4", number)
    cc.prepare(root / "videos", out=root / "store", frames_per_video=FRAMES_PER_VIDEO, workers=0)
    assert len(list((root / "store" / "shards").glob("*.tar"))) == 6
    return root


@pytest.fixture
def server(folder):
    """The folder, served."""
    with served(folder) as about:
        yield about


def all_frames(store):
    """Every frame of a store, by the id of its video and its number."""
    return {
        (store.video_id(v), i): store.read(v, i) for v in range(store.num_videos) for i in range(store.frames_in(v))
    }


def line_of(action):
    """The single line of the error."""
    with pytest.raises(UserError) as caught:
        action()
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def copied(folder, tmp_path):
    """A copy of the served folder, to be damaged."""
    shutil.copytree(folder / "store", tmp_path / "store")
    return tmp_path


# --- what is read


def test_frames_are_those_of_the_folder(folder, server):
    """Videos, frames to the byte, times and the fingerprint are the same, with a slash behind the URL, too."""
    near, far = FrameStore.open(folder / "store"), FrameStore.open(checked_url(server.url + "/"))
    assert far.video_ids.equals(near.video_ids)
    assert all_frames(far) == all_frames(near)
    assert far.fingerprint == near.fingerprint
    assert [far.time(v, 1) for v in range(6)] == [near.time(v, 1) for v in range(6)]


def checked_url(url):
    """A URL as the options of a command hold it."""
    return checked(EmbedConfig, {"model": "random:resnet18", "data": url, "out": "a.npz"}).data


def test_a_frame_costs_one_request_of_its_size(folder, server):
    """No shard is fetched: opening asks for two tables and sizes, a frame for its own bytes alone."""
    store = FrameStore.open(server.url)
    tables = {f"/store/{name}": (folder / "store" / name).stat().st_size for name in ("store.json", "frames.parquet")}
    shards = [f"/store/shards/{number:06d}.tar" for number in range(6)]
    assert sorted(server.requests) == sorted(
        [
            *(("GET", path, 200, size) for path, size in tables.items()),
            *(("HEAD", path, 200, 0) for path in shards),
            ("GET", "/store/store.json", 206, 1),
        ]
    )
    server.requests.clear()
    frames = all_frames(store).values()
    assert [size for *_, size in server.requests] == [len(frame) for frame in frames]
    assert {path for _, path, status, _ in server.requests if status == 206} == set(shards)
    shard_bytes = sum((folder / path.lstrip("/")).stat().st_size for path in shards)
    assert sum(map(len, frames)) < shard_bytes


def test_a_store_survives_a_pickle(folder, server):
    """What a spawned worker is sent holds no connection, and reads by one of its own."""
    store = FrameStore.open(server.url)
    store.read(0, 0)
    again = pickle.loads(pickle.dumps(store))
    assert again.source.files.opened == {}
    assert again.read(5, 3) == FrameStore.open(folder / "store").read(5, 3)


def test_s3_is_read_by_ranges(folder, server, monkeypatch):
    """The same from a server that speaks as S3 does, with the address and the credentials of the environment."""
    settings = {
        "AWS_ENDPOINT_URL": server.url.removesuffix("/store"),
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    (folder / "bucket").symlink_to(folder)
    near, far = FrameStore.open(folder / "store"), FrameStore.open("s3://bucket/store")
    assert far.fingerprint == near.fingerprint
    server.requests.clear()
    assert all_frames(far) == all_frames(near)
    assert {(method, status) for method, _, status, _ in server.requests} == {("GET", 206)}
    assert len(server.requests) == far.num_frames
    assert checked(PretrainConfig, {"data": "HTTP://host/Store", "out": "run"}).data == "http://host/Store"
    line = line_of(lambda: FrameStore.open("s3://bucket/nothing"))
    assert line.startswith("s3://bucket/nothing: holds no prepared store (s3://bucket/nothing/store.json is missing)")


# --- what is trained


@pytest.fixture(scope="module")
def near(folder, tmp_path_factory):
    """A run on the folder itself."""
    return run(folder / "store", tmp_path_factory.mktemp("near") / "run").folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_is_the_same_to_the_bit(near, server, tmp_path, monkeypatch, workers):
    """The backbone from the URL is the backbone from the folder, whichever process reads; the URL is what is noted.

    No read is tried twice: a file system that was opened before a fork would fail once in each worker.
    """
    monkeypatch.setattr(storage, "PAUSES", ())
    far = run(server.url, tmp_path / "far", workers=workers).folder
    assert (far / "backbone.safetensors").read_bytes() == (near / "backbone.safetensors").read_bytes()
    assert f'data = "{server.url}"' in (far / "config.toml").read_text()
    about = [json.loads((out / "run.json").read_text()) for out in (near, far)]
    assert about[0]["data_fingerprint"] == about[1]["data_fingerprint"]


def test_processes_do_not_share_connections(folder, server, monkeypatch):
    """What opened a store before its workers were forked reads on beside and after them, and nothing fails once."""
    monkeypatch.setattr(storage, "PAUSES", ())
    near, far = FrameStore.open(folder / "store"), FrameStore.open(server.url)
    far.read(0, 0)
    sampler = StepSampler(range(4), 6)
    batches = load_batches(ViewDataset(far, RECIPES["moco-v2"], 16, 0), sampler, 1)
    first = next(batches)
    assert far.read_with_retry(2, 2, pytest.fail) == near.read(2, 2)
    rest = list(batches)
    assert far.read_with_retry(3, 3, pytest.fail) == near.read(3, 3)
    alone = load_batches(ViewDataset(near, RECIPES["moco-v2"], 16, 0), sampler, 0)
    assert all(torch.equal(a.views[0], b.views[0]) for a, b in zip([first, *rest], alone, strict=True))


def test_a_training_resumes_from_the_url(near, server, tmp_path, monkeypatch):
    """A server that fails ends it in a line with a checkpoint; resumed once it is back, it ends the same to the bit."""
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    out = tmp_path / "run"

    def fault(_):
        metrics = out / "metrics.jsonl"
        return 503 if metrics.exists() and len(metrics.read_text().splitlines()) >= 2 else None

    server.fault = fault
    line = line_of(lambda: run(server.url, out))
    assert re.match(
        rf"{server.url}/shards/00000\d\.tar: cannot be read \(its server answers 503 Service Unavailable; tried 3 times"
        r".*; the last good checkpoint is .*step-00000002; --resume",
        line,
    )
    server.fault = None
    server.requests.clear()
    line = line_of(lambda: cc.pretrain(resume=out))
    allow = f"cyclecontrast pretrain {server.url} --resume {out}"
    assert line == f"resume: {out} was trained on {server.url}; to allow the download: {allow}"
    assert server.requests == []
    cc.pretrain(server.url, resume=out)
    assert (out / "backbone.safetensors").read_bytes() == (near / "backbone.safetensors").read_bytes()


def test_embed_reads_it_too(near, server, tmp_path):
    """Other commands that take a store take its URL."""
    assert cc.embed(near, server.url, out=tmp_path / "a.npz", workers=0).num_frames == 6 * FRAMES_PER_VIDEO


def test_report_downloads_on_request_only(server, tmp_path, monkeypatch):
    """The page of the training itself shows the frames; a later one needs --download, and says so."""
    trained, downloads = run(server.url, tmp_path / "run"), []
    out = trained.folder
    server.requests.clear()
    (shown,) = read_runs([out])
    allow = f"to allow the download: cyclecontrast report {out} --download"
    assert shown.store_problem == f"The frames of this run are not shown: they are at {server.url}; {allow}"
    assert [main(["runs", "ls", str(tmp_path)]), main(["runs", "compare", str(out)])] == [0, 0]
    with monkeypatch.context() as patched:
        patched.setattr(page, "write_report", lambda config: downloads.append(config.download))
        page.after_training(PretrainConfig(data=server.url, out=out), trained)
        page.after_evaluation(KnnConfig(model=str(out), data="labeled"), object())
        cc.report(out)
    assert downloads == [True, False, False]
    assert server.requests == []
    cc.report(out, workers=0, download=True)
    assert f"they are at {server.url}" not in (out / "report.html").read_text()
    assert ("/store/videos.parquet", 200) in {(path, status) for _, path, status, _ in server.requests}


# --- what goes wrong


FAULTS = {
    404: r"is missing",
    403: r"its server answers 403 Forbidden",
    500: r"its server answers 500 Internal Server Error",
    "sends less": r"its server sends [\d,]+ of [\d,]+ bytes",
    "breaks off": r"its answer breaks off",
    "hangs": r"no answer in 0 s",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_frame_that_cannot_be_read_is_tried_again(server, monkeypatch, fault):
    """Whatever the server does, after the last pause a line names the shard; where it recovers, nothing is lost."""
    store, slept = FrameStore.open(server.url), []
    frame = store.read(4, 2)
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 0.2)
    server.fault = fault
    line = line_of(lambda: store.read_with_retry(4, 2, slept.append))
    why = rf"{FAULTS[fault]}; tried 6 times in 34 s"
    wanted = rf"{server.url}/shards/000004\.tar: cannot be read \({why}\); check the storage"
    assert re.fullmatch(wanted, line)
    assert slept == list(storage.PAUSES)

    def mend(_):
        server.fault = None
        server.ends.set()

    assert store.read_with_retry(4, 2, mend) == frame


def test_a_server_that_comes_to_ignore_ranges_is_an_error_at_once(server):
    """A server that sends whole shards is not asked again."""
    store = FrameStore.open(server.url)
    server.fault = "ignores ranges"
    line = line_of(lambda: store.read_with_retry(0, 0, lambda _: pytest.fail("tried again")))
    assert re.search(
        r"its server sends more than the [\d,]+ bytes of shards/000000\.tar that are requested: it does not", line
    )


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        (
            "ignores ranges",
            r"sends more than the 1 bytes of store\.json that are requested: it does not serve ranges; use one",
        ),
        (404, r"holds no prepared store \(.*store/store\.json is missing\); make one with"),
        (
            401,
            r"/store\.json: cannot be read \(its server answers 401 Unauthorized\); check the address, the network",
        ),
        (500, r"/store\.json: cannot be read \(its server answers 500 Internal Server Error\); check"),
    ],
)
def test_what_cannot_be_opened_is_reported(server, tmp_path, capsys, fault, wanted):
    """A server that refuses, has nothing or serves no ranges: one line, exit code 2, and nothing is written."""
    server.fault = fault
    assert main(["pretrain", server.url, "--out", str(tmp_path / "run"), "--workers", "0"]) == 2
    assert re.fullmatch(rf"error: {server.url}.*{wanted}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_down_is_reported(folder, tmp_path, capsys):
    """Where nobody answers, the line names the URL."""
    with served(folder) as gone:
        pass
    assert main(["pretrain", gone.url, "--out", str(tmp_path / "run")]) == 2
    assert re.fullmatch(rf"error: {gone.url}/store\.json: cannot be read \(Cannot connect.*\n", capsys.readouterr().err)


def test_a_store_that_does_not_fit_its_tables_is_refused(folder, tmp_path):
    """A shard that is missing or cut, a table that is damaged or gone: as on this machine, before anything is read."""
    root = copied(folder, tmp_path)
    first, second = (root / "store" / "shards" / f"00000{number}.tar" for number in range(2))
    first.unlink()
    os.truncate(second, 2000)
    with served(root) as about:
        with pytest.raises(UserError) as caught:
            FrameStore.open(about.url)
        lines = [line.removeprefix(about.url) for line in caught.value.problems]
        assert lines[0] == "/shards/000000.tar: is missing; copy the whole store there again"
        assert re.fullmatch(
            r"/shards/000001\.tar: frames\.parquet points outside of it \(byte [\d,]+ of 2,000\); copy .*", lines[1]
        )
        (root / "store" / "frames.parquet").write_bytes(b"PAR1 and nothing else PAR1")
        assert f"{about.url}/frames.parquet: cannot be read (" in line_of(lambda: FrameStore.open(about.url))
        (root / "store" / "frames.parquet").unlink()
        line = line_of(lambda: FrameStore.open(about.url))
        assert f"({about.url}/frames.parquet is missing)" in line
        (root / "store" / "store.json").write_text("<html>Log in</html>")
        (root / "store" / "frames.parquet").write_text("<html>Log in</html>")
        assert "store.json: is not of a frame store of version" in line_of(lambda: FrameStore.open(about.url))


def test_a_size_that_is_unknown_is_not_checked(folder, tmp_path):
    """Where a server hides sizes, the store opens, and a frame that is not there is an error when it is read."""
    root = copied(folder, tmp_path)
    os.truncate(root / "store" / "shards" / "000002.tar", 2000)
    with served(root) as about:
        about.fault = "hides sizes"
        store = FrameStore.open(about.url)
        assert store.read(1, 7) == FrameStore.open(folder / "store").read(1, 7)
        with pytest.raises(OSError, match=r"its server sends 0 of [\d,]+ bytes"):
            store.read(2, 7)


def test_credentials_stand_in_the_configuration_of_fsspec(folder, server, monkeypatch):
    """What is refused without a header is read with one that the URL does not show."""
    server.fault = lambda request: None if request.headers.get("Authorization") == "Bearer TOKEN" else 401
    assert "401 Unauthorized" in line_of(lambda: FrameStore.open(server.url))
    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"Authorization": "Bearer TOKEN"}})
    assert FrameStore.open(server.url).read(3, 0) == FrameStore.open(folder / "store").read(3, 0)


@pytest.mark.parametrize(
    "url",
    [
        "https://name:SECRET@host/store",
        "s3://KEY:SEC/RET@bucket/store",
        "https://host/store?X-Amz-Signature=SECRET" + 300 * "0",
        "https://host/store#SECRET",
        "simplecache::https://host/store",
    ],
)
def test_a_url_with_a_secret_is_refused_unseen(tmp_path, capsys, url):
    """What would end up in config.toml is refused before anything is written, and not repeated."""
    assert main(["pretrain", url, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: data: ")
    assert not re.search("SEC|KEY|host", line)
    with pytest.raises(UserError) as caught:
        checked(EmbedConfig, {"model": "random:resnet18", "data": url, "out": "a.npz"})
    assert line == f"error: {caught.value}"
    assert list(tmp_path.iterdir()) == []


def test_few_kinds_of_urls_are_read(tmp_path, capsys):
    """All others that fsspec knows are refused in a line before they are opened: some run programs or read any file."""
    for kind in sorted({*fsspec.available_protocols(), "bogus", ""} - {*remote.KINDS, "file"}):
        assert main(["pretrain", f"{kind}://bucket/store", "--out", str(tmp_path / "run")]) == 2
        line = (
            f"error: {kind}://bucket/store: {kind}:// is not supported; use http, https, s3, gs or az, or a local path"
        )
        assert capsys.readouterr().err == f"{line}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_file_url_is_a_path(folder):
    """Its escapes are those of a URL, and what it names is checked as any folder is."""
    assert checked_url("file:///some%20place/@%25/store") == Path("/some place/@%/store")
    assert FrameStore.open(checked_url((folder / "store").as_uri())).num_videos == 6


@pytest.mark.parametrize("kind", ["endless", "gzip"])
@pytest.mark.parametrize("name", ["store.json", "frames.parquet", "shards/000000.tar"])
def test_a_server_cannot_send_without_end(server, monkeypatch, kind, name):
    """Neither to the disk nor to the memory: a file that goes on, or unpacks to more, is cut off at its limit."""
    monkeypatch.setattr(remote, "MAX_TABLE_BYTES", 1_000_000)
    store = FrameStore.open(server.url)
    server.sends = {f"/store/{name}": kind}
    if name.startswith("shards"):
        line = line_of(lambda: store.read_with_retry(0, 0, lambda _: pytest.fail("tried again")))
        assert re.search(rf"its server sends more than the [\d,]+ bytes of {name} that are requested", line)
    else:
        line = line_of(lambda: FrameStore.open(server.url))
        assert re.search(rf"{name}: cannot be read \(its server sends more than 1,000,000 bytes\)", line)
    assert server.sent < 100_000_000


def test_what_is_written_lies_on_this_machine(tmp_path, capsys, monkeypatch):
    """A URL for --out or for videos is refused, and no folder `https:` is made."""
    monkeypatch.chdir(tmp_path)
    Path("videos").mkdir()
    assert main(["prepare", "videos", "--out", "s3://bucket/store"]) == 2
    assert capsys.readouterr().err == "error: out: is a URL; use a local path\n"
    for config, values in (
        (PrepareConfig, {"videos": "s3://b/v", "out": "a"}),
        (PretrainConfig, {"data": "a", "out": "s3://b"}),
    ):
        with pytest.raises(UserError, match="is a URL; use a local path"):
            checked(config, values)
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from cyclecontrast.errors import UserError
from cyclecontrast.data.store import FrameStore
try:
    store = FrameStore.open(sys.argv[2])
    store.read(0, 0)
except UserError as error:
    print(error)
print({"fsspec", "aiohttp", "asyncio"} & set(sys.modules))
"""


@pytest.mark.parametrize(
    ("module", "url", "wanted"),
    [
        (
            "aiohttp",
            "https://host/store",
            r"https cannot be read \(.*aiohttp.*\); pip install 'cyclecontrast\[remote\]'",
        ),
        ("s3fs", "s3://bucket/store", r"s3 cannot be read \(.*s3fs.*\); pip install 'cyclecontrast\[remote\]'"),
        ("fsspec", "s3://bucket/store", r"s3 cannot be read \(.*fsspec.*\); pip install 'cyclecontrast\[remote\]'"),
        ("adlfs", "az://bucket/store", r"az cannot be read \(.*adlfs.*\); install the package it names"),
        ("gcsfs", "gs://bucket/store", r"gs cannot be read \(.*gcsfs.*\); install the package it names"),
    ],
)
def test_what_is_not_installed_is_named(module, url, wanted):
    """A line says which extra to install, or which package where the extra has none."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, module, url], capture_output=True, text=True, check=True)
    assert re.fullmatch(rf"{url}: {wanted}", done.stdout.splitlines()[0])


def test_a_folder_needs_none_of_it(folder):
    """A store on this machine is opened and read without a module for others."""
    arguments = ("none", str(folder / "store"))
    done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
