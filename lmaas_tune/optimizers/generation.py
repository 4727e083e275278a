"""Checks shared by optimizers: each generation is asked once, and told once as a whole."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray


def check_no_pending_ask(asked: object) -> None:
    """Check that the last generation was told; a missed one would change the algorithm silently.

    Args:
        asked: Points of the last `ask`; None if they were told, or if there was none.

    Raises:
        InputError: The last generation was not told.
    """
    if asked is not None:
        raise InputError("ask without a tell: the last generation has to be told before the next")


def losses_in_ask_order(
    asked: FloatArray | None, points: FloatArray, losses: FloatArray
) -> FloatArray:
    """Losses of a generation in the order of its asked points.

    The points may be told in any order, without effect on the optimizer.

    Args:
        asked: (population, dim) points of the last `ask`, or None if there was none since the
            last `tell`.
        points: (population, dim) the same points, in any order.
        losses: (population,) their losses.

    Returns:
        (population,) float64, a new array.

    Raises:
        InputError: The points are not exactly those that were asked, or a loss is not finite.
    """
    if asked is None:
        raise InputError("tell without an ask: each generation is asked once and told once")
    values = np.array(losses, dtype=np.float64)
    if np.shape(points) != asked.shape or values.shape != asked.shape[:1]:
        raise InputError(
            f"tell got points of shape {np.shape(points)} and losses of shape {values.shape}; "
            f"this generation has {asked.shape} and {asked.shape[:1]}, and is told as a whole"
        )
    if not np.isfinite(values).all():
        raise InputError(
            f"the loss of point {int(np.flatnonzero(~np.isfinite(values))[0])} is "
            f"{values[~np.isfinite(values)][0]}: give what failed a finite penalty"
        )
    if np.array_equal(points, asked):
        return values
    return values[_rows_of(asked, np.asarray(points, dtype=np.float64))]


def _rows_of(asked: FloatArray, points: FloatArray) -> list[int]:
    """For each asked point, the row of `points` that holds it."""
    rows: defaultdict[bytes, list[int]] = defaultdict(list)
    for row in reversed(range(len(points))):
        rows[points[row].tobytes()].append(row)
    try:
        return [rows[point.tobytes()].pop() for point in asked]
    except IndexError:
        raise InputError(
            "tell got a point that this generation did not ask: give back the points of the last "
            "ask as they were, all of them and once each"
        ) from None
