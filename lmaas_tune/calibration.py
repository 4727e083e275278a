"""Taking a model's bias for some label words out of its scores.

A language model favours some label words whatever the row says. One number a label, added to
its log-probabilities, takes that out; it is found from the scores of the training rows that
the search pays for anyway, and is kept with the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from lmaas_tune.errors import named
from lmaas_tune.objectives import Targets, cross_entropy, log_softmax
from lmaas_tune.prompts import FloatArray

Calibration: TypeAlias = Callable[[FloatArray, Targets], FloatArray]
"""From (rows, labels) scores and (rows,) targets to the (labels,) bias to add; its mean is 0."""


def no_calibration(logprobs: FloatArray, targets: Targets) -> FloatArray:
    """No bias at all: the scores as they are."""
    return np.zeros(logprobs.shape[1])


def mean_calibration(logprobs: FloatArray, targets: Targets) -> FloatArray:
    """Every label gets the same mean score over the rows (targets are not looked at)."""
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
        ridge: Keeps the bias finite where the rows are separable.
        steps: At most so many Newton steps; a convex problem takes a handful.
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
        gain = float(gradient @ step)  # twice what a full step gains where the loss is a parabola
        if gain < 1e-12:
            break
        # the full step overshoots where the curvature is nearly gone
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
    """Look a calibration up.

    Raises:
        InputError: None has this name.
    """
    return named("calibration", name, CALIBRATIONS)
