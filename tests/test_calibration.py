"""The bias that is added is the best there is, and stays finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lmaas_tune.calibration import (
    CALIBRATIONS,
    calibration_named,
    fitted_calibration,
    mean_calibration,
    no_calibration,
)
from lmaas_tune.errors import InputError
from lmaas_tune.objectives import cross_entropy, log_softmax
from lmaas_tune.prompts import FloatArray

Case = tuple[FloatArray, Any]
RIDGE = 1e-2


@st.composite
def scored(draw: st.DrawFn) -> Case:
    """Scores of 2 to 14 labels, mild or extreme, with any mixture of targets."""
    rows, labels = draw(st.integers(1, 24)), draw(st.integers(2, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread, favour = (10.0 ** draw(st.floats(-2, 2.5)) for _ in range(2))
    scores = rng.standard_normal((rows, labels)) * spread + rng.standard_normal(labels) * favour
    kind = draw(st.sampled_from(["any", "separable", "one class"]))
    targets = rng.integers(0, labels, rows)
    if kind == "separable":
        targets = scores.argmax(axis=1)
    if kind == "one class":
        targets[:] = labels - 1
    return -np.abs(scores), targets


def penalised(bias: FloatArray, case: Case) -> float:
    scores, targets = case
    return cross_entropy(scores + bias, targets) + RIDGE / 2 * float(bias @ bias)


def slope(bias: FloatArray, case: Case) -> FloatArray:
    scores, targets = case
    share = np.bincount(targets, minlength=scores.shape[1]) / len(targets)
    gradient: FloatArray = np.exp(log_softmax(scores + bias)).mean(axis=0) - share + RIDGE * bias
    return gradient


@given(scored())
@settings(max_examples=200)
def test_the_fitted_bias_lies_where_the_penalised_loss_is_level(case: Case) -> None:
    bias = fitted_calibration(*case)
    assert np.isfinite(bias).all()
    assert np.abs(slope(bias, case)).max() < 1e-5  # the loss is convex, so this is its minimum


@given(scored())
@settings(max_examples=20, deadline=None)
def test_scipy_finds_no_better_bias(case: Case) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    start = np.zeros(case[0].shape[1])
    theirs = optimize.minimize(penalised, start, args=(case,), jac=slope, method="BFGS")
    ours = penalised(fitted_calibration(*case), case)
    assert ours <= theirs.fun + 1e-9 * max(1.0, abs(theirs.fun))


@given(scored())
def test_fitting_never_makes_the_rows_worse(case: Case) -> None:
    scores, targets = case
    assert cross_entropy(scores + fitted_calibration(scores, targets), targets) <= (
        cross_entropy(scores, targets) + 1e-9
    )


@given(scored(), st.floats(-30, 30))
def test_fitting_does_not_see_what_a_whole_row_has_in_common(case: Case, shift: float) -> None:
    scores, targets = case
    shifts = shift * np.cos(np.arange(len(scores)))[:, None]
    np.testing.assert_allclose(
        fitted_calibration(scores + shifts, targets), fitted_calibration(scores, targets), atol=1e-4
    )


@given(scored(), st.randoms())
def test_fitting_follows_the_labels_into_another_order(case: Case, random: Any) -> None:
    scores, targets = case
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    np.testing.assert_allclose(
        fitted_calibration(scores[:, order], np.argsort(order)[targets]),
        fitted_calibration(scores, targets)[order],
        atol=1e-4,
    )


@given(scored())
@example((np.array([[-9.0, -0.01], [-0.01, -9.0]]), np.array([1, 0])))
def test_every_bias_is_finite_with_one_entry_a_label_and_mean_zero(case: Case) -> None:
    for calibration in CALIBRATIONS.values():
        bias = calibration(*case)
        assert bias.shape == (case[0].shape[1],)
        assert np.isfinite(bias).all()
        assert abs(bias.mean()) < 1e-6 * max(1.0, float(np.abs(bias).max()))


def test_a_favour_that_hides_the_answers_is_taken_out() -> None:
    targets = np.arange(20) % 2
    scores = -np.abs(np.eye(2)[1 - targets]) + np.array([-0.1, -8.0])  # label 0 wins everywhere
    assert (scores.argmax(axis=1) == 0).all()
    for calibration in (mean_calibration, fitted_calibration):
        assert ((scores + calibration(scores, targets)).argmax(axis=1) == targets).all()


@given(scored())
def test_mean_calibration_gives_every_label_the_same_mean(case: Case) -> None:
    scores, targets = case
    assume(len(scores) > 1)
    means = (scores + mean_calibration(scores, targets)).mean(axis=0)
    np.testing.assert_allclose(means, means.mean(), atol=1e-9 * np.abs(scores).max())


def test_no_calibration_leaves_the_scores() -> None:
    np.testing.assert_array_equal(no_calibration(np.ones((2, 3)), np.array([0, 1])), np.zeros(3))


def test_an_unknown_calibration_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match="unknown calibration 'fited'; did you mean 'fitted'"):
        calibration_named("fited")
