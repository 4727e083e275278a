"""The result of a comparison: its runs, and the statistics over them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmaas_tune.errors import InputError
from lmaas_tune.lab import statistics
from lmaas_tune.lab.comparison import COMPARISON
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.store import Store, read_stores

if TYPE_CHECKING:
    import pandas as pd


def check_target(target: float | None) -> None:
    """Check that a loss can reach the target.

    Raises:
        InputError: It is not finite.
    """
    if target is not None and not math.isfinite(target):
        raise InputError(f"target={target}: it takes a finite loss")


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """The result of a comparison.

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
        if not any(record.done for record in self.records):
            raise InputError(
                f"not one of {len(self.records)} runs succeeded, so there is nothing to compare; "
                f"the first says: {self.records[0].reason}"
            )

    @classmethod
    def of(cls, *stores: str | os.PathLike[str], target: float | None = None) -> ComparisonResult:
        """The result of all runs in some folders or files of records.

        Raises:
            InputError: There are none, they are of comparisons that differ, or all failed.
            StorageError: A file is damaged.
        """
        return cls(read_stores([Store(Path(place), COMPARISON) for place in stores]), target)

    @cached_property
    def judged_on(self) -> statistics.Part:
        """The rows of the final losses: ``test`` if all tasks have test rows, else ``validation``
        or ``train``."""
        return statistics.judged_on(self.records)

    @property
    def loss_name(self) -> str:
        """The loss on these rows: the cross-entropy on test rows, else the search's objective."""
        if self.judged_on == "test":
            return "cross-entropy"
        return str(self.records[0].conditions.get("objective", "loss")).replace("_", " ")

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line a run: task, optimizer, seed, status, loss, accuracy, calls and seconds."""
        return statistics.frame(self.records, self.judged_on)

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """One line an optimizer, best first, see `lmaas_tune.lab.statistics.ranking`."""
        return statistics.ranking(self.frame)

    @cached_property
    def by_task(self) -> pd.DataFrame:
        """One line for each task and optimizer, see `lmaas_tune.lab.statistics.by_task`."""
        return statistics.by_task(self.frame)

    @cached_property
    def tests(self) -> statistics.Significance:
        """Friedman's and Wilcoxon's tests, or the reasons why they were not made."""
        return statistics.significance(self.frame)

    @cached_property
    def calls_to_target(self) -> pd.DataFrame:
        """One line for each task and optimizer, see `lmaas_tune.lab.statistics.calls_to_target`."""
        targets = statistics.common_target(self.records)
        if self.target is not None:
            targets = dict.fromkeys(targets, self.target)
        return statistics.calls_to_target(self.records, targets)

    @cached_property
    def times(self) -> pd.DataFrame:
        """One line an optimizer, the fastest first, see `lmaas_tune.lab.statistics.times`."""
        return statistics.times(self.frame)

    def curves(self, what: str = "lowest_loss") -> Sequence[statistics.Band]:
        """Loss against calls, with bands.

        Args:
            what: ``lowest_loss`` (of training) or ``kept_loss`` (of the prompt that is kept, on
                the rows that choose).
        """
        return statistics.curves(self.records, what)

    @property
    def failed(self) -> list[Record]:
        """The runs that failed."""
        return [record for record in self.records if not record.done]

    @property
    def stopped_early(self) -> list[Record]:
        """The runs that the rule for early stopping ended."""
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
        names = ("ranking", "by_task", "calls_to_target", "times")
        return {
            "judged_on": self.judged_on,
            "tests": asdict(self.tests),
            **{name: statistics.plain(getattr(self, name)) for name in names},
            "runs": [_run_json(record) for record in self.records],
        }


_RUN = ("task", "optimizer", "seed", "status", "reason", "final", "spent", "notes")


def _run_json(record: Record) -> dict[str, Any]:
    content = {**asdict(record), "optimizer": record.method}
    return {name: content[name] for name in (*_RUN, "optimizer_seconds", "wall_seconds")}
