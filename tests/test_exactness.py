"""Scores that are only bounds are counted on their whole way, told, and refused where most are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmaas_tune import Client, PermanentError, ScoreReply, ScoreRequest, TuneResult
from lmaas_tune.doctor import probe
from lmaas_tune.evaluator import Evaluation
from lmaas_tune.exactness import describe_bounds
from tests.support.small_models import TRAIN, VALIDATION, Bowl, small_tuner


class Guessing(Bowl):
    """Tells bounds for a share of the rows, rounded down."""

    def __init__(self, *, share: float, rows_per_call: int | None = None) -> None:
        super().__init__(identity=f"guessing {share}", rows_per_call=rows_per_call)
        self.share = share

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        return [replace(r, bounds=self._guessed(r)) for r in super().score(requests)]

    def _guessed(self, reply: ScoreReply) -> int:
        rows, labels = reply.logprobs.shape
        return labels * int(rows * self.share)


def run(backend: Bowl | Client, folder: Path | None = None, **options: object) -> TuneResult:
    resume = bool(options.pop("resume", False))
    tuner = small_tuner(backend, budget="calls=11", out=folder, **options)
    return tuner.fit(TRAIN, VALIDATION, resume=resume)


def test_a_run_on_bounds_is_refused_when_its_first_scores_are_in(tmp_path: Path) -> None:
    backend = Guessing(share=0.8)
    with pytest.raises(PermanentError, match=r"80% of the scores are bounds.*--allow-bounds"):
        run(backend, tmp_path / "run")
    assert len(backend.asked) == 2  # the start, on the rows of training and of validation
    with pytest.warns(UserWarning, match="80% of the scores are bounds"):
        result = run(backend, tmp_path / "run", resume=True, allow_bounds=True)
    assert result.bounds == pytest.approx(0.8)
    assert result.spent.calls == 11


def test_a_run_with_some_bounds_is_warned_of_once_and_one_without_never() -> None:
    with pytest.warns(UserWarning, match=r"4\d% of the scores are bounds") as told:
        assert 0.4 < run(Guessing(share=0.5)).bounds <= 0.5
    assert len([w for w in told if "bounds" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the budget pays|the tuned prompt may be no better")
        assert run(Guessing(share=0.0)).bounds == 0.0


@pytest.mark.parametrize("rows_per_call", [None, 4])
def test_what_the_cache_answers_counts_as_many_bounds(
    tmp_path: Path, rows_per_call: int | None
) -> None:
    backend = Guessing(share=0.5, rows_per_call=rows_per_call)
    with pytest.warns(UserWarning, match="are bounds"):
        paid = run(Client(backend, cache=tmp_path / "cache"))
        asked = len(backend.asked)
        again = run(Client(backend, cache=tmp_path / "cache"))
    assert len(backend.asked) == asked
    assert again.bounds == paid.bounds > 0
    assert again.prompt.prompt.digest == paid.prompt.prompt.digest
    assert np.array_equal(again.prompt.head.bias, paid.prompt.head.bias)


@pytest.mark.parametrize("rows_per_call", [None, 4])
def test_what_the_journal_answers_counts_as_many_bounds(
    tmp_path: Path, rows_per_call: int | None
) -> None:
    backend = Guessing(share=0.5, rows_per_call=rows_per_call)
    with pytest.warns(UserWarning, match="are bounds"):
        paid = run(backend, tmp_path / "run")
        journal = tmp_path / "run" / "journal.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        if rows_per_call:  # cut in the midst of an answer, after one of its parts
            whole = [n for n, line in enumerate(lines) if b'"key"' in line]
            lines = lines[: whole[1] + 2]
        journal.write_bytes(b"".join(lines))
        again = run(backend, tmp_path / "run", resume=True)
    assert again.bounds == paid.bounds
    assert again.best.train is not None
    assert again.best.train.bounds > 0


def test_predictions_on_bounds_are_warned_of() -> None:
    result = run(Guessing(share=0.0))
    exact = result.predict(["good", "bad"])
    with pytest.warns(UserWarning, match="100% of the scores are bounds"):
        assert result.prompt.predict(Guessing(share=1.0), ["good", "bad"]) == exact


def test_an_evaluation_keeps_its_share_of_bounds_and_an_exact_one_has_none() -> None:
    told = Evaluation(0.5, 1.0, np.zeros((1, 2)), 0.25)
    assert Evaluation.from_json(told.to_json(), (1, 2)).bounds == 0.25
    exact = replace(told, bounds=0.0).to_json()
    assert "bounds" not in exact
    assert Evaluation.from_json(exact, (1, 2)).bounds == 0.0


def test_doctor_counts_the_bounds_of_its_question() -> None:
    assert probe(Guessing(share=1.0)).bounds == 2
    assert probe(Guessing(share=0.0)).bounds == 0


@pytest.mark.parametrize("bounds", [-1, 1000, 0.5])
def test_a_count_that_cannot_be_is_the_backends_fault(bounds: int) -> None:
    class Wrong(Bowl):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            return [replace(reply, bounds=bounds) for reply in super().score(requests)]

    with pytest.raises(PermanentError, match=r"bounds among|integer"):
        run(Wrong())


def test_few_bounds_are_not_told_as_none() -> None:
    assert describe_bounds(0.001) == "1% of the scores are bounds"
    assert describe_bounds(403 / 410) == "98% of the scores are bounds"
