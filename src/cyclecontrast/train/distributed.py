"""One process or many: what crosses between processes, and nothing else, is here."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cyclecontrast.model.encoders import Encoder, Features, encode_in_groups

LONGEST_WAIT = timedelta(hours=12)
"""The others wait while the first process prepares videos."""


class World(NamedTuple):
    """This process's number and how many there are."""

    rank: int
    size: int


def join_world(device: torch.device) -> World:
    """Join the processes that torchrun started, or be alone."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(0, 1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    return World(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def first_process_first(world: World) -> Iterator[None]:
    """Let the first process do what is within before the others do it."""
    if world.rank:
        dist.barrier()
    yield
    if world.size > 1 and world.rank == 0:
        dist.barrier()


def leave_world() -> None:
    """Leave the other processes, once all are done."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def gather(tensor: Tensor, world: World) -> Tensor:
    """Return the tensors of all processes, in the order of their ranks, along the first axis."""
    if world.size == 1:
        return tensor
    tensor = tensor.contiguous()  # the parts must lie in memory as what is sent does
    parts = [torch.empty_like(tensor) for _ in range(world.size)]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def average_gradients(network: nn.Module, world: World) -> None:
    """Replace each gradient by its mean over the processes."""
    if world.size == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world.size
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def encode_keys(encoder: Encoder, images: Tensor, num_groups: int, seed: int, world: World) -> Features:
    """Encode this process's keys such that BatchNorm cannot leak who is in the batch (shuffle-BN).

    The images of all processes are shuffled together by `seed`, each process encodes its share in groups, and the
    features go back to where their images came from.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images) * world.size, generator=generator).to(images.device)
    groups = max(1, num_groups // world.size)
    if world.size == 1:
        return encode_in_groups(encoder, images, groups, order)
    mine = slice(world.rank * len(images), (world.rank + 1) * len(images))
    share = gather(images, world)[order[mine]]
    in_turn = torch.arange(len(images), device=images.device)
    features = encode_in_groups(encoder, share, groups, in_turn)
    back = torch.argsort(order)[mine]
    return Features(*(gather(part, world)[back] for part in features))
