"""A prompt's worth on fixed rows, each judged by a head of the other rows or by a given one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmaas_tune import Client, Price, SoftPrompt, Task, Template, TextPrompt, Usage, Verbalizer
from lmaas_tune.calls.meter import Meter
from lmaas_tune.data import read_examples
from lmaas_tune.errors import InputError
from lmaas_tune.evaluator import Evaluation, Evaluator
from lmaas_tune.heads import BiasHead, FittedHead, LinearHead, NoHead
from lmaas_tune.objectives import cross_entropy, log_softmax
from lmaas_tune.testing.toy import ToyBackend
from tests.support.small_models import TRAIN, Bowl, Spoilt, TellingBowl

TASK = Task(Template("{text} {prompt} {label}"), Verbalizer({"good": "good", "bad": "bad"}))
PROMPTS = [SoftPrompt(np.full((2, 3), level)) for level in (0.0, 0.7, 5.0)]


def evaluator(
    backend: Any, rows: Any = TRAIN, task: Task = TASK, head: Any = None, **changes: Any
) -> Evaluator:
    client = backend if isinstance(backend, Client) else Client(backend)
    examples = read_examples(rows)
    return Evaluator(
        client, task, examples, cross_entropy, head or NoHead(), what="train", **changes
    )


def test_the_better_prompt_has_the_lower_loss_and_the_rows_are_scored_once_each() -> None:
    backend, meter = Bowl(), Meter()
    worth = evaluator(backend).evaluate(PROMPTS, meter)
    assert worth[1].loss < worth[0].loss < worth[2].loss
    assert [e.accuracy for e in worth] == [0.9, 0.9, 0.9]  # "nor" is nobody's word
    assert (meter.spent.requests, meter.spent.sequences) == (3, 3 * len(TRAIN))
    assert [digest for digest, _ in backend.asked] == [p.digest for p in PROMPTS]


def test_a_head_is_each_prompts_own_and_another_evaluator_takes_it() -> None:
    tilted = Spoilt(lambda scores, before: scores - np.array([0.0, 6.0]))
    plain, biased = (evaluator(tilted, head=head) for head in (NoHead(), BiasHead()))
    before, after = (each.evaluate(PROMPTS, Meter()) for each in (plain, biased))
    assert all(a.loss < b.loss for a, b in zip(after, before, strict=True))
    heads = [biased.fit_head(each) for each in after]
    assert len({head.bias.tobytes() for head in heads}) == len(PROMPTS)
    again = evaluator(tilted).evaluate(PROMPTS, Meter(), heads=heads)
    for head, seen, held_out, bare in zip(heads, again, after, before, strict=True):
        assert seen.accuracy >= bare.accuracy
        odds = head(seen.scores.astype(np.float64))
        assert seen.loss == cross_entropy(odds, biased.targets) < held_out.loss
    assert not any(plain.fit_head(each).bias.any() for each in before)


def test_each_row_is_judged_by_a_head_of_the_other_rows() -> None:
    head = LinearHead(3)
    words = evaluator(ToyBackend(), head=head, words=("very", "so", "film"))
    (found,) = words.evaluate([TextPrompt("It is")], Meter())
    assert found.scores.shape == words.shape == (len(TRAIN), 5)
    assert found.scores.dtype == np.float32
    fit = head.fit(found.scores.astype(np.float64), words.targets, 2)
    assert found.loss == cross_entropy(fit.held_out, words.targets)
    losses = -log_softmax(fit.held_out)[np.arange(len(TRAIN)), words.targets]
    np.testing.assert_array_equal(words.row_losses(found), losses)
    np.testing.assert_array_equal(words.fit_head(found).bias, fit.head.bias)


def test_the_words_of_the_head_follow_the_label_words_in_a_request() -> None:
    asked: list[tuple[str, ...]] = []

    class Asked(Bowl):
        def score(self, requests: Any, /) -> Any:
            asked.extend(request.candidates for request in requests)
            return super().score(requests)

    evaluator(Asked(), words=("very", "so")).evaluate(PROMPTS[:1], Meter())
    assert asked == [("good", "bad", "very", "so")]


def test_a_subset_scores_its_rows_and_judges_by_them() -> None:
    backend, rows = ToyBackend(), np.array([7, 0, 4, 9, 2])
    whole = evaluator(backend, head=BiasHead())
    part, own = (
        whole.subset(rows),
        evaluator(backend, [TRAIN[row] for row in rows], head=BiasHead()),
    )
    assert part.batch.digest == own.batch.digest
    ours, theirs = (each.evaluate([TextPrompt("so")], Meter()) for each in (part, own))
    assert [e.to_json() for e in ours] == [e.to_json() for e in theirs]
    assert len(whole.batch) == len(TRAIN)


def test_an_objective_that_works_in_place_changes_nothing_else() -> None:
    def in_place(scores: Any, targets: Any) -> float:
        loss = cross_entropy(scores, targets)
        scores *= -1
        targets[:] = 0
        return loss

    plain, crooked = (
        Evaluator(
            Client(Bowl()), TASK, read_examples(TRAIN), objective, NoHead(), what="train"
        ).evaluate(PROMPTS, Meter())
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
    given = [FittedHead.none(2)] * 2
    some = evaluator(backend, head=BiasHead())
    for worth in (
        some.evaluate(PROMPTS, Meter()),
        evaluator(Spoilt(spoil)).evaluate(PROMPTS[:2], Meter(), heads=given),
    ):
        assert math.isnan(worth[1].loss)
        assert worth[1].accuracy == 0.0
        assert not some.fit_head(worth[1]).bias.any()


@pytest.mark.parametrize("loss", [0.25, math.nan])
def test_an_evaluation_survives_json_with_its_nan_and_its_scores(loss: float) -> None:
    scores = np.array([[-0.1, -2.0, math.nan], [-1e-30, -math.inf, -88.7]], dtype=np.float32)
    text = json.dumps(Evaluation(loss, 0.5, scores, 0.25).to_json(), allow_nan=False)
    back = Evaluation.from_json(json.loads(text), (2, 3))
    assert back.loss == loss or (math.isnan(back.loss) and math.isnan(loss))
    assert (back.accuracy, back.bounds) == (0.5, 0.25)
    assert back.scores.tobytes() == scores.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"scores": "AAAA"},
        {"scores": "no base64"},
        {"scores": [0.0]},
        {"loss": "low"},
        {"accuracy": None},
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(change: Any) -> None:
    content = Evaluation(0.25, 0.5, np.zeros((2, 3), dtype=np.float32)).to_json()
    assert Evaluation.from_json(content, (2, 3)).loss == 0.25
    with pytest.raises((InputError, ValueError)):
        Evaluation.from_json({**content, **change}, (2, 3))
    with pytest.raises(ValueError, match="reshape"):
        Evaluation.from_json(content, (2, 2))


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
    silent.evaluate([SoftPrompt(np.zeros((9, 3))), *PROMPTS], Meter())
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
    whole.evaluate(PROMPTS[:1], Meter())
    part = evaluator(client, rows=[*TRAIN, ("good thing", "good"), ("bad thing", "bad")])
    part.evaluate(PROMPTS[:1], Meter())
    assert usage_of(part).tokens == 0
    part.evaluate(PROMPTS[1:2], Meter())
    assert usage_of(part).tokens > usage_of(whole).tokens
