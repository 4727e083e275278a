"""Many starts are scored on parts of the rows, and the good ones go on to the next part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmaas_tune import (
    Client,
    ScoreReply,
    ScoreRequest,
    Settings,
    Text,
    TransientError,
    Tuner,
    TuneResult,
    Usage,
)
from lmaas_tune.backend import Inspection
from lmaas_tune.calls.meter import Spent
from lmaas_tune.data import read_examples
from lmaas_tune.errors import BudgetExceededError, InputError, StorageError
from lmaas_tune.evaluator import Evaluator
from lmaas_tune.heads import BiasHead
from lmaas_tune.journal import FILE_NAME, Journal
from lmaas_tune.objectives import cross_entropy
from lmaas_tune.prompts import Prompt, TextPrompt
from lmaas_tune.prompts.phrases import WORDINGS
from lmaas_tune.screening import rungs, screening_calls
from lmaas_tune.settings import with_fields
from lmaas_tune.task import Task, Template, Verbalizer
from tests.support.small_models import TRAIN, Bowl, usage_of

LABELS = ("good", "bad")
ROWS = [(f"{label} film {n}", label) for label in LABELS for n in range(10)]
WORDS = tuple(f"start {n}" for n in range(16))
FAVOURITE = "start 11"
TASK = Task(Template("{text} {prompt} {label}"), Verbalizer({word: word for word in LABELS}))
SETTINGS = Settings(
    prompt=Text(prompt_init=WORDS, words=("so",), slots=1),
    optimizer="random",
    optimizer_options={"population": 4},
    averaged=1,
    head="bias",
)


class Fond(Bowl):
    """Reads the better, the nearer the number of a start is to that of its favourite.

    Attributes:
        requests: All of them, in order.
    """

    def __init__(self, favourite: str = FAVOURITE, **can: Any) -> None:
        super().__init__(identity=f"fond of {favourite}", **can)
        self.favourite = number_of(favourite)
        self.requests: list[ScoreRequest] = []

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.requests += requests
        return super().score(requests)

    def gain(self, prompt: Prompt) -> float:
        return 3.0 / (1.0 + abs(number_of(text_of(prompt)) - self.favourite))


def number_of(text: str) -> int:
    return int(text.split()[1])


def text_of(prompt: Prompt) -> str:
    assert isinstance(prompt, TextPrompt)
    return prompt.text


def evaluator(rows: Any) -> Evaluator:
    examples = read_examples(rows)
    return Evaluator(Client(Bowl()), TASK, examples, cross_entropy, BiasHead(), what="train")


def fit(
    backend: Any, budget: str = "calls=40", *, resume: bool = False, rows: Any = ROWS, **wish: Any
) -> TuneResult:
    others = {name: wish.pop(name) for name in ("out", "seed") if name in wish}
    settings = with_fields(SETTINGS, wish)
    tuner = Tuner(
        backend,
        settings=settings,
        budget=budget,
        template=TASK.template.text,
        labels=TASK.verbalizer.words,
        callbacks=(),
        **others,
    )
    return tuner.fit(rows, resume=resume)


def screened(backend: Fond, turns: int = 3) -> list[dict[str, int]]:
    """The rows on which each start was scored, by turn; a turn has other rows than the last."""
    found: list[dict[str, int]] = []
    batches: list[str] = []
    for request in backend.requests:
        if request.batch.digest not in batches:
            batches.append(request.batch.digest)
            found.append({})
        found[batches.index(request.batch.digest)][text_of(request.prompt)] = len(request.batch)
    return found[:turns]


# Which rows


@pytest.mark.parametrize("starts", [8, 9, 16, 48])
def test_each_turn_has_other_rows_and_as_many_of_each_label(starts: int) -> None:
    some = evaluator(ROWS)
    turns = rungs(some, starts)
    assert [len(turn.rows) for turn in turns] == [5, 5, 10]
    assert sorted(np.concatenate([turn.rows for turn in turns])) == list(range(20))
    for turn in turns:
        shares = np.bincount(some.targets[turn.rows])
        assert abs(shares[0] - shares[1]) <= 1
    assert [turn.starts for turn in turns] == [
        starts,
        starts // 2 + 1,
        (starts // 2 + 1) // 2 + 1,
    ]


def test_a_turn_costs_the_share_of_a_call_that_its_rows_are() -> None:
    assert [turn.calls for turn in rungs(evaluator(ROWS), 16)] == [4, 3, 3]  # 16/4, 9/4, 5/2
    assert screening_calls(evaluator(ROWS), 16) == 10
    assert screening_calls(evaluator(ROWS), 48) == 12 + 7 + 7


@pytest.mark.parametrize(("rows", "starts"), [(ROWS, 7), (ROWS, 1), (TRAIN, 48), (ROWS[:17], 48)])
def test_few_starts_or_few_rows_of_a_label_are_scored_at_once(rows: Any, starts: int) -> None:
    (turn,) = rungs(evaluator(rows), starts)
    assert list(turn.rows) == list(range(len(rows)))
    assert turn.starts == turn.calls == starts


# A run


def test_the_better_half_goes_on_and_the_first_always_does() -> None:
    backend = Fond()
    result = fit(backend)
    first, second, third = screened(backend)
    assert (set(first), set(first.values())) == (set(WORDS), {5})
    assert (len(second), set(second.values())) == (9, {5})
    assert (len(third), set(third.values())) == (5, {10})
    assert set(second) >= set(third) >= {WORDS[0], "start 10", FAVOURITE, "start 12"}
    assert result.start.prompt == TextPrompt(WORDS[0])
    assert result.steps[0].best.prompt == TextPrompt(FAVOURITE)


def test_all_rows_count_for_the_starts_that_are_left_as_if_scored_at_once() -> None:
    result = fit(Fond())
    whole = evaluator(ROWS)
    for evaluation in result.steps[0].evaluations:
        assert evaluation.scores.shape == (20, 2)
    best = min(result.steps[0].evaluations, key=lambda evaluation: evaluation.loss)
    request = ScoreRequest(TextPrompt(FAVOURITE), whole.batch, LABELS)
    expected = Fond().logprobs(request).astype(np.float32)
    columns = [result.prompt.task.verbalizer.labels.index(label) for label in LABELS]
    np.testing.assert_array_equal(best.scores[:, columns], expected)


def test_each_start_has_its_own_share_of_bounds_over_all_rows() -> None:
    class Guessing(Fond):
        """Gives bounds for the first two turns of some starts."""

        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            return [
                replace(reply, bounds=reply.logprobs.size * self.guesses(request))
                for request, reply in zip(requests, super().score(requests), strict=True)
            ]

        def guesses(self, request: ScoreRequest) -> bool:
            return number_of(text_of(request.prompt)) > 10 and len(request.batch) == 5

    backend = Guessing()
    with pytest.warns(UserWarning, match="20% of the scores are bounds"):
        result = fit(backend, allow_bounds=True)
    starts = sorted(screened(backend)[2], key=number_of)
    assert starts == ["start 0", "start 9", "start 10", "start 11", "start 12"]
    shares = [evaluation.bounds for evaluation in result.steps[0].evaluations]
    assert shares == [0.0, 0.0, 0.0, 0.5, 0.5]


def test_the_best_of_all_wordings_is_found_for_a_quarter_of_their_calls() -> None:
    for favourite in ("start 0", "start 5", "start 15"):
        backend = Fond(favourite)
        result = fit(backend, "calls=14")
        assert result.steps[0].best.prompt == TextPrompt(favourite)
        assert result.steps[0].spent.calls == 10
        assert result.steps[0].spent.sequences == 16 * 5 + 9 * 5 + 5 * 10
        assert result.spent.calls == 14


def test_a_budget_that_pays_no_generation_after_the_starts_is_refused_for_free() -> None:
    backend = Fond()
    assert fit(Fond(), "calls=14").spent.calls == 14  # 10 for the starts, and a generation
    with pytest.raises(InputError, match=r"no call was made: .*13 left.* needs 14.*starting words"):
        fit(backend, "calls=13")
    assert backend.requests == []


@pytest.mark.parametrize(("calls", "starts"), [(20, 5), (60, 28), (104, 48), (300, 48)])
def test_built_in_wordings_take_a_quarter_of_the_budgets_calls(calls: int, starts: int) -> None:
    backend = Wordy()
    result = fit(backend, f"calls={calls}", prompt_init="built-in")
    texts = [text_of(request.prompt) for request in backend.requests[:starts]]
    assert texts == [words.replace("{options}", "good or bad") for words in WORDINGS[:starts]]
    assert result.steps[0].spent.calls == screening_calls(evaluator(ROWS), starts) <= calls / 4
    more = screening_calls(evaluator(ROWS), starts + 1)
    assert starts == len(WORDINGS) or more > calls / 4


class Wordy(Bowl):
    """Keeps its requests; all prompts are equally good to it."""

    def __init__(self) -> None:
        super().__init__(identity="wordy")
        self.requests: list[ScoreRequest] = []

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.requests += requests
        return super().score(requests)

    def gain(self, prompt: Prompt) -> float:
        return 1.0


def test_given_words_are_never_left_out() -> None:
    backend = Wordy()
    mine = ("One:", "Two:", "Three:")
    result = fit(backend, "calls=8", prompt_init=(*mine, "built-in"))
    assert [text_of(request.prompt) for request in backend.requests[:3]] == list(mine)
    assert len(result.steps[0].evaluations) == 3
    with pytest.raises(InputError, match="no call was made"):
        fit(Wordy(), "calls=6", prompt_init=(*mine, "built-in"))


# Runs that go on


class Killed(BaseException):
    """Stands for the end of the process."""


class Mortal(Fond):
    """Ends the process at a request."""

    def __init__(self, at: int, **can: Any) -> None:
        super().__init__(**can)
        self.at = at

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        if len(self.requests) >= self.at:
            raise Killed
        return super().score(requests)


@pytest.mark.parametrize("at", [0, 16, 20, 25, 28, 30, 33])
def test_a_run_killed_among_its_starts_goes_on_to_the_same_prompt(tmp_path: Path, at: int) -> None:
    rows_per_call = {"rows_per_call": 20}  # each request is a call of its own
    whole, killed, second = (
        Fond(**rows_per_call),
        Mortal(at, **rows_per_call),
        Fond(**rows_per_call),
    )
    expected = fit(whole)
    with pytest.raises(Killed):
        fit(killed, out=tmp_path)
    resumed = fit(second, out=tmp_path, resume=True)
    assert resumed.prompt.prompt == expected.prompt.prompt
    assert [s.points.tolist() for s in resumed.steps] == [s.points.tolist() for s in expected.steps]
    assert counted(resumed) == counted(expected)
    paid = [asked(request) for request in [*killed.requests, *second.requests]]
    assert sorted(paid) == sorted(map(asked, whole.requests))


def asked(request: ScoreRequest) -> tuple[str, str]:
    return request.prompt.digest, request.batch.digest


def counted(result: TuneResult) -> dict[str, Any]:
    """What was spent, but for time and for requests: one without an answer counts too."""
    spent = result.spent.to_json()
    return {name: spent[name] for name in spent.keys() - {"seconds", "requests"}}


def test_a_run_keeps_its_starts_if_its_budget_grows(tmp_path: Path) -> None:
    first = fit(Wordy(), "calls=20", prompt_init="built-in", out=tmp_path)
    backend = Wordy()
    more = fit(backend, "calls=100", prompt_init="built-in", out=tmp_path, resume=True)
    assert len(more.steps[0].evaluations) == len(first.steps[0].evaluations) == 5
    assert more.steps[: len(first.steps)][-1].spent.calls == first.spent.calls < more.spent.calls
    assert all(len(request.batch) == len(ROWS) for request in backend.requests)


@pytest.mark.parametrize("most", [0, 17, "3", None])
def test_a_number_of_starts_that_cannot_be_is_told(tmp_path: Path, most: Any) -> None:
    fit(Fond(), out=tmp_path)
    path = tmp_path / FILE_NAME
    header = json.loads(path.read_text().splitlines()[0])
    path.unlink()
    header = {name: header[name] for name in header.keys() - {"format", "seal"}}
    with Journal(path, header) as journal:
        journal.append("starts", "", {"most": most}, journal.spent)
        journal.append_failure(Spent(requests=1, tokens=1))  # else it is free for any run
    backend = Fond()
    with pytest.raises(StorageError, match="'starts'"):
        fit(backend, out=tmp_path, resume=True)
    assert backend.requests == []


def test_validation_rows_join_the_turns() -> None:
    backend = Fond()
    settings = with_fields(SETTINGS, {})
    tuner = Tuner(
        backend, settings=settings, budget="calls=40", template=TASK.template.text, callbacks=()
    )
    result = tuner.fit(ROWS, [(f"very {text}", label) for text, label in ROWS])
    assert [set(turn.values()) for turn in screened(backend)] == [{10}, {10}, {20}]
    assert result.spent.validation_calls == 0
    assert result.steps[0].best.prompt == TextPrompt(FAVOURITE)


def test_own_validation_rows_score_the_best_start_and_the_first_alone() -> None:
    backend = Fond()
    settings = with_fields(SETTINGS, {"validation_rows": "select"})
    tuner = Tuner(
        backend, settings=settings, budget="calls=14", template=TASK.template.text, callbacks=()
    )
    result = tuner.fit(ROWS, [(f"very {text}", label) for text, label in ROWS[:12]])
    assert result.steps[0].spent.validation_calls == 2
    looks = [request for request in backend.requests if len(request.batch) == 12]
    assert [text_of(request.prompt) for request in looks][:2] == [FAVOURITE, WORDS[0]]


# What they cost


@pytest.mark.parametrize("rows_per_call", [None, 5])
def test_what_the_starts_took_is_known_when_generations_begin(rows_per_call: int | None) -> None:
    whole = fit(Fond(rows_per_call=rows_per_call), "tokens=1000000,calls=40")
    starts, first, *_ = (step.spent.tokens for step in whole.steps)
    generations = set()
    for tokens in range(starts + 50, first + 150, 30):
        result = fit(Fond(rows_per_call=rows_per_call), f"tokens={tokens},calls=40")
        assert result.spent.tokens <= tokens
        generations.add(len(result.steps) - 1)
    assert generations == {0, 1}


class Billed(Fond):
    """Fails three times after its first call, and bills what it failed to answer.

    Attributes:
        calls: Their number.
    """

    calls = 0

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.calls += 1
        replies = super().score(requests)
        if 2 <= self.calls <= 4:
            error = TransientError("busy")
            error.usage = sum((reply.usage for reply in replies), Usage())
            raise error
        return replies


class Telling(Billed):
    """Tells beforehand what a request takes."""

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        return Inspection(usage=usage_of(request))


@pytest.mark.parametrize("kind", [Billed, Telling])
def test_what_each_turn_takes_is_reserved(kind: type[Billed]) -> None:
    for tokens in range(1130, 1610, 40):
        client = Client(kind(), sleep=lambda seconds: None)
        with pytest.raises(BudgetExceededError, match="the next request needs"):
            fit(client, f"tokens={tokens},calls=40")
        assert client.spent.tokens <= tokens


def test_a_prompt_that_is_scored_alone_is_paid_once(tmp_path: Path) -> None:
    asked = []
    for again in range(3):
        backend = Fond()
        with pytest.raises(BudgetExceededError, match="not one prompt was scored on all rows"):
            fit(backend, "tokens=100,calls=40", out=tmp_path, resume=again > 0)
        asked.append(len(backend.requests))
        assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert asked == [1, 0, 0]
    whole, backend = Fond(), Fond()
    expected = fit(whole)
    result = fit(backend, out=tmp_path, resume=True)  # it is one of a call's prompts now
    assert len(backend.requests) == len(whole.requests) - 1
    assert result.prompt.prompt.digest == expected.prompt.prompt.digest
    assert result.spent.tokens == expected.spent.tokens


def test_uneven_labels_have_their_share_in_each_turn() -> None:
    some = evaluator([("a thing", "good")] * 16 + [("a thing", "bad")] * 184)
    shares = [np.bincount(some.targets[turn.rows]) for turn in rungs(some, 48)]
    assert sorted(shares[0]) == [4, 46]
    assert sorted(shares[1]) == [4, 46]
    assert sorted(shares[2]) == [8, 92]
