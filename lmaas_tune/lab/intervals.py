"""Intervals around means over tasks of means over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95


def intervals(
    runs: pd.DataFrame, what: str, *, of: Sequence[str], strata: Sequence[str], weigh_runs: bool
) -> pd.DataFrame:
    """95% intervals of means, by Student's t.

    The tasks are fixed and the seeds are random. So the variance of a mean is the weighted sum of
    the variances of the tasks' means, with the degrees of freedom of Welch and Satterthwaite. On
    one task this is the usual t interval. It is NaN where a task has one seed, and where all
    values agree, because then nothing is known about their spread.

    Args:
        runs: One line a run.
        what: The column of the values; those that are missing are left out.
        of: Columns that name one mean.
        strata: Columns that name one task.
        weigh_runs: Whether the mean is over runs; else it is over tasks.

    Returns:
        Frame by `of`, with the columns `{what}_low` and `{what}_high`.
    """
    names = list(dict.fromkeys([*of, *strata]))
    parts = runs.dropna(subset=[what]).groupby(names)[what].agg(["mean", "var", "count"])
    weight = parts["count"].astype(float) if weigh_runs else parts["count"] * 0.0 + 1.0
    weight /= weight.groupby(level=list(of)).transform("sum")
    parts["mean"] *= weight
    parts["var"] *= weight**2 / parts["count"]
    parts["square"] = parts["var"] ** 2 / (parts["count"] - 1)
    sums = parts.groupby(level=list(of))[["mean", "var", "square"]].sum(min_count=1)
    known = parts["var"].notna().groupby(level=list(of)).all()
    variance = sums["var"].where(known)  # of 0 has 0/0 degrees of freedom
    half = np.sqrt(variance) * stats.t.ppf((1 + CONFIDENCE) / 2, variance**2 / sums["square"])
    bounds = {f"{what}_low": sums["mean"] - half, f"{what}_high": sums["mean"] + half}
    found: pd.DataFrame = pd.DataFrame(bounds)
    return found
