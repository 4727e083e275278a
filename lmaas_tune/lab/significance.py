"""Tests of the differences between optimizers, by scipy and statsmodels.

They compare losses within blocks, see `lmaas_tune.lab.analysis`. None stands for a number that does
not exist.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lmaas_tune.lab.record import Number
from lmaas_tune.prompts import FloatArray
from lmaas_tune.reprs import short_repr

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
"""Significance level."""

DECIMALS = 6
"""Losses that agree in this number of decimals are equal: the rest is rounding of the machine."""

BLOCK = ["backend", "task", "seed"]
"""Columns that name a block."""

RESAMPLES = 9999
"""Number of random permutations if there are too many to try all: more than 13 differences."""


@dataclass(frozen=True, kw_only=True)
class Friedman:
    """Friedman's test; `untested` is the reason if it was not made."""

    statistic: Number = None
    p: Number = None
    untested: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Wilcoxon's test of two optimizers.

    Attributes:
        first_better: Number of blocks in which the first has the lower loss.
        median_difference: Of the first's loss minus the second's.
        p_holm: p adjusted by Holm's method for the number of pairs.
        differ: Whether it is at most `ALPHA`.
    """

    first: str
    second: str
    first_better: int
    ties: int
    median_difference: float
    p: float
    p_holm: float
    differ: bool

    __repr__ = short_repr


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All pairs; `untested` is the reason if there are none."""

    untested: str | None = None
    of: Sequence[Pair] = ()

    __repr__ = short_repr

    @property
    def alike(self) -> list[set[str]]:
        """The largest sets of two or more optimizers of which no two differ; none if untested."""
        names = {name for pair in self.of for name in (pair.first, pair.second)}
        near: dict[str, set[str]] = {name: set() for name in names}
        for pair in self.of:
            if not pair.differ:
                near[pair.first].add(pair.second)
                near[pair.second].add(pair.first)
        return [found for found in _cliques(near, set(), set(near), set()) if len(found) > 1]


@dataclass(frozen=True, kw_only=True)
class Significance:
    """Whether the optimizers differ at all (Friedman), and which pairs do (Wilcoxon, Holm).

    `friedman` and `pairs` are over blocks and hold for these tasks; `friedman_over_tasks` is over
    the mean of each task's blocks, and says more about other tasks. A test that could not reach
    `alpha` with any losses is not made.
    """

    blocks: int
    blocks_left_out: int
    optimizers_left_out: Sequence[str]
    alpha: float
    friedman: Friedman
    tasks: int
    friedman_over_tasks: Friedman
    pairs: Pairs

    __repr__ = short_repr


def blocks(runs: pd.DataFrame) -> pd.DataFrame:
    """(blocks, optimizers) losses of the whole blocks, rounded to `DECIMALS`.

    An optimizer without any loss is left out; else no block would be whole.
    """
    table = runs.pivot(index=BLOCK, columns="optimizer", values="loss").round(DECIMALS)
    whole: pd.DataFrame = table.dropna(axis="columns", how="all").dropna(axis="index")
    return whole


def significance(runs: pd.DataFrame) -> Significance:
    """See `Significance`."""
    table = blocks(runs)
    return Significance(
        blocks=len(table),
        blocks_left_out=runs.groupby(BLOCK).ngroups - len(table),
        optimizers_left_out=sorted(set(runs["optimizer"]) - set(table.columns)),
        alpha=ALPHA,
        friedman=friedman(table),
        tasks=table.index.get_level_values("task").nunique(),
        friedman_over_tasks=friedman(table.groupby(level="task").mean(), of="task"),
        pairs=pairs(table),
    )


_NO_BLOCK = "not one {} has a loss of every optimizer"


def friedman(table: pd.DataFrame, of: str = "block") -> Friedman:
    """Friedman's test over (blocks, optimizers) losses.

    The p-value comes from permuting each block, in all ways or 9,999 at random: the usual
    chi-squared one is good for more than 10 blocks and more than 6 optimizers only (scipy).

    Args:
        table: The losses.
        of: The name of a row.
    """
    count, optimizers = table.shape
    if optimizers < 3:
        return Friedman(untested="Friedman's test needs three optimizers or more")
    if count == 0:
        return Friedman(untested=_NO_BLOCK.format(of))
    # the most extreme outcome, all blocks alike, comes in k! of the (k!)^blocks arrangements
    attainable = math.factorial(optimizers) ** float(1 - count)
    if attainable > ALPHA:
        return Friedman(untested=_too_few(count, attainable, of=of))
    ranks = table.rank(axis="columns").to_numpy()
    if (ranks == ranks[:, :1]).all():
        return Friedman(untested="all optimizers have the same losses")
    result = stats.permutation_test(
        ranks.T,
        _rank_sums_spread,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    statistic = float(stats.friedmanchisquare(*table.to_numpy().T).statistic)
    return Friedman(statistic=statistic, p=float(result.pvalue))


def pairs(table: pd.DataFrame) -> Pairs:
    """Wilcoxon's test of every two optimizers over (blocks, optimizers) losses, after Holm."""
    count, optimizers = table.shape
    if optimizers < 2:
        return Pairs(untested="there are no two optimizers to compare")
    if count == 0:
        return Pairs(untested=_NO_BLOCK.format("block"))
    couples = list(itertools.combinations(table.mean().sort_values().index, 2))
    # the most extreme outcome, one better in all blocks, has 2 of the 2^blocks signs
    attainable = min(1.0, len(couples) * 2.0 ** (1 - count))
    if attainable > ALPHA:
        return Pairs(untested=_too_few(count, attainable, len(couples)))
    raw = [_wilcoxon(table[a].to_numpy(), table[b].to_numpy()) for a, b in couples]
    adjusted = np.asarray(multipletests(raw, alpha=ALPHA, method="holm")[1])
    return Pairs(
        of=[
            Pair(
                first=a,
                second=b,
                first_better=int((table[a] < table[b]).sum()),
                ties=int((table[a] == table[b]).sum()),
                median_difference=float((table[a] - table[b]).median()),
                p=float(p),
                p_holm=float(p_holm),
                differ=bool(p_holm <= ALPHA),
            )
            for (a, b), p, p_holm in zip(couples, raw, adjusted, strict=True)
        ]
    )


def _cliques(
    near: Mapping[str, set[str]], own: set[str], more: set[str], done: set[str]
) -> Iterator[set[str]]:
    """The largest sets that hold `own` and any of `more`, but could hold none of `done`.

    Bron and Kerbosch, "Finding all cliques of an undirected graph", 1973.
    """
    if not more and not done:
        yield own
    for name in sorted(more):
        yield from _cliques(near, own | {name}, more & near[name], done & near[name])
        more, done = more - {name}, done | {name}


def _wilcoxon(a: FloatArray, b: FloatArray) -> float:
    """The p-value over all signs of the differences, or a random part of them.

    The usual approximation is too small if differences are few or equal.
    """
    differences = (a - b)[a != b]
    if not len(differences):
        return 1.0
    method: Any = stats.PermutationMethod(n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    test: Any = stats.wilcoxon(np.round(differences, DECIMALS), method=method)
    return float(test.pvalue)


def _rank_sums_spread(*ranks: FloatArray, axis: int) -> Any:
    """Rises with Friedman's statistic, which is all that a permutation test needs."""
    return sum((own.sum(axis=axis) ** 2 for own in ranks), np.float64(0.0))


def _too_few(count: int, attainable: float, tests: int = 1, *, of: str = "block") -> str:
    pairs = f" (Holm's method, {tests} pairs)" if tests > 1 else ""
    more = "seeds or tasks" if of == "block" else "tasks"
    return (
        f"{count} {of}{' is' if count == 1 else 's are'} too few: with any losses, p would be "
        f"{attainable:.2g} or more{pairs}; add {more}"
    )
