"""The cycles of a measurement in numbers: what each goes through, where it can end, whether it closes."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cyclecontrast.evaluation.metrics import Floats, Integers
from cyclecontrast.training.health import Cycles, is_support


class CyclePaths(NamedTuple):
    """All cycles of a measurement, of as many queries as there are pairs.

    weights (num_pairs, num_pairs): of each positive in a query's soft nearest neighbor (Eq. 3); 0 where it is none.
    back (num_pairs, num_pairs): cosine of that neighbor and each positive where the way back may end, else -inf.
    home (num_pairs,): cosine of it and the query's own positive. closed (num_pairs,): whether that is the highest.
    """

    weights: Floats
    back: Floats
    home: Floats
    closed: npt.NDArray[np.bool_]

    @property
    def margin(self) -> Floats:
        """How much closer the way back comes to the own video than to any other (num_pairs,): below 0 it fails."""
        return np.asarray(self.home - self.back.max(axis=1))


def follow(cycles: Cycles, temperature: float) -> CyclePaths:
    """Follow every cycle from its query to its soft nearest neighbor and back, at the temperature of the training."""
    own = cycles.video[:, None] == cycles.video
    through, neighbor = is_support(cycles.video), cycles.neighbors(temperature)
    to_support = (cycles.query @ cycles.positive.T / temperature).masked_fill(own | ~through, -torch.inf)
    back = (neighbor @ cycles.positive.T).masked_fill(own | through, -torch.inf)
    return CyclePaths(
        to_support.softmax(dim=1).numpy(),
        back.numpy(),
        (neighbor * cycles.positive).sum(dim=1).numpy(),
        cycles.closed(temperature).numpy(),
    )


class Chosen(NamedTuple):
    """Numbers of queries that are telling, each of another video where there are enough: the most telling first."""

    confident: tuple[int, ...]
    failed: tuple[int, ...]
    improved: tuple[int, ...]


def choose(first: CyclePaths, last: CyclePaths, video: Integers, number: int) -> Chosen:
    """Choose up to `number` queries of each kind; none is of two kinds, and none has its video in common with another.

    Improved are those that failed at first and close in the end, by what their margin gained; confident those that
    close by the widest margin; failed those that miss by the widest.
    """
    gained = last.margin - first.margin
    kinds = ((last.closed, last.margin), (~last.closed, -last.margin), (~first.closed & last.closed, gained))
    waiting = [[int(query) for query in np.argsort(-worth, kind="stable") if has[query]] for has, worth in kinds]
    picked: list[list[int]] = [[], [], []]
    taken: set[int] = set()
    for kind in list(range(len(kinds))) * number:
        left = [query for query in waiting[kind] if int(video[query]) not in taken]
        picked[kind] += left[:1]
        taken.update(int(video[query]) for query in left[:1])
        waiting[kind] = left[1:]
    return Chosen(*map(tuple, picked))
