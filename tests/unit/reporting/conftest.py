"""One run that is trained once for all tests of the report."""

import pytest

import cyclecontrast as cc
from tests.make_reports import write_frames, write_result

ODD = (
    "<b>bold</b> & \"quoted\" 'name'",
    "<img src=x onerror=alert(1)>",
    "🐘🐘🐘 elephants",
    "סרטון בעברית 12 (a)",
    "x" * 200,
    "many words " * 18,
    "plain/below/folders",
)
"""Names of videos that a page must show as text."""
SETTINGS = {
    "backbone": "resnet10-small-w4",
    "image_size": 16,
    "batch_size": 8,
    "queue_size": 32,
    "cycle_queue_size": 32,
    "support_size": 8,
    "workers": 0,
    "device": "cpu",
}
STEPS, HEALTH_EVERY = 24, 3


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Videos of one color each, some with odd names."""
    names = [*ODD, *(f"video{number}" for number in range(29))]
    return write_frames(tmp_path_factory.mktemp("videos") / "tree", names, num_frames=4)


@pytest.fixture(scope="session")
def trained(tree, tmp_path_factory):
    """A short training with an odd name that measured health often and wrote its page, with a result of a baseline."""
    out = tmp_path_factory.mktemp("trained") / ("<i>run עברית 🐘 " + 100 * "y" + "0")
    schedule = {"steps": STEPS, "log_every": 4, "checkpoint_every": STEPS // 2, "health_every": HEALTH_EVERY}
    cc.pretrain(tree, out=out, holdout=1 / 3, **schedule, **SETTINGS)
    write_result(out, {"top1": 0.625, "top5": 0.875}, model="resnet10-small-w4", notes=("a <note>",))
    return out
