"""`Head`: the map from the log-probabilities of words to labels, fitted to labelled rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from lmaas_tune.capabilities import FloatArray
from lmaas_tune.objectives import Targets
from lmaas_tune.reprs import short_repr


@dataclass(frozen=True, eq=False)
class FittedHead:
    """An affine map from the scores of words to the labels' log-odds.

    Attributes:
        bias: (labels,) added to each row.
        matrix: (words, labels) weights, with the label words first; None passes the scores of the
            label words on.
    """

    bias: FloatArray
    matrix: FloatArray | None = None

    __repr__ = short_repr

    @cached_property
    def digest(self) -> str | None:
        """SHA-256 of the matrix; None if there is none."""
        if self.matrix is None:
            return None
        return hashlib.sha256(self.matrix.astype("<f8").tobytes()).hexdigest()

    @property
    def parameters(self) -> int:
        """Number of fitted numbers."""
        if self.matrix is None:
            return len(self.bias) if self.bias.any() else 0
        return self.matrix.size + len(self.bias)

    def __call__(self, scores: FloatArray) -> FloatArray:
        """(rows, labels) log-odds of (rows, words) log-probabilities."""
        odds: FloatArray = self.bias + (
            scores[:, : len(self.bias)] if self.matrix is None else scores @ self.matrix
        )
        return odds

    @classmethod
    def none(cls, labels: int) -> FittedHead:
        """The head that changes nothing."""
        return cls(np.zeros(labels))


@dataclass(frozen=True, eq=False)
class Fit:
    """A head that was fitted to labelled rows.

    Attributes:
        head: Fitted to all rows.
        held_out: (rows, labels) log-odds of each row, by a head that was fitted to the others.
    """

    head: FittedHead
    held_out: FloatArray


class Head(Protocol):
    """Fits a map from the log-probabilities of words to labels.

    Attributes:
        extra_words: The number of words that it reads beside the label words, at most.
    """

    @property
    def extra_words(self) -> int: ...

    def fit(self, scores: FloatArray, targets: Targets, labels: int, /) -> Fit:
        """Fit the head; the same scores give the same head.

        Args:
            scores: (rows, words) finite log-probabilities, the label words first.
            targets: (rows,) the column of each row's label word.
            labels: Number of label words.
        """
        ...
