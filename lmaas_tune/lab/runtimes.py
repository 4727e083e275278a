"""Runtime distributions: the share of targets that an optimizer reached within so many calls.

They are those of COCO (Hansen et al., "COCO: a platform for comparing continuous optimizers in a
black-box setting", 2021, section 5), with targets of losses whose best value is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmaas_tune.lab.record import Curve, Record
from lmaas_tune.prompts import FloatArray

TARGETS = 50
"""Number of targets of a task."""

RESAMPLES = 1000
"""Number of times that the seeds are drawn for a band."""

GRID = 120
"""Maximum number of points of a curve."""


@dataclass(frozen=True, kw_only=True)
class Runtimes:
    """The runtime distribution of one optimizer.

    Attributes:
        pairs: Number of its (task, seed, target).
        calls: Where the share changes.
        share: Of the pairs that were reached within so many calls.
        low: Lower edge of the 95% band by bootstrap over the seeds; `high` is the upper one. None
            with one seed.
    """

    optimizer: str
    pairs: int
    calls: Sequence[int]
    share: Sequence[float]
    low: Sequence[float] | None
    high: Sequence[float] | None


def targets(records: Sequence[Record]) -> list[float]:
    """The targets of one task, the easiest first; none if no run improved on its start.

    `TARGETS` losses with equal distances, from the start to the best. The start is the highest of
    the first training losses of the runs, and is no target; the best is the lowest training loss
    of all runs, and is the last target.
    """
    known = [[loss for loss in run.curve.lowest_loss if loss is not None] for run in records]
    known = [losses for losses in known if losses]
    if not known:
        return []
    start, best = max(losses[0] for losses in known), min(losses[-1] for losses in known)
    # the last is the best itself, and no rounding of it
    return [] if start <= best else [float(x) for x in np.linspace(start, best, TARGETS + 1)[1:]]


def runtimes(records: Sequence[Record]) -> list[Runtimes]:
    """The distribution of each optimizer over all tasks; runs that failed are no part of it."""
    tasks: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.done:
            tasks.setdefault((record.backend, record.task), []).append(record)
    hits: dict[str, dict[int, list[float]]] = {}
    for own in tasks.values():
        aims = targets(own)
        for record in own:
            of_seed = hits.setdefault(record.method, {}).setdefault(record.seed, [])
            of_seed += [_calls_to(record.curve, target) for target in aims]
    grid = _grid([c for seeds in hits.values() for calls in seeds.values() for c in calls])
    return [_distribution(name, list(seeds.values()), grid) for name, seeds in hits.items()]


def _calls_to(curve: Curve, target: float) -> float:
    calls = curve.calls_to(target)
    return math.inf if calls is None else calls


def _grid(calls: Sequence[float]) -> list[int]:
    """Numbers of calls at which something was reached, thinned out."""
    known = sorted({int(each) for each in calls if math.isfinite(each)})
    chosen = np.linspace(0, len(known) - 1, min(GRID, len(known))).round().astype(int)
    return [known[place] for place in chosen]


def _distribution(optimizer: str, seeds: Sequence[list[float]], grid: list[int]) -> Runtimes:
    """Of the calls to each target, seed after seed."""
    # (seeds, calls) targets that were reached
    reached = np.array([[_within(calls, limit) for limit in grid] for calls in seeds], dtype=float)
    pairs = np.array([len(calls) for calls in seeds], dtype=float)
    low, high = _band(reached, pairs) if len(seeds) > 1 else (None, None)
    return Runtimes(
        optimizer=optimizer,
        pairs=int(pairs.sum()),
        calls=grid,
        share=(reached.sum(axis=0) / max(1.0, pairs.sum())).tolist(),
        low=low,
        high=high,
    )


def _within(calls: Sequence[float], limit: int) -> int:
    return sum(each <= limit for each in calls)


def _band(reached: FloatArray, pairs: FloatArray) -> tuple[list[float], list[float]]:
    """The 2.5th and 97.5th percentile of the share, of (seeds, calls) hits of (seeds,) pairs."""
    drawn = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    shares = reached[drawn].sum(axis=1) / np.maximum(1.0, pairs[drawn].sum(axis=1))[:, None]
    low, high = np.quantile(shares, [0.025, 0.975], axis=0).tolist()
    return low, high
