"""Statistics over the runs of a comparison, computed with pandas, scipy and statsmodels.

A *block* is one task with one seed. In it all optimizers had the same rows, the same subspace and
the same budget, so losses are compared within a block only. A block without a loss of every
optimizer is left out, and counted. None stands for a number that does not exist.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lmaas_tune.lab.record import Number, Record
from lmaas_tune.prompts import FloatArray

ALPHA = 0.05
"""Significance level."""

RESAMPLES = 9999
"""Number of random permutations if there are too many to try all: more than 13 differences."""

DECIMALS = 6
"""Losses that agree in this number of decimals are equal: the rest is rounding of the machine."""

GRID = 120
"""Maximum number of points of a curve."""

Part: TypeAlias = Literal["test", "validation", "train"]

_JUDGES: tuple[Part, ...] = ("test", "validation")


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One optimizer in the ranking.

    Ranks, losses and accuracies are those of the blocks that all optimizers have, so that none
    gains by missing a hard task; without such a block, losses and accuracies are those of all.

    Attributes:
        mean_rank: Over blocks; 1 is the best.
        loss_mean: Mean over tasks of the means over seeds; `accuracy_mean` likewise.
        loss_std: Standard deviation over the seeds of a task, pooled over tasks.
        loss_median: Mean over tasks of the medians over seeds.
        calls_mean: Of the runs that succeeded.
    """

    optimizer: str
    mean_rank: Number
    loss_mean: Number
    loss_std: Number
    loss_median: Number
    accuracy_mean: Number
    accuracy_std: Number
    calls_mean: Number
    runs: int
    stopped_early: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class OnTask:
    """Final loss and accuracy of one optimizer on one task, over its seeds."""

    task: str
    optimizer: str
    runs: int
    loss_mean: Number
    loss_std: Number
    loss_median: Number
    accuracy_mean: Number
    accuracy_std: Number
    accuracy_median: Number


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


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All pairs; `untested` is the reason if there are none."""

    untested: str | None = None
    of: Sequence[Pair] = ()


@dataclass(frozen=True, kw_only=True)
class Significance:
    """Whether the optimizers differ at all (Friedman), and which pairs do (Wilcoxon, Holm).

    `friedman` and `pairs` are over blocks and hold for these tasks; `friedman_over_tasks` is over
    the mean of each task's blocks, and says more about other tasks. A test that could not reach
    `alpha` whatever the losses are is not made.
    """

    blocks: int
    blocks_left_out: int
    optimizers_left_out: Sequence[str]
    alpha: float
    friedman: Friedman
    tasks: int
    friedman_over_tasks: Friedman
    pairs: Pairs


@dataclass(frozen=True, kw_only=True)
class ToTarget:
    """Calls of one optimizer until its training loss reached the target of a task.

    Attributes:
        calls_median: Over all runs, where a run that never reached it counts as later than all
            that did; None if these are half of them or more.
        calls_a_success: All calls until then, divided by the number of runs that reached it (the
            expected running time of COCO, Hansen et al., 2016).
    """

    task: str
    optimizer: str
    target: float
    runs: int
    reached: int
    calls_median: Number
    calls_a_success: Number


@dataclass(frozen=True, kw_only=True)
class Band:
    """Loss against calls of one optimizer on one task: median and quartiles over seeds."""

    task: str
    optimizer: str
    runs: int
    calls: Sequence[int]
    low: Sequence[float]
    median: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds in ask and tell of one optimizer, and in whole runs."""

    optimizer: str
    seconds_per_100_calls: Number
    share_of_search: Number
    seconds_a_run: Number
    wall_seconds_a_run: Number


def judged_on(records: Sequence[Record]) -> Part:
    """The part that final losses are compared on: the first of test, validation and training rows
    that all tasks have."""
    for part in _JUDGES:
        if all(record.rows.get(part) is not None for record in records):
            return part
    return "train"


def frame(records: Sequence[Record], part: Part) -> pd.DataFrame:
    """One line a run; `loss` and `accuracy` are those on `part`, NaN for a failed run."""
    lines = [
        {
            "task": record.task,
            "optimizer": record.method,
            "seed": record.seed,
            "status": record.status,
            "loss": record.loss(part) if record.done else math.nan,
            "accuracy": record.accuracy(part) if record.done else math.nan,
            "calls": record.spent.get("calls", 0),
            "search_seconds": record.spent.get("seconds", 0.0),
            "optimizer_seconds": record.optimizer_seconds,
            "wall_seconds": record.wall_seconds,
        }
        for record in records
    ]
    runs: pd.DataFrame = pd.DataFrame(lines)
    return runs


def blocks(runs: pd.DataFrame) -> pd.DataFrame:
    """(blocks, optimizers) losses of the whole blocks, rounded to `DECIMALS`; an optimizer without
    any loss is left out, so that it does not take all blocks with it."""
    table = runs.pivot(index=["task", "seed"], columns="optimizer", values="loss").round(DECIMALS)
    whole: pd.DataFrame = table.dropna(axis="columns", how="all").dropna(axis="index")
    return whole


def ranking(runs: pd.DataFrame) -> list[Ranked]:
    """One entry an optimizer, best first by mean rank, then by mean loss."""
    table = blocks(runs)
    ranks = table.rank(axis="columns").mean()
    whole = runs.set_index(["task", "seed"]).index.isin(table.index)
    lines = []
    for optimizer, own in runs.groupby("optimizer", sort=False):
        shared = own[whole[own.index]]
        by_task = (shared if len(shared) else own).groupby("task")
        loss, accuracy = by_task["loss"], by_task["accuracy"]
        lines.append(
            Ranked(
                optimizer=str(optimizer),
                mean_rank=_number(ranks.get(optimizer)),
                loss_mean=_number(loss.mean().mean()),
                loss_std=_number(np.sqrt(loss.var().mean())),
                loss_median=_number(loss.median().mean()),
                accuracy_mean=_number(accuracy.mean().mean()),
                accuracy_std=_number(np.sqrt(accuracy.var().mean())),
                calls_mean=_number(own["calls"].where(own["status"] != "failed").mean()),
                runs=len(own),
                stopped_early=int((own["status"] == "stopped early").sum()),
                failed=int((own["status"] == "failed").sum()),
            )
        )
    return sorted(lines, key=lambda line: (_last(line.mean_rank), _last(line.loss_mean)))


def by_task(runs: pd.DataFrame) -> list[OnTask]:
    """One entry for each task and optimizer, a task's lowest mean loss first."""
    lines = []
    for (task, optimizer), own in runs.groupby(["task", "optimizer"], sort=False):
        loss, accuracy = own["loss"], own["accuracy"]
        lines.append(
            OnTask(
                task=str(task),
                optimizer=str(optimizer),
                runs=int(loss.count()),
                loss_mean=_number(loss.mean()),
                loss_std=_number(loss.std()),
                loss_median=_number(loss.median()),
                accuracy_mean=_number(accuracy.mean()),
                accuracy_std=_number(accuracy.std()),
                accuracy_median=_number(accuracy.median()),
            )
        )
    tasks = list(dict.fromkeys(line.task for line in lines))
    return sorted(lines, key=lambda line: (tasks.index(line.task), _last(line.loss_mean)))


def significance(runs: pd.DataFrame) -> Significance:
    """See `Significance`."""
    table = blocks(runs)
    return Significance(
        blocks=len(table),
        blocks_left_out=runs.groupby(["task", "seed"]).ngroups - len(table),
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
        return Friedman(untested="all optimizers came to the same losses")
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
    """Wilcoxon's signed-rank test of every two optimizers over (blocks, optimizers) losses, with
    p-values adjusted by Holm's method."""
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


def common_target(records: Sequence[Record]) -> dict[str, float]:
    """For each task, the lowest training loss that half of its runs reached."""
    lowest: dict[str, list[float]] = {}
    for record in records:
        if record.done:
            lowest.setdefault(record.task, []).append(_lowest(record))
    return {task: float(np.median(losses)) for task, losses in lowest.items()}


def calls_to_target(records: Sequence[Record], targets: Mapping[str, float]) -> list[ToTarget]:
    """One entry for each task and optimizer, a task's soonest first."""
    done = [record for record in records if record.done]
    lines = []
    for task, optimizer in dict.fromkeys((r.task, r.method) for r in done):
        own = [r for r in done if (r.task, r.method) == (task, optimizer)]
        lines.append(_to_target(own, targets[task]))
    tasks = list(dict.fromkeys(record.task for record in done))
    return sorted(lines, key=lambda line: (tasks.index(line.task), _soonest(line)))


def _to_target(records: Sequence[Record], target: float) -> ToTarget:
    reached = [record.curve.calls_to(target) for record in records]
    spent = [
        int(record.spent.get("calls", 0)) if calls is None else calls
        for record, calls in zip(records, reached, strict=True)
    ]
    successes = sum(calls is not None for calls in reached)
    median = np.median([math.inf if calls is None else calls for calls in reached])
    return ToTarget(
        task=records[0].task,
        optimizer=records[0].method,
        target=target,
        runs=len(records),
        reached=successes,
        calls_median=_number(median),
        calls_a_success=sum(spent) / successes if successes else None,
    )


def curves(records: Sequence[Record], what: str) -> list[Band]:
    """Loss against calls; a run that has ended keeps its last loss.

    Args:
        records: The runs; failed ones are left out.
        what: A field of `Curve`.
    """
    known = {record.key: _known(record, what) for record in records if record.done}
    known = {key: curve for key, curve in known.items() if curve}
    lines = []
    for task in dict.fromkeys(task for task, _, _ in known):
        grid = _grid([curve for key, curve in known.items() if key[0] == task])
        for method in dict.fromkeys(key[1] for key in known if key[0] == task):
            own = [_held(curve, grid) for key, curve in known.items() if key[:2] == (task, method)]
            low, median, high = np.quantile(own, [0.25, 0.5, 0.75], axis=0).tolist()
            lines.append(
                Band(
                    task=task,
                    optimizer=method,
                    runs=len(own),
                    calls=grid,
                    low=low,
                    median=median,
                    high=high,
                )
            )
    return lines


def times(runs: pd.DataFrame) -> list[Times]:
    """One entry an optimizer, the fastest first."""
    lines = []
    for optimizer, own in runs[runs["status"] != "failed"].groupby("optimizer", sort=False):
        seconds, calls = own["optimizer_seconds"].sum(), own["calls"].sum()
        lines.append(
            Times(
                optimizer=str(optimizer),
                seconds_per_100_calls=_number(100 * seconds / calls) if calls else None,
                share_of_search=_number(seconds / own["search_seconds"].sum()),
                seconds_a_run=_number(own["optimizer_seconds"].mean()),
                wall_seconds_a_run=_number(own["wall_seconds"].mean()),
            )
        )
    return sorted(lines, key=lambda line: _last(line.seconds_per_100_calls))


def _wilcoxon(a: FloatArray, b: FloatArray) -> float:
    """Over all signs of the differences, or a random part of them: the usual approximation is too
    bold if differences are few or equal."""
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
        f"{count} {of}{'' if count == 1 else 's'} cannot tell: whatever the losses, p would be "
        f"{attainable:.2g} or more{pairs}; add {more}"
    )


def _known(record: Record, what: str) -> dict[int, float]:
    """A curve from calls to losses, where there was one."""
    losses = zip(record.curve.calls, getattr(record.curve, what), strict=True)
    return {calls: loss for calls, loss in losses if loss is not None}


def _grid(curves: Sequence[dict[int, float]]) -> list[int]:
    """Calls at which curves are shown: from where all have begun, at most `GRID` of them."""
    first = max(min(curve) for curve in curves)
    calls = sorted({calls for curve in curves for calls in curve if calls >= first})
    chosen = np.linspace(0, len(calls) - 1, min(GRID, len(calls))).round().astype(int)
    return [calls[i] for i in chosen]


def _held(curve: dict[int, float], grid: Sequence[int]) -> FloatArray:
    """(grid,) a curve's losses, each held until the next."""
    places = np.searchsorted(list(curve), grid, side="right") - 1
    return np.array(list(curve.values()))[places]


def _lowest(record: Record) -> float:
    known = [loss for loss in record.curve.lowest_loss if loss is not None]
    return known[-1] if known else math.inf


def _soonest(line: ToTarget) -> tuple[float, float]:
    """Sorts by the calls a success, then by the share of runs that reached the target."""
    return _last(line.calls_a_success), -line.reached / line.runs


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _last(value: float | None) -> float:
    return math.inf if value is None else value
