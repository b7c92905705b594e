"""The memory that the losses need, as PyTorch's allocator reports it: little, and no more with more keys."""

from unittest import mock

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.loss import attention, cycle_consistency, info_nce, soft_nearest_neighbor
from cyclecontrast.loss.losses import is_nearest
from cyclecontrast.methods import CycleContrast, StepInfo
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.encoder import Features
from tests.unit.loss.test_losses import unit

BATCH, DIM, INTRA, CYCLE, SUPPORT = 256, 128, 65_536, 81_920, 16_384
MB = 1_000_000


def bytes_of(work):
    """Return the bytes that a call adds at its peak, and those that live as long as what it returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert events
    del kept
    return peak, live


def few_ignored(rows, columns):
    """Draw a mask that ignores a key in a hundred."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) < 0.01


def test_all_bytes_are_counted():
    """The peak counts what lives at the same time, what is freed and what is kept, within operations too."""
    assert bytes_of(lambda: [torch.zeros(1000).sum() for _ in range(3)][:0])[0] in range(4000, 5000)
    peak, kept = bytes_of(lambda: torch.zeros(1000) + torch.zeros(1000))
    assert peak in range(12_000, 13_000)
    assert kept == 4000
    assert bytes_of(lambda: torch.zeros(1000, 2).logsumexp(dim=1))[0] >= 16_000


def test_both_losses_need_little_at_the_papers_queues():
    """Forward and backward of both losses add less than 50 MB to a batch of 256 and queues of 65,536 and 81,920."""
    query, positive = (unit(BATCH, DIM, seed).requires_grad_() for seed in (0, 1))
    intra, support, negatives = (unit(n, DIM, n) for n in (INTRA, SUPPORT, CYCLE - SUPPORT))
    of_intra, of_support, of_negatives = (few_ignored(BATCH, len(keys)) for keys in (intra, support, negatives))

    def losses():
        loss = info_nce(query, positive, intra, 0.07, of_intra)
        loss = loss + cycle_consistency(query, positive, support, negatives, 0.07, of_support, of_negatives)
        loss.backward()

    assert bytes_of(losses)[0] < 50 * MB


@pytest.mark.parametrize("top_k", [None, 256])
def test_the_full_method_needs_little_at_the_papers_queues(top_k):
    """Draw, masks, both losses and the rates, forward and backward, add less than 200 MB to the networks."""
    sizes = {"queue_size": INTRA, "cycle_queue_size": CYCLE, "support_size": SUPPORT, "projector_dim": DIM}
    options = PretrainConfig(data="d", out="o", temperature=0.07, split_by="video", top_k=top_k, **sizes)
    method = CycleContrast(make_backbone("resnet10-small-w8"), options)
    for queue in (method.intra_queue, method.cycle_queue):
        queue.video.copy_(torch.arange(len(queue.video)) % (CYCLE // 4))
    query, key = (Features(unit(BATCH, DIM, seed), unit(BATCH, DIM, seed + 1)) for seed in (0, 2))
    for vectors in query:
        vectors.requires_grad_()
    method.encode, method.encode_keys = lambda view: query, lambda view, info: key
    view = torch.zeros(BATCH, 3, 8, 8, dtype=torch.uint8)
    batch = Batch((view, view), torch.arange(BATCH), torch.zeros(BATCH, 2))
    assert bytes_of(lambda: method(batch, StepInfo(0, 10, measure=True)).total.backward())[0] < 200 * MB


QUERY, POSITIVE = unit(16, 8, 0).requires_grad_(), unit(16, 8, 1)
WORK = {
    "info_nce": lambda keys: info_nce(QUERY, POSITIVE, keys, 0.07),
    "soft_nearest_neighbor": lambda keys: soft_nearest_neighbor(QUERY, keys, 0.07),
    "support": lambda keys: cycle_consistency(QUERY, POSITIVE, keys, keys[:8], 0.07),
    "negatives": lambda keys: cycle_consistency(QUERY, POSITIVE, keys[:8], keys, 0.07),
    "is_nearest": lambda keys: is_nearest(QUERY, POSITIVE, keys).sum(),
}


@pytest.mark.parametrize("name", WORK)
def test_more_keys_need_no_more_memory(name):
    """Four times the keys add nothing to the peak, forward and backward, and nothing that is kept between them."""
    few, many = unit(4096, 8, 2), unit(4 * 4096, 8, 3)

    def forward(keys):
        return WORK[name](keys)

    def forward_and_backward(keys):
        result = forward(keys)
        return result.sum().backward() if result.requires_grad else None

    with mock.patch.object(attention, "BLOCK", 16 * 1024):
        for work in (forward, forward_and_backward):
            of_few, of_many = (bytes_of(lambda keys=keys, work=work: work(keys)) for keys in (few, many))
            assert of_many[0] <= 1.05 * of_few[0]
            assert of_many[1] <= 1.05 * of_few[1] + 64
        assert bytes_of(lambda: forward(many))[1] < 16 * 1024  # a few times (batch, dim), not (batch, num_keys)


def test_the_k_best_need_a_byte_per_key():
    """What top_k adds with more keys is one mask (batch, num_keys): no gathered vectors, no places of all keys."""
    few, many = unit(4096, 8, 2), unit(4 * 4096, 8, 3)
    with mock.patch.object(attention, "BLOCK", 16 * 1024):
        of_few, of_many = (
            bytes_of(lambda keys=keys: soft_nearest_neighbor(QUERY, keys, 0.07, top_k=64).sum().backward())[0]
            for keys in (few, many)
        )
    assert of_many - of_few <= 16 * 3 * 4096 * 1.05


def test_without_a_gradient_none_is_prepared():
    """Where no gradient is asked for, the loss multiplies the keys once, not twice."""
    negatives = unit(1000, 8, 2)

    def products(work):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            work()
        return sum(event.name() in ("aten::mm", "aten::addmm_") for event in profiler.profiler.kineto_results.events())

    assert products(lambda: info_nce(QUERY, POSITIVE, negatives, 0.07)) == 2
    assert products(lambda: info_nce(QUERY.detach(), POSITIVE, negatives, 0.07)) == 1
    with torch.no_grad():
        assert products(lambda: info_nce(QUERY, POSITIVE, negatives, 0.07)) == 1
