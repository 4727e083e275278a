"""`Score` of a prompt on labelled rows, with its uncertainty, and the `Comparison` of three."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmaas_tune.objectives import Targets, log_softmax
from lmaas_tune.prompts import FloatArray
from lmaas_tune.reprs import short_repr
from lmaas_tune.student import student_quantile

_Z = 1.959964  # two-sided 95% of the normal distribution
_BINS = 10


@dataclass(frozen=True)
class Score:
    """Accuracy and loss of a prompt on labelled rows.

    Attributes:
        accuracy: Share of rows answered right.
        loss: Mean cross-entropy over the labels.
        rows: Number of rows.
        calibration_error: See `expected_calibration_error`.
        brier: Mean squared distance of the probabilities from 1 (right label) and 0, summed over
            the labels: 0 to 2.
        majority: Accuracy of the answer that is right most often, given to all rows.
        answers: Number of different labels among the answers.
        losses: (rows,) the cross-entropy of each row.
    """

    accuracy: float
    loss: float
    rows: int
    calibration_error: float
    brier: float
    majority: float
    answers: int
    losses: FloatArray = field(repr=False, compare=False)

    __repr__ = short_repr

    @classmethod
    def of(cls, odds: FloatArray, targets: Targets) -> Score:
        """The score of (rows, labels) log-odds, given (rows,) right columns."""
        rows, logprobs = np.arange(len(targets)), log_softmax(odds)
        losses, answers = -logprobs[rows, targets], odds.argmax(axis=1)
        right = np.eye(odds.shape[1])[targets]
        return cls(
            accuracy=float((answers == targets).mean()),
            loss=float(losses.mean()),
            rows=len(targets),
            calibration_error=expected_calibration_error(odds, targets),
            brier=float(((np.exp(logprobs) - right) ** 2).sum(axis=1).mean()),
            majority=float(np.bincount(targets).max() / len(targets)),
            answers=len(np.unique(answers)),
            losses=losses,
        )

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy, by Wilson's score.

        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
        """
        n, p = self.rows, self.accuracy
        middle, scale = p + _Z**2 / (2 * n), 1 + _Z**2 / n
        half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

    def to_json(self) -> dict[str, Any]:
        """The fields but the losses of the rows, as JSON has them; a loss of infinity is null."""
        names = ("accuracy", "rows", "calibration_error", "brier", "majority", "answers")
        return {
            **{name: getattr(self, name) for name in names},
            "loss": self.loss if math.isfinite(self.loss) else None,
            "interval": list(self.interval),
        }


def expected_calibration_error(odds: FloatArray, targets: Targets) -> float:
    """The mean distance of accuracy and probability of the answers, in ten bins of probability.

    Guo et al., "On calibration of modern neural networks", ICML 2017.

    Args:
        odds: (rows, labels) log-odds.
        targets: (rows,) right columns.
    """
    probabilities = np.exp(log_softmax(odds)).max(axis=1)
    right = odds.argmax(axis=1) == targets
    bins = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    excess = np.bincount(bins, weights=probabilities - right, minlength=_BINS)
    return float(np.abs(excess).sum() / len(targets))


@dataclass(frozen=True)
class Comparison:
    """Scores before and after tuning, on the same rows.

    Attributes:
        baseline: Score of the starting prompt by its label words alone, without a head.
        start: Score of the starting prompt with its head, as after one call. What it is above
            the baseline is the head's share.
        tuned: Score of the best prompt with its head; the rest is the share of the search.
    """

    baseline: Score
    start: Score
    tuned: Score

    @property
    def gain(self) -> tuple[float, float]:
        """What the search takes off the loss of a row on average, and half of its 95% interval.

        The interval is Student's; below 5 rows it is infinite.
        """
        gains = self.start.losses - self.tuned.losses
        errors = student_quantile(0.975, len(gains))
        if not math.isfinite(errors):
            return float(gains.mean()), math.inf
        return float(gains.mean()), float(errors * gains.std(ddof=1) / math.sqrt(len(gains)))

    @property
    def verdict(self) -> str:
        """Whether the search helped beyond chance, and if not, what to try."""
        gain, half = self.gain
        if self.tuned.answers == 1:
            return (
                "The tuned prompt gives one label to all rows: give more labelled rows, or label "
                "words that say more."
            )
        change = "took {:.3f} ± {:.3f} off" if gain >= 0 else "added {:.3f} ± {:.3f} to"
        what = f"it {change.format(abs(gain), half)} the loss (95% interval)"
        if gain > half:
            return f"The search helped beyond chance: {what}."
        worse = "did harm" if gain < -half else "is not seen to help beyond chance"
        return (
            f"The search {worse}: {what}. More labelled rows help most, then starting words of "
            "your own."
        )

    def __repr__(self) -> str:
        scores = (f"{name}={score!r}" for name, score in vars(self).items())
        return "Comparison(\n  " + ",\n  ".join(scores) + "\n)"

    def _repr_html_(self) -> str:
        from lmaas_tune.reports.before_after import before_and_after
        from lmaas_tune.reports.inline import inline

        return inline([before_and_after(vars(self), self.verdict)])
