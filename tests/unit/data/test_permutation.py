"""The order of an epoch without a list of it: each place leads to another one, and nobody sees where."""

import math

import numpy as np
import pytest
from cyclecontrast.data.pairs import video_at
from cyclecontrast.data.permutation import draw_keys
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from cyclecontrast.data import permutation
from cyclecontrast.data.random_streams import NUM_ROUNDS, shuffled

MANY = 8_000


def keys_of(seed):
    """The keys of a generator that begins so."""
    return draw_keys(np.random.Generator(np.random.Philox(key=seed)))


def order_of(num_places, seed):
    """Where each place leads."""
    keys = keys_of(seed)
    return np.array([shuffled(place, num_places, keys) for place in range(num_places)])


def probability(counts):
    """How likely it is that counts which should be equal differ as much, for as many degrees of freedom as cells."""
    counts = np.asarray(counts)
    return chi2.sf(((counts - counts.mean()) ** 2).sum() / counts.mean(), counts.size - 1)


def together(first, second, num_places, num_bins=24):
    """How likely two columns of places are as unrelated as they look, by a table of equal parts of their range."""
    span = [0, num_places]
    return probability(np.histogram2d(first, second, bins=num_bins, range=[span, span])[0])


# --- an order


@pytest.mark.parametrize("seed", [0, 1])
def test_small_orders_hold_each_place_once(seed):
    """Of 1 to 300 places each leads to another one of them."""
    for num_places in range(1, 301):
        assert sorted(order_of(num_places, seed)) == list(range(num_places))


def led_back(place, num_places, keys):
    """The way back: the rounds in reverse, and on from places that are none."""
    side = 2 * (math.isqrt((num_places - 1) // 4) + 1)
    assert (side - 2) ** 2 < num_places <= side**2
    while True:
        row, column = divmod(place, side)
        for row_key, column_key in reversed(keys):
            column = (column - permutation._mixed(row + column_key)) % side
            row = (row - permutation._mixed(column + row_key)) % side
        place = row * side + column
        if place < num_places:
            return place


@given(st.data(), st.integers(1, 2**50), st.integers(0, 2**64))
def test_every_place_can_be_led_back(data, num_places, seed):
    """However many places there are, where one leads tells which it was, so no two lead to the same."""
    place, keys = data.draw(st.integers(0, num_places - 1)), keys_of(seed)
    there = shuffled(place, num_places, keys)
    assert 0 <= there < num_places
    assert led_back(there, num_places, keys) == place


@given(st.integers(1000, 100_000), st.integers(0, 2**64))
def test_places_of_large_orders_lead_apart(num_places, seed):
    """Any thousand places in a row lead to a thousand places."""
    keys = keys_of(seed)
    assert len({shuffled(place, num_places, keys) for place in range(num_places - 1000, num_places)}) == 1000


def test_orders_stay_what_they_are():
    """The order is part of what a seed means: a run that is resumed after an update sees the same videos."""
    assert order_of(10, 0).tolist() == [5, 0, 2, 3, 6, 9, 4, 7, 8, 1]
    some = [shuffled(place, 2_700_000, keys_of(7)) for place in (0, 1, 2, 2_699_999)]
    assert some == [2211705, 1783782, 1790867, 854629]
    assert [video_at(3, 1, place, 10**12) for place in range(3)] == [753036994748, 393097725018, 728517223438]


def test_numbers_of_numpy_are_places():
    """A place out of an array leads where the same number leads."""
    keys = keys_of(0)
    assert [shuffled(place, 1000, keys) for place in np.arange(5)] == order_of(1000, 0)[:5].tolist()


# --- by chance


@pytest.fixture(scope="module", params=["ours", "numpy"])
def orders(request):
    """Very many orders of 4, 7 and 16 places; NumPy's show that the tests of chance are passed by chance."""
    rng = np.random.default_rng(0)
    if request.param == "numpy":
        return {num: np.array([rng.permutation(num) for _ in range(MANY)]) for num in (4, 7, 16)}
    return {num: np.array([order_of(num, seed) for seed in range(MANY)]) for num in (4, 7, 16)}


def test_each_place_leads_anywhere_as_often(orders):
    """Over many keys, a place leads to each place equally often."""
    for num, found in orders.items():
        for place in range(num):
            assert probability(np.bincount(found[:, place], minlength=num)) > 1e-4


def test_neighbors_lead_to_any_pair_as_often(orders):
    """Over many keys, two places next to each other lead to each ordered pair of places equally often."""
    for num, found in orders.items():
        for place in range(num - 1):
            pairs = np.bincount(found[:, place] * num + found[:, place + 1], minlength=num**2).reshape(num, num)
            assert not pairs.diagonal().any()
            assert probability(pairs[~np.eye(num, dtype=bool)]) > 1e-4


def test_all_orders_are_as_likely(orders):
    """Four places have their 24 orders equally often, even and odd ones."""
    codes = orders[4] @ 4 ** np.arange(4)
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 24
    assert probability(counts) > 1e-4


@pytest.mark.parametrize("num_places", [65_536, 100_003])
def test_a_large_order_shows_no_pattern(num_places):
    """Where places lead tells nothing of where they are, nor where the next ones and those a row further lead."""
    found = order_of(num_places, 5)
    side = int(np.ceil(np.sqrt(num_places)))
    assert together(np.arange(num_places), found, num_places) > 1e-4
    for distance in (1, 2, side, side + side % 2):
        assert together(found[:-distance], found[distance:], num_places) > 1e-4
        steps = (found[distance:] - found[:-distance]) % num_places
        assert probability(np.histogram(steps, bins=50, range=[0, num_places])[0]) > 1e-4
    assert (found == np.arange(num_places)).sum() < 10


def test_epochs_and_seeds_are_unrelated():
    """The next epoch, the next seed, and both exchanged have orders that share nothing."""
    num = 20_000
    orders = {
        (seed, epoch): np.array([video_at(seed, epoch, place, num) for place in range(num)])
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 2**32))
    }
    for one, first in orders.items():
        for other, second in orders.items():
            if one < other:
                assert together(first, second, num) > 1e-4
                assert (first == second).sum() < 10


# --- its cost


@pytest.mark.parametrize("num_places", [1, 2, 5, 17, 1000, 10**6, 2_700_000, 10**12])
def test_a_place_costs_the_same_in_any_order(monkeypatch, num_places):
    """However many places there are, one costs one pass through the rounds, of few places four at most on average."""
    calls = []
    mixed = permutation._mixed
    monkeypatch.setattr(permutation, "_mixed", lambda number: calls.append(number) or mixed(number))
    for seed in range(500):
        shuffled(seed % num_places, num_places, keys_of(seed))
    assert len(calls) < 500 * 2 * NUM_ROUNDS * (1.1 if num_places >= 1000 else 5)
