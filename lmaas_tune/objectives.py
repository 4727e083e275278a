"""Objectives: loss functions of label log-probabilities and targets.

Each takes ``logprobs`` (rows, labels), the scores of the label words, and ``targets`` (rows,),
the right column of each row, and gives one finite number, lower is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lmaas_tune.errors import named
from lmaas_tune.prompts import FloatArray

Targets: TypeAlias = npt.NDArray[np.intp]
Objective: TypeAlias = Callable[[FloatArray, Targets], float]


def log_softmax(logprobs: FloatArray) -> FloatArray:
    """(rows, labels) log-probabilities renormalised over the labels alone."""
    shifted = logprobs - logprobs.max(axis=1, keepdims=True)
    normalised: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised


def mean_log_probabilities(odds: Sequence[FloatArray]) -> FloatArray:
    """(rows, labels) the mean of the log-probabilities of several (rows, labels) log-odds."""
    mean: FloatArray = np.mean([log_softmax(each) for each in odds], axis=0)
    return mean


def cross_entropy(logprobs: FloatArray, targets: Targets) -> float:
    """Mean negative log-probability of the right label, over the label words alone."""
    return float(-log_softmax(logprobs)[np.arange(len(targets)), targets].mean())


def hinge(logprobs: FloatArray, targets: Targets, *, margin: float = 2.0) -> float:
    """Mean over rows of the sum over wrong labels of max(0, s_wrong - s_right + margin)."""
    rows = np.arange(len(targets))
    slack = np.maximum(0.0, logprobs - logprobs[rows, targets][:, None] + margin)
    slack[rows, targets] = 0.0
    return float(slack.sum(axis=1).mean())


def error_rate(logprobs: FloatArray, targets: Targets) -> float:
    """Share of rows whose highest label is wrong (1 - accuracy)."""
    return float((logprobs.argmax(axis=1) != targets).mean())


def negative_f1(logprobs: FloatArray, targets: Targets, *, positive: int = 1) -> float:
    """Minus the F1 score of the label in column `positive`; 0 without true positives."""
    predicted = logprobs.argmax(axis=1) == positive
    actual = targets == positive
    hits = float((predicted & actual).sum())
    return -2.0 * hits / max(float(predicted.sum() + actual.sum()), 1.0)


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": cross_entropy,
    "hinge": hinge,
    "error_rate": error_rate,
    "negative_f1": negative_f1,
}


def objective_named(name: str) -> Objective:
    """Look up an objective.

    Raises:
        InputError: The name is unknown.
    """
    return named("objective", name, OBJECTIVES)
