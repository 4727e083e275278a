"""Gauss-Newton: what it makes of the scores, on losses whose minimum is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.objectives import cross_entropy
from lmaas_tune.optimizers import make_optimizer
from lmaas_tune.optimizers.base import UsesScores
from lmaas_tune.prompts import FloatArray

ROWS, LABELS, DIM = 24, 3, 20
RNG = np.random.default_rng(5)
TARGETS = RNG.integers(LABELS, size=ROWS)
SLOPES = RNG.normal(size=(ROWS, LABELS, DIM))
START = RNG.normal(size=(ROWS, LABELS))

Scores = Callable[[FloatArray], FloatArray]


class Plain:
    """The loss of scores without a head."""

    def linearised(self, scores: FloatArray, /) -> Any:
        return (lambda other: other.copy()), TARGETS


def linear(z: FloatArray) -> FloatArray:
    return START + SLOPES @ z / DIM**0.5


def curved(z: FloatArray) -> FloatArray:
    """Scores whose slopes change along the way."""
    hidden = np.tanh(np.tensordot(SLOPES, z, (2, 0)) / DIM**0.5)
    return START + hidden + 0.3 * np.sin(2 * hidden[::-1])


def lowest(name: str, scores: Scores, calls: int, told: bool = True, **options: Any) -> float:
    """The lowest loss of a search."""
    optimizer = make_optimizer(name, DIM, seed=1, calls=calls, options=options)
    if isinstance(optimizer, UsesScores) and told:
        optimizer.begin(Plain())
    best = np.inf
    for _ in range(calls // optimizer.population):
        points = optimizer.ask()
        found = np.array([scores(point) for point in points])
        losses = np.array([cross_entropy(each, TARGETS) for each in found])
        if isinstance(optimizer, UsesScores) and told:
            optimizer.tell_scores(points, losses, found)
        else:
            optimizer.tell(points, losses)
        best = min(best, losses.min())
    return float(best)


def test_scores_that_are_linear_are_fitted_by_a_few_steps() -> None:
    assert lowest("gauss-newton", linear, 70) < 0.05 < lowest("cma", linear, 70)


def test_the_scores_are_worth_many_calls_where_slopes_change() -> None:
    assert lowest("gauss-newton", curved, 140) < lowest("cma", curved, 420)


def test_without_scores_it_still_descends() -> None:
    start = cross_entropy(START, TARGETS)
    assert lowest("gauss-newton", linear, 210, told=False) < 0.7 * start


def test_points_without_finite_scores_are_passed_over() -> None:
    def failing(z: FloatArray) -> FloatArray:
        return np.full((ROWS, LABELS), np.nan) if z[0] > 0.1 else linear(z)

    optimizer: Any = make_optimizer("gauss-newton", DIM, seed=1)
    optimizer.begin(Plain())
    losses = []
    for _ in range(12):
        points = optimizer.ask()
        found = np.array([failing(point) for point in points])
        told = [cross_entropy(s, TARGETS) if np.isfinite(s).all() else 9.0 for s in found]
        optimizer.tell_scores(points, np.array(told), found)
        losses += told
    assert max(losses) == 9.0
    assert min(losses) < 0.7 * cross_entropy(START, TARGETS)


def test_the_first_steps_are_as_long_as_asked() -> None:
    optimizer: Any = make_optimizer("gauss-newton", DIM, seed=1, options={"step": 0.01})
    optimizer.begin(Plain())
    points = optimizer.ask()
    assert not points[0].any()
    np.testing.assert_allclose(np.linalg.norm(points[1:], axis=1), 0.01)


def test_no_more_points_are_kept_than_the_model_takes() -> None:
    optimizer: Any = make_optimizer("gauss-newton", DIM, seed=1, options={"population": 100})
    optimizer.begin(Plain())
    for _ in range(7):
        points = optimizer.ask()
        found = np.array([curved(point) for point in points])
        losses = np.array([cross_entropy(each, TARGETS) for each in found])
        optimizer.tell_scores(points, losses, found)
    assert len(optimizer._told) == 500


def test_a_long_search_that_finds_nothing_better_keeps_its_damping_finite() -> None:
    optimizer: Any = make_optimizer("gauss-newton", DIM, seed=1, options={"damping": 1e300})
    optimizer.begin(Plain())
    for _ in range(30):  # 4 to this power, times 1e300, is not finite
        points = optimizer.ask()
        assert np.isfinite(points).all()
        away = np.abs(points).sum(axis=1)
        optimizer.tell_scores(points, 1 + away, np.array([curved(point) for point in points]))
    assert np.isfinite(optimizer._damping)


def test_scores_that_never_change_end_nothing() -> None:
    optimizer: Any = make_optimizer("gauss-newton", DIM, seed=1)
    optimizer.begin(Plain())
    for _ in range(100):
        points = optimizer.ask()
        assert np.isfinite(points).all()
        optimizer.tell_scores(points, np.ones(len(points)), np.stack([START] * len(points)))


@pytest.mark.parametrize("options", [{"step": 1e-8}, {"radius": 1e9}, {"damping": 1e300}])
def test_settings_that_leave_no_difference_end_nothing(options: dict[str, float]) -> None:
    optimizer: Any = make_optimizer("gauss-newton", DIM, seed=1, options=options)
    optimizer.begin(Plain())
    for _ in range(5):
        points = optimizer.ask()
        found = np.array([curved(point) for point in points])
        optimizer.tell_scores(points, np.array([cross_entropy(f, TARGETS) for f in found]), found)


def test_a_radius_whose_square_is_infinite_is_refused() -> None:
    with pytest.raises(InputError, match=r"radius=1e.200 must be at most 1e.09"):
        make_optimizer("gauss-newton", DIM, seed=1, options={"radius": 1e200})
