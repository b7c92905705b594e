"""What a person sees of a training: throughput without the time of measurements, and the progress bar."""

import time

import torch

from cyclecontrast.data.dataset import Batch
from cyclecontrast.training.progress import Clock, _in_words


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


def test_the_bar_shows_the_last_measurement():
    """The bar shows the loss, and the last health beside it."""
    row = {"step": 10, "loss": 5.0, "intra_loss": 5.0, "cycle_loss": None, "images_per_second": 9.0, "data_wait": 0.0}
    assert _in_words({"health_rank": 3.0}) == ""
    assert _in_words(row) == "loss 5.00  intra 5.00  images/s 9  data wait 0%"
    assert "same video 12%  rank 3 " in _in_words(row | {"health_same_video": 0.123, "health_rank": 3.42})
