"""Small methods on drawn batches, for the tests of methods and trainer."""

import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.distributed import ALONE
from cyclecontrast.methods import METHODS, StepInfo
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.encoder import Features
from cyclecontrast.training.trainer import Trainer
from tests.unit.loss.test_losses import unit

NUM_VIDEOS, QUEUE, DIM = 6, 40, 16
INFO = StepInfo(0, 10, measure=True)
SETTINGS = {
    "projector": "mlp-bn",
    "projector_dim": DIM,
    "queue_size": QUEUE,
    "cycle_queue_size": QUEUE,
    "support_size": 12,
    "bn_groups": 2,
    "temperature": 0.2,
    "learning_rate": 0.1,
    "schedule": "cosine",
    "precision": "fp32",
}
FRAMES = torch.tensor([[1, 1, 5, 7], [6, 6, 0, 2], [3, 3, 4, 4], [0, 0, 0, 0], [9, 9, 1, 1], [2, 2, 8, 9]])
"""Of each view in its video: the second view shows the query's frame, further ones are of one half of the video."""


def make_config(method="cycle", **changes):
    """Return the options of a small training."""
    own = {"teacher": "random:resnet10-small-w4"} if method == "distill" else {}
    return PretrainConfig(data="d", out="o", method=method, **(SETTINGS | own | changes))


def make_method(method="cycle", **changes):
    """Build a small method, prepared for twelve videos."""
    torch.manual_seed(0)
    backbone = make_backbone(changes.get("backbone", "resnet10-small-w8"))
    made = METHODS[method](backbone, make_config(method, **changes))
    made.prepare(torch.arange(12))
    return made.train()


def make_trainer(method="cycle", num_steps=10, **changes):
    """Build a trainer of a small method."""
    made = make_method(method, **changes)
    return Trainer(made, made.options, num_steps, torch.device("cpu"), ALONE)


def draw_batch(num_views=2, seed=0, num_videos=NUM_VIDEOS):
    """Draw views of a few videos."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_views, num_videos, 16, 16, 3)
    views = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    frames = FRAMES if num_videos == NUM_VIDEOS else torch.zeros(num_videos, num_views, dtype=torch.long)
    return Batch(tuple(views), torch.arange(num_videos), frames)


def with_features(method, num_views, seed=0):
    """Replace the networks of a method by drawn unit vectors; returns those of each view.

    The vectors of the encoder need a gradient, those of the momentum encoder do not.
    """
    queries, keys = (
        [Features(unit(NUM_VIDEOS, DIM, s + i), unit(NUM_VIDEOS, DIM, s + 20 + i)) for i in range(num_views)]
        for s in (seed + 100, seed + 200)
    )
    for features in queries:
        for vectors in features:
            vectors.requires_grad_()
    batch = draw_batch(num_views, seed)
    number = {id(view): i for i, view in enumerate(batch.views)}
    method.encode = lambda view: queries[number[id(view)]]
    method.encode_keys = lambda view, info: keys[number[id(view)]]
    return batch, queries, keys


def fill_queue(queue, seed=0, num_videos=NUM_VIDEOS):
    """Fill a queue with keys of the batch's videos and of others."""
    generator = torch.Generator().manual_seed(seed)
    queue.push(unit(QUEUE, DIM, seed), torch.randint(2 * num_videos, (QUEUE,), generator=generator))
