"""An order of any number of places that needs no list of them: where a place leads is calculated from a few keys.

The places form a square (a Feistel network): in turn the rows and the columns are shifted by pseudo-random amounts that
depend on the other coordinate and a key. That can be undone, so no two places lead to the same. What leads out of the
places, for the square holds a few more, is followed until it is back (cycle walking).
"""

from math import isqrt

import numpy as np

Keys = tuple[tuple[int, int], ...]
"""For each round that of the rows and that of the columns."""

NUM_ROUNDS = 6
"""Over a million keys, orders of 2 to 16 places are then even; after 4 rounds they are not."""
ALL_BITS = 2**64 - 1


def draw_keys(rng: np.random.Generator) -> Keys:
    """Draw the keys of an order; NumPy promises the bits of a generator for ever, other than its permutations."""
    return tuple((row, column) for row, column in rng.bit_generator.random_raw((NUM_ROUNDS, 2)).tolist())


def shuffled(place: int, num_places: int, keys: Keys) -> int:
    """Return where a place of 0 to `num_places` - 1 leads in the order of these keys; no other one leads there."""
    side = 2 * (isqrt((num_places - 1) // 4) + 1)  # shifts along an odd side make even permutations only, half of all
    while True:
        row, column = divmod(int(place), side)  # NumPy's numbers would overflow
        for row_key, column_key in keys:
            row = (row + _mixed(column + row_key)) % side
            column = (column + _mixed(row + column_key)) % side
        place = row * side + column
        if place < num_places:
            return place


def _mixed(number: int) -> int:
    """Return 64 bits that each depend on all bits of the number."""
    # In Python's numbers: for one at a time NumPy's take twice as long, and warn of overflow.
    number = (number * 0x9E3779B97F4A7C15) & ALL_BITS
    number = ((number ^ number >> 32) * 0xD6E8FEB86659FD93) & ALL_BITS
    return number ^ number >> 32
