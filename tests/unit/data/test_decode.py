"""The decoder, with videos whose frames show their own number."""

import os
import re
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

from cyclecontrast.data.clips import measure, read_frames
from cyclecontrast.data.decode import (
    UNNAMED_COLORS,
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
from cyclecontrast.errors import UserError
from tests import make_videos as make

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases"
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
    (tmp_path / "no_index.mp4").write_bytes(whole[: whole.index(b"moov") - 4])
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


def read_with_notice(path, policy, **options):
    """What the pictures show and when, what is missing, and how long the picture is."""
    with open_video(path, MANY_PIXELS, **options) as video:
        picked = [(make.number_of(frame.image), round(frame.time, 3)) for frame in video.frames(policy, 256)]
    return picked, video.notice, round(video.duration, 3)


def remux(source, path, change=lambda packet, number: [packet]):
    """Copies packets to another file; `change` returns the packets to write in place of each."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = (packet for packet in old.demux(video=0) if packet.size)
        for number, packet in enumerate(packets):
            for one in change(packet, number):
                one.stream = stream
                new.mux(one)
    return path


def copy_of(packet, data):
    """A packet with other bytes at the same time."""
    other = av.Packet(data)
    other.pts, other.dts, other.time_base, other.is_keyframe = packet.pts, packet.dts, packet.time_base, True
    return other


@pytest.mark.parametrize(("name", "num_frames"), [("FRExt2_Panasonic.mp4", 15), ("HCAFF1_HHI.mp4", 10)])
@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_fields_are_not_counted_as_frames(tmp_path, name, num_frames, suffix):
    """Two packets may be the two fields of one picture, with and without times of their own."""
    path = CASES / "paff" / name
    if not path.exists():
        pytest.skip("shared cases are absent")
    if suffix == ".ts":
        times = iter(range(0, 1_000_000, 1_800))

        def timed(packet, number):
            packet.pts = packet.dts = next(times)
            packet.time_base = Fraction(1, 90_000)
            return [packet]

        path = remux(path, tmp_path / "a.ts", timed)
    assert measure(path) == (num_frames, 25)
    assert read_frames(path, [num_frames - 1]).shape[0] == 1
    for number in (1, 4):
        picked = decode(path, SpreadEvenly(number))
        assert len(picked) == number
        if suffix == ".mp4":
            assert [round(frame.time * 25) for frame in picked] == evenly(num_frames, number)


def test_hidden_pictures_are_not_counted(tmp_path):
    """VP8 has packets that only serve as reference for others."""
    source = make.write_numbered(tmp_path / "a.webm", codec="libvpx", options={"g": "5", "b": "2M"})

    def hide(packet, number):
        data = bytes(packet)
        return [copy_of(packet, bytes([data[0] & ~0x10, *data[1:]])), packet] if packet.is_keyframe else [packet]

    path = remux(source, tmp_path / "hidden.webm", hide)
    with av.open(str(path)) as container:
        assert sum(bool(packet.size) for packet in container.demux(video=0)) > 30
    assert measure(path).num_frames == 30
    assert numbers_and_times(path, SpreadEvenly(4)) == numbers_and_times(source, SpreadEvenly(4))
    assert numbers_and_times(path, SpreadEvenly(4)) == [(i, i / 10) for i in (3, 11, 18, 26)]


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
def test_a_real_file_with_hidden_pictures_is_read_whole():
    """320 packets of VP8 are 300 pictures."""
    path = CASES / "vp8-altref/arf8.webm"
    assert measure(path).num_frames == 300
    assert [round(frame.time * 25) for frame in decode(path, SpreadEvenly(4))] == evenly(300, 4)


@pytest.mark.parametrize("suffix", [".mkv", ".flv", ".mp4", ".wmv", ".nut"])
def test_sound_that_is_longer_than_the_picture_is_no_damage(tmp_path, suffix):
    """The duration is that of the picture, by its own tag or its last frame."""
    more = {"codec": "wmv2", "format": "asf"} if suffix == ".wmv" else {}
    path = make.write_numbered(tmp_path / f"a{suffix}", num_frames=20, sound_seconds=10, **more)
    for policy in (EveryKth(5), SpreadEvenly(4)):
        assert read_with_notice(path, policy)[1:] == ("", pytest.approx(2, abs=0.11))
    assert measure(path) == (20, 10)


def test_times_that_begin_late_and_slow_slides_are_no_damage(tmp_path):
    """A file whose clock begins at one hour, and one whose last frame stays for five seconds, are whole."""
    hour = make.write_numbered(tmp_path / "a.mkv", num_frames=20, times_ms=[3_600_000 + 100 * i for i in range(20)])
    assert read_with_notice(hour, PerSecond(1)) == ([(0, 0.0), (10, 1.0)], "", 2.0)
    slides = make.write_numbered(tmp_path / "b.mkv", num_frames=6, rate=Fraction(1, 5))
    assert read_with_notice(slides, EveryKth(2)) == ([(0, 0.0), (2, 10.0), (4, 20.0)], "", 30.0)
    for path in (hour, slides):
        assert measure(path)


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
@pytest.mark.parametrize("name", ["audio-longer.flv", "audio-longer.mkv", "offset3600.mkv", "slides.mkv"])
def test_real_files_are_not_called_truncated(name):
    """Whole files get no notice and the duration of their picture."""
    _, notice, duration = read_with_notice(CASES / "false-truncated" / name, SpreadEvenly(4))
    assert (notice, duration) == ("", 30.0 if "slides" in name else 2.0)


def test_a_trimmed_video_is_what_its_edit_list_shows(tmp_path):
    """Phones trim by an edit list: of 30 frames, 10 are shown, and they are all there."""
    path = make.write_numbered(tmp_path / "a.mp4", options={"g": "30"})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    start = struct.unpack(">I", data[place + 4 : place + 8])[0]
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base
    data[place : place + 8] = struct.pack(">II", 1_000, start + int(1 / unit))
    path.write_bytes(data)
    assert measure(path) == (10, 10)
    assert [make.number_of(frame) for frame in read_frames(path, [0, 9])] == [10, 19]
    assert numbers_and_times(path, SpreadEvenly(2)) == [(12, 0.2), (17, 0.7)]


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
def test_a_real_trim_is_read():
    """The trim of a phone has 50 of 300 frames."""
    assert measure(CASES / "edit-list/ios-mid.mp4") == (50, 25)
    assert len(read_frames(CASES / "edit-list/ios-mid.mp4", [0, 49])) == 2


def test_dropped_frames_of_avi_take_time(tmp_path):
    """Frames behind a gap keep their times, though AVI writes nothing but an empty chunk for what was dropped."""
    source = make.write_numbered(tmp_path / "a.avi", codec="mpeg4", options=EXACT)

    def shifted(packet, number):
        packet.pts = packet.dts = number + 20 * (number >= 10)
        return [packet]

    path = remux(source, tmp_path / "gap.avi", shifted)
    assert numbers_and_times(path, EveryKth(1)) == [(i, (i + 20 * (i >= 10)) / 10) for i in range(30)]
    assert numbers_and_times(path, SpreadEvenly(2)) == [(7, 0.7), (22, 4.2)]
    assert measure(path).num_frames == 30
    if CASES.exists():
        assert decode(CASES / "avi-gap/gap.avi", EveryKth(1))[-1].time == pytest.approx(1.96)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_picture_that_begins_after_the_sound_has_the_times_of_a_player(tmp_path, suffix):
    """Two seconds of sound alone come first, so the first frame is shown at 2 s."""
    times = [2_000 + 100 * i for i in range(20)]
    path = make.write_numbered(tmp_path / f"a{suffix}", num_frames=20, times_ms=times, sound_seconds=4)
    for policy in (PerSecond(2), EveryKth(5), SpreadEvenly(4), Keyframes()):
        picked, notice, duration = read_with_notice(path, policy)
        assert picked == [(number, pytest.approx(2 + number / 10, abs=0.15)) for number, _ in picked]
        assert (notice, duration) == ("", 2.0)


@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(8, 9)])
@pytest.mark.parametrize("size", [1_000, 60])
def test_pixels_become_square(tmp_path, aspect, size):
    """A circle that is stored squashed comes out round, at the width that players show."""
    y, x = np.mgrid[:108, :144]
    circle = ((x - 72) * float(aspect)) ** 2 + (y - 54) ** 2 < 40**2
    picture = np.repeat(np.uint8(255 * circle)[..., None], 3, axis=2)
    path = make.write_images(tmp_path / "a.mkv", [picture], pixel_aspect=aspect, options={"qp": "1"})
    with open_video(path, MANY_PIXELS) as video:
        (frame,) = video.frames(EveryKth(1), size)
    bright = frame.image[..., 1] > 127
    assert abs(bright.any(axis=0).sum() - bright.any(axis=1).sum()) <= 2
    assert (video.width, video.height) == (round(144 * aspect), 108)
    assert min(frame.image.shape[:2]) == min(size, 108, round(144 * aspect))


def test_a_senseless_pixel_aspect_is_ignored(tmp_path):
    """A header that makes pixels a hundred times as wide as high is wrong."""
    path = make.write_numbered(tmp_path / "a.mkv", num_frames=1, pixel_aspect=100)
    assert decode(path, EveryKth(1))[0].image.shape == (48, 64, 3)


@pytest.mark.parametrize(("height", "matrix"), [(720, "ITU709"), (576, "ITU601")])
def test_colors_that_are_not_named_are_those_of_players(tmp_path, height, matrix):
    """From 720 lines on they are BT.709, below BT.601."""
    picture = np.zeros((height, 640, 3), np.uint8)
    picture[:, :320], picture[:, 320:] = (200, 40, 30), (20, 180, 60)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p", dst_colorspace=matrix)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 640, height, "yuv444p"
        frame.colorspace = UNNAMED_COLORS
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for size in (height, 96):
        image = decode(path, EveryKth(1), size=size)[0].image.astype(int)
        assert np.abs(image[:, 5] - (200, 40, 30)).max() <= 3
        assert np.abs(image[:, -5] - (20, 180, 60)).max() <= 3


def test_fields_are_combined_where_that_is_requested(tmp_path):
    """The two fields show an edge at two places: one is left, in each frame, at the same times."""
    pictures = []
    for number in range(20):
        picture = np.zeros((96, 128, 3), np.uint8)
        picture[::2, 4 * number :], picture[1::2, 4 * number + 8 :] = 255, 255
        pictures.append(picture)
    path = make.write_images(tmp_path / "a.mkv", pictures, options={"x264-params": "interlaced=1:keyint=5", "qp": "5"})

    def combing(frames):
        images = np.stack([frame.image[..., 0] for frame in frames]).astype(int)
        return np.abs(images[:, 2:] - 2 * images[:, 1:-1] + images[:, :-2]).mean()

    for policy in (EveryKth(1), SpreadEvenly(4), PerSecond(2)):
        woven = decode(path, policy)
        with open_video(path, MANY_PIXELS, deinterlace=True) as video:
            smooth = list(video.frames(policy, 256))
        assert [frame.time for frame in smooth] == [frame.time for frame in woven]
        assert combing(smooth) < 0.6 * combing(woven)
    progressive = make.write_numbered(tmp_path / "b.mkv", codec="ffv1", pix_fmt="yuv420p")
    assert read_with_notice(progressive, EveryKth(9), deinterlace=True) == read_with_notice(progressive, EveryKth(9))


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mkv", {}), ("a.webm", {"codec": "libvpx"}), ("a.flv", {}), ("a.mp4", {"format": "mp4"})],
)
def test_truncation_is_noticed_in_every_format_with_a_duration(tmp_path, name, options):
    """Half of a file is not a shorter video, neither for `prepare` nor for `evaluate`."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    more = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = make.write_images(tmp_path / name, list(noise), options={"g": "5"}, container_options=more, **options)
    assert read_with_notice(path, EveryKth(9))[1] == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for policy in (EveryKth(9), SpreadEvenly(4)):
        assert read_with_notice(path, policy)[1].startswith("truncated: ends at ")
    with pytest.raises(UserError, match="truncated"):
        measure(path)


def test_a_transport_stream_that_ends_within_a_packet_is_said_to_be_truncated(tmp_path):
    """It has no duration that could be missed, so it is still measured."""
    path = make.write_numbered(tmp_path / "a.ts")
    assert read_with_notice(path, EveryKth(9))[1] == ""
    path.write_bytes(path.read_bytes()[:-100])
    assert re.fullmatch(r"truncated: ends at (2\.9|3\.0) s, within a packet", read_with_notice(path, EveryKth(9))[1])
    assert measure(path).num_frames >= 29


def test_lost_packets_cost_the_pictures_up_to_the_next_keyframe(tmp_path):
    """Of a transport stream with a hole no damaged picture is kept, and the notice counts the holes."""
    noise = np.random.default_rng(0).integers(0, 256, (25, 48, 64, 3), dtype=np.uint8)
    path = make.write_images(tmp_path / "a.ts", list(noise), options={"g": "5", "bf": "0", "qp": "20"})
    whole = decode(path, EveryKth(1))
    data = path.read_bytes()
    with av.open(str(path)) as container:
        place = [packet.pos for packet in container.demux(video=0) if packet.size][11]
    path.write_bytes(data[: place + 188] + data[place + 2 * 188 :])
    for policy in (EveryKth(1), SpreadEvenly(100)):
        with open_video(path, MANY_PIXELS) as video:
            found = list(video.frames(policy, 256))
        assert re.fullmatch(r"packets damaged: 1, the first at 1\.[01] s", video.notice)
        numbers = [round(10 * frame.time) for frame in found]
        assert set(range(11)) | set(range(15, 25)) <= set(numbers) | {10} < set(range(25))
        for number, frame in zip(numbers, found, strict=True):
            assert np.abs(frame.image.astype(int) - whole[number].image).max() == 0


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
def test_a_real_stream_with_lost_packets_gives_whole_pictures_only():
    """Of 150 pictures, three are lost, and those up to the next keyframe, at 3.2 s, are left out."""
    picked, notice, _ = read_with_notice(CASES / "ts-loss/loss.ts", EveryKth(1))
    assert {round(25 * time) for _, time in picked} >= set(range(71)) | set(range(80, 150))
    assert not {round(25 * time) for _, time in picked} & set(range(72, 80))
    assert notice == "packets damaged: 1, the first at 2.9 s"


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
