"""`HeadConformance`: requirements on every head, as tests to inherit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.heads import Head
from lmaas_tune.objectives import Targets, cross_entropy, log_softmax
from lmaas_tune.prompts import FloatArray, TextPrompt
from lmaas_tune.task import Task, Template, Verbalizer
from lmaas_tune.testing.suite import Conformance, check, require

_LABELS = 3


class HeadConformance(Conformance):
    """Inherit, and define the head.

        class TestMine(HeadConformance):
            @pytest.fixture
            def head(self):
                return Mine()

    A check that cannot pass is declared: ``deviations = {"test_...": "the reason"}``.
    """

    @pytest.fixture
    def head(self) -> Head:
        """The head."""
        raise NotImplementedError("give the suite a fixture head() -> Head")

    def test_tally(self, head: Head, capsys: pytest.CaptureFixture[str]) -> None:
        """Prints what runs here."""
        self.report(head, capsys)

    @check()
    def test_shapes(self, head: Head) -> None:
        """A bias a label, a matrix from words to labels or none, log-odds a row and label."""
        for rows in (1, 2, 40):
            scores, targets = _rows(head, rows)
            fit = head.fit(scores, targets, _LABELS)
            require(fit.head.bias.shape == (_LABELS,), f"the bias has shape {fit.head.bias.shape}")
            matrix = fit.head.matrix
            require(
                matrix is None or matrix.shape == (scores.shape[1], _LABELS),
                f"the matrix has shape {None if matrix is None else matrix.shape} for "
                f"{scores.shape[1]} words and {_LABELS} labels",
            )
            require(
                fit.held_out.shape == (rows, _LABELS),
                f"held_out has shape {fit.held_out.shape} for {rows} rows",
            )

    @check()
    def test_numbers_are_finite(self, head: Head) -> None:
        """Also for rows that are equal, or that the label words separate, or of one label."""
        scores, targets = _rows(head, 20)
        separated = scores.copy()
        separated[np.arange(20), targets] += 50 - separated[np.arange(20), targets].max()
        separated = log_softmax(separated)
        for values, labels in (
            (np.tile(scores[:1], (20, 1)), targets),
            (separated, targets),
            (scores, np.zeros(20, dtype=int)),
        ):
            fit = head.fit(values, labels, _LABELS)
            arrays = (fit.head.bias, fit.head(values), fit.held_out)
            require(all(np.isfinite(each).all() for each in arrays), "a number is not finite")

    @check()
    def test_the_same_rows_give_the_same_head(self, head: Head) -> None:
        """Twice the same numbers, and the same answers if the rows are in another order."""
        scores, targets = _rows(head, 30)
        first, again = (head.fit(scores.copy(), targets.copy(), _LABELS) for _ in range(2))
        require(
            np.array_equal(first.head(scores), again.head(scores))
            and np.array_equal(first.held_out, again.held_out),
            "two fits to the same rows differ",
        )
        order = np.random.default_rng(0).permutation(30)
        mixed = head.fit(scores[order], targets[order], _LABELS)
        require(
            np.allclose(mixed.held_out, first.held_out[order], atol=1e-6),
            "the order of the rows changes the log-odds",
        )

    @check()
    def test_arguments_are_not_changed(self, head: Head) -> None:
        """Scores and targets are the caller's."""
        scores, targets = _rows(head, 30)
        before = scores.copy(), targets.copy()
        head.fit(scores, targets, _LABELS)
        require(
            np.array_equal(scores, before[0]) and np.array_equal(targets, before[1]),
            "fit changes its arguments",
        )

    @check()
    def test_held_out_is_judged_by_other_rows(self, head: Head) -> None:
        """Labels at random: held-out rows are not answered better than by guessing.

        The label words' scores hardly differ, so that a head which only guesses loses nothing.
        """
        losses = []
        for seed in range(20):
            scores = _rows(head, 20, seed=seed)[0]
            scores[:, :_LABELS] *= 0.01
            targets = np.random.default_rng(100 + seed).integers(0, _LABELS, 20)
            odds = head.fit(scores, targets, _LABELS).held_out
            losses.append(cross_entropy(odds, targets))
        gain = float(np.log(_LABELS) - np.mean(losses))
        require(
            gain < 0.01,
            f"with random labels the loss of held-out rows is {gain:.2f} below that of guessing: "
            "a row is judged by a head that saw its label",
        )

    @check()
    def test_a_saved_head_answers_as_before(self, head: Head, tmp_path: Path) -> None:
        """A prompt with this head, saved and loaded, gives equal log-odds."""
        scores, targets = _rows(head, 30)
        fitted = head.fit(scores, targets, _LABELS).head
        words = [f"w{number}" for number in range(scores.shape[1] - _LABELS)]
        task = Task(Template("{text} {prompt} {label}"), Verbalizer({c: c for c in "abc"}))
        extra = () if fitted.matrix is None else tuple(words)
        TunedPrompt(TextPrompt("so"), task, fitted, extra).save(tmp_path)
        loaded = TunedPrompt.load(tmp_path)
        require(
            np.array_equal(loaded.head(scores), fitted(scores)) and loaded.words == extra,
            "a loaded head answers otherwise",
        )


def _rows(head: Head, count: int, *, seed: int = 0) -> tuple[FloatArray, Targets]:
    """Scores of rows in which the label words tell something of the label, and further words."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, _LABELS, count)
    words = _LABELS + min(head.extra_words, 10)
    scores = rng.normal(size=(count, words + 1))
    scores[np.arange(count), targets] += 1.0
    logprobs: FloatArray = log_softmax(scores)[:, :words]
    return logprobs, targets
