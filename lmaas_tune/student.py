"""Quantiles of Student's t distribution."""

from __future__ import annotations

import math
from statistics import NormalDist

_FEWEST = 5  # values


def student_quantile(probability: float, values: int) -> float:
    """The quantile for the mean of so many values, divided by its estimated error.

    By the expansion around the normal quantile (Abramowitz and Stegun, "Handbook of Mathematical
    Functions", 1964, 26.7.5), which needs no scipy.

    Args:
        probability: From 0.5 up to 1.
        values: The degrees of freedom are one less.

    Returns:
        The quantile, 4% off at most at 5 values and a probability of 0.999; infinity below 5
        values, which tell too little of their spread.
    """
    if values < _FEWEST:
        return math.inf
    z, n = NormalDist().inv_cdf(probability), values - 1
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / n**power for power, term in enumerate(terms))
