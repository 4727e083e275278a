"""Selection rules: which candidates are validated, and which one is the result of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lmaas_tune.errors import InputError
from lmaas_tune.evaluator import Evaluation

LOWEST_LOSS = "lowest-loss"
"""Name of `LowestLoss`."""


class Selection(Protocol):
    """Nominates candidates for validation, and compares their evaluations."""

    def nominate(self, losses: Sequence[float], first_call: int, lowest: float) -> list[int] | None:
        """Indices of one generation's candidates to score on the validation rows.

        Args:
            losses: Training losses of the generation; NaN for failed candidates.
            first_call: Number of candidates that the search scored before this generation.
            lowest: Lowest training loss so far, including the start; infinite if there is none.

        Returns:
            None if the rule skips this generation regardless of its losses: then it does not
            count for `Budget.patience`.
        """
        ...

    def better(self, new: Evaluation, best: Evaluation | None) -> bool:
        """Whether `new` replaces `best` (None: there is no best yet)."""
        ...

    def notes(self, candidates: int | None) -> list[str]:
        """Notes for the user before a search of `candidates` candidates (None: unknown)."""
        ...


class LowestLoss:
    """Validates the best of each generation by training loss, and selects the lowest loss.

    A generation of one candidate is validated only if it lowers the training loss. Otherwise a
    search with single points would validate as often as it trains.
    """

    def nominate(self, losses: Sequence[float], first_call: int, lowest: float) -> list[int]:
        """The best of the generation, unless all candidates failed."""
        if np.isnan(losses).all() or (len(losses) == 1 and losses[0] >= lowest):
            return []
        return [int(np.nanargmin(losses))]

    def better(self, new: Evaluation, best: Evaluation | None) -> bool:
        """Whether the loss is lower; NaN never is."""
        return new.loss == new.loss and (best is None or new.loss < best.loss)

    def notes(self, candidates: int | None) -> list[str]:
        """No notes."""
        return []


class EveryNth:
    """The reference code's rule: validates every n-th candidate, and selects higher accuracy.

    The paper's code validates every 100th candidate, regardless of its loss, and selects it if
    its accuracy is strictly higher.
    """

    def __init__(self, n: int) -> None:
        self._n = n

    def nominate(self, losses: Sequence[float], first_call: int, lowest: float) -> list[int] | None:
        """Candidates whose number in the run, counted from 1, is a multiple of n."""
        return [i for i in range(len(losses)) if (first_call + i + 1) % self._n == 0] or None

    def better(self, new: Evaluation, best: Evaluation | None) -> bool:
        """Whether the accuracy is strictly higher; without a best, above 0."""
        return new.accuracy > (0.0 if best is None else best.accuracy)

    def notes(self, candidates: int | None) -> list[str]:
        """A note if no candidate will be validated."""
        if candidates is None or candidates >= self._n:
            return []
        return [
            f"selection candidate@{self._n} validates every {self._n}th candidate, and the budget "
            f"pays {candidates}: the result of the run will be its start"
        ]


def selection_named(name: str) -> Selection:
    """``lowest-loss``, or ``candidate@N`` for the paper's rule.

    Raises:
        InputError: The name is unknown.
    """
    if name == LOWEST_LOSS:
        return LowestLoss()
    if match := re.fullmatch(r"candidate@([1-9]\d*)", name):
        return EveryNth(int(match.group(1)))
    raise InputError(
        f"unknown selection {name!r}; known: lowest-loss, candidate@N (as candidate@100)"
    )
