"""Statistics over the runs of a comparison, as pandas frames.

A *block* is one task with one seed. In it all optimizers had the same rows, the same subspace and
the same budget, so losses are compared within a block only. A block without a loss of every
optimizer is left out, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from lmaas_tune.lab.record import Record
from lmaas_tune.prompts import FloatArray

DECIMALS = 6
"""Losses that agree in this number of decimals are equal: the rest is rounding of the machine."""

GRID = 120
"""Maximum number of points of a curve."""

Part: TypeAlias = Literal["test", "validation", "train"]

_JUDGES: tuple[Part, ...] = ("test", "validation")


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


def judged_on(records: Sequence[Record]) -> Part:
    """Rows of the final losses: the first of test, validation and train that all tasks have."""
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
    """(blocks, optimizers) losses of the whole blocks, rounded to `DECIMALS`.

    An optimizer without any loss is left out; else no block would be whole.
    """
    table = runs.pivot(index=["task", "seed"], columns="optimizer", values="loss").round(DECIMALS)
    whole: pd.DataFrame = table.dropna(axis="columns", how="all").dropna(axis="index")
    return whole


def ranking(runs: pd.DataFrame) -> pd.DataFrame:
    """One line an optimizer, best first by mean rank, then by mean loss.

    Ranks, losses and accuracies are those of the blocks that all optimizers have, so that none
    gains by missing a hard task; an optimizer without such a block has losses and accuracies of
    all its runs.

    Returns:
        `mean_rank` over blocks; `loss_mean` and `accuracy_mean`, means over tasks of the means over
        seeds; `loss_std` and `accuracy_std`, pooled over tasks; `loss_median`, the mean over tasks
        of the medians; `calls_mean` of the runs that succeeded; `runs`, `stopped_early`, `failed`.
    """
    table = blocks(runs)
    in_whole = runs.set_index(["task", "seed"]).index.isin(table.index)
    shared = runs[in_whole | ~runs["optimizer"].isin(runs["optimizer"][in_whole])]
    by_task = shared.groupby(["optimizer", "task"])[["loss", "accuracy"]]
    mean, median = (own.groupby("optimizer").mean() for own in (by_task.mean(), by_task.median()))
    std = np.sqrt(by_task.var().groupby("optimizer").mean())
    own, status = runs.groupby("optimizer"), runs["status"]
    found = pd.DataFrame(
        {
            "mean_rank": table.rank(axis="columns").mean(),
            "loss_mean": mean["loss"],
            "loss_std": std["loss"],
            "loss_median": median["loss"],
            "accuracy_mean": mean["accuracy"],
            "accuracy_std": std["accuracy"],
            "calls_mean": runs[status != "failed"].groupby("optimizer")["calls"].mean(),
            "runs": own.size(),
            "stopped_early": own["status"].agg(lambda status: (status == "stopped early").sum()),
            "failed": own["status"].agg(lambda status: (status == "failed").sum()),
        },
        index=pd.Index(runs["optimizer"].unique(), name="optimizer"),
    )
    return _sorted(found.reset_index(), ["mean_rank", "loss_mean"])


def by_task(runs: pd.DataFrame) -> pd.DataFrame:
    """One line for each task and optimizer, a task's lowest mean loss first.

    Returns:
        `runs` with a loss; mean, std and median over seeds of `loss` and `accuracy`.
    """
    grouped = runs.groupby(["task", "optimizer"], sort=False)
    found = grouped[["loss", "accuracy"]].agg(["mean", "std", "median"])
    found.columns = ["_".join(names) for names in found.columns]
    found.insert(0, "runs", grouped["loss"].count())
    return _by_task_and(["loss_mean"], found.reset_index())


def common_target(records: Sequence[Record]) -> dict[str, float]:
    """For each task, the lowest training loss that half of its runs reached."""
    lowest: dict[str, list[float]] = {}
    for record in records:
        if record.done:
            lowest.setdefault(record.task, []).append(_lowest(record))
    return {task: float(np.median(losses)) for task, losses in lowest.items()}


def calls_to_target(records: Sequence[Record], targets: Mapping[str, float]) -> pd.DataFrame:
    """How soon the training loss reached the target of its task.

    Returns:
        One line for each task and optimizer, a task's soonest first: `target`, `runs`, those that
        `reached` it, `calls_median` over all runs, where one that never reached it counts as later
        than all that did (NaN if these are half of them or more), and `calls_a_success`, all calls
        until then divided by `reached` (the expected running time of COCO, Hansen et al., 2016).
    """
    done = [record for record in records if record.done]
    calls = [record.curve.calls_to(targets[record.task]) for record in done]
    runs = pd.DataFrame(
        {
            "task": [record.task for record in done],
            "optimizer": [record.method for record in done],
            "target": [targets[record.task] for record in done],
            "calls": [math.inf if own is None else own for own in calls],
            "spent": [record.spent.get("calls", 0) for record in done],
        }
    )
    grouped = runs.groupby(["task", "optimizer"], sort=False)
    found = grouped.agg(
        target=("target", "first"), runs=("calls", "size"), calls_median=("calls", "median")
    )
    found.insert(2, "reached", grouped["calls"].agg(lambda own: np.isfinite(own).sum()))
    runs["until"] = runs["calls"].where(np.isfinite(runs["calls"]), runs["spent"])
    until = runs.groupby(["task", "optimizer"], sort=False)["until"].sum()
    found["calls_a_success"] = until / found["reached"]
    found["missed"] = 1 - found["reached"] / found["runs"]
    found = _by_task_and(["calls_a_success", "missed"], found.reset_index())
    finite: pd.DataFrame = found.drop(columns="missed").replace(math.inf, math.nan)
    return finite


def _by_task_and(columns: Sequence[str], lines: pd.DataFrame) -> pd.DataFrame:
    """Lines sorted by columns within each task; the tasks in the order of their first lines."""
    order = {task: place for place, task in enumerate(lines["task"].unique())}
    lines = lines.assign(task_order=lines["task"].map(order))
    found: pd.DataFrame = _sorted(lines, ["task_order", *columns]).drop(columns="task_order")
    return found


def _sorted(lines: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    found: pd.DataFrame = lines.sort_values(by, kind="stable", ignore_index=True)
    return found


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


def times(runs: pd.DataFrame) -> pd.DataFrame:
    """Seconds in ask and tell, and in whole runs; one line an optimizer, the fastest first."""
    done = runs[runs["status"] != "failed"].groupby("optimizer", sort=False)
    seconds = done["optimizer_seconds"].sum()
    found = pd.DataFrame(
        {
            "seconds_per_100_calls": 100 * seconds / done["calls"].sum(),
            "share_of_search": seconds / done["search_seconds"].sum(),
            "seconds_a_run": done["optimizer_seconds"].mean(),
            "wall_seconds_a_run": done["wall_seconds"].mean(),
        }
    )
    finite = found.reset_index().replace(math.inf, math.nan)
    return _sorted(finite, ["seconds_per_100_calls"])


def plain(lines: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame as plain values, with None for NaN."""
    records = lines.astype(object).where(lines.notna(), None).to_dict(orient="records")
    return [{str(name): value for name, value in record.items()} for record in records]


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
