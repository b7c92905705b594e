"""The demo from videos to report at a small size, its table, and its verdicts."""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

import cyclecontrast as cc
import cyclecontrast.demo_run as demo_module
from cyclecontrast.data.synthetic import SyntheticSpec
from cyclecontrast.demo_run import Demo, Row
from cyclecontrast.errors import UserError


@pytest.fixture
def small(monkeypatch):
    """Shrink the demo to seconds."""
    spec = SyntheticSpec(
        num_videos=8, num_categories=3, num_train_per_category=4, num_test_per_category=4, num_frames=4
    )
    monkeypatch.setattr(demo_module, "SyntheticSpec", lambda: spec)
    monkeypatch.setattr(demo_module, "STEPS", 3)
    monkeypatch.setattr(demo_module, "BACKBONE", "resnet10-small-w8")


def test_the_demo_runs_from_videos_to_report(small, tmp_path, capsys):
    """The demo writes videos, frames, runs, results and a report in place of an earlier demo."""
    out = tmp_path / "demo"
    out.mkdir()
    for name in (demo_module.DEMO_FILE, "old"):
        (out / name).touch()
    done = cc.demo(out=out, compare=True, workers=0)
    assert [row.name for row in done.rows] == ["random weights", "intra-image", "intra-video", "cycle", "simclr"]
    assert not (out / "old").exists()
    assert all(0 <= accuracy <= 1 for row in done.rows for accuracy in row.accuracies.values())
    assert len(list((out / "made" / "videos").glob("*.mp4"))) == 8
    assert done.report.stat().st_size > 10_000
    assert "8 videos, 32 frames" in capsys.readouterr().err
    assert "one seed is not enough to judge" in str(done)


def test_other_folders_are_refused(tmp_path):
    """A folder that is not an earlier demo is refused and stays as it is."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not an earlier demo"):
        cc.demo(out=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_running_demo_is_kept(tmp_path):
    """A demo in the folder of one that is running is refused and deletes nothing."""
    (tmp_path / demo_module.DEMO_FILE).touch()
    hold = "import sys\nfrom pathlib import Path\nfrom cyclecontrast.files import locked\n"
    hold += "with locked(Path(sys.argv[1]), 'out'):\n    print(flush=True)\n    sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], **pipes) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match=f"in use by process {process.pid}"):
            cc.demo(out=tmp_path)
    assert (tmp_path / demo_module.DEMO_FILE).exists()


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((0.50, 0.52), (0.30, 0.31), "better"),
        ((0.30, 0.31), (0.50, 0.52), "worse"),
        ((0.30, 0.40), (0.33, 0.36), "within the noise of 2 seeds"),
        ((0.50, 0.60), (0.40, 0.45), "within the noise of 2 seeds"),
        ((0.30, 0.41, 0.60), (0.28, 0.38, 0.58), "better"),
    ],
)
def test_a_gain_is_judged_by_its_noise(ours, theirs, verdict):
    """The full method is called better or worse only where a paired t test over seeds at 5 % says so."""
    significant = ttest_rel(ours, theirs).pvalue < 0.05
    assert significant == (verdict in ("better", "worse"))
    rows = [Row("cycle", {"knn": a, "linear": a}) for a in ours] + [
        Row("intra-video", {"knn": a, "linear": a}) for a in theirs
    ]
    text = str(Demo(tuple(rows), Path("page.html"), 12.0))
    assert f"knn {100 * (statistics.mean(ours) - statistics.mean(theirs)):+.1f} points ({verdict})" in text
    assert f"± {100 * statistics.stdev(ours):.1f}" in text
