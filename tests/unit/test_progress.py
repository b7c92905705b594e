"""Off a terminal, long work prints a line a minute: what is done, and what remains."""

import sys

import numpy as np
import pytest

from cyclecontrast import progress
from cyclecontrast.evaluation import metrics
from cyclecontrast.evaluation.knn import show_blocks
from cyclecontrast.evaluation.metrics import nearest_in_block, nearest_neighbors
from cyclecontrast.progress import with_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it, before any work."""
    times = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[0])
    monkeypatch.setattr(progress, "_times", progress._Times())
    return times


def work(clock, seconds, num, title="work", **settings):
    """Take so many seconds for each item, and return the items."""
    done = []
    for item in with_progress(range(num), title, **settings):
        clock[0] += seconds
        done.append(item)
    return done


def test_a_line_a_minute_says_what_is_done_and_what_remains(clock, capsys):
    """Ten items of 25 seconds: a line after the third, the sixth and the ninth; nothing goes to standard output."""
    assert work(clock, 25, 10, total=10) == list(range(10))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "work: 3 of 10 done, about 0:02:55 left",
        "work: 6 of 10 done, about 0:01:40 left",
        "work: 9 of 10 done, about 0:00:25 left",
    ]


def test_short_work_prints_nothing(clock, capsys):
    """Whatever was before: new work has a minute of its own."""
    work(clock, 50, 1)
    clock[0] += 500
    work(clock, 10, 5)
    assert capsys.readouterr().err == ""


def test_many_short_loops_print_a_line_a_minute_together(clock, capsys):
    """A loop that takes less than a minute, such as a sequence or an epoch, is not silent for ever.

    What remains is that of all loops, by the speed of the present one.
    """
    for number in range(6):
        work(clock, 10, 3, f"[/part] {number}\x1b", total=18, done=3 * number)
    assert capsys.readouterr().err.splitlines() == [
        r"[/part] 1\x1b: 6 of 18 done, about 0:02:00 left",
        r"[/part] 3\x1b: 12 of 18 done, about 0:01:00 left",
        r"[/part] 5\x1b: 18 of 18 done, about 0:00:00 left",
    ]


def test_work_of_unknown_length_and_a_closed_error_stream(clock, capsys, monkeypatch):
    """Without a total the line counts; where nothing can be printed, or by another process's rank, work goes on."""
    work(clock, 61, 2)
    assert capsys.readouterr().err.splitlines() == ["work: 1 done", "work: 2 done"]
    monkeypatch.setenv("RANK", "1")
    work(clock, 61, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("RANK")

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        flush = isatty = lambda self: False

    for stream in (Full(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert work(clock, 61, 3) == [0, 1, 2]


def test_a_search_for_neighbors_says_how_far_it_is(clock, capsys, monkeypatch):
    """Five blocks of 25 seconds: a line after the third."""

    def slow(*arguments):
        clock[0] += 25
        return nearest_in_block(*arguments)

    monkeypatch.setattr(metrics, "nearest_in_block", slow)
    vectors = np.eye(10, dtype=np.float32)
    found = nearest_neighbors(vectors, vectors, 1, similarities_at_once=20, show=show_blocks)
    assert found.indices[:, 0].tolist() == list(range(10))
    assert capsys.readouterr().err == "neighbors: 3 of 5 done, about 0:00:50 left\n"
