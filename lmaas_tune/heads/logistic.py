"""Logistic regression with few parameters, and its leave-one-out predictions."""

from __future__ import annotations

import numpy as np

from lmaas_tune.capabilities import FloatArray
from lmaas_tune.objectives import Targets, cross_entropy, log_softmax

_STEPS = 50
_FEW = 16  # rows


def fit_logistic(
    offset: FloatArray,
    design: FloatArray,
    targets: Targets,
    prior: FloatArray,
    penalty: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Fit a logistic regression, and predict each row by the others.

    The prediction for a row starts at the fit to all rows, and takes one Newton step on the loss of
    the others (Rad and Maleki, "A scalable estimate of the out-of-sample prediction error", JRSS B
    82, 2020). With few rows one step is too short, so the others are fitted anew.

    Args:
        offset: See `minimise`.
        design: See `minimise`.
        targets: See `minimise`.
        prior: See `minimise`.
        penalty: See `minimise`.

    Returns:
        (parameters,) v, and (rows, labels) the log-odds of each row as predicted by the others.
    """
    v = minimise(offset, design, targets, prior, penalty)
    if len(targets) == 1:
        others = v[None]
    elif len(targets) < _FEW:
        rest = [np.delete(np.arange(len(targets)), row) for row in range(len(targets))]
        others = np.stack(
            [minimise(offset[r], design[r], targets[r], prior, penalty) for r in rest]
        )
    else:
        others = _without_each_row(offset, design, targets, v, penalty)
    return v, offset + np.einsum("np,npc->nc", others, design)


def minimise(
    offset: FloatArray,
    design: FloatArray,
    targets: Targets,
    prior: FloatArray,
    penalty: FloatArray,
) -> FloatArray:
    """The v with the least mean cross-entropy + penalty/2 (v - prior)², by Newton's method.

    The log-odds of a row are offset + v @ design.

    Args:
        offset: (rows, labels).
        design: (rows, parameters, labels).
        targets: (rows,).
        prior: (parameters,).
        penalty: (parameters,) positive.
    """

    def loss(v: FloatArray) -> float:
        odds = offset + np.tensordot(design, v, (1, 0))
        return cross_entropy(odds, targets) + float(penalty @ (v - prior) ** 2) / 2

    v, now = prior.copy(), loss(prior)
    for _ in range(_STEPS):
        weighted, mean, gradients = _slopes(offset, design, targets, v)
        hessian = np.tensordot(weighted, design, ((0, 2), (0, 2))) - mean.T @ mean
        gradient = gradients.mean(axis=0) + penalty * (v - prior)
        step = _solved(hessian / len(targets) + np.diag(penalty), gradient)
        gain = float(gradient @ step)  # twice the gain of a full step on a quadratic loss
        if gain < 1e-12:
            break
        # the full step overshoots if the curvature is small
        while (after := loss(v - step)) > now - 1e-4 * gain:
            step, gain = step / 2, gain / 2
        v, now = v - step, after
    return v


def _slopes(
    offset: FloatArray, design: FloatArray, targets: Targets, v: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The design weighted by each row's probabilities, its mean, and each row's gradient."""
    p = np.exp(log_softmax(offset + np.tensordot(design, v, (1, 0))))
    weighted = design * p[:, None]
    mean = weighted.sum(axis=2)
    return weighted, mean, mean - design[np.arange(len(targets)), :, targets]


def _without_each_row(
    offset: FloatArray,
    design: FloatArray,
    targets: Targets,
    v: FloatArray,
    penalty: FloatArray,
) -> FloatArray:
    """(rows, parameters) v after one Newton step on the loss of all rows but one."""
    weighted, mean, gradients = _slopes(offset, design, targets, v)
    curvatures = weighted @ design.transpose(0, 2, 1) - mean[:, :, None] * mean[:, None]
    n = len(design)
    hessians = (curvatures.sum(axis=0) - curvatures) / (n - 1) + np.diag(penalty)
    others = (gradients.mean(axis=0) - gradients) / (n - 1)
    return v - _solved(hessians, others)


def _solved(hessians: FloatArray, gradients: FloatArray) -> FloatArray:
    """(..., parameters) the steps for (..., parameters, parameters) hessians and their gradients.

    Where a penalty is lost in rounding, a hessian may be singular: then it is the shortest step.
    """
    columns = gradients[..., None]
    try:
        steps: FloatArray = np.linalg.solve(hessians, columns)
    except np.linalg.LinAlgError:
        steps = np.linalg.pinv(hessians, hermitian=True) @ columns
    return steps[..., 0]
