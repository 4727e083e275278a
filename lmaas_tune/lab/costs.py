"""Accuracy against what the search cost, for every backend with every optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmaas_tune.lab.intervals import intervals

if TYPE_CHECKING:
    import pandas as pd

UNITS = ("money", "tokens", "calls")
"""What a run may have cost, the most telling first."""

_POINT = ["backend", "optimizer"]


def unit_of(runs: pd.DataFrame) -> str:
    """The first of `UNITS` that every backend took: money, unless one has no price."""
    most = runs.groupby("backend")[list(UNITS)].max()
    return next((unit for unit in UNITS[:-1] if (most[unit] > 0).all()), UNITS[-1])


def costs(runs: pd.DataFrame) -> pd.DataFrame:
    """One line for each backend and optimizer, the cheapest first.

    Args:
        runs: One line a run that succeeded.

    Returns:
        The number of `runs`; means over tasks of the means over seeds: `accuracy` with its
        interval, `loss`, and each of `UNITS`, which the search of a run spent; `on_front`:
        no other line is as accurate for less, or more accurate for as little. They are of the
        tasks and seeds that all lines have, or of all where there are none.
    """
    shared = _shared(runs)
    means = shared.groupby([*_POINT, "task"])[["accuracy", "loss", *UNITS]].mean()
    found = means.groupby(level=_POINT).mean()
    found.insert(0, "runs", shared.groupby(_POINT).size())
    bounds = intervals(shared, "accuracy", of=_POINT, strata=["task"], weigh_runs=False)
    found = found.join(bounds.clip(0.0, 1.0))
    found["on_front"] = _front(found[unit_of(runs)], found["accuracy"])
    lines: pd.DataFrame = found.reset_index().sort_values(
        [unit_of(runs), "accuracy"], ascending=[True, False], kind="stable", ignore_index=True
    )
    return lines


def _shared(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the tasks and seeds that every backend with every optimizer has."""
    lines = runs.groupby(_POINT).ngroups
    has_all = runs.groupby(["task", "seed"])["loss"].transform("count") == lines
    return runs[has_all] if has_all.any() else runs


def _front(cost: pd.Series[Any], accuracy: pd.Series[Any]) -> list[bool]:
    """Whether each is on the Pareto front."""
    points = list(zip(cost, accuracy, strict=True))

    def is_beaten(own: tuple[float, float]) -> bool:
        return any(at[0] <= own[0] and at[1] >= own[1] and at != own for at in points)

    return [not is_beaten(own) for own in points]
