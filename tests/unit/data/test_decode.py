"""The decoder, with videos whose frames show their own number."""

import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclecontrast.data.decode import (
    Clock,
    EveryKth,
    Keyframes,
    PerSecond,
    Scaler,
    SpreadEvenly,
    VideoError,
    evenly,
    open_video,
)
from cyclecontrast.data.folders import find_videos
from tests import make_videos as make

REAL = Path(__file__).parents[3] / ".." / "shared" / "data" / "video_misc"


MANY_PIXELS = 10_000_000


def decode(path, policy, size=256, max_pixels=MANY_PIXELS):
    """All picked frames."""
    with open_video(path, max_pixels) as video:
        return list(video.frames(policy, size))


def numbers_and_times(path, policy):
    """What the pictures show, and when."""
    return [(make.number_of(frame.image), round(frame.time, 3)) for frame in decode(path, policy)]


def reason(path, **options):
    """Why no frame can be had, checked to be one line."""
    with pytest.raises(VideoError) as caught:
        decode(path, SpreadEvenly(4), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


EXACT = {"qmin": "1", "qmax": "1"}


CONTAINERS = {
    "h264.mp4": {"options": {"bf": "3", "g": "7"}},
    "h264.MOV": {"options": {"bf": "3", "x264-params": "open-gop=1:keyint=6"}},
    "h264.ts": {"options": {"bf": "2", "g": "9"}},
    "h264.avi": {"options": {"bf": "2", "g": "12"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", **EXACT}},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25, "options": {"bf": "2", **EXACT}},
    "raw.m2v": {"codec": "mpeg2video", "rate": 25, "format": "mpeg2video", "options": EXACT},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "8"}},
    "alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=8"}},
    "av1.mkv": {"codec": "libsvtav1", "options": {"g": "8", "svtav1-params": "preset=12"}},
    "ten_bit.mkv": {"codec": "ffv1", "pix_fmt": "yuv420p10le"},
    "gray.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "sixteen_bit.mkv": {"codec": "ffv1", "pix_fmt": "gray16le"},
    "interlaced.mp4": {"options": {"x264-params": "interlaced=1"}},
    "palette.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "alpha.apng": {"codec": "apng", "pix_fmt": "rgba", "format": "apng"},
    "flash.flv": {"codec": "flv", "rate": 25},
    "windows.wmv": {"codec": "wmv2", "rate": 25, "format": "asf"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_policy_picks_the_right_frames_in_every_format(tmp_path, name, capfd):
    """Numbers written into the pictures and times agree with a list made by hand, whatever the format."""
    options = CONTAINERS[name]
    path = make.write_numbered(tmp_path / name, **options)
    rate = options.get("rate", 10)
    capfd.readouterr()
    expected = [(i, i / rate) for i in (3, 11, 18, 26)]
    assert numbers_and_times(path, SpreadEvenly(4)) == expected
    assert numbers_and_times(path, EveryKth(9)) == [(i, i / rate) for i in (0, 9, 18, 27)]
    if rate == 10:
        assert numbers_and_times(path, PerSecond(2)) == [(i, i / rate) for i in (0, 5, 10, 15, 20, 25)]
    assert capfd.readouterr() == ("", "")


def test_one_frame_is_the_middle_and_more_than_all_is_all(tmp_path):
    """The ends of the policy `frames per video`: 1 takes the middle, too many takes each frame once."""
    path = make.write_numbered(tmp_path / "a.mp4", num_frames=9)
    assert [number for number, _ in numbers_and_times(path, SpreadEvenly(1))] == [4]
    assert [number for number, _ in numbers_and_times(path, SpreadEvenly(100))] == list(range(9))


def test_variable_frame_rate_follows_the_times(tmp_path):
    """Frames per second go by the clock: long pauses give no duplicates, bursts are thinned."""
    times = [0, 100, 200, 300, 2000, 2010, 2490, 2510, 5000]
    path = make.write_numbered(tmp_path / "vfr.mkv", num_frames=len(times), times_ms=times)
    assert numbers_and_times(path, PerSecond(2)) == [(0, 0.0), (4, 2.0), (7, 2.51), (8, 5.0)]


def test_rounded_times_keep_their_tick(tmp_path):
    """Matroska rounds thirds of a second to milliseconds; the frame at 0.333 s is still that of 1/3 s."""
    path = make.write_numbered(tmp_path / "a.mkv", num_frames=13, rate=12)
    assert [number for number, _ in numbers_and_times(path, PerSecond(3))] == [0, 4, 8, 12]


def test_a_coarse_time_base_brings_no_frame_forward(tmp_path):
    """At 15 frames per second the tick of 0.5 s takes the frame of 0.533 s, not that of 0.467 s."""
    for name, codec in (("a.avi", "mpeg4"), ("a.mp4", "libx264")):
        path = make.write_numbered(tmp_path / name, rate=15, codec=codec, options=EXACT)
        assert [number for number, _ in numbers_and_times(path, PerSecond(2))] == [0, 8, 15, 23]


def test_keyframes_only(tmp_path):
    """Of groups of seven frames only the first of each comes out."""
    path = make.write_numbered(tmp_path / "a.mp4", options={"x264-params": "keyint=7:scenecut=0"})
    assert numbers_and_times(path, Keyframes()) == [(i, i / 10) for i in (0, 7, 14, 21, 28)]


@pytest.mark.parametrize(
    ("matrix", "quarter_turns", "mirrored"),
    [
        (make.ROTATED_BY_90_CLOCKWISE, -1, False),
        (make.ROTATED_BY_180, 2, False),
        (make.ROTATED_BY_90_COUNTERCLOCKWISE, 1, False),
        (make.MIRRORED, 0, True),
    ],
)
def test_orientation_is_honored(tmp_path, matrix, quarter_turns, mirrored):
    """Frames come out as a player shows them, and so do width and height."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:16, :32] = 255
    path = make.write_images(tmp_path / "a.mp4", [picture], options={"qp": "1"})
    with open_video(make.set_orientation(path, matrix), MANY_PIXELS) as video:
        (frame,) = video.frames(SpreadEvenly(4), 256)
    upright = np.rot90(picture[:, ::-1] if mirrored else picture, quarter_turns)
    assert frame.image.shape == upright.shape
    assert (video.height, video.width) == upright.shape[:2]
    assert np.abs(frame.image.astype(int) - upright).mean() < 3


@pytest.mark.parametrize(("size", "shape"), [(24, (24, 32)), (48, (48, 64)), (100, (48, 64))])
def test_short_side_shrinks_and_never_grows(tmp_path, size, shape):
    """The short side is at most `size`; a smaller video stays as it is."""
    path = make.write_numbered(tmp_path / "a.mp4", num_frames=2)
    assert decode(path, EveryKth(1), size=size)[0].image.shape == (*shape, 3)


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        *(("ffv1", form) for form in ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "bgr0", "rgb48le")),
        *(("mjpeg", "yuvj420p"), ("rawvideo", "yuyv422"), ("rawvideo", "nv12")),
    ],
)
def test_scaling_is_the_mean_of_the_pixels_in_every_pixel_format(tmp_path, codec, pix_fmt):
    """A smooth picture under fine stripes comes out as the plain mean of its pixels, in the right colors."""
    y, x = np.mgrid[:240, :320]
    colors = (40 + 150 * x / 320, 200 - 120 * y / 240, 60 + 80 * (x + y) / 560)
    colors = colors[:1] * 3 if pix_fmt == "gray" else colors
    picture = np.stack(colors, axis=-1) + np.where(x % 2, 25, -25)[..., None]
    path = make.write_images(tmp_path / "a.mkv", [picture.astype(np.uint8)], codec=codec, pix_fmt=pix_fmt)
    expected = picture.reshape(60, 4, 80, 4, 3).mean(axis=(1, 3))
    image = decode(path, EveryKth(1), size=60)[0].image
    assert image.shape == (60, 80, 3)
    assert np.abs(image - expected).mean() < 2


def test_a_palette_is_looked_up_before_scaling():
    """Numbers of colors are not averaged: black beside white is gray, whatever stands between them in the palette."""
    palette = np.zeros((256, 4), np.uint8)
    palette[1], palette[2] = (255, 0, 255, 0), (255, 255, 255, 255)
    frame = av.VideoFrame.from_ndarray((np.tile(np.uint8([0, 2]), (48, 32)), palette), format="pal8")
    assert np.abs(Scaler().rgb(frame, 24).astype(int) - 127).max() <= 1


def test_colors_and_odd_sizes_survive(tmp_path):
    """Red stays red (no swap of channels) and odd widths have no seam."""
    red = np.zeros((31, 45, 3), np.uint8)
    red[..., 0] = 200
    path = make.write_images(tmp_path / "a.mkv", [red], codec="ffv1", pix_fmt="bgr0")
    np.testing.assert_array_equal(decode(path, EveryKth(1))[0].image, red)


def test_size_may_change_in_the_middle(tmp_path):
    """Recordings joined end to end decode to the end, in both sizes, on a clock that does not run back."""
    parts = [make.write_numbered(tmp_path / f"{width}.ts", num_frames=10, size=(width, 48)) for width in (64, 96)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = decode(joined, EveryKth(5))
    assert [frame.image.shape[1] for frame in frames] == [64, 64, 96, 96]
    assert [make.number_of(frame.image) for frame in frames] == [0, 5, 0, 5]
    assert all(np.diff([frame.time for frame in frames]) > 0)
    assert [make.number_of(f.image) for f in decode(joined, SpreadEvenly(4))] == [2, 7, 2, 7]
    with open_video(joined, 64 * 48) as video:
        assert len(list(video.frames(EveryKth(1), 256))) == 10
    assert video.notice


def test_files_that_are_no_videos_get_a_reason(tmp_path, capfd):
    """Each kind of unusable file is named in a few words, and FFmpeg says nothing of its own."""
    make.write_sound(tmp_path / "sound.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "folder.mp4").mkdir()
    whole = make.write_numbered(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "no_index.mp4").write_bytes(whole[: len(whole) // 2])
    reasons = {path.stem: reason(path) for path in tmp_path.iterdir() if path.stem != "whole"}
    assert reasons == {
        "sound": "no video stream",
        "empty": "empty file",
        "text": "invalid data",
        "folder": "a folder, not a file",
        "no_index": "invalid data",
    }
    assert reason(tmp_path / "vanished.mp4") == "no such file"
    assert capfd.readouterr() == ("", "")


def test_a_playlist_does_not_open_other_files(tmp_path):
    """A text named .mp4 that points FFmpeg to another file is refused, not followed."""
    target = make.write_numbered(tmp_path / "secret.ts")
    playlist = tmp_path / "list.mp4"
    for text in ("ffconcat version 1.0\nfile secret.ts\n", f"#EXTM3U\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n"):
        playlist.write_text(text)
        assert reason(playlist) in {"not a video format", "invalid data"}


def test_unreadable_file_gets_a_reason(tmp_path):
    """Missing permission is said as such, when searching and when decoding."""
    path = make.write_numbered(tmp_path / "a.mp4", num_frames=2)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert reason(path) == "permission denied"
    assert [(video.reason, video.size_bytes) for video in find_videos(tmp_path)] == [("permission denied", 0)]


def test_frames_of_too_many_pixels_are_refused_before_decoding(tmp_path):
    """The limit holds for a size in the header and for one that only the picture itself has."""
    path = make.write_numbered(tmp_path / "a.mp4", num_frames=2)
    assert reason(path, max_pixels=64 * 48 - 1) == "frames of more than 3,071 pixels (64x48)"
    assert len(decode(path, EveryKth(1), max_pixels=64 * 48)) == 2
    gif = make.write_numbered(tmp_path / "a.gif", num_frames=2, codec="gif", pix_fmt="rgb8")
    data = bytearray(gif.read_bytes())
    data[6:10] = struct.pack("<HH", 12_000, 12_000)
    gif.write_bytes(data)
    assert "pixels" in reason(gif)


def test_what_decodes_of_a_broken_video_is_kept(tmp_path):
    """A file cut short gives its frames up to there, and says where it ends."""
    path = make.write_numbered(tmp_path / "a.webm", num_frames=31, codec="libvpx-vp9", options={"g": "5"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for policy in (EveryKth(1), SpreadEvenly(4)):
        with open_video(path, MANY_PIXELS) as video:
            frames = list(video.frames(policy, 256))
        assert [make.number_of(frame.image) for frame in frames] == [round(f.time * 10) for f in frames]
        assert len(frames) >= 4
        assert video.notice.startswith("truncated: ends at ")


def test_a_damaged_packet_costs_its_own_frames_only(tmp_path):
    """Decoding continues behind a damaged place, and the notice says where it is."""
    path = make.write_numbered(
        tmp_path / "a.mkv", codec="ffv1", pix_fmt="bgr0", options={"g": "1", "level": "3", "slicecrc": "1"}
    )
    with av.open(str(path)) as container:
        tenth = [packet for packet in container.demux(video=0) if packet.size][10]
        place, size = tenth.pos, tenth.size
    data = bytearray(path.read_bytes())
    start = data.index(bytes(tenth), place)
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    with open_video(path, MANY_PIXELS) as video:
        found = {make.number_of(frame.image) for frame in video.frames(EveryKth(1), 256)}
    assert found >= set(range(30)) - {10}


def test_one_frame_files(tmp_path):
    """A video of one frame gives it under every policy."""
    path = make.write_numbered(tmp_path / "a.mp4", num_frames=1)
    for policy in (SpreadEvenly(4), SpreadEvenly(1), PerSecond(2), EveryKth(3), Keyframes()):
        assert numbers_and_times(path, policy) == [(0, 0.0)]


def test_decoding_needs_no_torch():
    """Preparing videos must not cost the import of torch in every worker."""
    code = "import sys, cyclecontrast.data.prepare; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


@pytest.mark.skipif(not REAL.exists(), reason="shared data is absent")
def test_real_files_agree_with_a_full_decode():
    """H.264, HEVC and AV1 in mp4 and mkv: skipping to the picked frames gives the pixels of a full decode."""
    found = find_videos(REAL)
    assert len(found) == 11
    for video in found:
        if video.size_bytes > 500_000:
            continue
        every = decode(video.path, EveryKth(1), size=64)
        picked = decode(video.path, SpreadEvenly(4), size=64)
        middles = [(2 * part + 1) * len(every) // 8 for part in range(4)]
        for index, frame in zip(middles, picked, strict=True):
            assert frame.time == pytest.approx(every[index].time)
            np.testing.assert_array_equal(frame.image, every[index].image)


@given(st.lists(st.none() | st.integers(-50, 200), max_size=40), st.none() | st.integers(-50, 50))
def test_time_never_runs_backwards(pts, start):
    """Frames whose packets were damaged have no time of their own, and others that of another recording."""
    stream = SimpleNamespace(average_rate=Fraction(10), guessed_rate=None, time_base=Fraction(1, 10), start_time=start)
    clock = Clock(stream, SimpleNamespace(format=SimpleNamespace(name="mp4")))
    times = [clock.seconds(SimpleNamespace(pts=value)) for value in pts]
    assert times == sorted(times)
    if pts == [None] * len(pts):
        assert times == [0.1 * number for number in range(len(pts))]


@given(num_all=st.integers(1, 500), num_picked=st.integers(1, 500))
def test_spread_is_even(num_all, num_picked):
    """Picks are distinct, in range, and no two gaps between them differ by more than one frame."""
    picked = evenly(num_all, num_picked)
    gaps = np.diff(picked)
    assert len(picked) == min(num_all, num_picked)
    assert 0 <= picked[0] <= picked[-1] < num_all
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert abs(picked[0] - (num_all - 1 - picked[-1])) <= 1
