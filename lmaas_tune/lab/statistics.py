"""What runs say together: by pandas, scipy and statsmodels.

A *block* is one task with one seed, where all optimizers had the same rows, the same subspace and
the same budget: only within a block are losses compared. Blocks that lack an optimizer's loss are
left out, and counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lmaas_tune.lab.record import Record
from lmaas_tune.prompts import FloatArray

ALPHA = 0.05
"""Level at which differences are told apart."""

RESAMPLES = 9999
"""Permutations drawn where there are too many to try them all: more than 13 differences."""

DECIMALS = 6
"""Losses that agree in so many are equal: what is left is the rounding of the machine."""

GRID = 120
"""The most points of a curve."""

Row: TypeAlias = dict[str, Any]
Rows: TypeAlias = Literal["test", "validation", "train"]

_JUDGES: tuple[Rows, ...] = ("test", "validation")


def judged_on(records: Sequence[Record]) -> Rows:
    """The rows that final losses are compared on: the first of test, validation and training
    rows that all tasks have."""
    for part in _JUDGES:
        if all(record.rows.get(part) is not None for record in records):
            return part
    return "train"


def frame(records: Sequence[Record], rows: Rows) -> pd.DataFrame:
    """One line a run; `loss` and `accuracy` are those on `rows`, NaN for a failed run."""
    lines = [
        {
            "task": record.task,
            "optimizer": record.optimizer,
            "seed": record.seed,
            "status": record.status,
            "loss": record.loss(rows) if record.done else math.nan,
            "accuracy": record.accuracy(rows) if record.done else math.nan,
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
    """Losses by block and optimizer, rounded to `DECIMALS`, of those blocks that have all; an
    optimizer without one loss is left out, so that it does not take all blocks with it."""
    table = runs.pivot(index=["task", "seed"], columns="optimizer", values="loss").round(DECIMALS)
    whole: pd.DataFrame = table.dropna(axis="columns", how="all").dropna(axis="index")
    return whole


def ranking(runs: pd.DataFrame) -> list[Row]:
    """One line an optimizer, best first by mean rank, then by mean loss.

    `loss_mean` and `accuracy_mean` are means over tasks of the means over seeds; `loss_std` is
    the standard deviation over the seeds of a task, pooled over tasks; None with one seed. Ranks,
    losses and accuracies are those of the blocks that all optimizers have, so that none is better
    for a hard task that it lacks; where there is no such block, losses and accuracies of all.
    """
    table = blocks(runs)
    ranks = table.rank(axis="columns").mean()
    whole = runs.set_index(["task", "seed"]).index.isin(table.index)
    lines = []
    for optimizer, own in runs.groupby("optimizer", sort=False):
        shared = own[whole[own.index]]
        by_task = (shared if len(shared) else own).groupby("task")
        lines.append(
            {
                "optimizer": optimizer,
                "mean_rank": _number(ranks.get(optimizer)),
                "loss_mean": _number(by_task["loss"].mean().mean()),
                "loss_std": _number(np.sqrt(by_task["loss"].var().mean())),
                "loss_median": _number(by_task["loss"].median().mean()),
                "accuracy_mean": _number(by_task["accuracy"].mean().mean()),
                "accuracy_std": _number(np.sqrt(by_task["accuracy"].var().mean())),
                "calls_mean": _number(own["calls"].where(own["status"] != "failed").mean()),
                "runs": len(own),
                "stopped_early": int((own["status"] == "stopped early").sum()),
                "failed": int((own["status"] == "failed").sum()),
            }
        )
    return sorted(lines, key=lambda line: (_last(line["mean_rank"]), _last(line["loss_mean"])))


def by_task(runs: pd.DataFrame) -> list[Row]:
    """Final loss and accuracy of each optimizer on each task, best mean loss first."""
    lines = []
    for (task, optimizer), own in runs.groupby(["task", "optimizer"], sort=False):
        line: Row = {"task": task, "optimizer": optimizer, "runs": int(own["loss"].count())}
        for what in ("loss", "accuracy"):
            values = own[what]
            line |= {
                f"{what}_mean": _number(values.mean()),
                f"{what}_std": _number(values.std()),
                f"{what}_median": _number(values.median()),
            }
        lines.append(line)
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    return sorted(lines, key=lambda line: (tasks.index(line["task"]), _last(line["loss_mean"])))


def significance(runs: pd.DataFrame) -> Row:
    """Whether the optimizers differ at all (Friedman), and which pairs do (Wilcoxon, Holm).

    `friedman` and `pairs` are over the blocks, and tell of these tasks. `friedman_over_tasks` is
    over the mean of each task's blocks, and tells more of other tasks.

    What could not come out below 0.05 whatever the losses were is not tested; a sentence says so.
    """
    table = blocks(runs)
    everybody = runs.groupby(["task", "seed"]).ngroups
    return {
        "blocks": len(table),
        "blocks_left_out": everybody - len(table),
        "optimizers_left_out": sorted(set(runs["optimizer"]) - set(table.columns)),
        "alpha": ALPHA,
        "friedman": friedman(table),
        "tasks": table.index.get_level_values("task").nunique(),
        "friedman_over_tasks": friedman(table.groupby(level="task").mean(), of="task"),
        "pairs": pairs(table),
    }


_NO_BLOCK = "not one {} has a loss of every optimizer"


def friedman(table: pd.DataFrame, of: str = "block") -> Row:
    """Friedman's test over (blocks, optimizers) losses.

    The p-value is that of permuting each block, all ways or 9,999 at random: the usual
    chi-squared one is only good for more than 10 blocks and more than 6 optimizers (scipy).

    Args:
        table: The losses.
        of: What a row is called.
    """
    count, optimizers = table.shape
    if optimizers < 3:
        return _untested("Friedman's test needs three optimizers or more")
    if count == 0:
        return _untested(_NO_BLOCK.format(of))
    # the most extreme outcome, all blocks alike, comes in k! of the (k!)^blocks arrangements
    attainable = math.factorial(optimizers) ** float(1 - count)
    if attainable > ALPHA:
        return _untested(_too_few(count, attainable, of=of))
    ranks = table.rank(axis="columns").to_numpy()
    if (ranks == ranks[:, :1]).all():
        return _untested("all optimizers came to the same losses")
    result = stats.permutation_test(
        ranks.T,
        _rank_sums_spread,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return {
        "statistic": float(stats.friedmanchisquare(*table.to_numpy().T).statistic),
        "p": float(result.pvalue),
        "untested": None,
    }


def pairs(table: pd.DataFrame) -> Row:
    """Wilcoxon's signed-rank test of every two optimizers over (blocks, optimizers) losses, the
    p-values adjusted by Holm's method for how many they are."""
    count, optimizers = table.shape
    if optimizers < 2:
        return {**_untested("there are no two optimizers to compare"), "of": []}
    if count == 0:
        return {**_untested(_NO_BLOCK.format("block")), "of": []}
    couples = list(itertools.combinations(table.mean().sort_values().index, 2))
    # the most extreme outcome, one better in all blocks, has 2 of the 2^blocks signs
    attainable = min(1.0, len(couples) * 2.0 ** (1 - count))
    if attainable > ALPHA:
        return {**_untested(_too_few(count, attainable, len(couples))), "of": []}
    raw = [_wilcoxon(table[a].to_numpy(), table[b].to_numpy()) for a, b in couples]
    adjusted = np.asarray(multipletests(raw, alpha=ALPHA, method="holm")[1])
    of = [
        {
            "first": a,
            "second": b,
            "first_better": int((table[a] < table[b]).sum()),
            "ties": int((table[a] == table[b]).sum()),
            "median_difference": float((table[a] - table[b]).median()),
            "p": float(p),
            "p_holm": float(p_holm),
            "differ": bool(p_holm <= ALPHA),
        }
        for (a, b), p, p_holm in zip(couples, raw, adjusted, strict=True)
    ]
    return {"untested": None, "of": of}


def common_target(records: Sequence[Record]) -> dict[str, float]:
    """For each task, the lowest training loss that half of its runs reached."""
    lowest: dict[str, list[float]] = {}
    for record in records:
        if record.done:
            lowest.setdefault(record.task, []).append(_lowest(record))
    return {task: float(np.median(losses)) for task, losses in lowest.items()}


def calls_to_target(records: Sequence[Record], targets: Mapping[str, float]) -> list[Row]:
    """How soon each optimizer's training loss came to the target of its task.

    Each task's best comes first. `calls_median` is over all runs, where one that never came there
    counts as later than all that did; None if that is half of them or more. `calls_a_success` is
    all calls spent until then divided by the runs that succeeded (the expected running time of
    COCO, Hansen et al., 2016).
    """
    lines = []
    done = [record for record in records if record.done]
    for task, optimizer in dict.fromkeys((r.task, r.optimizer) for r in done):
        own = [r for r in done if (r.task, r.optimizer) == (task, optimizer)]
        reached = [r.curve.calls_to(targets[task]) for r in own]
        spent = [
            int(record.spent["calls"]) if calls is None else calls
            for record, calls in zip(own, reached, strict=True)
        ]
        successes = sum(calls is not None for calls in reached)
        median = np.median([math.inf if calls is None else calls for calls in reached])
        lines.append(
            {
                "task": task,
                "optimizer": optimizer,
                "target": targets[task],
                "runs": len(own),
                "reached": successes,
                "calls_median": _number(median),
                "calls_a_success": sum(spent) / successes if successes else None,
            }
        )
    tasks = list(dict.fromkeys(record.task for record in done))
    return sorted(lines, key=lambda line: (tasks.index(line["task"]), _soonest(line)))


def curves(records: Sequence[Record], what: str) -> list[Row]:
    """Loss against calls: for each task and optimizer the median over seeds and the quartiles.

    A run that has ended keeps its last loss.

    Args:
        records: The runs; failed ones are left out.
        what: A field of `Curve`.
    """
    told = {record.key: _known(record, what) for record in records if record.done}
    told = {key: curve for key, curve in told.items() if curve}
    lines = []
    for task in dict.fromkeys(task for task, _, _ in told):
        grid = _grid([curve for key, curve in told.items() if key[0] == task])
        for optimizer in dict.fromkeys(key[1] for key in told if key[0] == task):
            own = [
                _held(curve, grid) for key, curve in told.items() if key[:2] == (task, optimizer)
            ]
            low, median, high = np.quantile(own, [0.25, 0.5, 0.75], axis=0).tolist()
            lines.append(
                {
                    "task": task,
                    "optimizer": optimizer,
                    "runs": len(own),
                    "calls": grid,
                    "low": low,
                    "median": median,
                    "high": high,
                }
            )
    return lines


def times(runs: pd.DataFrame) -> list[Row]:
    """Seconds that each optimizer took to ask and tell, and that its runs took."""
    lines = []
    for optimizer, own in runs[runs["status"] != "failed"].groupby("optimizer", sort=False):
        seconds, calls = own["optimizer_seconds"].sum(), own["calls"].sum()
        lines.append(
            {
                "optimizer": optimizer,
                "seconds_per_100_calls": _number(100 * seconds / calls) if calls else None,
                "share_of_search": _number(seconds / own["search_seconds"].sum()),
                "seconds_a_run": _number(own["optimizer_seconds"].mean()),
                "wall_seconds_a_run": _number(own["wall_seconds"].mean()),
            }
        )
    return sorted(lines, key=lambda line: _last(line["seconds_per_100_calls"]))


def _wilcoxon(a: FloatArray, b: FloatArray) -> float:
    """By all signs of the differences that there are, or so many drawn: the usual approximation
    is too bold where differences are few or equal."""
    differences = (a - b)[a != b]
    if not len(differences):
        return 1.0
    method: Any = stats.PermutationMethod(n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    test: Any = stats.wilcoxon(np.round(differences, DECIMALS), method=method)
    return float(test.pvalue)


def _rank_sums_spread(*ranks: FloatArray, axis: int) -> Any:
    """Rises with Friedman's statistic, and has no other use."""
    return sum((own.sum(axis=axis) ** 2 for own in ranks), np.float64(0.0))


def _too_few(count: int, attainable: float, tests: int = 1, *, of: str = "block") -> str:
    pairs = f" (Holm's method, {tests} pairs)" if tests > 1 else ""
    more = "seeds or tasks" if of == "block" else "tasks"
    return (
        f"{count} {of}{'' if count == 1 else 's'} cannot tell: whatever the losses, p would be "
        f"{attainable:.2g} or more{pairs}; add {more}"
    )


def _untested(why: str) -> Row:
    return {"statistic": None, "p": None, "untested": why}


def _known(record: Record, what: str) -> dict[int, float]:
    """A curve from calls to losses, where there was one."""
    losses = zip(record.curve.calls, getattr(record.curve, what), strict=True)
    return {calls: loss for calls, loss in losses if loss is not None}


def _grid(told: Sequence[dict[int, float]]) -> list[int]:
    """Calls at which curves are shown: from where all have begun, at most `GRID` of them."""
    first = max(min(curve) for curve in told)
    calls = sorted({calls for curve in told for calls in curve if calls >= first})
    chosen = np.linspace(0, len(calls) - 1, min(GRID, len(calls))).round().astype(int)
    return [calls[i] for i in chosen]


def _held(curve: dict[int, float], grid: Sequence[int]) -> FloatArray:
    """(grid,) a curve's losses, each held until the next."""
    places = np.searchsorted(list(curve), grid, side="right") - 1
    return np.array(list(curve.values()))[places]


def _lowest(record: Record) -> float:
    known = [loss for loss in record.curve.lowest_loss if loss is not None]
    return known[-1] if known else math.inf


def _soonest(line: Row) -> tuple[float, float]:
    """Sorts by the calls a success, then by the share of runs that reached the target."""
    return _last(line["calls_a_success"]), -line["reached"] / line["runs"]


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _last(value: float | None) -> float:
    return math.inf if value is None else value
