"""The random order of an epoch: a bijection that is computed, not stored, and looks like any other order."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from cyclecontrast.data import random_streams
from cyclecontrast.data.random_streams import NUM_ROUNDS, random_stream, shuffled

NUM_ORDERS = 2_000


def order_of(num_places, seed=0, epoch=0):
    """Return the item at each place."""
    return np.array([shuffled(seed, epoch, place, num_places) for place in range(num_places)])


def probability(counts):
    """Return the p-value of equal frequencies (chi-square test)."""
    counts = np.asarray(counts)
    return chi2.sf(((counts - counts.mean()) ** 2).sum() / counts.mean(), counts.size - 1)


def independence(first, second, num_places, num_bins=16):
    """Return the p-value of two columns of places being independent, by a table of equal parts of their range."""
    span = [0, num_places]
    return probability(np.histogram2d(first, second, bins=num_bins, range=[span, span])[0])


def test_a_stream_belongs_to_its_numbers_alone():
    """Seed, epoch, place and purpose each change the stream; the same four give it again."""
    numbers = [(1, 2, 3, 4), (0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (2, 1, 3, 4)]
    drawn = [tuple(random_stream(*each).integers(2**63, size=4)) for each in numbers]
    assert len(set(drawn)) == len(numbers)
    assert tuple(random_stream(1, 2, 3, 4).integers(2**63, size=4)) == drawn[0]


# --- a bijection


def test_small_orders_have_each_item_once():
    """Orders of 1 to 150 places have each item once."""
    for num_places in range(1, 151):
        assert sorted(order_of(num_places)) == list(range(num_places))


def place_of(item, num_places, keys):
    """Invert the order: undo the rounds in reverse, again where the result is not a place."""
    side = 2 * (math.isqrt((num_places - 1) // 4) + 1)
    assert (side - 2) ** 2 < num_places <= side**2
    while True:
        row, column = divmod(item, side)
        for row_key, column_key in reversed(keys):
            column = (column - random_streams._mixed(row + column_key)) % side
            row = (row - random_streams._mixed(column + row_key)) % side
        item = row * side + column
        if item < num_places:
            return item


@given(st.data(), st.integers(1, 2**50), st.integers(0, 2**32))
def test_every_order_can_be_inverted(data, num_places, seed):
    """In an order of any length an item tells its place, so no two places have the same item."""
    place = data.draw(st.integers(0, num_places - 1))
    item = shuffled(seed, 0, place, num_places)
    assert 0 <= item < num_places
    assert place_of(item, num_places, random_streams._round_keys(seed, 0)) == place


def test_orders_never_change():
    """The order is part of the meaning of a seed: a run that is resumed by a later version sees the same videos."""
    assert order_of(10).tolist() == [4, 0, 9, 5, 8, 2, 7, 1, 6, 3]
    some = [shuffled(7, 0, place, 2_700_000) for place in (0, 1, 2, 2_699_999)]
    assert some == [1680893, 219713, 1406330, 287699]
    assert [shuffled(3, 1, place, 10**12) for place in range(3)] == [753036994748, 393097725018, 728517223438]


def test_numbers_of_numpy_are_places():
    """A place from an array has the same item as the same Python integer."""
    assert [shuffled(0, 0, place, 1000) for place in np.arange(5)] == order_of(1000)[:5].tolist()


# --- randomness


@pytest.fixture(scope="module", params=["computed", "numpy"])
def orders(request):
    """Many orders of 4, 7 and 16 places; NumPy's show that true chance passes these tests."""
    rng = np.random.default_rng(0)
    draw = order_of if request.param == "computed" else lambda num, seed: rng.permutation(num)
    return {num: np.array([draw(num, seed) for seed in range(NUM_ORDERS)]) for num in (4, 7, 16)}


def test_small_orders_are_uniform(orders):
    """Over many seeds a place has each item, and two neighboring places each ordered pair, equally often."""
    for num, found in orders.items():
        for place in range(num):
            assert probability(np.bincount(found[:, place], minlength=num)) > 1e-4
        for place in range(num - 1):
            pairs = np.bincount(found[:, place] * num + found[:, place + 1], minlength=num**2).reshape(num, num)
            assert not pairs.diagonal().any()
            assert probability(pairs[~np.eye(num, dtype=bool)]) > 1e-4
    codes = orders[4] @ 4 ** np.arange(4)
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 24, "even and odd permutations"
    assert probability(counts) > 1e-4


def test_a_large_order_shows_no_pattern():
    """An item depends neither on its place nor on the items one place, two places or one row before."""
    num_places = 40_009
    found = order_of(num_places, seed=5)
    side = math.ceil(math.sqrt(num_places))
    assert independence(np.arange(num_places), found, num_places) > 1e-4
    for distance in (1, 2, side, side + side % 2):
        assert independence(found[:-distance], found[distance:], num_places) > 1e-4
        steps = (found[distance:] - found[:-distance]) % num_places
        assert probability(np.histogram(steps, bins=50, range=[0, num_places])[0]) > 1e-4
    assert (found == np.arange(num_places)).sum() < 10


def test_epochs_and_seeds_have_unrelated_orders():
    """The next epoch, the next seed, and both exchanged have independent orders."""
    num = 8_000
    found = {(seed, epoch): order_of(num, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 2**32))}
    for one, first in found.items():
        for other, second in found.items():
            if one < other:
                assert independence(first, second, num) > 1e-4
                assert (first == second).sum() < 10


# --- cost


@pytest.mark.parametrize("num_places", [1, 5, 17, 1000, 2_700_000, 10**12])
def test_an_item_takes_the_same_time_in_any_order(monkeypatch, num_places):
    """An item takes one pass through the rounds; of few places, four passes at most on average."""
    calls = []
    mixed = random_streams._mixed
    monkeypatch.setattr(random_streams, "_mixed", lambda number: calls.append(number) or mixed(number))
    for seed in range(300):
        shuffled(seed, 0, seed % num_places, num_places)
    assert len(calls) < 300 * 2 * NUM_ROUNDS * (1.1 if num_places >= 1000 else 5)


def test_an_order_takes_no_memory():
    """Items of an epoch of 2.7 million videos are computed without a list of them, and none comes twice."""
    tracemalloc.start()
    seen = {shuffled(0, 0, place, 2_700_000) for place in range(1000, 3000)}
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(seen) == 2000
    assert most < 1_000_000
