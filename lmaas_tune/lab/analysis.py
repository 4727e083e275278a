"""The runs of a comparison with their statistics, each computed when it is first used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from lmaas_tune.errors import InputError
from lmaas_tune.lab import statistics
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.significance import Significance, significance

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
        if not any(record.done for record in self.records):
            raise InputError(
                f"not one of {len(self.records)} runs succeeded, so there is nothing to compare; "
                f"the first says: {self.records[0].reason}"
            )

    @cached_property
    def judged_on(self) -> statistics.Part:
        """Rows of the final losses: the first of test, validation and train that all tasks have."""
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
    def tests(self) -> Significance:
        """Friedman's and Wilcoxon's tests, or the reasons why they were not made."""
        return significance(self.frame)

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
