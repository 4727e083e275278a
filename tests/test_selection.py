"""Which candidate a run keeps: ours, and exactly the reference code's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmaas_tune import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.evaluator import Evaluation
from lmaas_tune.objectives import cross_entropy, error_rate
from lmaas_tune.prompts import FloatArray
from lmaas_tune.selection import EveryNth, LowestLoss, selection_named
from tests.support.small_models import TRAIN, VALIDATION, Bowl, small_tuner


def worth(loss: float, accuracy: float = 0.5) -> Evaluation:
    return Evaluation(loss, accuracy, np.zeros((1, 2)))


@given(st.integers(1, 30), st.lists(st.integers(1, 50), max_size=20))
def test_every_nth_candidate_is_nominated_and_no_other(n: int, populations: list[int]) -> None:
    nominated, first = [], 0
    for population in populations:
        chosen = EveryNth(n).nominate([0.0] * population, first, math.inf)
        nominated += [first + i + 1 for i in chosen or ()]
        first += population
    assert nominated == list(range(n, first + 1, n))


def test_the_reference_rule_wants_strictly_more_and_from_nothing_more_than_none() -> None:
    rule = EveryNth(100)
    assert not rule.better(worth(0.1, 0.0), None)
    assert rule.better(worth(9.0, 0.01), None)
    assert not rule.better(worth(0.1, 0.5), worth(9.0, 0.5))
    assert rule.better(worth(9.0, 0.6), worth(0.1, 0.5))


def test_the_lowest_loss_is_nominated_and_kept() -> None:
    rule = LowestLoss()
    assert rule.nominate([0.3, math.nan, 0.1, 0.2], 40, 0.05) == [2]
    assert rule.nominate([math.nan] * 3, 0, math.inf) == []
    assert rule.better(worth(0.1), None)
    assert rule.better(worth(0.1), worth(0.2))
    assert not rule.better(worth(0.2), worth(0.2))
    assert not rule.better(worth(math.nan), None)


class Scripted(Bowl):
    """Scores drawn from the prompt's digest: every look at a prompt is a look into a table."""

    def logprobs(self, request: ScoreRequest) -> FloatArray:
        seed = int((request.prompt.digest + request.batch.digest)[:120:7], 16)
        shape = len(request.batch), len(request.candidates)
        scores: FloatArray = np.log(np.random.default_rng(seed).random(shape))
        return scores


SCRIPT: Any = {
    "score_start": False,
    "head": "none",
    "optimizer_options": {"population": 20},
    "budget": "calls=2000",
}


def scripted_run(selection: str) -> tuple[Any, Any]:
    backend = Scripted()
    tuner = small_tuner(backend, selection=selection, **SCRIPT)
    return tuner.fit(TRAIN, VALIDATION), backend


def test_both_rules_keep_what_a_plain_reading_of_them_keeps() -> None:
    paper, backend = scripted_run("candidate@100")
    (train_rows, validation_rows) = dict.fromkeys(batch for _, batch in backend.asked)
    candidates = [prompt for prompt, batch in backend.asked if batch == train_rows]
    targets = [
        np.array([("bad", "good").index(label) for _, label in rows])
        for rows in (TRAIN, VALIDATION)
    ]

    def scores(prompt: str, part: int) -> FloatArray:
        seed = int((prompt + (train_rows, validation_rows)[part])[:120:7], 16)
        return np.log(np.random.default_rng(seed).random((len(targets[part]), 2)))

    assert len(candidates) == len(set(candidates)) == 2000
    kept, best = None, 0.0
    for number in range(100, 2001, 100):  # the reference code's loop
        accuracy = 1 - error_rate(scores(candidates[number - 1], 1), targets[1])
        if accuracy > best:
            kept, best = candidates[number - 1], accuracy
    assert paper.prompt.prompt.digest == kept
    assert paper.best.evaluation.accuracy == pytest.approx(best)
    assert paper.spent.validation_calls == 20

    ours, _ = scripted_run("lowest-loss")
    winners = []
    for first in range(0, 2000, 20):
        generation = candidates[first : first + 20]
        losses = [cross_entropy(scores(prompt, 0), targets[0]) for prompt in generation]
        winners.append(generation[int(np.argmin(losses))])
    losses = [cross_entropy(scores(prompt, 1), targets[1]) for prompt in winners]
    assert ours.prompt.prompt.digest == winners[int(np.argmin(losses))]
    assert ours.best.evaluation.loss == pytest.approx(min(losses))
    assert ours.spent.validation_calls == 100


def test_a_search_of_one_point_at_a_time_pays_validation_for_gains_only() -> None:
    rule = LowestLoss()
    assert rule.nominate([0.3], 40, math.inf) == [0]
    assert rule.nominate([0.3], 40, 0.3) == []
    settings = {"optimizer": "one-plus-one", "optimizer_options": {}, "head": "none"}
    tuner = small_tuner(Scripted(), **settings, budget="calls=99")
    result = tuner.fit(TRAIN, VALIDATION)
    losses = [step.loss for step in result.steps]
    gains = sum(loss < min(losses[:i], default=math.inf) for i, loss in enumerate(losses))
    assert result.spent.validation_calls == gains < len(losses) / 2


def test_a_run_too_short_for_the_papers_first_look_keeps_its_start() -> None:
    tuner = small_tuner(Bowl(), selection="candidate@100", **{**SCRIPT, "budget": "calls=80"})
    with pytest.warns(
        UserWarning, match="every 100th candidate, and the budget pays 80: the result of the run"
    ):
        result = tuner.fit(TRAIN, VALIDATION)
    assert result.best.generation == 0
    assert result.spent.validation_calls == 0
    assert result.prompt.prompt.digest == result.start.prompt.digest
    assert result.score(VALIDATION).rows == len(VALIDATION)


def test_candidates_are_whole_generations_after_the_starts() -> None:
    own = {**SCRIPT, "score_start": True, "budget": "calls=119"}
    with pytest.warns(UserWarning, match="and the budget pays 100: the result of the run will"):
        small_tuner(Bowl(), selection="candidate@101", **own).fit(TRAIN, VALIDATION)


def test_a_run_keeps_nothing_that_failed_on_the_validation_rows() -> None:
    class Broken(Bowl):
        def logprobs(self, request: ScoreRequest) -> FloatArray:
            scores = super().logprobs(request)
            return scores * np.nan if len(scores) == len(VALIDATION) else scores

    for selection in ("candidate@5", "lowest-loss"):
        tuner = small_tuner(Broken(), selection=selection, score_start=False)
        assert tuner.fit(TRAIN, VALIDATION).best.generation == 0


@pytest.mark.parametrize("name", ["lowest", "candidate@0", "candidate@", "candidate@1.5", ""])
def test_an_unknown_selection_is_told_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=f"unknown selection '{name}'; known: lowest-loss, cand"):
        selection_named(name)
