"""Small videos whose frames tell their own number: frame i is uniformly STEP * i bright."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

STEP = 8
ROTATED_BY_90_CLOCKWISE = (0, 1, -1, 0)
ROTATED_BY_180 = (-1, 0, 0, -1)
ROTATED_BY_90_COUNTERCLOCKWISE = (0, -1, 1, 0)
MIRRORED = (-1, 0, 0, 1)


def write_images(path, images, codec="libx264", pix_fmt="yuv420p", rate=10, **more):
    """Encodes RGB images, beside silence of `sound_seconds`; `times_ms` gives each image its own time.

    `pixel_aspect` is the width of a pixel for its height; `format`, `options` and `container_options` go to FFmpeg.
    """
    times_ms, options = more.get("times_ms"), more.get("options", {})
    container_options = more.get("container_options", {})
    with av.open(str(path), "w", format=more.get("format"), options=container_options) as container:
        container.metadata["title"] = more.get("title", "")
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.sample_aspect_ratio = more.get("pixel_aspect", 1)
        sound = container.add_stream("aac", rate=8000) if "sound_seconds" in more else None
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            silence = np.zeros((1, 8000 * more["sound_seconds"]), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.rate = 8000
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


def numbered(num_frames, size=(64, 48)):
    """Images 0, 1, ... of (width, height), each of one brightness."""
    return [np.full((size[1], size[0], 3), STEP * i, np.uint8) for i in range(num_frames)]


def write_numbered(path, num_frames=30, size=(64, 48), **options):
    """A video of numbered frames, H.264 at 10 frames per second unless told otherwise.

    Its title is its path, so that no two files have the same bytes.
    """
    return write_images(path, numbered(num_frames, size), title=str(path), **options)


def write_noise(path, seed, num_frames=20):
    """A lossless video of some 700 kB."""
    noise = np.random.default_rng(seed).integers(0, 256, (num_frames, 96, 128, 3), dtype=np.uint8)
    return write_images(path, list(noise), codec="ffv1", pix_fmt="bgr0")


def write_sound(path: Path) -> Path:
    """A file with an audio stream only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def set_orientation(path: Path, matrix: Sequence[int]) -> Path:
    """Writes the display matrix (a, b, c, d) into the track header of an mp4."""
    data = bytearray(path.read_bytes())
    header = data.find(b"tkhd") + 4
    start = header + (52 if data[header] else 40)
    a, b, c, d = (65536 * value for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def number_of(image):
    """The number that a frame of `write_numbered` shows."""
    return round(float(image.mean()) / STEP)


def write_stripes(root):
    """Write twelve videos of four frames as folders: stripes of one width and direction each, which move."""
    rng = np.random.default_rng(0)
    for video in range(12):
        folder = root / f"group_{video % 3}" / f"video_{video}"
        folder.mkdir(parents=True)
        for frame in range(4):
            wave = np.sin(np.arange(32) * 2 * np.pi / (2.5 * 1.4 ** (video // 2)) + frame)
            stripes = np.broadcast_to(wave if video % 2 else wave[:, None], (32, 32))
            image = 128 + 90 * stripes[..., None] + rng.normal(0, 12, (32, 32, 3))
            cv2.imwrite(str(folder / f"{frame}.png"), image.clip(0, 255).astype(np.uint8))
    return root
