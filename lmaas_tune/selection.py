"""Which candidate a run keeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lmaas_tune.errors import InputError
from lmaas_tune.evaluator import Evaluation


class Selection(Protocol):
    """Nominates candidates for the validation rows, and judges what comes back."""

    def nominate(self, losses: Sequence[float], first_call: int, lowest: float) -> list[int] | None:
        """Indices into one generation that are to be scored on the validation rows.

        Args:
            losses: Of the generation, on the training rows; NaN where one failed.
            first_call: How many candidates the search had scored before this generation.
            lowest: Training loss so far, that of the start included; infinite where there is none.

        Returns:
            None where the rule looks at nothing of this generation, whatever its losses: then it
            does not count as one without a better prompt (`Budget.patience`).
        """
        ...

    def better(self, new: Evaluation, best: Evaluation | None) -> bool:
        """Whether `new` replaces `best` (None: nothing is kept yet)."""
        ...

    def notes(self, candidates: int | None) -> list[str]:
        """What the user should know before a search of so many (None: nobody knows)."""
        ...


class LowestLoss:
    """Each generation's best by training loss is re-scored; the lowest loss is kept.

    A generation of one has no best: it is re-scored where it lowers the training loss, or else a
    search that asks one point at a time would pay for validation as often as for training.
    """

    def nominate(self, losses: Sequence[float], first_call: int, lowest: float) -> list[int]:
        """The generation's best, unless all of it failed."""
        if np.isnan(losses).all() or (len(losses) == 1 and losses[0] >= lowest):
            return []
        return [int(np.nanargmin(losses))]

    def better(self, new: Evaluation, best: Evaluation | None) -> bool:
        """A lower loss; NaN never is."""
        return new.loss == new.loss and (best is None or new.loss < best.loss)

    def notes(self, candidates: int | None) -> list[str]:
        """None."""
        return []


class EveryNth:
    """The reference code's rule: every n-th candidate, whichever it is; higher accuracy is kept.

    The paper's code looks at the validation rows once in 100 calls, at the candidate that
    happens to be the 100th, and keeps it where its accuracy is strictly higher.
    """

    def __init__(self, n: int) -> None:
        self._n = n

    def nominate(self, losses: Sequence[float], first_call: int, lowest: float) -> list[int] | None:
        """Those whose number in the run, counted from 1, is a multiple of n."""
        return [i for i in range(len(losses)) if (first_call + i + 1) % self._n == 0] or None

    def better(self, new: Evaluation, best: Evaluation | None) -> bool:
        """Strictly higher accuracy; from nothing, more than 0."""
        return new.accuracy > (0.0 if best is None else best.accuracy)

    def notes(self, candidates: int | None) -> list[str]:
        """That it will look at nothing."""
        if candidates is None or candidates >= self._n:
            return []
        return [
            f"selection candidate@{self._n} looks at every {self._n}th candidate, and the budget "
            f"pays {candidates}: the run will end with what it starts from"
        ]


def selection_named(name: str) -> Selection:
    """``lowest-loss``, or ``candidate@N`` for the paper's rule with N calls between looks.

    Raises:
        InputError: It is neither.
    """
    if name == "lowest-loss":
        return LowestLoss()
    if match := re.fullmatch(r"candidate@([1-9]\d*)", name):
        return EveryNth(int(match.group(1)))
    raise InputError(
        f"unknown selection {name!r}; known: lowest-loss, candidate@N (as candidate@100)"
    )
