"""Clips: exactly the requested frames, and which frames a clip consists of."""

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclecontrast.data.clips import ClipShape, Footage, measure, random_clip, read_frames, spread_clips
from cyclecontrast.errors import UserError
from tests.make_videos import ROTATED_BY_90_CLOCKWISE, number_of, set_orientation, write_numbered, write_sound

AVI = {"codec": "mpeg4", "rate": 25}


def line_of(call):
    """Return the single line of the error that a call raises."""
    with pytest.raises(UserError) as caught:
        call()
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {}), ("a.mkv", {}), ("a.avi", AVI)])
def test_frames_come_in_the_order_requested(tmp_path, name, options):
    """Any order, repeats included, by number in the order of display, though packets are reordered."""
    path = write_numbered(tmp_path / name, 30, **options)
    wanted = [29, 0, 7, 7, 12, 1, 29]
    frames = read_frames(path, wanted)
    assert frames.shape == (7, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert [number_of(frame) for frame in frames] == wanted
    assert measure(path) == Footage(30, options.get("rate", 10))


def test_frames_are_upright_and_no_larger_than_asked(tmp_path):
    """A video filmed sideways is turned, and `size` bounds its short side."""
    path = set_orientation(write_numbered(tmp_path / "a.mp4", 5), ROTATED_BY_90_CLOCKWISE)
    assert read_frames(path, [3]).shape == (1, 64, 48, 3)
    assert read_frames(path, [3], size=24).shape == (1, 32, 24, 3)


def test_a_video_that_ends_before_a_wanted_frame_is_refused(tmp_path):
    """The line says how many frames there were and how many were needed, whatever else is requested."""
    path = write_numbered(tmp_path / "a.mp4", 5)
    for wanted in ([9], [0, 9, 2]):
        expected = f"{path}: 5 frames could be decoded; expected at least 10"
        assert line_of(lambda a=wanted: read_frames(path, a)) == expected
    with pytest.raises(ValueError, match="frames"):
        read_frames(path, [-1])


def test_what_is_no_video_is_refused_by_name(tmp_path):
    """Both functions name the file: absent, empty, text, or sound alone."""
    (tmp_path / "empty.avi").touch()
    (tmp_path / "text.avi").write_text("no video " * 100)
    write_sound(tmp_path / "sound.mp4")
    for name, why in (("absent.avi", "no such file"), ("empty.avi", "empty"), ("text.avi", ""), ("sound.mp4", "no vi")):
        for call in (measure, lambda path: read_frames(path, [0])):
            assert line_of(lambda p=tmp_path / name, c=call: c(p)).startswith(f"{tmp_path / name}: {why}")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.85])
def test_a_truncated_video_is_not_taken_for_a_shorter_one(tmp_path, part):
    """An AVI that was cut reads without an error; its header knows better."""
    path = write_numbered(tmp_path / "a.avi", 30, size=(160, 120), **AVI)
    whole = path.read_bytes()
    data = whole[: whole.index(b"idx1")]
    movie = data.index(b"movi")
    path.write_bytes(data[: movie + int(part * (len(data) - movie))])
    line = line_of(lambda: measure(path))
    assert line.startswith(f"{path}: truncated, holds ")
    assert line.endswith("of the 30 frames that its header names")
    assert number_of(read_frames(path, [2])[0]) == 2


def test_damage_before_a_wanted_frame_is_refused(tmp_path):
    """Frames behind a packet that does not decode have other numbers than they seem to."""
    path = write_numbered(tmp_path / "a.avi", 20, **AVI)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    start = data.index(packets[10])
    path.write_bytes(data[:start] + bytes(len(packets[10])) + data[start + len(packets[10]) :])
    assert [number_of(frame) for frame in read_frames(path, [9, 3])] == [9, 3]
    line = line_of(lambda: read_frames(path, [3, 15]))
    assert line == f"{path}: packets damaged: 1, the first at 0.4 s; expected the frames up to number 15 to be whole"


def test_a_packet_without_a_picture_repeats_the_last_one(tmp_path):
    """An encoder that drops frames writes empty pictures; at the end, they show what was before them."""
    source, path = write_numbered(tmp_path / "a.avi", 20, **AVI), tmp_path / "b.avi"
    # A picture of MPEG-4 that is not coded: start code, type P, no second over, time 20 of 25 (5 bits), not coded.
    bits = "01" + "0" + "1" + f"{20:05b}" + "1" + "0" + "01111"
    empty = b"\x00\x00\x01\xb6" + int(bits, 2).to_bytes(2, "big")
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
        extra = av.Packet(empty)
        extra.stream, extra.pts, extra.dts, extra.time_base = stream, 20, 20, old.streams.video[0].time_base
        new.mux(extra)
    assert measure(path).num_frames == 21
    assert [number_of(frame) for frame in read_frames(path, [20, 19, 18])] == [19, 19, 18]
    assert number_of(read_frames(path, [20])[0]) == 19
    assert line_of(lambda: read_frames(path, [21])).endswith("expected at least 22")


def test_spread_clips_against_a_hand_computed_case():
    """4 s at 25 fps are 64 ticks of 1/16 s; clips of 4 start at the ticks 0, 30 and 60, and show int(t · 25)."""
    clips = spread_clips(Footage(100, 25.0), ClipShape(4, 16.0), 3)
    assert clips.tolist() == [[0, 1, 3, 4], [46, 48, 50, 51], [93, 95, 96, 98]]


def test_starts_are_those_of_the_protocol():
    """Of n ticks, clips of 32 start at linspace(0, n − 32, 10), whole ticks; here n = 100."""
    clips = spread_clips(Footage(100, 16.0), ClipShape(32, 16.0), 10)
    assert clips[:, 0].tolist() == np.linspace(0, 68, 10).astype(int).tolist() == [0, 7, 15, 22, 30, 37, 45, 52, 60, 68]
    assert (clips - clips[:, :1] == np.arange(32)).all()


def test_a_slow_video_repeats_frames():
    """A video of 10 fps has fewer frames than clips ask for; each tick shows the one on screen."""
    assert spread_clips(Footage(5, 10.0), ClipShape(8, 16.0), 1).tolist() == [[0, 0, 1, 1, 2, 3, 3, 4]]


def test_a_frame_on_the_tick_is_not_missed_by_rounding():
    """0.28 s of 25 fps is frame 7, though the product of the doubles is less."""
    assert int(0.28 * 25) == 7 or int(0.29 * 100) == 28
    assert spread_clips(Footage(40, 100.0), ClipShape(40, 100.0), 1).tolist() == [list(range(40))]


def test_a_short_video_is_taken_whole_and_repeated_from_its_start():
    """29 frames at 25 fps, UCF101's shortest, are 19 ticks; a clip of 32 begins again at its 20th frame."""
    once = [int(tick / 16 * 25) for tick in range(19)]
    expected = once + once[:13]
    for seed in range(3):
        frames = random_clip(Footage(29, 25.0), ClipShape(32, 16.0), np.random.default_rng(seed))
        assert frames.tolist() == expected
    assert spread_clips(Footage(29, 25.0), ClipShape(32, 16.0), 2).tolist() == [expected] * 2
    assert spread_clips(Footage(1, 25.0), ClipShape(4, 16.0), 2).tolist() == [[0] * 4] * 2


def test_random_clips_start_anywhere_that_leaves_room():
    """Starts are uniform in [0, duration − clip]: the first and the last frame are reached, the mean is the middle."""
    rng = np.random.default_rng(0)
    clips = np.array([random_clip(Footage(100, 25.0), ClipShape(32, 16.0), rng) for _ in range(2000)])
    assert clips[:, 0].min() == 0
    assert clips[:, -1].max() == int((4 - 2 + 31 / 16) * 25)
    assert abs(clips[:, 0].mean() - (25 - 0.5)) < 1
    assert np.isin(np.diff(clips, axis=1), [1, 2]).all()


@given(
    st.integers(1, 400),
    st.sampled_from([5.0, 10.0, 12.5, 15.0, 24.0, 25.0, 29.97, 30.0, 60.0]),
    st.integers(1, 40),
    st.sampled_from([2.0, 16.0, 25.0]),
    st.integers(0, 5),
)
def test_clips_stay_within_the_video_and_run_forward(num_frames, fps, length, clip_fps, seed):
    """Whatever the rates, each frame exists, and time runs backwards only where a short video begins again."""
    footage, clip = Footage(num_frames, fps), ClipShape(length, clip_fps)
    clips = np.concatenate(
        [spread_clips(footage, clip, 3), random_clip(footage, clip, np.random.default_rng(seed))[None]]
    )
    assert clips.shape == (4, length)
    assert clips.min() >= 0
    assert clips.max() < num_frames
    if length / clip_fps <= num_frames / fps:
        assert (np.diff(clips, axis=1) >= 0).all()
    else:
        assert (clips[:, 0] == 0).all()
