"""The loop pays only what its budget allows, says why it stopped, and repeats itself exactly."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cma
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmaas_tune import (
    Budget,
    Client,
    Price,
    ScoreReply,
    ScoreRequest,
    Settings,
    Soft,
    Step,
    Text,
    TextPrompt,
    Tuner,
    TuneResult,
    Usage,
    preset,
)
from lmaas_tune.callbacks import Callback
from lmaas_tune.data import read_examples
from lmaas_tune.errors import BudgetExceededError, InputError, PermanentError, TransientError
from lmaas_tune.evaluator import Evaluator
from lmaas_tune.heads import BiasHead
from lmaas_tune.journal import Journal
from lmaas_tune.objectives import cross_entropy
from lmaas_tune.optimizers.random import RandomSearch
from lmaas_tune.prompts import FloatArray, SoftPrompt
from lmaas_tune.prompts.soft import RandomEmbedding
from lmaas_tune.search import Search, penalised
from lmaas_tune.selection import LowestLoss
from lmaas_tune.settings import with_fields
from lmaas_tune.task import Task, Template, Verbalizer
from lmaas_tune.testing.toy import ToyBackend
from tests.support.small_models import (
    SMALL,
    TRAIN,
    VALIDATION,
    Bowl,
    Spoilt,
    TellingBowl,
    WordBowl,
    changed,
    small_tuner,
)

POPULATION = 5
ROWS, OTHER_ROWS = len(TRAIN), len(VALIDATION)
TOKENS, OTHER_TOKENS = (
    sum(len(text.split()) + 2 for text, _ in rows) for rows in (TRAIN, VALIDATION)
)
START = {"calls": 1, "sequences": ROWS + OTHER_ROWS, "tokens": TOKENS + OTHER_TOKENS}
GENERATION = {
    "calls": POPULATION,
    "sequences": POPULATION * ROWS + OTHER_ROWS,
    "tokens": POPULATION * TOKENS + OTHER_TOKENS,
}
for _cost in (START, GENERATION):
    _cost["money"] = _cost["tokens"]  # at a price of one a token


def fit(backend: Any, **wish: Any) -> TuneResult:
    return small_tuner(backend, **wish).fit(TRAIN, VALIDATION)


def trace(result: TuneResult) -> list[Any]:
    """All that a run did, to the last bit."""
    return [
        (step.points.tobytes(), [e.loss for e in step.evaluations], step.best.prompt.digest)
        for step in result.steps
    ]


# Budgets


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "calls": st.integers(1, 60),
            "sequences": st.integers(1, 600),
            "tokens": st.integers(1, 2500),
            "money": st.integers(1, 2500),
        },
    ).filter(bool)
)
@settings(max_examples=40)
def test_no_budget_is_ever_exceeded_and_none_is_left_that_pays_a_generation(limits: Any) -> None:
    backend = TellingBowl()
    client = Client(backend, price=Price(input=1e6))
    affordable = int(
        min((limit - START[name]) // GENERATION[name] for name, limit in limits.items())
    )
    tuner = small_tuner(client, budget=Budget(**limits))
    if affordable < 1:
        with pytest.raises(InputError, match=r"no call was made: budget .* Raise the budget"):
            tuner.fit(TRAIN, VALIDATION)
        assert backend.asked == []
        return
    with pytest.warns(UserWarning, match="a bowl says what it costs"):
        result = tuner.fit(TRAIN, VALIDATION)
    spent = result.spent.to_json()
    for name, used in START.items():
        assert spent[name] == used + affordable * GENERATION[name]
        assert spent[name] <= limits.get(name, math.inf)
    named = result.stop_reason.removeprefix("budget ").split("=")[0]
    assert spent[named] + GENERATION[named] > limits[named]
    assert f"{named}={limits[named]}" in result.stop_reason


def test_calls_validation_and_money_are_counted_apart() -> None:
    result = fit(Client(Bowl(), price=Price(input=1e6)), budget="calls=26")
    spent = result.spent
    assert (spent.calls, spent.validation_calls, spent.requests) == (26, 6, 32)
    assert spent.sequences == 26 * ROWS + 6 * OTHER_ROWS
    assert spent.tokens == spent.money == 26 * TOKENS + 6 * OTHER_TOKENS
    assert [step.spent.calls for step in result.steps] == [1, 6, 11, 16, 21, 26]
    assert "budget calls=26: 0 left, the next generation needs 5" in result.stop_reason


def test_without_validation_nothing_is_paid_for_it() -> None:
    result = small_tuner(Bowl()).fit(TRAIN)
    assert (result.spent.calls, result.spent.validation_calls) == (26, 0)
    assert result.spent.sequences == 26 * ROWS
    assert result.best.validation is None
    losses = [e.loss for step in result.steps for e in step.evaluations]
    assert result.best.evaluation is not None
    assert result.best.evaluation.loss == min(losses)


@pytest.mark.parametrize("limit", ["tokens", "money"])
def test_a_backend_that_does_not_tell_its_cost_is_tried_by_one_call_first(limit: str) -> None:
    client = Client(Bowl(), price=Price(input=1e6))
    room = START["tokens"] + 2 * GENERATION["tokens"] + 1
    result = fit(client, budget=f"{limit}={room}")
    assert result.spent.tokens == room - 1
    without_start = fit(client, budget=f"{limit}={room}", score_start=False)
    assert without_start.spent.tokens <= room


@pytest.mark.parametrize("limit", ["tokens", "money"])
def test_a_start_that_the_cache_knows_shows_no_cost_and_the_next_call_does(
    tmp_path: Path, limit: str
) -> None:
    client = Client(Bowl(), price=Price(input=1e6), cache=tmp_path / "cache")
    fit(client, budget="calls=6")
    room = 2 * GENERATION["tokens"] // 5
    result = fit(client, budget=f"{limit}={room}", seed=1)
    assert result.spent.hits == 2  # the start, on both sets of rows
    assert 0 < result.spent.tokens <= room


def test_validation_rows_are_thought_to_cost_as_much_a_character_as_training_rows() -> None:
    many = VALIDATION * 40
    tuner = small_tuner(backend := Bowl(), budget="tokens=400")
    with pytest.raises(BudgetExceededError, match=r"tokens=400: .*not one prompt was"):
        tuner.fit(TRAIN, many)
    assert len(backend.asked) == 1


def test_a_longer_text_is_thought_to_cost_more() -> None:
    texts = changed(SMALL, prompt="text", prompt_init=("so", "so " * 30), start="words")
    usage = Usage(requests=1, sequences=ROWS, tokens=4 * ROWS)

    class Wordy(Bowl):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            return [
                replace(reply, usage=replace(usage, tokens=read(request)))
                for request, reply in zip(requests, super().score(requests), strict=True)
            ]

    def read(request: ScoreRequest) -> int:
        assert isinstance(request.prompt, TextPrompt)
        rows = sum(len(part) for row in request.batch.rows for part in row if isinstance(part, str))
        return rows + len(request.prompt.text) * len(request.batch)

    backend = Wordy()
    with pytest.raises(BudgetExceededError, match="budget tokens=700"):
        small_tuner(backend, settings=texts, budget="tokens=700").fit(TRAIN)
    assert len(backend.asked) == 1  # the short one, which shows that the long one is too dear


def test_a_limit_on_what_nobody_tells_ends_the_run_with_a_sentence() -> None:
    with pytest.raises(InputError, match=r"nothing was paid: .* has a price; give one"):
        fit(TellingBowl(), budget="money=1")
    with pytest.raises(InputError, match=r"budget money=1: nothing that is spent has a price"):
        fit(Bowl(), budget="money=1")

    class Silent(Bowl):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            silent = Usage(requests=1, sequences=ROWS)
            return [replace(reply, usage=silent) for reply in super().score(requests)]

    backend = Silent()
    with pytest.raises(
        InputError, match=r"budget tokens=9: the backend does not report the tokens"
    ):
        fit(backend, budget="tokens=9")
    assert len(backend.asked) == 2  # the start, on both sets of rows


def test_the_papers_budget_buys_exactly_400_generations_and_80_looks() -> None:
    own = changed(preset("paper-icml22"), intrinsic_dim=2, prompt_length=2)
    backend = WordBowl(insertions=frozenset({"add"}))
    tuner = small_tuner(backend, settings=own)
    result = tuner.fit(TRAIN, VALIDATION)
    assert result.spent.calls == 8000
    assert [step.generation for step in result.steps] == list(range(1, 401))
    assert result.spent.validation_calls == 80
    assert "budget calls=8000: 0 left" in result.stop_reason
    assert max(np.abs(step.points).max() for step in result.steps) <= 5.0


def test_patience_ends_a_run_that_gains_nothing() -> None:
    flat = Spoilt(lambda scores, before: scores * 0 - 1)
    result = fit(flat, budget="calls=1000,patience=3")
    assert result.stop_reason == "patience: 3 generations without a better prompt"
    assert len(result.steps) == 1 + 3
    unscored = fit(flat, budget="calls=1000,patience=3", score_start=False)
    assert len(unscored.steps) == 1 + 3  # the first generation is a gain over nothing


def test_patience_waits_for_the_next_look() -> None:
    flat = Spoilt(lambda scores, before: scores * 0 - 1)
    result = fit(flat, selection="candidate@20", budget="calls=1000,patience=2")
    assert result.stop_reason == "patience: 2 generations without a better prompt"
    assert len(result.steps) == 1 + 2 * 4  # of 5 prompts each, a look at every fourth
    assert result.spent.validation_calls == 1 + 2


def test_a_flat_loss_without_patience_spends_its_budget() -> None:
    result = fit(Spoilt(lambda scores, before: scores * 0 - 1), budget="calls=501")
    assert result.spent.calls == 501


def test_a_target_ends_a_run_that_has_reached_it() -> None:
    result = fit(Bowl(), budget="calls=1000,target=0.2")
    assert result.best.evaluation is not None
    assert result.best.evaluation.loss <= 0.2
    assert result.stop_reason.startswith("target: the loss 0.1")
    assert all(
        step.best.evaluation.loss > 0.2 for step in result.steps[:-1] if step.best.evaluation
    )


class Slow(Bowl):
    """Every request takes a second of its own clock."""

    now = 0.0

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.now += len(requests)
        return super().score(requests)


def search_of(backend: Bowl, clock: Callable[[], float], **wish: Any) -> Search:
    """A search without a tuner, for what a tuner does not let in."""
    client = Client(backend)
    task = Task(Template("{text} {prompt} {label}"), Verbalizer({"good": "good", "bad": "bad"}))
    train, validation = (
        Evaluator(client, task, read_examples(rows), cross_entropy, BiasHead(), what=what)
        for rows, what in ((TRAIN, "train"), (VALIDATION, "validation"))
    )
    starts = [SoftPrompt(np.zeros((2, 3)))]
    return Search(
        train=train,
        validation=validation,
        space=RandomEmbedding(starts, dim=4, projection="uniform", scale=1.0, seed=0),
        optimizer=RandomSearch(4, seed=0, population=POPULATION),
        selection=LowestLoss(),
        score_start=True,
        clock=clock,
        **wish,
    )


@given(st.integers(9, 60))
@settings(max_examples=30)
def test_a_generation_that_would_outlast_the_time_is_not_begun(seconds: int) -> None:
    backend = Slow()
    search = search_of(backend, lambda: backend.now, budget=Budget(seconds=seconds))
    reason = search.run(Journal(None, {}))
    generations = (seconds - 2) // 6  # the start takes 2 seconds, a generation 5 and its look 1
    assert len(search.steps) == 1 + generations
    assert search.meter.spent.seconds <= seconds
    assert reason.startswith(f"budget seconds={seconds}")


def test_a_wait_that_the_time_does_not_allow_ends_the_run_with_what_it_has() -> None:
    class Busy(Slow):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            if len(self.asked) == 8:  # after the start and one generation, with their looks
                raise TransientError("busy", retry_after=40.0)
            return super().score(requests)

    backend = Busy()
    search = search_of(backend, lambda: backend.now, budget=Budget(seconds=30))
    reason = search.run(Journal(None, {}))
    assert reason == "budget seconds=30: 22 left, the next request needs 40"
    assert len(search.steps) == 2
    assert (search.meter.spent.calls, search.meter.spent.requests) == (6, 8 + 1)


# Losses that are none


def broken_at(bad: Sequence[int], value: float) -> Spoilt:
    """Candidates by their number among those scored on the same rows; 0 is the start."""
    return Spoilt(lambda scores, before: scores * 0 + value if before in bad else scores)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_one_prompt_without_a_finite_loss_is_penalised_and_the_run_goes_on(value: float) -> None:
    told: list[FloatArray] = []

    class Listening(RandomSearch):
        def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
            told.append(losses)
            super().tell(points, losses)

    backend = broken_at([3, 8], value)
    result = small_tuner(
        backend, optimizer=lambda dim, *, seed, calls: Listening(dim, seed=seed, population=5)
    ).fit(TRAIN)
    assert result.spent.calls == 26
    for step, place in ((1, 2), (2, 2)):
        losses = [e.loss for e in result.steps[step].evaluations]
        assert [math.isnan(loss) for loss in losses] == [i == place for i in range(5)]
        assert np.isfinite(told[step - 1]).all()
        assert told[step - 1][place] >= 1.0 + max(x for x in losses if x == x)
        assert result.steps[step].loss == np.nanmin(losses)
    assert result.best.evaluation is not None
    assert math.isfinite(result.best.evaluation.loss)


def test_a_generation_without_one_finite_loss_ends_the_run_and_keeps_what_was_paid(
    tmp_path: Any,
) -> None:
    backend = broken_at(range(6, 16), np.nan)
    with pytest.raises(
        PermanentError, match="generation 3: not one of 10 prompts has a finite loss; the model"
    ):
        small_tuner(backend, out=tmp_path).fit(TRAIN)
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1 + 4
    again = Bowl()
    with pytest.raises(PermanentError, match="generation 3"):
        small_tuner(again, out=tmp_path).fit(TRAIN, resume=True)
    assert again.asked == []


def test_one_point_at_a_time_survives_a_prompt_without_a_finite_loss_but_not_ten() -> None:
    one = {"optimizer": "one-plus-one", "optimizer_options": {}}
    with pytest.warns(UserWarning, match="no finite loss for prompt 1 of 1"):
        result = fit(broken_at([5, *range(7, 16)], np.nan), **one)
    assert result.spent.calls == 26
    assert sum(math.isnan(step.evaluations[0].loss) for step in result.steps) == 10
    with pytest.raises(PermanentError, match="generation 16: not one of 10 prompts has a finite"):
        fit(broken_at(range(7, 17), np.nan), **one)


def test_a_log_probability_above_zero_ends_the_run() -> None:
    with pytest.raises(PermanentError, match=r"reply 3 of 5: a log-probability of inf"):
        small_tuner(broken_at([3], np.inf)).fit(TRAIN)


def test_an_objective_of_ones_own_may_fail_on_a_prompt_too() -> None:
    def moody(logprobs: FloatArray, targets: Any) -> float:
        loss = cross_entropy(logprobs, targets)
        return math.inf if loss > 0.5 else loss

    result = small_tuner(Bowl(), objective=moody).fit(TRAIN)
    assert result.finished
    assert result.best.evaluation is not None
    assert result.best.evaluation.loss <= 0.5


losses_with_gaps = arrays(
    np.float64, st.integers(1, 12), elements=st.one_of(st.floats(-1e6, 1e6), st.just(math.nan))
)


@given(losses_with_gaps)
def test_a_penalty_is_finite_and_worse_than_the_worst(losses: FloatArray) -> None:
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        with pytest.raises(PermanentError, match=f"not one of {len(losses)} prompts"):
            penalised(losses, 1)
        return
    told = penalised(losses, 1)
    assert np.isfinite(told).all()
    np.testing.assert_array_equal(told[np.isfinite(losses)], finite)
    assert (told[np.isnan(losses)] >= finite.max() + 1).all()
    later = penalised(np.array([0.0, math.nan]), 2, losses)
    assert later[1] >= max(finite.max(), 0.0) + 1


def test_steps_too_large_for_a_number_are_told_by_their_cause() -> None:
    with pytest.raises(InputError, match=r"is \d.*e\+39 away .* smaller steps .*sigma0"):
        fit(Bowl(), optimizer_options={"population": 5, "sigma0": 1e39})


# The same run again


@pytest.mark.parametrize("optimizer", ["cma", "diagonal-cma", "random", "one-plus-one"])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(optimizer: str) -> None:
    options = {"optimizer": optimizer, "optimizer_options": {}, "budget": "calls=61"}
    runs = [trace(fit(Bowl(), seed=seed, **options)) for seed in (4, 4, 5, 0, 0)]
    assert runs[0] == runs[1]
    assert runs[3] == runs[4]
    assert runs[0] != runs[2] != runs[3]


def test_c1_a_run_asks_what_a_bare_pycma_loop_asks() -> None:
    wish = {"head": "none", "score_start": False, "budget": "calls=200", "seed": 42}
    result = fit(Bowl(), **wish)
    state = np.random.get_state()  # noqa: NPY002
    try:  # pycma seeds the global generator
        loop = cma.CMAEvolutionStrategy(4 * [0], 1.0, {"seed": 42, "popsize": 5, "verbose": -9})
        for step in result.steps:
            asked = loop.ask()
            np.testing.assert_array_equal(step.points, asked)
            loop.tell(asked, [evaluation.loss for evaluation in step.evaluations])
    finally:
        np.random.set_state(state)  # noqa: NPY002
    assert loop.countiter == 40


def test_nobodys_random_state_is_touched() -> None:
    torch = pytest.importorskip("torch")

    def states() -> list[Any]:
        return [
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002
            torch.get_rng_state().tolist(),
        ]

    before = states()
    for optimizer in ("cma", "de"):
        small_tuner(WordBowl(), start="vocabulary", optimizer=optimizer).fit(TRAIN, VALIDATION)
    assert states() == before


def test_a_cached_run_pays_nothing_and_is_the_same(tmp_path: Any) -> None:
    first, second = Bowl(), Bowl()
    runs = [
        fit(Client(backend, cache=tmp_path / "cache.sqlite"), out=tmp_path / str(number))
        for number, backend in enumerate((first, second))
    ]
    assert trace(runs[0]) == trace(runs[1])
    assert second.asked == []
    spent = runs[1].spent
    assert (spent.calls, spent.validation_calls, spent.hits) == (26, 6, 32)
    assert (spent.requests, spent.sequences, spent.tokens) == (0, 0, 0)


# What a run does


def test_a_run_finds_the_bottom_of_a_bowl() -> None:
    result = fit(Bowl(), budget="calls=301")
    assert result.best.evaluation is not None
    start = result.start
    before = start.score(result.client, VALIDATION)
    after = result.score(VALIDATION)
    assert after.loss < before.loss - 0.1
    assert abs(result.prompt.prompt.vectors.mean() - Bowl.OPTIMUM) < 0.1  # type: ignore[union-attr]


def test_c23_black_box_tuning_beats_random_search_on_the_toy_language_model() -> None:
    wish = {"intrinsic_dim": 10, "alpha": 2.0, "budget": "calls=201"}

    def loss(optimizer: str, seed: int) -> float:
        backend = ToyBackend(rank=12, seed=seed)
        options = {"optimizer": optimizer, "optimizer_options": {"population": 10}}
        result = small_tuner(backend, seed=seed, **options, **wish).fit(TRAIN)
        assert result.spent.calls == 201
        return result.score(TRAIN).loss

    tuned, drawn = ([loss(name, seed) for seed in range(5)] for name in ("cma", "random"))
    assert np.mean(tuned) < np.mean(drawn) - 0.03


def test_steps_say_what_happened() -> None:
    seen: list[Step] = []
    started: list[Budget] = []

    class Watch(Callback):
        def on_start(self, budget: Budget) -> None:
            started.append(budget)

        def on_step(self, step: Step) -> None:
            seen.append(step)

    result = fit(Bowl(), callbacks=[Watch()])
    assert started == [Budget(calls=26)]
    assert seen == list(result.steps)
    best = None
    for step in seen:
        assert step.points.shape == ((1 if step.generation == 0 else POPULATION), 4)
        losses = [e.loss for e in step.evaluations]
        assert step.loss == min(losses)
        (looked,) = step.validated
        assert step.improved == (best is None or looked.loss < best)
        if step.improved:
            best = looked.loss
            assert step.best.train is step.evaluations[int(np.argmin(losses))]
            assert step.best.validation is looked
        assert step.best.evaluation is not None
        assert step.best.evaluation.loss == best
    assert result.best is seen[-1].best


def test_the_best_of_several_starts_is_gone_on_from() -> None:
    words = ("a", "aaaaaaa", "aaaaaaaaaaaaaaa")  # prompts of 0.1, 0.7 and 1.5 everywhere
    result = small_tuner(
        WordBowl(), start="words", prompt_init=words, prompt_length=2, alpha=0.01, budget="calls=28"
    ).fit(TRAIN, VALIDATION)
    first, start = result.start.prompt, result.steps[0].best.prompt
    assert isinstance(first, SoftPrompt)
    assert isinstance(start, SoftPrompt)
    np.testing.assert_allclose(first.vectors, 0.1)  # what the result is compared with
    np.testing.assert_allclose(start.vectors, 0.7)
    assert result.spent.calls == 3 + 25
    assert result.spent.validation_calls == 2 + 5  # of the best start and the first
    assert result.steps[0].points.shape == (3, 4)
    moved = result.steps[1].best.prompt
    assert isinstance(moved, SoftPrompt)
    np.testing.assert_allclose(moved.vectors, 0.7, atol=0.1)


def test_the_start_that_was_chosen_is_kept_until_something_is_better() -> None:
    class Wrong(WordBowl):
        """Right on the training rows alone."""

        def logprobs(self, request: ScoreRequest) -> FloatArray:
            scores = super().logprobs(request)
            return scores[:, ::-1] if len(scores) == len(VALIDATION) else scores

    result = small_tuner(
        Wrong(),
        settings=changed(SMALL, start="words", prompt_length=None, head="none"),
        prompt_init=("aaaa bbbb", "aaaaaaa bbbbbbb", "cc cc"),
        selection="candidate@100",
        budget="calls=28",
    ).fit(TRAIN, VALIDATION)
    assert result.best.prompt is result.steps[0].best.prompt
    assert result.best.evaluation is not None
    assert result.best.evaluation.accuracy == 0.0
    assert isinstance(result.prompt.prompt, SoftPrompt)
    np.testing.assert_allclose(result.prompt.prompt.vectors, 0.7)


def test_the_optimizers_time_is_that_of_ask_and_tell_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("lmaas_tune.search.time.perf_counter", lambda: float(next(ticks)))
    result = small_tuner(Bowl()).fit(TRAIN)
    assert result.optimizer_seconds == 2.0 * (len(result.steps) - 1)  # the start asks nothing


@pytest.mark.parametrize("seed", range(12))
def test_the_result_is_never_ranked_below_the_first_start(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def rows(name: str) -> list[tuple[str, str]]:
        kinds = [("good fine", "great"), ("bad poor", "terrible")] * 3
        return [(f"w{rng.integers(50)} {text} {name}{n}", k) for n, (text, k) in enumerate(kinds)]

    starts = ("one two:", "three four:", "five six:")
    wish = {"validation_rows": "select", "averaged": 1, "optimizer": "cma", "prompt_init": starts}
    tuner = Tuner(
        ToyBackend(seed=seed),
        settings=with_fields(Settings(), wish),
        budget="calls=25",
        callbacks=(),
    )
    validation = rows("b")
    result = tuner.fit(rows("a"), validation)
    scores = [p.score(result.client, validation).loss for p in (result.start, result.prompt)]
    assert scores[1] <= scores[0] + 1e-9


@pytest.mark.parametrize("rows", ["join", "select"])
@pytest.mark.parametrize("bad", [0, 1])
def test_a_start_on_which_the_model_overflows_is_passed_over(rows: Any, bad: int) -> None:
    words = ("It was", "I found it", "So it is")

    class Overflowing(ToyBackend):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            return [
                replace(reply, logprobs=reply.logprobs * math.nan)
                if request.prompt == TextPrompt(words[bad])
                else reply
                for request, reply in zip(requests, super().score(requests), strict=True)
            ]

    tuner = Tuner(
        Overflowing(),
        settings=Settings(prompt=Text(prompt_init=words), validation_rows=rows, averaged=1),
        budget="calls=40",
        callbacks=[],
        on_note=lambda note: None,
    )
    pairs = [(f"{word} film {n}", word) for word in ("good", "bad") for n in range(6)]
    result = tuner.fit(pairs, [(text.replace("film", "show"), label) for text, label in pairs])
    assert math.isfinite(result.best.train.loss if result.best.train else math.nan)


def test_answers_of_a_cache_are_no_measure_of_what_others_cost(tmp_path: Path) -> None:
    setup: dict[str, Any] = {
        "settings": Settings(
            prompt=Soft(prompt_init="It was"), validation_rows="select", averaged=1
        ),
        "callbacks": [],
        "on_note": lambda note: None,
    }
    pairs = [(f"{word} film {n}", word) for word in ("good", "bad") for n in range(6)]
    others = [(f"{word} show {n}", word) for word in ("good", "bad") for n in range(6)]
    known = Client(ToyBackend(), cache=tmp_path / "scores")
    Tuner(known, budget="calls=6", **setup).fit(pairs)
    cached = Client(ToyBackend(), cache=tmp_path / "scores")
    result = Tuner(cached, budget="tokens=160", seed=1, **setup).fit(pairs, others)
    assert 0 < result.spent.tokens <= 160
