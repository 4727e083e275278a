"""A prompt's worth on fixed rows: calibrated on its own, judged with the bias it came with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmaas_tune import Client, Price, SoftPrompt, Task, Template, Usage, Verbalizer
from lmaas_tune.calibration import fitted_calibration, mean_calibration, no_calibration
from lmaas_tune.calls.meter import Meter
from lmaas_tune.data import read_examples
from lmaas_tune.errors import InputError
from lmaas_tune.evaluator import Evaluation, Evaluator
from lmaas_tune.objectives import cross_entropy
from tests.support.small_models import TRAIN, Bowl, Spoilt, TellingBowl

TASK = Task(Template("{text} {prompt} {label}"), Verbalizer({"good": "good", "bad": "bad"}))
PROMPTS = [SoftPrompt(np.full((2, 3), level)) for level in (0.0, 0.7, 5.0)]


def evaluator(backend: Any, rows: Any = TRAIN, task: Task = TASK, **changes: Any) -> Evaluator:
    client = backend if isinstance(backend, Client) else Client(backend)
    return Evaluator(client, task, read_examples(rows), cross_entropy, what="train", **changes)


def test_the_better_prompt_has_the_lower_loss_and_the_rows_are_scored_once_each() -> None:
    backend, meter = Bowl(), Meter()
    worth = evaluator(backend).calibrate(PROMPTS, no_calibration, meter)
    assert worth[1].loss < worth[0].loss < worth[2].loss
    assert [e.accuracy for e in worth] == [0.9, 0.9, 0.9]  # "nor" is nobody's word
    assert (meter.spent.requests, meter.spent.sequences) == (3, 3 * len(TRAIN))
    assert [digest for digest, _ in backend.asked] == [p.digest for p in PROMPTS]


def test_calibration_is_each_prompts_own_and_kept_with_its_worth() -> None:
    tilted = Spoilt(lambda scores, before: scores - np.array([0.0, 6.0]))
    plain, fitted = (
        evaluator(tilted).calibrate(PROMPTS, rule, Meter())
        for rule in (no_calibration, fitted_calibration)
    )
    assert all(
        f.loss < p.loss and f.accuracy >= p.accuracy for p, f in zip(plain, fitted, strict=False)
    )
    again = evaluator(tilted).evaluate(PROMPTS, [e.bias for e in fitted], Meter())
    assert [e.loss for e in again] == pytest.approx([e.loss for e in fitted])
    assert (plain[0].bias == 0).all()


def test_an_objective_that_works_in_place_changes_nothing_else() -> None:
    def in_place(scores: Any, targets: Any) -> float:
        loss = cross_entropy(scores, targets)
        scores *= -1
        targets[:] = 0
        return loss

    plain, crooked = (
        Evaluator(Client(Bowl()), TASK, read_examples(TRAIN), objective, what="train").calibrate(
            PROMPTS, no_calibration, Meter()
        )
        for objective in (cross_entropy, in_place)
    )
    assert [e.to_json() for e in crooked] == [e.to_json() for e in plain]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_scores_that_are_not_finite_are_a_failure_and_never_an_answer(value: float) -> None:
    def spoil(scores: Any, before: int) -> Any:
        scores = scores.copy()
        scores[0, 0] = value
        return scores if before == 1 else np.minimum(scores, 0)

    backend = Spoilt(lambda scores, before: spoil(scores, before) if before == 1 else scores)
    for worth in (
        evaluator(backend).calibrate(PROMPTS, mean_calibration, Meter()),
        evaluator(Spoilt(spoil)).evaluate(PROMPTS[:2], [np.zeros(2)] * 2, Meter()),
    ):
        assert math.isnan(worth[1].loss)
        assert worth[1].accuracy == 0.0
        assert np.isfinite(worth[1].bias).all()


def test_an_evaluation_survives_json_with_its_nan() -> None:
    for loss in (0.25, math.nan):
        back = Evaluation.from_json(Evaluation(loss, 0.5, np.array([1.0, -1.0])).to_json())
        assert back.loss == loss or (math.isnan(back.loss) and math.isnan(loss))
        assert (back.accuracy, back.bias.tolist()) == (0.5, [1.0, -1.0])


def test_the_digest_follows_rows_and_targets() -> None:
    swapped = Task(TASK.template, Verbalizer({"good": "bad", "bad": "good"}))
    other = Task(Template("{prompt} {text} {label}"), TASK.verbalizer)
    turned = [(text, "good" if label == "bad" else "bad") for text, label in TRAIN]
    base = evaluator(Bowl()).digest
    assert evaluator(Bowl(identity="other"), task=swapped).digest == base
    assert len({base, evaluator(Bowl(), turned).digest, evaluator(Bowl(), task=other).digest}) == 3
    assert evaluator(Bowl(), TRAIN[:-1]).digest != base


def test_a_row_that_does_not_fit_is_named_with_its_file_and_number() -> None:
    with pytest.raises(
        InputError, match=r"train: row 2 has the label 'god', .* did you mean 'good'"
    ):
        evaluator(Bowl(), [("a", "good"), ("b", "god")])
    with pytest.raises(InputError, match="train: row 1: no field 'text'"):
        evaluator(Bowl(), [{"sentence": "a", "label": "good"}])


def usage_of(evaluator: Evaluator) -> Usage:
    return evaluator.cost.of_prompt(evaluator.batch).usage


def test_what_a_prompt_takes_is_known_by_inspection_or_by_the_dearest_answer() -> None:
    telling = evaluator(Client(TellingBowl(), price=Price(input=1e6)))
    assert usage_of(telling).tokens == 0
    assert telling.inspect(PROMPTS[0]) == ("a bowl says what it costs",)
    tokens = sum(len(text.split()) + 2 for text, _ in TRAIN)
    assert (usage_of(telling).tokens, usage_of(telling).money) == (tokens, tokens)
    silent = evaluator(Bowl())
    assert silent.inspect(PROMPTS[0]) == ()
    assert (usage_of(silent).tokens, usage_of(silent).sequences) == (0, len(TRAIN))
    silent.evaluate([SoftPrompt(np.zeros((9, 3))), *PROMPTS], [np.zeros(2)] * 4, Meter())
    assert usage_of(silent).tokens == tokens + 7 * len(TRAIN)


def test_a_row_that_inspection_refuses_is_named_with_its_file() -> None:
    class Short(Bowl):
        def inspect(self, request: Any, /) -> Any:
            raise InputError("row 3 is too long")

    with pytest.raises(InputError, match="train: row 3 is too long"):
        evaluator(Short()).inspect(PROMPTS[0])


def test_a_prompt_that_the_cache_knows_in_part_says_nothing_of_what_one_takes(
    tmp_path: Path,
) -> None:
    client = Client(Bowl(rows_per_call=2), cache=tmp_path / "cache.sqlite")
    whole = evaluator(client)
    whole.calibrate(PROMPTS[:1], no_calibration, Meter())
    part = evaluator(client, rows=[*TRAIN, ("good thing", "good"), ("bad thing", "bad")])
    part.calibrate(PROMPTS[:1], no_calibration, Meter())
    assert usage_of(part).tokens == 0
    part.calibrate(PROMPTS[1:2], no_calibration, Meter())
    assert usage_of(part).tokens > usage_of(whole).tokens
