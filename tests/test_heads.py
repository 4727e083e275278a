"""Heads: what they learn from scores, and that rows are judged by heads that did not see them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.heads import BiasHead, Fit, FittedHead, LinearHead, NoHead, make_head
from lmaas_tune.heads.logistic import fit_logistic
from lmaas_tune.heads.words import head_words
from lmaas_tune.objectives import cross_entropy, error_rate, log_softmax
from lmaas_tune.task import Example, Task, Template, Verbalizer
from lmaas_tune.testing import HeadConformance


class TestNone(HeadConformance):
    @pytest.fixture
    def head(self) -> Any:
        return NoHead()


class TestBias(HeadConformance):
    @pytest.fixture
    def head(self) -> Any:
        return BiasHead()


class TestAffine(HeadConformance):
    @pytest.fixture
    def head(self) -> Any:
        return LinearHead()


class TestWords(HeadConformance):
    @pytest.fixture
    def head(self) -> Any:
        return LinearHead(10)


def planted(rows: int, words: int, strength: float, seed: int = 0) -> tuple[Any, Any]:
    """Scores in which the label words tell little, and one direction of the others the label."""
    direction = np.random.default_rng(99).normal(size=words)
    direction *= strength / np.linalg.norm(direction)
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, rows)
    scores = rng.normal(size=(rows, 2 + words)) - 8
    scores[:, 2:] += np.where(targets, 1, -1)[:, None] * direction
    return scores, targets


def test_no_head_passes_the_label_words_on() -> None:
    scores, targets = planted(20, 5, 1.0)
    fit = NoHead().fit(scores, targets, 2)
    assert np.array_equal(fit.head(scores), scores[:, :2])
    assert np.array_equal(fit.held_out, scores[:, :2])


def test_the_bias_minimises_its_loss_and_takes_a_prejudice_off() -> None:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 3, 60)
    fair = rng.normal(size=(60, 3))
    fair[np.arange(60), targets] += 1.0
    scores = fair + np.array([4.0, 0.0, -2.0])
    bias = BiasHead().fit(scores, targets, 3).head.bias

    def loss(b: Any) -> float:
        return cross_entropy(scores + b, targets) + 0.005 * float(b @ b)

    for step in 1e-3 * rng.normal(size=(50, 3)):
        assert loss(bias) < loss(bias + step)
    assert error_rate(scores + bias, targets) < error_rate(scores, targets) - 0.2


@pytest.mark.parametrize("head", [BiasHead(), LinearHead(30)], ids=["bias", "words"])
def test_a_left_out_row_is_judged_as_if_it_had_never_been_seen(head: Any) -> None:
    scores, targets = planted(40, 30, 1.5)
    held_out = head.fit(scores, targets, 2).held_out
    refitted = np.array(
        [
            head.fit(np.delete(scores, i, 0), np.delete(targets, i), 2).head(scores[i : i + 1])[0]
            for i in range(len(scores))
        ]
    )
    ours, exact = cross_entropy(held_out, targets), cross_entropy(refitted, targets)
    seen = cross_entropy(head.fit(scores, targets, 2).head(scores), targets)
    assert abs(ours - exact) < 0.2 * abs(exact - seen)


@pytest.mark.parametrize("rows", [2, 3, 4, 8, 15])
def test_with_few_rows_a_left_out_row_is_judged_by_a_fit_to_the_others(rows: int) -> None:
    scores, targets = planted(rows, 1, 1.0)
    targets[:2] = 0, 1
    held_out = BiasHead().fit(scores, targets, 2).held_out
    for row in range(rows):
        others = np.delete(np.arange(rows), row)
        head = BiasHead().fit(scores[others], targets[others], 2).head
        np.testing.assert_allclose(held_out[row], head(scores[row : row + 1])[0], atol=1e-9)


def test_words_find_what_the_label_words_do_not_tell() -> None:
    scores, targets = planted(64, 30, 3.0)
    new, labels = planted(500, 30, 3.0, seed=1)
    bias, words = (head.fit(scores, targets, 2).head for head in (BiasHead(), LinearHead(30)))
    assert error_rate(bias(new), labels) > 0.4
    assert error_rate(words(new), labels) < 0.1


def test_words_that_tell_nothing_change_little() -> None:
    rises = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, 2, 64)
        scores = rng.normal(size=(64, 102))
        scores[np.arange(64), targets] += 1.5
        new, labels = rng.normal(size=(500, 102)), rng.integers(0, 2, 500)
        new[np.arange(500), labels] += 1.5
        bias, words = (
            cross_entropy(head.fit(scores, targets, 2).head(new), labels)
            for head in (BiasHead(), LinearHead(100))
        )
        rises.append(words - bias)
    assert np.mean(rises) < 0.03


def test_words_that_mislead_for_rows_that_are_left_out_are_not_read() -> None:
    told = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores, targets = rng.normal(size=(32, 302)), rng.permutation(32) % 2
        bias, words = (head.fit(scores, targets, 2) for head in (BiasHead(), LinearHead(300)))
        told.append(words.head.matrix is not None)
        if not told[-1]:
            assert np.array_equal(words.head.bias, bias.head.bias)
            assert np.array_equal(words.held_out, bias.held_out)
    assert sum(told) < 10  # labels at random: the sign of the weight is chance, or worse


def test_affine_untangles_confused_label_words() -> None:
    rng = np.random.default_rng(0)
    turn = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])

    def draw(rows: int) -> tuple[Any, Any]:
        targets = rng.integers(0, 3, rows)
        state = 0.3 * rng.normal(size=(rows, 3))
        state[np.arange(rows), targets] += 2.0
        return log_softmax(state @ turn + 0.05 * rng.normal(size=(rows, 3))), targets

    scores, targets = draw(90)
    new, labels = draw(1000)
    bias, affine = (
        cross_entropy(head.fit(scores, targets, 3).head(new), labels)
        for head in (BiasHead(), LinearHead())
    )
    assert affine < bias - 0.1


def test_auto_takes_the_words_that_the_model_scores() -> None:
    assert make_head("auto", words=300, most=None) == LinearHead(300)
    assert make_head("auto", words=300, most=128) == LinearHead(128)
    assert (
        make_head("auto", words=300, most=0)
        == LinearHead(0)
        == make_head("affine", words=300, most=None)
    )
    with pytest.raises(InputError, match="scores the label words only; take head='affine'"):
        make_head("words", words=300, most=0)
    with pytest.raises(InputError, match="did you mean 'bias'"):
        make_head("biass", words=300, most=0)


def test_a_heads_words_are_the_models_and_no_label_words() -> None:
    task = Task(Template("{text} {prompt} {label}"), Verbalizer({"1": "good", "0": "bad"}))
    rows = [Example({"text": "a lovely film"}, "1"), Example({"text": "a dreadful film"}, "0")] * 3
    known = ["the", "good", "bad", "film", "lovely", *(f"word{n}" for n in range(50))]
    words = head_words(task, rows, known, 12, seed=0)
    assert len(words) == len(set(words)) == 12
    assert set(words) <= set(known) - {"good", "bad"}
    assert "lovely" in words  # "dreadful" is no word of the model
    assert words == head_words(task, rows, known, 12, seed=0)
    assert words != head_words(task, rows, known, 12, seed=1)


class Mutant:
    extra_words = 5

    def __init__(self, spoil: Any) -> None:
        self._spoil = spoil

    def fit(self, scores: Any, targets: Any, labels: int, /) -> Fit:
        fit: Fit = self._spoil(LinearHead(5).fit(scores, targets, labels), scores, targets)
        return fit


def in_place(fit: Fit, scores: Any, targets: Any) -> Fit:
    scores += 1.0
    return fit


MUTANTS = {
    "test_shapes": lambda fit, s, t: Fit(FittedHead(fit.head.bias[:2], None), fit.held_out),
    "test_numbers_are_finite": lambda fit, s, t: Fit(
        FittedHead(fit.head.bias / s.std(axis=0).min(), fit.head.matrix), fit.held_out
    ),
    "test_the_same_rows_give_the_same_head": lambda fit, s, t: Fit(
        FittedHead(fit.head.bias + np.random.default_rng().random(), fit.head.matrix), fit.held_out
    ),
    "test_arguments_are_not_changed": in_place,
    "test_held_out_is_judged_by_other_rows": lambda fit, s, t: Fit(fit.head, fit.head(s)),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("check", MUTANTS)
def test_the_suite_finds_a_planted_fault(check: str) -> None:
    suite = HeadConformance()
    getattr(suite, check)(LinearHead(5))
    with pytest.raises(BaseException, match=r".") as caught:
        getattr(suite, check)(Mutant(MUTANTS[check]))
    assert type(caught.value).__name__ in ("Failed", "AssertionError")


@pytest.mark.parametrize("rows", [6, 12])  # few rows are left out by fits, more by Newton steps
def test_a_penalty_that_is_lost_in_rounding_ends_nothing(rows: int) -> None:
    numbers = np.linspace(-1e9, 1e9, rows)
    design = np.zeros((rows, 2, 2))
    design[:, :, 0] = numbers[:, None]  # two parameters that do the same: a singular hessian
    targets = (numbers > 0).astype(int)
    v, others = fit_logistic(np.zeros((rows, 2)), design, targets, np.zeros(2), np.full(2, 1e-12))
    assert np.isfinite(v).all() and np.isfinite(others).all()
