"""The losses at the paper's queues against the formulas as written: the memory they add, and the time of ours / plain.

    OMP_NUM_THREADS=1 python benchmarks/loss_memory.py                   # batch 256, queues of 65,536 and 81,920 keys
    python benchmarks/loss_memory.py --device cuda --top-k 32

Both losses, forward and backward, with masks. Turns alternate, so that both see the same machine; on a GPU, where a
call takes milliseconds, let `--repetitions` be larger. The aim is less than 200 MB, and at most 1.00 of the time.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from _ours import synchronize
from _turns import Row, parser_of, present, ratios, take_turns, timed
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from cyclecontrast.loss import cycle_consistency, info_nce
from cyclecontrast.models.hardware import limited_threads, pick_device

TEMPERATURE = 0.07
IGNORED = 0.01


class Inputs(NamedTuple):
    """Vectors and masks of both losses; the queries ask for a gradient."""

    query: Tensor
    positive: Tensor
    intra: Tensor
    support: Tensor
    negatives: Tensor
    ignore_intra: Tensor
    ignore_support: Tensor
    ignore_negatives: Tensor


def draw(asked: argparse.Namespace, device: torch.device) -> Inputs:
    """Draw unit vectors, and masks that ignore a key in a hundred."""
    generator = torch.Generator(device).manual_seed(0)
    batch, queue = asked.batch, (asked.queue_size, asked.support_size, asked.cycle_queue_size - asked.support_size)
    vectors = [
        normalize(torch.randn(size, asked.dim, generator=generator, device=device), dim=1)
        for size in (batch, batch, *queue)
    ]
    masks = [torch.rand(batch, size, generator=generator, device=device) < IGNORED for size in queue]
    return Inputs(vectors[0].requires_grad_(), *vectors[1:], *masks)


def plain(inputs: Inputs, top_k: int | None) -> Tensor:
    """Add up Eq. 2 and Eq. 5 as they are written, over all similarities at once."""
    logits = (inputs.query @ inputs.support.T / TEMPERATURE).masked_fill(inputs.ignore_support, float("-inf"))
    if top_k is None:
        mean = logits.softmax(dim=1) @ inputs.support
    else:
        values, places = logits.topk(top_k, dim=1)
        mean = (values.softmax(dim=1)[..., None] * inputs.support[places]).sum(dim=1)
    neighbor = normalize(mean, dim=1)
    total = inputs.query.new_zeros(())
    for query, negatives, ignore in (
        (inputs.query, inputs.intra, inputs.ignore_intra),
        (neighbor, inputs.negatives, inputs.ignore_negatives),
    ):
        of_positive = (query * inputs.positive).sum(dim=1, keepdim=True) / TEMPERATURE
        of_negatives = (query @ negatives.T / TEMPERATURE).masked_fill(ignore, float("-inf"))
        total = total - torch.cat((of_positive, of_negatives), dim=1).log_softmax(dim=1)[:, 0].mean()
    return total


def ours(inputs: Inputs, top_k: int | None) -> Tensor:
    """Add up the same by the functions of the package."""
    query, positive, intra, support, negatives, *masks = inputs
    of_cycle = cycle_consistency(query, positive, support, negatives, TEMPERATURE, *masks[1:], top_k)
    return info_nce(query, positive, intra, TEMPERATURE, masks[0]) + of_cycle


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return how much more memory is allocated at the peak of a call than before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = parser_of(__doc__, repetitions=7)
    sizes = ("batch", 256), ("dim", 128), ("queue-size", 65_536), ("cycle-queue-size", 81_920), ("support-size", 16_384)
    for name, default in sizes:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--top-k", type=int, help="default: all of the support")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args(arguments)
    device = pick_device(asked.device)
    inputs = draw(asked, device)

    def gradient(formula: Callable[[Inputs, int | None], Tensor]) -> None:
        torch.autograd.grad(formula(inputs, asked.top_k), inputs.query)
        synchronize(device)

    works = {"plain": partial(gradient, plain), "ours": partial(gradient, ours)}
    with limited_threads(device):
        costs = take_turns({name: timed(work) for name, work in works.items()}, asked.repetitions)
        peaks = {name: peak_bytes(work, device) / 1e6 for name, work in works.items()}
    rows = [
        Row("both losses, memory, MB", [peaks["ours"]], 200.0),
        Row("both losses, memory: ours / as written", [peaks["ours"] / peaks["plain"]]),
        Row("both losses, time: ours / as written", ratios(costs, "ours", "plain"), 1.0),
    ]
    present(rows, asked)


if __name__ == "__main__":
    main()
