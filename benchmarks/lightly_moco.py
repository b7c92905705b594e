"""Our training against MoCo built of lightly's parts: images/s of ours / lightly's, data included.

    pip install lightly==1.6.0; python benchmarks/lightly_moco.py            # ResNet-18 at 112 px, as many workers

Lightly's is put together as its guide to MoCo does it, from its data set, transform, projection head, loss with a
memory bank of 65,536 and momentum update; fp32 in NCHW. Ours trains on the same JPEG bytes in a prepared store: MoCo's
objective with as long a queue and the same projector, that in fp32, and the cycle objective as `auto` decides it. The
aim is not to be slower.
"""

import copy
from pathlib import Path

import torch
from _ours import Steps
from release import Size, Way, compare
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from cyclecontrast.models.backbone import import_torchvision, make_backbone

QUEUE_SIZE, DIM, TEMPERATURE, MOMENTUM = 65_536, 128, 0.2, 0.999
ENDLESS = 10**7
MOCO = {"method": "intra-image", "queue_size": QUEUE_SIZE, "projector": "mlp", "projector_dim": DIM, "bn_groups": 1}
OURS = (
    Way("MoCo's objective", MOCO, 1.0),
    Way("the same in fp32", MOCO | {"precision": "fp32"}),
    Way("cycle, auto", {}, 1.0),
)


def lightly_steps(files: Path, size: Size) -> Steps[Tensor]:
    """Train MoCo v2 with lightly's parts."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import batch_shuffle, batch_unshuffle, deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform

    images = LightlyDataset(str(files), transform=MoCoV2Transform(input_size=size.image_size))
    loader = DataLoader(
        images,
        size.batch_size,
        sampler=RandomSampler(images, replacement=True, num_samples=ENDLESS),
        num_workers=size.workers,
        drop_last=True,
    )
    backbone = make_backbone(size.backbone)
    encoder = torch.nn.Sequential(backbone, MoCoProjectionHead(backbone.dim, backbone.dim, DIM)).to(size.device)
    momentum_encoder = copy.deepcopy(encoder)
    deactivate_requires_grad(momentum_encoder)
    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(QUEUE_SIZE, DIM)).to(size.device)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4)
    for views, _, _ in loader:
        query, key = (view.to(size.device) for view in views)
        update_momentum(encoder, momentum_encoder, m=MOMENTUM)
        shuffled, order = batch_shuffle(key)
        loss = criterion(encoder(query), batch_unshuffle(momentum_encoder(shuffled).detach(), order))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def main(arguments: list[str] | None = None) -> None:
    """Compare, where lightly is installed."""
    try:
        import_torchvision()  # before lightly imports it
        __import__("lightly.transforms")
    except ImportError as error:
        print(f"left out, for lightly cannot be imported ({error}): pip install lightly==1.6.0")
        return
    compare(__doc__, "lightly", lightly_steps, OURS, arguments)


if __name__ == "__main__":
    main()
