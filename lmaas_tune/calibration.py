"""Calibration: removes a model's bias for some label words from its scores.

A language model prefers some label words regardless of the row. A bias of one number a label,
added to its log-probabilities, corrects this. It is computed from the scores of the training
rows, at no further cost, and saved with the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from lmaas_tune.errors import named
from lmaas_tune.objectives import Targets, cross_entropy, log_softmax
from lmaas_tune.prompts import FloatArray

Calibration: TypeAlias = Callable[[FloatArray, Targets], FloatArray]
"""Maps (rows, labels) scores and (rows,) targets to the (labels,) bias to add; its mean is 0."""


def no_calibration(logprobs: FloatArray, targets: Targets) -> FloatArray:
    """Zero bias: the scores are unchanged."""
    return np.zeros(logprobs.shape[1])


def mean_calibration(logprobs: FloatArray, targets: Targets) -> FloatArray:
    """Every label gets the same mean score over the rows (targets are ignored)."""
    means = logprobs.mean(axis=0)
    bias: FloatArray = means.mean() - means
    return bias


def fitted_calibration(
    logprobs: FloatArray, targets: Targets, *, ridge: float = 1e-2, steps: int = 50
) -> FloatArray:
    """The bias b with the lowest cross-entropy + ridge/2 |b|² on the rows, by Newton's method.

    Args:
        logprobs: (rows, labels).
        targets: (rows,).
        ridge: Weight of the penalty that keeps the bias finite for separable rows.
        steps: Largest number of Newton steps; the convex problem takes a few.
    """
    labels = logprobs.shape[1]
    share = np.bincount(targets, minlength=labels) / len(targets)

    def loss(bias: FloatArray) -> float:
        return cross_entropy(logprobs + bias, targets) + ridge / 2 * float(bias @ bias)

    bias = mean_calibration(logprobs, targets)
    now = loss(bias)
    for _ in range(steps):
        p = np.exp(log_softmax(logprobs + bias))
        gradient = p.mean(axis=0) - share + ridge * bias
        hessian = np.diag(p.mean(axis=0)) - p.T @ p / len(p) + ridge * np.eye(labels)
        step = np.linalg.solve(hessian, gradient)
        gain = float(gradient @ step)  # twice the gain of a full step on a quadratic loss
        if gain < 1e-12:
            break
        # the full step overshoots if the curvature is small
        while (after := loss(bias - step)) > now - 1e-4 * gain:
            step, gain = step / 2, gain / 2
        bias, now = bias - step, after
    return bias


CALIBRATIONS: dict[str, Calibration] = {
    "none": no_calibration,
    "mean": mean_calibration,
    "fitted": fitted_calibration,
}


def calibration_named(name: str) -> Calibration:
    """Look up a calibration.

    Raises:
        InputError: The name is unknown.
    """
    return named("calibration", name, CALIBRATIONS)
