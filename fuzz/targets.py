"""What is fuzzed: how each kind of data is read as a user's command reads it, and what must hold of what is taken."""

import contextlib
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclecontrast.errors import UserError, attempt
from fuzz import samples
from fuzz.trial import Target

if TYPE_CHECKING:
    from cyclecontrast.data.store import FrameStore

POLICIES: tuple[dict[str, Any], ...] = (
    {"every": 1},
    {"every": 1},
    {"fps": 2.0},
    {"keyframes": True},
    {"frames_per_video": 4},
)


def _all(actions: Iterable[Callable[[], object]]) -> list[Any]:
    """Do all of it; raises UserError with every problem."""
    problems: list[str] = []
    made = [attempt(action, problems) for action in actions]
    _tell(problems)
    return made


def _tell(problems: Iterable[str]) -> None:
    """Raise UserError with the lines that were collected, so that they are judged as any refusal is."""
    if told := list(problems):
        raise UserError(*told)


def _as_command(action: Callable[[], Any]) -> Any:
    """Do what a command does; what the command line tells of in a line is a refusal."""
    from cyclecontrast.cli import ENVIRONMENT_ERRORS

    try:
        return action()
    except OSError as error:
        if error.errno not in ENVIRONMENT_ERRORS:
            raise
        raise UserError(f"{error.filename}: {error.strerror}") from error


def _check_image(image: Any, channels: int = 3) -> None:
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == channels
    assert min(image.shape) > 0


def _images_of(store: "FrameStore") -> list[Any]:
    places = [(video, index) for video in range(store.num_videos) for index in range(store.frames_in(video))]
    assert len(places) == store.num_frames > 0
    images = _all(partial(store.image, *place) for place in places)
    for image in images:
        _check_image(image)
    assert len(store.fingerprint) == 16
    return images


def read_frames(folder: Path) -> None:
    """Open a folder of images, or a prepared store, and decode every frame."""
    from cyclecontrast.data.store import FrameStore

    _images_of(FrameStore.open(folder))


def read_video(folder: Path) -> None:
    """Prepare a video by a policy that its bytes choose, and compare with a plain decoding; then read frames of it."""
    import pyarrow.parquet as pq

    import cyclecontrast as cc
    from cyclecontrast.data import clips
    from cyclecontrast.data.store import FrameStore

    found = [path for path in folder.iterdir() if path.is_file()]
    policy = POLICIES[zlib.crc32(found[0].read_bytes() if found else b"") % len(POLICIES)]
    out = folder.parent / "out"
    done = cc.prepare(folder, out=out, size=32, workers=0, max_pixels=4_000_000, **policy)
    store = FrameStore.open(out)
    images = _images_of(store)
    rows = pq.read_table(out / "frames.parquet").to_pylist()
    assert [(row["width"], row["height"]) for row in rows] == [image.shape[1::-1] for image in images]
    assert max(min(image.shape[:2]) for image in images) <= 32
    times = np.array([row["time"] for row in rows])
    assert not np.isinf(times).any()
    assert "every" not in policy or (np.diff(times) >= 0).all()
    assert done.num_frames == len(images)
    if policy == {"every": 1} and not done.partial:
        _check_count(found[0], len(images))
    for path in found:
        footage = clips.measure(path)
        clip = clips.read_frames(path, [0, footage.num_frames // 2, footage.num_frames - 1], 32)
        assert clip.shape[0] == 3
        assert math.isfinite(footage.seconds)
        assert footage.seconds > 0


def _check_count(path: Path, num_frames: int) -> None:
    """Compare the number of frames of a video that was called whole with that of a decoder without any of our code."""
    import av

    counted, is_whole = 0, True
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        assert stream is not None
        stream.codec_context.thread_count = 1
        try:
            for packet in container.demux(stream):
                counted += len(stream.decode(packet))
        except av.FFmpegError:
            is_whole = False
    assert is_whole, f"{num_frames} frames were taken and nothing was said, but a plain decoder fails"
    assert counted == num_frames, f"{num_frames} frames of {counted} were taken, and nothing was said"


def read_prepared(folder: Path) -> None:
    """Go on with a store as `prepare` does, and read what it holds then."""
    import cyclecontrast as cc
    from cyclecontrast.data.store import FrameStore

    done = _as_command(lambda: cc.prepare(folder / "videos", out=folder / "store", every=2, workers=0))
    store = FrameStore.open(folder / "store")
    assert done.num_frames == store.num_frames
    assert done.num_videos == store.num_videos
    _images_of(store)


def read_model(folder: Path) -> None:
    """Load a backbone, and see that it gives finite numbers."""
    import torch

    from cyclecontrast.evaluation.embed import check_finite
    from cyclecontrast.models.checkpoint import load_backbone

    files = [path for path in folder.iterdir() if path.suffix in (".pth", ".safetensors", ".pkl")]
    for path in files or [folder]:
        backbone = load_backbone(path)
        with torch.inference_mode():
            vectors = backbone(backbone.normalize(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)))
        check_finite(vectors, backbone)
        assert vectors.shape == (2, backbone.dim)


def read_run(folder: Path) -> None:
    """Resume a training; each step is in its metrics once."""
    import cyclecontrast as cc

    done = _as_command(lambda: cc.pretrain(resume=folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert cc.load_backbone(done.folder).dim == done.backbone.dim


def read_report(folder: Path) -> None:
    """Write the page of a run."""
    import cyclecontrast as cc

    page = _as_command(lambda: cc.report(folder, workers=0)).path.read_text()
    assert page.rstrip().endswith("</html>")
    assert "<script>" not in page


def read_config(folder: Path) -> None:
    """Read a file of settings as the command line does."""
    from cyclecontrast.cli import main

    command = ["evaluate", "knn"] if folder.name == "evaluate" else [folder.name]
    told, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(shown):
        code = main([*command, "--config", str(folder / "config.toml"), "--print-config"])
    assert code in (0, 2)
    if code:
        raise UserError(*(f"{folder}: {line}" for line in told.getvalue().splitlines()))
    assert shown.getvalue().strip()


def read_labels(folder: Path) -> None:
    """Open labeled images or videos; every label has a class."""
    from cyclecontrast.data.labeled_images import LabeledImages
    from cyclecontrast.data.labeled_videos import LabeledVideos

    opened: Any
    if folder.name in ("ucf101", "hmdb51"):
        opened = LabeledVideos.open(folder)
        for split in (opened.train, opened.test):
            assert all(split.path(number).is_file() for number in range(len(split)))
        _tell((*opened.problems, *opened.notes))
    else:
        listed = folder / "classes.txt"
        opened = LabeledImages.open(folder, listed if listed.exists() and folder.name == "folders" else None)
        for split in (opened.train, opened.test):
            for image in _all(partial(split.image, number) for number in range(len(split))):
                _check_image(image)
    for split in (opened.train, opened.test):
        assert len(split) > 0
        assert ((split.labels >= 0) & (split.labels < len(opened.classes))).all()
    assert len(opened.fingerprint) == 16


def read_boxes(folder: Path) -> None:
    """Open sequences, or the boxes of other trackers; there is a finite box for each frame."""
    from cyclecontrast.evaluation.tracking.data import open_sequences
    from cyclecontrast.evaluation.tracking.scores import read_results, trackers_in, visible_frames

    if folder.name == "results":
        for tracker in trackers_in(folder):
            found, problems = read_results(tracker, {"Car": 3, "David": 3}, {})
            assert all(boxes.shape == (3, 4) and np.isfinite(boxes).all() for boxes in found.values())
            _tell(problems)
        return
    opened = open_sequences(folder)
    for sequence in opened.sequences:
        assert sequence.boxes.shape == (len(sequence), 4)
        assert np.isfinite(sequence.boxes).all()
        assert visible_frames(sequence).shape == (len(sequence),)
        for image in _all(partial(sequence.image, number) for number in range(len(sequence))):
            _check_image(image)
    assert len(opened.fingerprint) == 16
    _tell(opened.problems)


def read_masks(folder: Path) -> None:
    """Open images with masks, as segmentation does and as propagation does; every label has a class."""
    from cyclecontrast.data.davis import Davis
    from cyclecontrast.data.masked_images import MaskedImages

    opened = MaskedImages.open(folder)
    for split in (opened.train, opened.test):
        for image in _all(partial(split.image, number) for number in range(len(split))):
            _check_image(image, 4)
            assert ((image[..., 3] < len(opened.classes)) | (image[..., 3] == 255)).all()
    assert len(opened.fingerprint) == 16
    _tell((*opened.problems,))
    if folder.name == "davis":
        davis = Davis.open(folder)
        for objects in _all(video.objects for video in davis.videos):
            assert all(mask.dtype == np.uint8 for mask in objects)
        _all(partial(video.image, number) for video in davis.videos for number in range(len(video)))
        _tell(davis.problems)


TARGETS = {
    target.name: target
    for target in (
        Target("videos", samples.videos, read_video),
        Target("frames", samples.frames, read_frames),
        Target("store", samples.store, read_frames),
        Target("prepared", samples.prepared, read_prepared),
        Target("models", samples.models, read_model),
        Target("runs", samples.runs, read_run, keep=("config.toml",)),
        Target("reports", samples.reports, read_report, keep=("config.toml",)),
        Target("configs", samples.configs, read_config),
        Target("labels", samples.labels, read_labels),
        Target("boxes", samples.boxes, read_boxes),
        Target("masks", samples.masks, read_masks),
    )
}
