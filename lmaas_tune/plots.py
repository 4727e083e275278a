"""Plots of a run with matplotlib (extra ``plot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmaas_tune.errors import MissingExtraError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def plot_history(history: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Losses over calls: each generation's best and mean, validation, and the selected prompt.

    Args:
        history: `TuneResult.history`.
        ax: Axes to draw on; None creates a figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError("a plot", package="matplotlib", extra="plot") from error
    if ax is None:
        ax = pyplot.subplots(figsize=(7, 4), layout="constrained")[1]
    calls = history["calls"]
    ax.plot(calls, history["train_loss_mean"], color="C0", alpha=0.35, label="training, mean")
    ax.plot(calls, history["train_loss"], color="C0", label="training, best of the generation")
    if history["validation_loss"].notna().any():
        ax.plot(calls, history["validation_loss"], "o", color="C1", ms=3, label="validation")
    ax.step(calls, history["best_loss"], where="post", color="C3", label="kept")
    ax.set(xlabel="calls (one prompt on all training rows)", ylabel="loss")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax
