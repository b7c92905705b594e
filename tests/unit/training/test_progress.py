"""What a person sees of a training: throughput without the time of measurements, and the progress bar."""

import io
import re
import sys
import time

import torch
from rich.console import Console

from cyclecontrast import progress as lines
from cyclecontrast.data.dataset import Batch
from cyclecontrast.training import progress as training_progress
from cyclecontrast.training.progress import Clock, _in_words, show_progress


def test_throughput_counts_views_and_not_measurements():
    """Views per second count every view of a batch, over the time that is not spent on measurements."""
    clock = Clock()
    began = clock.since
    for _ in clock.timed(iter([Batch((torch.empty(0),) * 3, torch.arange(5), torch.empty(0))] * 2)):
        pass
    with clock.paused():
        time.sleep(0.2)
    row = clock.lap()
    assert row["images_per_second"] * (clock.since - began) >= 30 * 1.05
    assert 0 <= row["data_wait"] <= 1
    assert clock.lap()["images_per_second"] == 0


def test_metrics_in_words_begin_with_retrieval():
    """The first is what a person looks at: same-video retrieval, and before it is measured the loss."""
    row = {"step": 10, "loss": 5.0, "intra_loss": 5.0, "cycle_loss": None, "images_per_second": 9.0, "data_wait": 0.0}
    assert _in_words({"health_rank": 3.0}) == [""]
    assert _in_words(row) == ["loss 5.00", "intra 5.00", "images/s 9", "data wait 0%"]
    words = _in_words(row | {"health_same_video": 0.123, "health_rank": 3.42})
    assert (words[0], "rank 3" in words) == ("same video 12%", True)


ROW = {"step": 20, "loss": 5.25, "cycle_weight": 0.0, "health_same_video": 0.4, "images_per_second": 9.0}


def test_off_a_terminal_training_prints_a_line_a_minute(monkeypatch, capsys):
    """Steps of 25 seconds: a line after the third and the sixth, with step, time left and metrics."""
    times = [1000.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: times[0])
    monkeypatch.setattr(lines, "_times", lines._Times())
    with show_progress(106, 100, shown=True) as advance:
        for _ in range(6):
            times[0] += 25
            advance(ROW)
    words = "same video 40%, loss 5.25, images/s 9"
    assert capsys.readouterr().err.splitlines() == [
        f"pretrain: 103 of 106 done, about 0:01:15 left; {words}",
        f"pretrain: 106 of 106 done, about 0:00:00 left; {words}",
    ]


def test_other_processes_print_no_progress(monkeypatch, capsys):
    """Only one process of several shows how far training is."""
    monkeypatch.setattr(lines, "_times", lines._Times(line=-1e9))
    with show_progress(6, 0, shown=False) as advance:
        advance(ROW)
        advance(ROW | {"cycle_weight": 1.0})
    assert capsys.readouterr().err == ""


def test_the_rise_of_the_loss_is_explained_once(capsys):
    """A line says where the cycle loss sets in; not where it is on from the first step, or a run is resumed with it."""
    with show_progress(100, 0, shown=True) as advance:
        for weight in (0.0, 0.0, 0.5, 0.5):
            advance(ROW | {"cycle_weight": weight})
    assert capsys.readouterr().err == "step 20: the cycle loss is added from here on (λ = 0.5), so the loss rises\n"
    with show_progress(100, 0, shown=True) as advance:
        advance({})
        advance(ROW | {"cycle_weight": 0.5})
    assert capsys.readouterr().err == ""


def test_the_bar_fits_into_80_columns(monkeypatch):
    """In a terminal, steps, time left and one metric are in the first line, and the details below it."""
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, highlight=False, color_system=None)
    monkeypatch.setattr(training_progress, "console", screen)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with show_progress(100_000, 12_344, shown=True) as advance:
        advance(ROW)
    text = re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", screen.file.getvalue())
    first, second = (line.split("\r")[-1].rstrip() for line in text.rstrip().split("\n")[-2:])
    assert re.fullmatch(r"pretrain \S+ +12345/100000 +\S+ same video 40%", first)
    assert second == "  loss 5.25  images/s 9"
    assert len(first) <= 80
