"""Heads that are linear in the scores: a bias a label, and ridge regression on words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmaas_tune.capabilities import FloatArray
from lmaas_tune.heads.base import Fit, FittedHead
from lmaas_tune.heads.logistic import fit_logistic
from lmaas_tune.objectives import Targets

_ON_BIAS = 1e-2  # the penalty that keeps the bias finite for separable rows
_ON_WEIGHTS = 1e-2  # keeps the weights near 1 (label words) and 0 (regression)
_RIDGE = 1.0  # of the regression, in mean squared lengths of a row's centred scores


class NoHead:
    """Passes the scores of the label words on."""

    extra_words = 0

    def fit(self, scores: FloatArray, targets: Targets, labels: int, /) -> Fit:
        """See `lmaas_tune.heads.base.Head.fit`."""
        head = FittedHead.none(labels)
        return Fit(head, head(scores))


class BiasHead:
    """Adds one number a label to the scores of the label words.

    A language model prefers some label words regardless of the row. The bias corrects this: it
    minimises the cross-entropy on the rows, plus a small penalty.
    """

    extra_words = 0

    def fit(self, scores: FloatArray, targets: Targets, labels: int, /) -> Fit:
        """See `lmaas_tune.heads.base.Head.fit`."""
        bias, held_out = fit_logistic(
            scores[:, :labels],
            np.broadcast_to(np.eye(labels), (len(scores), labels, labels)),
            targets,
            np.zeros(labels),
            np.full(labels, _ON_BIAS),
        )
        return Fit(FittedHead(bias), held_out)


@dataclass(frozen=True)
class LinearHead:
    """Adds a ridge regression on the scores of all words to the scores of the label words.

    1. The regression predicts the labels, as numbers 0 and 1, from the centred scores. Its
       predictions for rows that are left out have a closed form.
    2. A logistic regression adds up the scores of the label words, these predictions and a bias.
       It learns a weight for each of the first two. Its prior, 1 and 0, is the head ``bias``.
       Predictions that mislead for rows that are left out would get a negative weight, which
       fits chance; then the head is ``bias``.

    Attributes:
        extra_words: The number of words that it reads beside the label words, at most; with 0 it
            is a full matrix over the label words.
    """

    extra_words: int = 0

    def fit(self, scores: FloatArray, targets: Targets, labels: int, /) -> Fit:
        """See `lmaas_tune.heads.base.Head.fit`."""
        n, ones = len(targets), np.eye(labels)
        if n < 2:  # no other row could judge a row
            return BiasHead().fit(scores, targets, labels)
        means, answers = scores.mean(axis=0), ones[targets] - ones[targets].mean(axis=0)
        left, sizes, right = np.linalg.svd(scores - means, full_matrices=False)
        ridge = _RIDGE * (sizes @ sizes / n or 1.0)
        shrunk = sizes**2 / (sizes**2 + ridge)
        projected = left.T @ answers
        predicted = left @ (shrunk[:, None] * projected)
        leverage = 1 / n + left**2 @ shrunk  # 1/n of the mean
        held_out = answers - (answers - predicted) / (1 - leverage)[:, None]
        parts = scores[:, None, :labels], labels * held_out[:, None]
        weights, odds = fit_logistic(
            np.zeros((n, labels)),
            np.concatenate([*parts, np.broadcast_to(ones, (n, labels, labels))], axis=1),
            targets,
            np.r_[1.0, np.zeros(1 + labels)],
            np.r_[_ON_WEIGHTS, _ON_WEIGHTS, np.full(labels, _ON_BIAS)],
        )
        if weights[1] <= 0:
            return BiasHead().fit(scores, targets, labels)
        regression = right.T @ ((sizes / (sizes**2 + ridge))[:, None] * projected)
        regression *= labels * weights[1]
        matrix = weights[0] * np.eye(scores.shape[1], labels) + regression
        return Fit(FittedHead(weights[2:] - means @ regression, matrix), odds)
