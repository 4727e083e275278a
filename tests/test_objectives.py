"""The losses equal their closed forms and other people's code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmaas_tune.errors import InputError
from lmaas_tune.objectives import (
    OBJECTIVES,
    cross_entropy,
    error_rate,
    hinge,
    log_softmax,
    negative_f1,
    objective_named,
)
from lmaas_tune.prompts import FloatArray

Case = tuple[FloatArray, Any]


@st.composite
def scored(draw: st.DrawFn, labels: int | None = None) -> Case:
    """(rows, labels) scores and their (rows,) targets."""
    shape = draw(st.integers(1, 8)), labels or draw(st.integers(2, 14))
    scores = draw(arrays(np.float64, shape, elements=st.floats(-50, 0)))
    targets = draw(arrays(np.intp, shape[:1], elements=st.integers(0, shape[1] - 1)))
    return scores, targets


@given(scored())
def test_the_hinge_is_the_papers_sum_over_wrong_labels(case: Case) -> None:
    scores, targets = case
    by_hand = [
        sum(max(0.0, s - row[y] + 2) for k, s in enumerate(row) if k != y)
        for row, y in zip(scores, targets, strict=True)
    ]
    assert hinge(scores, targets) == pytest.approx(np.mean(by_hand))


@given(scored())
def test_the_hinge_is_torchs_multi_margin_loss_times_the_number_of_labels(case: Case) -> None:
    torch = pytest.importorskip("torch")
    scores, targets = case
    theirs = torch.nn.MultiMarginLoss(margin=2.0)(torch.tensor(scores), torch.tensor(targets))
    assert hinge(scores, targets) == pytest.approx(float(theirs) * scores.shape[1])


@given(scored(), st.floats(-20, 20))
def test_cross_entropy_looks_at_the_label_words_alone(case: Case, shift: float) -> None:
    scores, targets = case
    shifts = shift * np.arange(len(scores))[:, None]
    assert cross_entropy(scores + shifts, targets) == pytest.approx(
        cross_entropy(scores, targets), abs=1e-9
    )
    np.testing.assert_allclose(np.exp(log_softmax(scores)).sum(axis=1), 1.0)


@given(scored())
def test_cross_entropy_equals_torchs_on_the_restricted_scores(case: Case) -> None:
    torch = pytest.importorskip("torch")
    scores, targets = case
    theirs = torch.nn.functional.cross_entropy(torch.tensor(scores), torch.tensor(targets))
    assert cross_entropy(scores, targets) == pytest.approx(float(theirs), abs=1e-9)


def test_cross_entropy_survives_scores_that_no_exponential_does() -> None:
    scores = np.array([[-1e4, -2e4], [-5e3, -1.0]])
    assert cross_entropy(scores, np.array([0, 0])) == pytest.approx(4999 / 2)


@given(scored())
def test_the_error_rate_counts_wrong_answers(case: Case) -> None:
    scores, targets = case
    wrong = [int(np.argmax(row)) != y for row, y in zip(scores, targets, strict=True)]
    assert error_rate(scores, targets) == pytest.approx(np.mean(wrong))


@given(scored(labels=2), st.integers(0, 1))
def test_f1_equals_scikit_learns_with_a_minus(case: Case, positive: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, targets = case
    theirs = metrics.f1_score(targets, scores.argmax(axis=1), pos_label=positive, zero_division=0.0)
    assert negative_f1(scores, targets, positive=positive) == pytest.approx(-theirs)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_perfect_answer_is_lower_than_a_wrong_one(name: str) -> None:
    targets = np.array([0, 1, 1])
    right = np.where(np.eye(2)[targets] > 0, -0.01, -9.0)
    objective = objective_named(name)
    assert objective(right, targets) < objective(right[:, ::-1], targets)


@given(scored(labels=3))
def test_no_objective_changes_what_it_is_given(case: Case) -> None:
    scores, targets = case
    before = scores.copy(), targets.copy()
    for objective in OBJECTIVES.values():
        assert np.isfinite(objective(scores, targets))
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(targets, before[1])


def test_an_unknown_objective_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match="unknown objective 'hing'; did you mean 'hinge'"):
        objective_named("hing")
