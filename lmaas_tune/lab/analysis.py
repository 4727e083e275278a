"""The runs of a comparison and their statistics, as pandas frames that are computed when used.

A *block* is one task with one seed, on one backend. In it all optimizers had the same rows, the
same subspace and the same budget, so losses are compared within a block only. A block without a
loss of every optimizer is left out, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from lmaas_tune.errors import InputError
from lmaas_tune.lab.costs import costs, unit_of
from lmaas_tune.lab.intervals import intervals
from lmaas_tune.lab.record import Curve, Record
from lmaas_tune.lab.runtimes import Runtimes, runtimes
from lmaas_tune.lab.significance import BLOCK, Significance, blocks, significance
from lmaas_tune.lab.verdict import NO_RANKING, verdict

GRID = 120
"""Maximum number of points of a curve."""

_TASK = ["backend", "task"]
"""Columns that name one task."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """Loss against calls of one optimizer on one task: median and quartiles over seeds."""

    backend: str
    task: str
    optimizer: str
    runs: int
    calls: Sequence[int]
    low: Sequence[float]
    median: Sequence[float]
    high: Sequence[float]


def check_target(target: float | None) -> None:
    """Check that a loss can reach the target.

    Raises:
        InputError: It is not finite.
    """
    if target is not None and not math.isfinite(target):
        raise InputError(f"target={target}: it takes a finite loss")


@dataclass(frozen=True, eq=False)
class Analysis:
    """The runs of a comparison with their statistics.

    Attributes:
        records: Its runs, failed ones included.
        target: Training loss for `calls_to_target`; None takes, for each task, the loss that half
            of its runs reached.

    Raises:
        InputError: No run succeeded.
    """

    records: Sequence[Record] = field(repr=False)
    target: float | None = None

    def __post_init__(self) -> None:
        check_target(self.target)
        if not self._done:
            raise InputError(
                f"not one of {len(self.records)} runs succeeded, so there is nothing to compare; "
                f"the first says: {self.records[0].reason}"
            )

    @cached_property
    def _done(self) -> list[Record]:
        return [record for record in self.records if record.done]

    @property
    def failed(self) -> list[Record]:
        """The runs that failed."""
        return [record for record in self.records if not record.done]

    @property
    def stopped_early(self) -> list[Record]:
        """The runs that the rule for early stopping ended."""
        return [record for record in self.records if record.status == "stopped early"]

    @property
    def backends(self) -> list[str]:
        """The labels of several backends; empty if there is one without a label."""
        return [name for name in dict.fromkeys(record.backend for record in self.records) if name]

    @property
    def commands(self) -> list[str]:
        """The command lines that repeat the comparison; empty if it was made from Python."""
        return [text for text in dict.fromkeys(record.command for record in self.records) if text]

    @cached_property
    def judged_on(self) -> str:
        """Rows of the final losses: the first of test, validation and train that all tasks have."""
        for part in ("test", "validation"):
            if all(record.rows.get(part) is not None for record in self.records):
                return part
        return "train"

    @property
    def loss_name(self) -> str:
        """The loss on these rows: the cross-entropy on test rows, else the search's objective."""
        if self.judged_on == "test":
            return "cross-entropy"
        return str(self.records[0].conditions.get("objective", "loss")).replace("_", " ")

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line a run; `loss` and `accuracy` are those that count, NaN for a failed run."""
        part = self.judged_on
        lines = [
            {
                "backend": record.backend,
                "task": record.task,
                "optimizer": record.method,
                "seed": record.seed,
                "status": record.status,
                "loss": record.loss(part) if record.done else math.nan,
                "accuracy": record.accuracy(part) if record.done else math.nan,
                "calls": record.spent.get("calls", 0),
                "tokens": record.spent.get("tokens", 0),
                "money": record.spent.get("money", 0.0),
                "search_seconds": record.spent.get("seconds", 0.0),
                "optimizer_seconds": record.optimizer_seconds,
                "wall_seconds": record.wall_seconds,
            }
            for record in self.records
        ]
        runs: pd.DataFrame = pd.DataFrame(lines)
        return runs

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """One line an optimizer, best first by mean rank, then by mean loss.

        Ranks, losses and accuracies are those of the blocks that all optimizers have, so that none
        gains by missing a hard task; an optimizer without such a block has losses and accuracies of
        all its runs.

        `mean_rank` is over blocks; `loss_mean` and `accuracy_mean` are means over tasks of the
        means over seeds; `loss_std` and `accuracy_std` are pooled over tasks; `loss_median` is the
        mean over tasks of the medians; `calls_mean` is that of the runs that succeeded. `rank_low`
        and `rank_high`, and those of loss and accuracy, are 95% intervals of these means, see
        `lmaas_tune.lab.intervals`. A task on another backend counts as another task.
        """
        runs = self.frame
        table = blocks(runs)
        in_whole = runs.set_index(BLOCK).index.isin(table.index)
        shared = runs[in_whole | ~runs["optimizer"].isin(runs["optimizer"][in_whole])]
        by_task = shared.groupby(["optimizer", *_TASK])[["loss", "accuracy"]]
        mean, median = (of.groupby("optimizer").mean() for of in (by_task.mean(), by_task.median()))
        std = np.sqrt(by_task.var().groupby("optimizer").mean())
        own, status = runs.groupby("optimizer"), runs.groupby("optimizer")["status"]
        ranks = table.rank(axis="columns")
        found = pd.DataFrame(
            {
                "mean_rank": ranks.mean(),
                "loss_mean": mean["loss"],
                "loss_std": std["loss"],
                "loss_median": median["loss"],
                "accuracy_mean": mean["accuracy"],
                "accuracy_std": std["accuracy"],
                "calls_mean": runs[runs["status"] != "failed"].groupby("optimizer")["calls"].mean(),
                "runs": own.size(),
                "stopped_early": status.agg(lambda status: (status == "stopped early").sum()),
                "failed": status.agg(lambda status: (status == "failed").sum()),
            },
            index=pd.Index(runs["optimizer"].unique(), name="optimizer"),
        )
        found = found.join(_intervals(shared, ["optimizer"]))
        if len(ranks):
            lines = ranks.melt(ignore_index=False, value_name="rank").reset_index()
            bounds = intervals(lines, "rank", of=["optimizer"], strata=_TASK, weigh_runs=True)
            found = found.join(bounds.clip(1.0, len(ranks.columns)))
        else:
            found[["rank_low", "rank_high"]] = math.nan
        return _sorted(found, "mean_rank", "loss_mean")

    @cached_property
    def by_task(self) -> pd.DataFrame:
        """One line for each task (on each backend) and optimizer, a task's lowest mean loss first.

        It has the number of `runs` with a loss; mean, std and median over seeds of `loss` and
        `accuracy`; and Student's 95% interval of each mean, as `loss_low` and `loss_high`.
        """
        line = [*_TASK, "optimizer"]
        grouped = self.frame.groupby(line, sort=False)
        found = grouped[["loss", "accuracy"]].agg(["mean", "std", "median"])
        found.columns = ["_".join(names) for names in found.columns]
        found.insert(0, "runs", grouped["loss"].count())
        return _sorted(found.join(_intervals(self.frame, line)), *_TASK, "loss_mean")

    @cached_property
    def costs(self) -> pd.DataFrame:
        """Accuracy against cost, one line a backend and optimizer, see `lmaas_tune.lab.costs`."""
        return costs(self.frame[self.frame["status"] != "failed"])

    @property
    def cost_unit(self) -> str:
        """What the costs are compared in: money; tokens if a backend has no price; or calls."""
        return unit_of(self.frame[self.frame["status"] != "failed"])

    @cached_property
    def runtimes(self) -> list[Runtimes]:
        """The share of targets reached against calls, see `lmaas_tune.lab.runtimes`."""
        return runtimes(self.records)

    @property
    def caution(self) -> str:
        """Begins with "No ranking: one seed." if all runs have the same seed; else empty."""
        return NO_RANKING if len({record.seed for record in self.records}) == 1 else ""

    @property
    def verdict(self) -> str:
        """What the ranking and its tests say, in one or two sentences after the caution."""
        return f"{self.caution} {verdict(self.ranking, self.tests)}".lstrip()

    @cached_property
    def tests(self) -> Significance:
        """Friedman's and Wilcoxon's tests, or the reasons why they were not made."""
        return significance(self.frame)

    @cached_property
    def calls_to_target(self) -> pd.DataFrame:
        """How soon the training loss reached the target of its task.

        One line for each task (on each backend) and optimizer, a task's soonest first: `target`,
        `runs`, those that `reached` it, `calls_median` over all runs, where one that never reached
        it counts as later than all that did (NaN if these are half of them or more), and
        `calls_a_success`, all calls until then divided by `reached` (the expected running time of
        COCO, Hansen et al., 2016).
        """
        lines = [
            (run.backend, run.task, run.method, _lowest(run), run.spent.get("calls", 0))
            for run in self._done
        ]
        runs = pd.DataFrame(lines, columns=[*_TASK, "optimizer", "lowest", "spent"])
        median = runs.groupby(_TASK)["lowest"].transform("median")
        runs["target"] = median if self.target is None else self.target
        calls = [run.curve.calls_to(at) for run, at in zip(self._done, runs["target"], strict=True)]
        runs["calls"] = [math.inf if own is None else own for own in calls]
        runs["reached"] = np.isfinite(runs["calls"])
        runs["until"] = runs["calls"].where(runs["reached"], runs["spent"])
        found = runs.groupby([*_TASK, "optimizer"], sort=False).agg(
            target=("target", "first"),
            runs=("calls", "size"),
            reached=("reached", "sum"),
            calls_median=("calls", "median"),
            until=("until", "sum"),
        )
        found["calls_a_success"] = found.pop("until") / found["reached"]
        found["missed"] = 1 - found["reached"] / found["runs"]
        found = _sorted(found, *_TASK, "calls_a_success", "missed").drop(columns="missed")
        finite: pd.DataFrame = found.replace(math.inf, math.nan)
        return finite

    @cached_property
    def times(self) -> pd.DataFrame:
        """Seconds in ask and tell, and in whole runs; one line an optimizer, the fastest first."""
        done = self.frame[self.frame["status"] != "failed"].groupby("optimizer", sort=False)
        seconds = done["optimizer_seconds"].sum()
        found = pd.DataFrame(
            {
                "seconds_per_100_calls": 100 * seconds / done["calls"].sum(),
                "share_of_search": seconds / done["search_seconds"].sum(),
                "seconds_a_run": done["optimizer_seconds"].mean(),
                "wall_seconds_a_run": done["wall_seconds"].mean(),
            }
        )
        return _sorted(found.replace(math.inf, math.nan), "seconds_per_100_calls")

    def curves(self, what: str = "lowest_loss") -> list[Band]:
        """Loss against calls, with bands; a run that has ended keeps its last loss.

        Args:
            what: ``lowest_loss`` (of training) or ``kept_loss`` (of the prompt that is kept, on
                the rows that choose).
        """
        tasks: dict[tuple[str, str], dict[tuple[str, int], pd.Series[Any]]] = {}
        for run in self._done:
            if len(curve := _known(run.curve, what)):
                tasks.setdefault((run.backend, run.task), {})[run.method, run.seed] = curve
        lines = []
        for (backend, task), own in tasks.items():
            # from where all have begun
            table = pd.concat(own, axis="columns").sort_index().ffill().dropna()
            chosen = np.linspace(0, len(table) - 1, min(GRID, len(table))).round().astype(int)
            table = table.iloc[chosen]
            methods = dict.fromkeys(method for method, _ in own)
            lines += [_band(backend, task, method, table[method]) for method in methods]
        return lines

    def to_json(self) -> dict[str, Any]:
        """All but the curves, as plain values."""
        names = ["ranking", "by_task", "calls_to_target", "times", *["costs"] * bool(self.backends)]
        return {
            "verdict": self.verdict,
            "judged_on": self.judged_on,
            "tests": asdict(self.tests),
            "commands": self.commands,
            "runtimes": [asdict(each) for each in self.runtimes],
            **{name: plain(getattr(self, name)) for name in names},
            "runs": [_run_json(record) for record in self.records],
        }


_RUN = ("backend", "task", "optimizer", "seed", "status", "reason", "final", "spent", "notes")


def _run_json(record: Record) -> dict[str, Any]:
    content = {**asdict(record), "optimizer": record.method}
    return {name: content[name] for name in (*_RUN, "optimizer_seconds", "wall_seconds")}


def plain(lines: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame as plain values, with None for NaN."""
    records = lines.astype(object).where(lines.notna(), None).to_dict(orient="records")
    return [{str(name): value for name, value in record.items()} for record in records]


def _sorted(lines: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Lines by the names in their index, sorted by columns and name; tasks keep their order."""
    lines = lines.reset_index()

    def place(column: pd.Series[Any]) -> Any:
        if column.name not in _TASK:
            return column
        return column.map({name: place for place, name in enumerate(column.unique())})

    order = [*by, "optimizer"]
    found: pd.DataFrame = lines.sort_values(order, kind="stable", ignore_index=True, key=place)
    return found


def _intervals(runs: pd.DataFrame, of: Sequence[str]) -> pd.DataFrame:
    loss, accuracy = (
        intervals(runs, what, of=of, strata=_TASK, weigh_runs=False)
        for what in ("loss", "accuracy")
    )
    both: pd.DataFrame = loss.join(accuracy.clip(0.0, 1.0), how="outer")
    return both


def _band(backend: str, task: str, optimizer: str, losses: pd.DataFrame) -> Band:
    """Of (calls, runs) losses."""
    low, median, high = np.quantile(losses.to_numpy(), [0.25, 0.5, 0.75], axis=1).tolist()
    calls, runs = losses.index.tolist(), losses.shape[1]
    return Band(
        backend=backend,
        task=task,
        optimizer=optimizer,
        runs=runs,
        calls=calls,
        low=low,
        median=median,
        high=high,
    )


def _known(curve: Curve, what: str) -> pd.Series[Any]:
    """Losses by calls, where there was one."""
    losses: Any = pd.Series(getattr(curve, what), list(curve.calls), dtype=float).dropna()
    known: pd.Series[Any] = losses[~losses.index.duplicated(keep="last")]
    return known


def _lowest(record: Record) -> float:
    known = [loss for loss in record.curve.lowest_loss if loss is not None]
    return known[-1] if known else math.inf
