"""Valid data of every kind, small and made in code: what the fuzzers begin with. A folder for each variant."""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

REAL = Path(__file__).parents[2] / "shared" / "data"
"""Real footage beside the project, where it is there; it is read, and copied to nowhere but a scratch folder."""
LARGEST_REAL = 150_000
MODEL = "resnet10-small-w8"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
TRAINING = {
    "backbone": MODEL,
    "image_size": 16,
    "batch_size": 4,
    "queue_size": 16,
    "cycle_queue_size": 16,
    "support_size": 4,
    "bn_groups": 2,
    "holdout": 0.0,
    "health_every": 2,
    "workers": 0,
    "log_every": 1,
    "steps": 4,
    "checkpoint_every": 1,
    "device": "cpu",
    "report": False,
}


def picture(seed: int, height: int = 24, width: int = 32) -> Pixels:
    """Draw a coarse pattern (height, width, 3) that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[no-any-return]


def image_file(path: Path, seed: int = 0) -> None:
    """Write a picture in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture(seed)
    path.write_bytes(cv2.imencode(path.suffix, image if path.suffix != ".pgm" else image[:, :, 0])[1].tobytes())


def mask_file(path: Path, values: Iterable[int] = (0, 1)) -> None:
    """Write a mask of these numbers in stripes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.repeat(np.resize(np.array(list(values), np.uint8), 8), 4)
    cv2.imwrite(str(path), np.tile(mask, (24, 1)))


def text_file(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def video_file(path: Path, codec: str, num_frames: int = 30, pix_fmt: str = "yuv420p") -> None:
    """Encode pictures at ten a second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number // 5, 48, 64), format="rgb24").reformat(format=pix_fmt)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def videos(root: Path) -> None:
    """Make a video in each of a few formats, and take small real ones."""
    for name, codec, pix_fmt in (
        ("h264.mp4", "libx264", "yuv420p"),
        ("h264.mkv", "libx264", "yuv420p"),
        ("mpeg4.avi", "mpeg4", "yuv420p"),
        ("mpeg4.mp4", "mpeg4", "yuv420p"),
        ("mpeg2.ts", "mpeg2video", "yuv420p"),
        ("mjpeg.avi", "mjpeg", "yuvj420p"),
        ("vp8.webm", "libvpx", "yuv420p"),
        ("flash.flv", "flv", "yuv420p"),
        ("picture.gif", "gif", "rgb8"),
    ):
        if codec in _codecs():
            video_file(root / name.replace(".", "-") / name, codec, pix_fmt=pix_fmt)
    for folder, most in (("ucf101_layout/gtsrb_clips", 3), ("ucf101_layout/weizmann4", 2), ("video_misc", 8)):
        found = sorted((p for p in (REAL / folder).rglob("*") if p.suffix in (".avi", ".mp4", ".mkv")), key=_size)
        for path in [path for path in found if path.stat().st_size <= LARGEST_REAL][:most]:
            variant = root / f"real-{path.stem}-{path.suffix[1:]}"
            variant.mkdir(exist_ok=True)
            shutil.copyfile(path, variant / path.name)


def _codecs() -> set[str]:
    import av

    return set(av.codecs_available)


def _size(path: Path) -> tuple[int, str]:
    return path.stat().st_size, path.name


def frames(root: Path) -> None:
    """Make a tree of frames, a flat folder and the R2V2 layout, in all formats of images."""
    suffixes = (".jpg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif")
    for number, suffix in enumerate(suffixes):
        image_file(root / "tree" / f"video_{number % 2}" / f"frame_{number}{suffix}", number)
        image_file(root / "flat" / f"{number}{suffix}", number)
    for number in range(3):
        image_file(root / "r2v2" / "ab" / f"abcdefghij{number}_00000{number}.jpg", number)


def store(root: Path) -> None:
    """Prepare two videos."""
    _prepare(root / ".videos", root / "store")


def prepared(root: Path) -> None:
    """Prepare two videos, and leave them beside their store."""
    _prepare(root / "both" / "videos", root / "both" / "store")


def _prepare(videos: Path, out: Path) -> None:
    import cyclecontrast as cc

    for number in range(2):
        video_file(videos / f"{number}.avi", "mpeg4", 8 + 2 * number)
    cc.prepare(videos, out=out, every=2, workers=0)


def models(root: Path) -> None:
    """Save a backbone in every form that MODEL may have."""
    import torch

    from cyclecontrast.exporting.export import FORMATS
    from cyclecontrast.models.backbone import make_backbone
    from cyclecontrast.models.checkpoint import save_backbone

    backbone = make_backbone(MODEL)
    plain = make_backbone("resnet10-w8")
    weights = plain.network.state_dict()
    for name in ("own", "torchvision", "moco", "dino", "legacy", "plain", "run/checkpoints/step-00000001"):
        (root / name).mkdir(parents=True)
    save_backbone(backbone, root / "own")
    save_backbone(backbone, root / "run" / "checkpoints" / "step-00000001")
    torch.save(weights, root / "torchvision" / "model.pth")
    keys = {f"module.encoder_q.{key}": value for key, value in weights.items()}
    torch.save({"epoch": 3, "arch": "resnet10", "state_dict": keys}, root / "moco" / "model.pth")
    both = {"student": keys, "teacher": {f"backbone.{key}": value for key, value in weights.items()}}
    options = argparse.Namespace(arch="resnet10", lr=np.float64(0.1), out=Path("run"))
    torch.save({**both, "args": options}, root / "dino" / "model.pth")
    (root / "pickle").mkdir(exist_ok=True)
    FORMATS["detectron2"].write(plain, root / "pickle" / "model.pkl", "")
    FORMATS["huggingface"].write(plain, root / "hub", "")
    torch.save(weights, root / "legacy" / "model.pth", _use_new_zipfile_serialization=False)
    import safetensors.torch

    safetensors.torch.save_file(weights, root / "plain" / "model.safetensors")


def stripes(root: Path) -> Path:
    """Make six videos of three frames as folders."""
    for video in range(6):
        for frame in range(3):
            image_file(root / f"video_{video}" / f"{frame}.png", 10 * video + frame)
    return root


def runs(root: Path) -> None:
    """Train for four steps, and forget the last: something is left to resume."""
    import cyclecontrast as cc

    run = root / "run"
    cc.pretrain(stripes(root / ".frames"), out=run, **TRAINING)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    for later in run.glob("best/*4"):
        shutil.rmtree(later)


def reports(root: Path) -> None:
    """Train, and evaluate the run: all that a report shows."""
    import cyclecontrast as cc

    cc.pretrain(stripes(root / ".frames"), out=root / "run", **TRAINING)
    class_folders(root / ".labeled")
    cc.evaluate("knn", root / "run", root / ".labeled", k=(1, 2), workers=0, report=False)


def configs(root: Path) -> None:
    """Write the settings of each command as TOML."""
    import tomli_w

    for name, values in (
        ("pretrain", {"data": "data", "out": "out", **TRAINING}),
        ("prepare", {"videos": "videos", "out": "out", "every": 3, "quality": 80}),
        ("evaluate", {"model": f"random:{MODEL}", "data": "data", "k": [1, 2], "temperature": 0.1}),
    ):
        (root / name).mkdir()
        (root / name / "config.toml").write_text(tomli_w.dumps(values))


def class_folders(root: Path) -> None:
    """Make train and val with two classes."""
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            for image in range(2):
                image_file(root / split / name / f"{image}.png", 10 * number + image)


def labels(root: Path) -> None:
    """Make labeled images and videos with lists of all kinds."""
    class_folders(root / "folders")
    text_file(root / "folders" / "classes.txt", ("cat", "dog"))
    _imagenet(root / "imagenet")
    for number in range(4):
        image_file(root / "lists" / "frames" / f"video_{number}" / "0.png", number)
    text_file(root / "lists" / "train.txt", ("video_0 0", "video_1 1"))
    text_file(root / "lists" / "test.txt", ("video_2 0", "video_3 1"))
    text_file(root / "lists" / "classes.txt", ("0 cat", "1 dog"))
    _ucf(root / "ucf101")
    _hmdb(root / "hmdb51")


def _imagenet(root: Path) -> None:
    for number, name in enumerate(("n02119789", "n02100735"), 1):
        image_file(root / "train" / name / f"{name}_1.jpg", number)
        image_file(root / "val" / f"ILSVRC2012_val_{number:08d}.jpg", number)
    text_file(root / "val" / TRUTH, ("1", "2"))


def _ucf(root: Path) -> None:
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(("Archery", "YoYo"), start=1):
        for group, split in enumerate(("test", "train", "train"), start=1):
            video = f"{name}/v_{name}_g0{group}_c01.avi"
            text_file(root / "videos" / video, ("video",))
            lines[split].append(f"{video} {label}" if split == "train" else video)
    text_file(root / "annotations" / "classInd.txt", ("1 Archery", "2 YoYo"))
    for split, listed in lines.items():
        text_file(root / "annotations" / f"{split}list01.txt", listed)


def _hmdb(root: Path) -> None:
    for name in ("brush_hair", "wave"):
        for video in ("a.avi", "b.avi", "c.avi"):
            text_file(root / "videos" / name / video, ("video",))
        text_file(root / "annotations" / f"{name}_test_split1.txt", ("a.avi 1", "b.avi 2", "c.avi 0"))


def boxes(root: Path) -> None:
    """Make sequences in the layouts of OTB and GOT-10k, and results of another tracker."""
    for name, separator in (("Car", ","), ("David", "\t")):
        for number in range(1, 4):
            image_file(root / "otb" / name / "img" / f"{number:04d}.jpg", number)
        rows = [separator.join(map(str, (4 + number, 5, 8, 9))) for number in range(3)]
        text_file(root / "otb" / name / "groundtruth_rect.txt", rows)
    split = root / "got10k" / "val"
    text_file(split / "list.txt", ("A", "B"))
    for name in ("A", "B"):
        for number in range(1, 4):
            image_file(split / name / f"{number:08d}.jpg", number)
        text_file(split / name / "groundtruth.txt", [f"{4 + number}.0,5.5,8.25,9.0" for number in range(3)])
        text_file(split / name / "cover.label", ("8", "7", "0"))
        text_file(split / name / "absence.label", ("0", "0", "1"))
    for name in ("Car", "David"):
        text_file(root / "results" / "Tracker" / f"{name}.txt", ("1,2,3,4", "2.5,2,3,4", "3,2,3,4"))
        text_file(root / "results" / "Other" / name / f"{name}_001.txt", ("1,2,3,4", "2,2,3,4", "3,2,3,4"))


def masks(root: Path) -> None:
    """Make images with masks in every layout."""
    for number in range(4):
        name, split = f"{number:04d}", ("train", "val")[number % 2]
        image_file(root / "voc" / "JPEGImages" / f"{name}.jpg", number)
        mask_file(root / "voc" / "SegmentationClass" / f"{name}.png", (0, 15, 255))
        folder = ("training", "validation")[number % 2]
        image_file(root / "ade20k" / "images" / folder / f"{name}.jpg", number)
        mask_file(root / "ade20k" / "annotations" / folder / f"{name}.png", (0, 1, 150))
        image_file(root / "folders" / split / "images" / f"{name}.jpg", number)
        mask_file(root / "folders" / split / "masks" / f"{name}.png", (0, 1, 2))
        image_file(root / "lists" / "images" / f"{name}.jpg", number)
        mask_file(root / "lists" / "masks" / f"{name}.png", (0, 255))
        image_file(root / "frames" / "frames" / f"video_{number}" / "0.jpg", number)
        mask_file(root / "frames" / "masks" / f"video_{number}" / "0.png", (0, 255))
    text_file(root / "ade20k" / "objectInfo150.txt", ("Idx\tRatio\tName", "1\t0.1\twall, side", "2\t0.1\tbuilding"))
    for split, first in (("train", 0), ("val", 1)):
        text_file(root / "voc" / "ImageSets" / "Segmentation" / f"{split}.txt", (f"{first:04d}", f"{first + 2:04d}"))
        text_file(root / "lists" / f"{split}.txt", (f"{first:04d}", f"{first + 2:04d}.jpg"))
    text_file(root / "frames" / "train.txt", ("video_0 0", "video_1 1"))
    text_file(root / "frames" / "test.txt", ("video_2 0", "video_3 1"))
    for name in ("bear", "dog"):
        for number in range(3):
            image_file(root / "davis" / "JPEGImages" / "480p" / name / f"{number:05d}.jpg", number)
            mask_file(root / "davis" / "Annotations" / "480p" / name / f"{number:05d}.png", (0, 1, 2))
    text_file(root / "davis" / "ImageSets" / "2017" / "val.txt", ("bear", "dog"))
