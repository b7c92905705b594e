"""Training for an evaluation: plain SGD with a schedule, which a stop and a new start do not change by one bit."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.epochs import step_decay, train_epochs
from cyclecontrast.evaluation.resume_cache import ResumeCache

STEPS = 4


def batches_of(epoch):
    """Draw the batches of an epoch from its number."""
    rng = torch.Generator().manual_seed(epoch)
    return [torch.randn(6, 3, generator=rng) for _ in range(STEPS)]


class Training:
    """A network with dropout and BatchNorm, and its optimizer; `stop` names the epoch and step of an interruption."""

    def __init__(self, stop=None):
        torch.manual_seed(5)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.head = nn.Linear(1, 1)
        parameters = [{"params": self.network.parameters(), "lr": 0.01}, {"params": self.head.parameters(), "lr": 0.03}]
        self.optimizer = torch.optim.SGD(parameters, momentum=0.9, weight_decay=0.01)
        self.stop = stop
        self.epochs = []

    def batches_of(self, epoch):
        """Note the epoch, and stop where requested."""
        self.epochs.append(epoch)
        for step, batch in enumerate(batches_of(epoch)):
            if (epoch, step) == self.stop:
                raise KeyboardInterrupt
            yield batch

    def parts_of(self, batch):
        """Ask for the sum of the inputs."""
        yield (self.head(self.network(batch)) - batch.sum(dim=1, keepdim=True)).square().mean()

    def run(self, folder, seed=0, epochs=5):
        """Train, with parts in the folder."""
        modules = {"network": self.network, "head": self.head}
        args = self.optimizer, self.batches_of, self.parts_of, step_decay(epochs), epochs, seed, ResumeCache(folder)
        return train_epochs("training", modules, *args)

    def state(self):
        """Return all numbers of the training."""
        moments = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        return torch.cat([x.flatten().double() for x in (*self.network.state_dict().values(), *moments)]).tolist()


def test_it_is_plain_sgd_with_a_schedule(tmp_path):
    """Weights and losses equal those of a loop written out with momentum and decay, without dropout."""
    training = Training()
    training.network.eval()
    weights = [
        p.detach().double().requires_grad_() for p in (*training.network.parameters(), *training.head.parameters())
    ]
    losses, velocity = [], [torch.zeros_like(weight) for weight in weights]
    for epoch, factor in enumerate((1, 1, 1, 0.1, 0.01)):
        total = 0.0
        for batch in batches_of(epoch):
            w1, b1, scale, shift, w2, b2, w3, b3 = weights
            x = batch.double()
            hidden = (x @ w1.T + b1) / np.sqrt(1 + 1e-5) * scale + shift
            loss = (((hidden @ w2.T + b2) @ w3.T + b3) - x.sum(dim=1, keepdim=True)).square().mean()
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for number, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
                    velocity[number] = 0.9 * velocity[number] + slope + 0.01 * weight
                    weight -= (0.03 if number > 5 else 0.01) * factor * velocity[number]
            total += float(loss.detach())
        losses.append(total / STEPS)
    assert training.run(tmp_path) == pytest.approx(losses, rel=1e-4)
    ours = [p.detach() for p in (*training.network.parameters(), *training.head.parameters())]
    for mine, expected in zip(ours, weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), expected.detach().numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stop", [(0, 0), (0, 3), (2, 1), (4, 3)])
def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path, stop):
    """Dropout, BatchNorm and momentum included; whole epochs are not trained again."""
    whole = Training()
    losses = whole.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Training(stop).run(tmp_path / "stopped")
    torch.manual_seed(99)
    again = Training()
    torch.manual_seed(100)
    assert again.run(tmp_path / "stopped") == losses
    assert again.epochs == list(range(stop[0], 5))
    assert again.state() == whole.state()
    finished = Training()
    assert finished.run(tmp_path / "stopped") == losses
    assert (finished.epochs, finished.state()) == ([], whole.state())


def test_what_is_random_depends_on_the_seed_alone(tmp_path):
    """The state of the global generator neither matters nor changes; another seed drops other units."""
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        training = Training()
        torch.manual_seed(number)
        before = torch.get_rng_state()
        runs.append(training.run(tmp_path / str(number), seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("mode", [True, False])
def test_modules_keep_their_mode(tmp_path, mode):
    """Whether BatchNorm learns is the caller's choice."""
    training = Training()
    training.network.train(mode)
    before = training.network[1].running_mean.clone()
    training.run(tmp_path)
    assert training.network.training is mode
    assert torch.equal(training.network[1].running_mean, before) is not mode


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    """The line says when it happened and what to change; no broken state is kept."""
    training = Training()
    training.optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(UserError, match=r"training: the loss is not finite in epoch 1; lower learning_rate \(1e\+30\)"):
        training.run(tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("epochs", [1, 2, 3, 15, 30, 100, 155])
def test_rates_fall_when_their_part_of_the_epochs_is_over(epochs):
    """Tenfold at 60 % and again at 80 %, counted without rounding errors."""
    for epoch in range(epochs):
        passed = sum(epoch >= Fraction(part, 10) * epochs for part in (6, 8))
        assert step_decay(epochs)(epoch) == pytest.approx(0.1**passed)
