"""The median rule, which ends runs early that have fallen behind; off unless it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from statistics import median
from typing import Any

from lmaas_tune.callbacks import Callback
from lmaas_tune.errors import InputError
from lmaas_tune.lab.record import Record
from lmaas_tune.step import Step
from lmaas_tune.validate import checked_by, validate, whole


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
        raise InputError(f"{name}={value!r}: a share of the calls, above 0 and below 1")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """The median rule (Golovin et al., 2017, Google Vizier, section 3.2.2).

    A run ends if its lowest training loss so far is above the median of the lowest losses that the
    finished runs on the same task and seed had after the same number of calls. The run might
    still have won; the results show which runs ended early.

    Attributes:
        after: Share of the calls in the budget after which runs are judged, above 0 and below 1.
        rivals: Number of other runs that must be finished before a run is judged.

    Raises:
        InputError: A value is out of its range.
    """

    after: float = checked_by(_share, default=0.5)
    rivals: int = whole(least=1, default=3)

    def __post_init__(self) -> None:
        validate(self)


class FallenBehindError(Exception):
    """Ends a run from within; its message is the reason."""


class Judge(Callback):
    """Watches a run, and ends it by the median rule.

    Args:
        rule: The rule.
        calls: Of the budget.
        rivals: Gives the runs of the task and seed that are finished by now.
    """

    def __init__(self, rule: EarlyStop, calls: int, rivals: Callable[[], Sequence[Record]]) -> None:
        self._rule, self._calls, self._rivals = rule, calls, rivals
        self._lowest = math.inf

    def on_step(self, step: Step) -> None:
        """Compare with the others.

        Raises:
            FallenBehindError: This run has fallen behind.
        """
        if step.loss == step.loss:
            self._lowest = min(self._lowest, step.loss)
        if step.spent.calls < self._rule.after * self._calls:
            return
        if step.spent.calls + len(step.points) > self._calls:  # it has had its budget
            return
        theirs = [run.curve.lowest_after(step.spent.calls) for run in self._rivals()]
        if len(theirs) < self._rule.rivals or self._lowest <= median(theirs):
            return
        raise FallenBehindError(
            f"after {step.spent.calls} calls its lowest training loss was "
            f"{self._lowest:.4g}, above the median {median(theirs):.4g} of {len(theirs)} finished "
            "runs of this task and seed"
        )
