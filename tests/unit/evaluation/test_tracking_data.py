"""Data of the protocol `tracking`: training sequences near the data, video files, and boxes drawn into videos."""

import av
import numpy as np
import pytest

from cyclecontrast.config import TrackingConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation import runner
from cyclecontrast.evaluation.predictions import Result
from cyclecontrast.evaluation.tracking.data import open_data
from tests.make_sequences import write_got10k, write_otb
from tests.make_videos import write_numbered

BOXES = [[5 + 2 * at, 6, 20, 10] for at in range(4)]


def config_of(data, **settings):
    """Return the options of an evaluation."""
    return checked(TrackingConfig, {"model": "random:resnet10-w8", "data": data, "device": "cpu", **settings})


@pytest.fixture
def otb(tmp_path):
    """Return the root of one sequence."""
    write_otb(tmp_path / "otb", "One", BOXES)
    return tmp_path / "otb"


@pytest.fixture
def got10k(tmp_path):
    """Return a root of two sequences in val."""
    for name in "AB":
        write_got10k(tmp_path / "got10k", "val", name, BOXES, [8] * 4)
    return tmp_path / "got10k"


def test_training_sequences_are_found_near_the_data(otb, got10k):
    """A GOT-10k root beside the data trains the head, its val where it has no train; notes say so."""
    opened = open_data(config_of(otb))
    assert len(opened.train) == 2
    assert f"trained on 2 sequences of {got10k / 'val'}, found near the data" in opened.notes[0]
    assert "no train/list.txt" in opened.notes[1]
    write_got10k(got10k, "train", "T", BOXES, [8] * 4)
    again = open_data(config_of(otb))
    assert [sequence.name for sequence in again.train.sequences] == ["T"]
    assert len(again.notes) == 1
    assert again.fingerprint != opened.fingerprint != open_data(config_of(otb, train=False)).fingerprint


def test_a_got10k_root_trains_its_own_head_only_by_train(got10k):
    """Evaluating val never trains on val unless it is named, and then a note says that the test is not fair."""
    with pytest.raises(UserError, match="name one with --train-data, or correlate raw features with --no-train"):
        open_data(config_of(got10k))
    assert open_data(config_of(got10k, train=False)).train is None
    named = open_data(config_of(got10k, train_data=got10k))
    assert "2 of the training sequences of the head are also test sequences" in named.notes[-1]
    write_got10k(got10k, "train", "T", BOXES, [8] * 4)
    found = open_data(config_of(got10k))
    assert [sequence.name for sequence in found.train.sequences] == ["T"]
    assert not any("the result is biased" in note for note in found.notes)


@pytest.mark.parametrize(("name", "value"), [("box", "1,2,3,4"), ("save", "boxes.mp4")])
def test_options_of_videos_are_refused_for_sequences(otb, name, value):
    """A data set has its own boxes."""
    with pytest.raises(UserError, match=f"{name}: belongs to a video file"):
        open_data(config_of(otb, train=False, **{name: value}))


@pytest.fixture
def video(tmp_path):
    """Return a video of 7 frames of 63 x 48, 10 per second, the last times uneven."""
    return write_numbered(
        tmp_path / "clip.mkv", 7, (63, 48), codec="ffv1", pix_fmt="bgr0", times_ms=[0, 100, 200, 300, 400, 700, 800]
    )


def test_a_video_gives_boxes_and_shows_them(video, tmp_path):
    """Every frame has a box in the result, without metrics.

    The new video shows the frames at their times, each with the outline of its box and unchanged inside.
    """
    save = tmp_path / "new" / "out.mp4"
    config = config_of(video, tracker="identity", out=tmp_path / "out", box="11,13,24,16.5", save=save)
    result = runner.evaluate("tracking", config)
    assert result.metrics == {}
    assert result.per_item["boxes"] == [[11, 13, 24, 16.5]] * 7
    assert result.about.data.num_test == 1
    assert any("tracked 7 frames" in note for note in result.about.notes)
    assert Result.load(tmp_path / "out" / f"{result.about.key}.json") == result
    with av.open(str(save)) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].codec_context.name == "h264"
    assert [round(frame.time, 3) for frame in frames] == [0, 0.1, 0.2, 0.3, 0.4, 0.7, 0.8]
    last = frames[-1].to_ndarray(format="rgb24").astype(int)
    assert last.shape == (48, 64, 3)
    redness = last[..., 0] - last[..., 1]
    top, left = (redness[place].mean() for place in (np.s_[12, 14:30], np.s_[16:24, 10]))
    assert min(top, left) > 60
    assert abs(redness[18:22, 18:28]).max() < 25
    assert abs(redness[36:, 40:]).max() < 25
    assert abs(last[18:22, 18:28].mean() - 48) < 10
    assert list(save.parent.iterdir()) == [save]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "box: is missing"),
        ({"box": "1,2,3"}, "box: give four numbers, x,y,w,h, not '1,2,3'"),
        ({"box": "1,2,x,4"}, "box: give four numbers"),
        ({"box": "1,2,nan,4"}, "box: give four numbers"),
        ({"box": "1,2,0,4"}, "box: the box needs a width and a height above 0"),
        ({"box": "64,2,10,10"}, "clip.mkv: the box .* lies outside of the image of 63 x 48 pixels"),
        ({"box": "1,-20,10,10"}, "lies outside of the image"),
        ({"box": "1,2,3,4", "save": "out.txt"}, "save: out.txt: the name of a video with boxes ends in .mp4"),
        ({"box": "1,2,3,4", "tracker": "perfect"}, "perfect needs true boxes"),
        ({"box": "1,2,3,4", "others": "."}, "others: "),
        ({"box": "1,2,3,4", "tracker": "siamfc"}, "train_data: no GOT-10k"),
    ],
)
def test_a_video_needs_a_box_inside_of_it(video, settings, message):
    """A wrong request is reported in one line each before anything is tracked."""
    with pytest.raises(UserError, match=message) as error:
        open_data(config_of(video, **{"tracker": "identity", **settings}))
    assert all("\n" not in problem for problem in error.value.problems)


def test_a_video_never_overwrites_itself(video):
    """The video with boxes is another file."""
    mp4 = video.with_suffix(".mp4")
    video.rename(mp4)
    with pytest.raises(UserError, match="is the video itself"):
        open_data(config_of(mp4, train=False, box="1,2,3,4", save=mp4))


def test_a_file_that_is_not_a_video_is_refused(tmp_path):
    """One line names the file."""
    (tmp_path / "clip.mp4").write_text("not a video")
    with pytest.raises(UserError, match=r"clip\.mp4: cannot be read as a video"):
        open_data(config_of(tmp_path / "clip.mp4", tracker="identity", box="1,2,3,4"))
