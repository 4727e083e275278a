"""Successive halving: which rows score how many starts before the search begins.

All starts are scored on a quarter of the rows, the better half of them on another quarter, and the
better half of these on the rest (Jamieson and Talwalkar, "Non-stochastic best arm identification
and hyperparameter optimization", AISTATS 2016). The first start always stays, as the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lmaas_tune.evaluator import Evaluator, IntArray

_FEWEST = 8
"""The fewest starts, and the fewest rows of a label, for which parts of the rows are scored."""


@dataclass(frozen=True, eq=False)
class Rung:
    """A turn of the halving.

    Attributes:
        rows: Indices of the rows that are scored.
        starts: Number of starts that are scored.
        calls: The calls that it counts for: 1 for each start and all rows.
    """

    rows: IntArray = field(repr=False)
    starts: int
    calls: int


def screening_calls(evaluator: Evaluator, starts: int) -> int:
    """The calls that it takes to score `starts` starts."""
    return sum(rung.calls for rung in rungs(evaluator, starts))


def rungs(evaluator: Evaluator, starts: int) -> list[Rung]:
    """The turns in which `starts` starts are scored; few starts or rows have a single turn."""
    targets, total = evaluator.targets, len(evaluator.targets)
    counts = np.bincount(targets)
    if starts < _FEWEST or counts[counts > 0].min() < _FEWEST:
        return [Rung(np.arange(total), starts, starts)]
    # the rows of each label are spread evenly, so that each part has its share of each
    turn = np.empty(total)
    for label, count in enumerate(counts):
        turn[targets == label] = (np.arange(count) + 0.5) / max(1, count)
    order = np.lexsort((targets, turn))
    turns = []
    for rows in np.split(order, [total // 4, total // 2]):
        turns.append(Rung(rows, starts, -(-starts * len(rows) // total)))
        starts = starts // 2 + 1  # the first one and the best of the others
    return turns
