"""What a comparison came to: its runs, and what they say together."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmaas_tune.errors import InputError
from lmaas_tune.lab import statistics
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.store import read_folders

if TYPE_CHECKING:
    import pandas as pd


def check_target(target: float | None) -> None:
    """See that a loss can come to it.

    Raises:
        InputError: It is not finite.
    """
    if target is not None and not math.isfinite(target):
        raise InputError(f"target={target}: it takes a finite loss")


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """What a comparison came to.

    Attributes:
        records: Its runs, failed ones included.
        target: Training loss for `calls_to_target`; None takes, for each task, the one that half
            of its runs reached.

    Raises:
        InputError: Not one run succeeded.
    """

    records: Sequence[Record] = field(repr=False)
    target: float | None = None

    def __post_init__(self) -> None:
        check_target(self.target)
        if not any(record.done for record in self.records):
            raise InputError(
                f"not one of {len(self.records)} runs succeeded, so there is nothing to compare; "
                f"the first says: {self.records[0].reason}"
            )

    @classmethod
    def of(cls, *folders: str | os.PathLike[str], target: float | None = None) -> ComparisonResult:
        """Of all runs in some results folders.

        Raises:
            InputError: There are none, they are of comparisons that differ, or all failed.
            StorageError: A file is damaged.
        """
        return cls(read_folders(folders), target)

    @cached_property
    def judged_on(self) -> statistics.Rows:
        """The rows of the final losses: ``test`` where all tasks have such, else ``validation``
        or ``train``."""
        return statistics.judged_on(self.records)

    @property
    def loss_name(self) -> str:
        """What the final losses are: on test rows the cross-entropy, else what was minimised."""
        if self.judged_on == "test":
            return "cross-entropy"
        return str(self.records[0].conditions.get("objective", "loss")).replace("_", " ")

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line a run: task, optimizer, seed, status, loss, accuracy, calls and seconds."""
        return statistics.frame(self.records, self.judged_on)

    @cached_property
    def ranking(self) -> list[dict[str, Any]]:
        """One line an optimizer, best first, see `lmaas_tune.lab.statistics.ranking`."""
        return statistics.ranking(self.frame)

    @cached_property
    def by_task(self) -> list[dict[str, Any]]:
        """Mean, standard deviation and median of final loss and accuracy, a line for each task
        and optimizer."""
        return statistics.by_task(self.frame)

    @cached_property
    def tests(self) -> dict[str, Any]:
        """Friedman's and Wilcoxon's tests, or why there is none, see
        `lmaas_tune.lab.statistics.significance`."""
        return statistics.significance(self.frame)

    @cached_property
    def calls_to_target(self) -> list[dict[str, Any]]:
        """See `lmaas_tune.lab.statistics.calls_to_target`."""
        return statistics.calls_to_target(self.records, self._targets)

    @cached_property
    def times(self) -> list[dict[str, Any]]:
        """See `lmaas_tune.lab.statistics.times`."""
        return statistics.times(self.frame)

    def curves(self, what: str = "lowest_loss") -> list[dict[str, Any]]:
        """Loss against calls, with bands.

        Args:
            what: ``lowest_loss`` (of training) or ``kept_loss`` (of the prompt that is kept, on
                the rows that choose).
        """
        return statistics.curves(self.records, what)

    @property
    def failed(self) -> list[Record]:
        """Runs that did not come to an end."""
        return [record for record in self.records if not record.done]

    @property
    def stopped_early(self) -> list[Record]:
        """Runs that were ended because they had fallen behind."""
        return [record for record in self.records if record.status == "stopped early"]

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write all this as one HTML file, which needs no network.

        Raises:
            MissingExtraError: jinja2 or plotly is not installed.
            StorageError: The file cannot be written.
        """
        from lmaas_tune.lab.report import write_comparison

        return write_comparison(self, Path(path))

    def to_json(self) -> dict[str, Any]:
        """All but the curves, as plain values."""
        return {
            "judged_on": self.judged_on,
            "ranking": self.ranking,
            "by_task": self.by_task,
            "tests": self.tests,
            "calls_to_target": self.calls_to_target,
            "times": self.times,
            "runs": [_run_json(record) for record in self.records],
        }

    @property
    def _targets(self) -> Mapping[str, float]:
        if self.target is None:
            return statistics.common_target(self.records)
        return {record.task: self.target for record in self.records}


def _run_json(record: Record) -> dict[str, Any]:
    names = ("task", "optimizer", "seed", "status", "reason", "final", "spent")
    seconds = ("optimizer_seconds", "wall_seconds")
    return {name: getattr(record, name) for name in (*names, *seconds, "notes")}
