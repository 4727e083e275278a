"""Scores with their uncertainty, and what a comparison says of the search."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from lmaas_tune.objectives import cross_entropy
from lmaas_tune.scores import Comparison, Score
from lmaas_tune.student import student_quantile

RNG = np.random.default_rng(3)


def of(odds: Any, targets: Any) -> Score:
    return Score.of(np.array(odds, dtype=float), np.array(targets))


def drawn(rows: int, skill: float, seed: int = 0) -> Score:
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, size=rows)
    odds = rng.normal(size=(rows, 3))
    odds[np.arange(rows), targets] += skill
    return Score.of(odds, targets)


def test_what_a_score_says() -> None:
    odds = np.log([[0.8, 0.2], [0.4, 0.6], [0.9, 0.1], [0.7, 0.3]])
    score = of(odds, [0, 1, 1, 0])
    assert score.accuracy == 0.75
    assert score.loss == pytest.approx(cross_entropy(odds, np.array([0, 1, 1, 0])))
    assert score.losses == pytest.approx(-np.log([0.8, 0.6, 0.1, 0.7]))
    assert score.brier == pytest.approx(2 * np.mean([0.04, 0.16, 0.81, 0.09]))
    # bins of .6, .7, .8 and .9: one row in each
    assert score.calibration_error == pytest.approx(np.mean([0.4, 0.3, 0.2, 0.9]))
    assert (score.majority, score.answers) == (0.5, 2)
    content = score.to_json()
    assert content["interval"] == list(score.interval)
    assert "losses" not in content
    assert of([[0.0, -math.inf]], [1]).to_json()["loss"] is None


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    # statsmodels 0.14: proportion_confint(right, rows, method="wilson")
    [
        (8, 10, 0.4902, 0.9433),
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
        (250, 500, 0.4563, 0.5437),
    ],
)
def test_the_interval_is_wilsons(right: int, rows: int, low: float, high: float) -> None:
    score = of(np.eye(2)[[0] * right + [1] * (rows - right)], [0] * rows)
    assert score.interval == pytest.approx((low, high), abs=1e-4)


def test_the_verdict_on_the_search() -> None:
    plain, start = drawn(300, 0.0), drawn(300, 1.0)
    better = Comparison(plain, start, drawn(300, 2.0, seed=0))
    gain, half = better.gain
    assert gain == pytest.approx(start.loss - better.tuned.loss)
    assert gain > half > 0
    assert better.verdict.startswith(f"The search helped beyond chance: it took {gain:.3f} ± ")
    assert "is not seen to help beyond chance" in Comparison(plain, start, start).verdict
    assert "did harm" in Comparison(plain, drawn(300, 2.0), start).verdict
    same = of(np.tile([1.0, 0.0, 0.0], (300, 1)), [0, 1, 2] * 100)
    assert "gives one label to all rows" in Comparison(plain, start, same).verdict
    one = Comparison(*[of([[0.0, 1.0]], [1])] * 3)
    assert one.gain[1] == math.inf


@pytest.mark.parametrize("values", [5, 8, 16, 64, 500])
@pytest.mark.parametrize("probability", [0.9, 0.975, 0.999])
def test_students_quantile_is_scipys(values: int, probability: float) -> None:
    expected = scipy.stats.t.ppf(probability, values - 1)
    assert student_quantile(probability, values) == pytest.approx(expected, rel=0.04)
    assert student_quantile(0.975, 16) == pytest.approx(2.13145, abs=1e-4)


def test_the_search_helps_beyond_chance_as_seldom_as_it_says() -> None:
    rng, rows, helped, missed = np.random.default_rng(0), 8, 0, 0
    for _ in range(4000):
        odds = rng.normal(size=(2, rows, 2))
        gain, half = Comparison(
            of(odds[0], [0] * rows), of(odds[0], [0] * rows), of(odds[1], [0] * rows)
        ).gain
        helped, missed = helped + (gain > half), missed + (abs(gain) > half)
    assert helped / 4000 < 0.032  # 0.043 with the normal quantile
    assert missed / 4000 < 0.06


def test_few_rows_tell_nothing_of_the_search() -> None:
    start, tuned = of([[0.0, 1.0]] * 4, [0] * 4), of([[1.0, 0.0]] * 4, [0] * 4)
    assert Comparison(start, start, tuned).gain[1] == math.inf
