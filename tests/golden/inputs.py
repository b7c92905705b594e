"""The inputs of the recordings: frames and videos made of integers, alike everywhere, and small parts of real data."""

import itertools
import shutil

import av
import cv2
import numpy as np

NUM_VIDEOS, NUM_FRAMES, SIDE = 24, 4, 40


def stripes(video, frame, side=SIDE):
    """Return one image of moving stripes and noise, from integer arithmetic alone."""
    rng = np.random.default_rng([video, frame])
    y, x = np.mgrid[:side, :side]
    wave = np.abs(((x if video % 2 else y) + 2 * frame) * 16 // (4 + video // 2) % 32 - 16) * 10
    colors = np.array([1 + video % 3, 2, 1 + video // 3 % 3])
    image = 60 + wave[..., None] * colors // 3 + rng.integers(-12, 13, (side, side, 3))
    return image.clip(0, 255).astype(np.uint8)


def write_frames(root):
    """Write a tree of frames, a folder for each video; they are lossless, so that no JPEG decoder matters."""
    for video in range(NUM_VIDEOS):
        folder = root / f"video_{video:02}"
        folder.mkdir(parents=True)
        for frame in range(NUM_FRAMES):
            cv2.imwrite(str(folder / f"{frame}.png"), stripes(video, frame)[..., ::-1])
    return root


def write_videos(root):
    """Write three lossless videos of different rates and sizes in two folders, and a file that is not a video."""
    for name, num_frames, rate, size in (
        ("a/first.mkv", 12, 4, (48, 64)),
        ("a/second.mkv", 7, 2, (40, 30)),
        ("b/third.mkv", 9, 10, (20, 16)),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(root / name), "w") as container:
            stream = container.add_stream("ffv1", rate=rate)
            stream.height, stream.width = size
            stream.pix_fmt = "bgr0"
            for number in range(num_frames):
                image = stripes(len(name) + rate, number, 64)[: size[0], : size[1]]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")))
            container.mux(stream.encode())
    (root / "b" / "broken.mp4").write_bytes(b"not a video" * 100)
    return root


def _copy(source, target, names):
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(source / name, target / name)


def _names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


def _head(source, target, num_lines):
    target.write_text("".join(source.read_text().splitlines(keepends=True)[:num_lines]))


def copy_classes(shared, root):
    """Copy classes of clothes: 10 images each to train on and 6 to test."""
    for split, num in (("train", 10), ("val", 6)):
        for name in ("dress", "hat", "pants", "shoes"):
            folder = shared / "images/clothing10" / split / name
            _copy(folder, root / split / name, _names(folder)[:num])
    return root


def copy_tracks(shared, root):
    """Copy two labeled tracks to train on and one to test of each of six traffic signs."""
    return _copy_labeled(shared / "video_frames/gtsrb", root, ("frames",), 6, {"train": 2, "test": 1})


def _copy_labeled(source, root, kinds, num_labels, num):
    """Copy three frames of each of some tracks of each of the first labels, with all that lies beside frames."""
    root.mkdir(parents=True)
    for split, per_label in num.items():
        by_label = {}
        for line in (source / f"{split}.txt").read_text().splitlines():
            by_label.setdefault(int(line.split()[1]), []).append(line)
        lines = [line for label in range(num_labels) for line in by_label[label][:per_label]]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for kind, line in itertools.product(kinds, lines):
            folder = source / kind / line.split()[0]
            _copy(folder, root / kind / line.split()[0], _names(folder)[:3])
    return root


def copy_masks(shared, root):
    """Copy objects of three categories with their masks, in the same way."""
    return _copy_labeled(shared / "video_frames/eth80", root, ("frames", "masks"), 3, {"train": 2, "test": 1})


def copy_actions(shared, root):
    """Copy two training videos and one test video of each of four actions."""
    source = shared / "ucf101_layout/weizmann4"
    (root / "annotations").mkdir(parents=True)
    shutil.copy(source / "annotations/classInd.txt", root / "annotations/classInd.txt")
    for split, num in (("train", 2), ("test", 1)):
        lines = (source / f"annotations/{split}list01.txt").read_text().splitlines()
        by_class = {}
        for line in lines:
            by_class.setdefault(line.split("/")[0], []).append(line)
        kept = [line for group in by_class.values() for line in group[:num]]
        (root / f"annotations/{split}list01.txt").write_text("\n".join(kept) + "\n")
        for line in kept:
            folder, name = line.split()[0].split("/")
            _copy(source / "videos" / folder, root / "videos" / folder, [name])
    return root


def copy_otb(shared, root):
    """Copy the first frames of two sequences of OTB."""
    for name in ("Crossing", "David"):
        source = shared / "tracking/otb" / name
        _copy(source / "img", root / name / "img", _names(source / "img")[:8])
        _head(source / "groundtruth_rect.txt", root / name / "groundtruth_rect.txt", 8)
    return root


def copy_got10k(shared, root):
    """Copy the first frames of two sequences in the layout of GOT-10k."""
    source = shared / "tracking/got10k/val"
    (root / "val").mkdir(parents=True)
    _head(source / "list.txt", root / "val/list.txt", 2)
    for name in (root / "val/list.txt").read_text().split():
        _copy(source / name, root / "val" / name, _names(source / name, "*.jpg")[:6])
        _copy(source / name, root / "val" / name, _names(source / name, "*.ini"))
        for file in (*(source / name).glob("*.txt"), *(source / name).glob("*.label")):
            _head(file, root / "val" / name / file.name, 6)
    return root


def copy_davis(shared, root):
    """Copy the first frames of two sequences of DAVIS."""
    (root / "ImageSets/2016").mkdir(parents=True)
    (root / "ImageSets/2016/val.txt").write_text("blackswan\ncows\n")
    for name in ("blackswan", "cows"):
        for kind in ("JPEGImages", "Annotations"):
            folder = shared / "davis" / kind / "480p" / name
            _copy(folder, root / kind / "480p" / name, _names(folder)[:5])
    return root
