"""The public suites: green on what is ours, red on every planted fault."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lmaas_tune.backend import Inspection, ScoreReply, ScoreRequest, Spread, Usage
from lmaas_tune.errors import InputError
from lmaas_tune.optimizers import make_blockwise, make_optimizer, optimizer_names
from lmaas_tune.optimizers.cma import CMA
from lmaas_tune.optimizers.gauss_newton import GaussNewton
from lmaas_tune.optimizers.random import RandomSearch
from lmaas_tune.prompts import DeepPrompt, FloatArray, Prompt, SoftPrompt
from lmaas_tune.task import Batch, Part, Slot
from lmaas_tune.testing import BackendConformance, OptimizerConformance, ToyBackend
from lmaas_tune.testing.suite import Conformance

pytest_plugins = ["pytester"]

# --- green on what is ours


@pytest.mark.parametrize("name", [name for name in optimizer_names() if name != "random"])
class TestOurOptimizers(OptimizerConformance):
    @pytest.fixture
    def make(self, name: str) -> Any:
        return lambda seed: make_optimizer(name, 5, seed=seed, calls=500)


@pytest.mark.parametrize(
    "options",
    [{"step_rule": "tpa"}, {"diagonal": True}, {"bounds": 3.0}, {"population": 4}],
    ids=str,
)
class TestFormsOfCMA(OptimizerConformance):
    @pytest.fixture
    def make(self, options: dict[str, Any]) -> Any:
        return lambda seed: CMA(8, seed=seed, **options)


class TestRandomSearch(OptimizerConformance):
    deviations = {"test_it_beats_random_search_on_a_sphere": "it is random search"}  # noqa: RUF012

    @pytest.fixture
    def make(self) -> Any:
        return lambda seed: RandomSearch(10, seed=seed)


class TestToyBackend(BackendConformance):
    @pytest.fixture
    def backend(self) -> ToyBackend:
        return ToyBackend()

    @pytest.fixture
    def differing(self) -> list[ToyBackend]:
        return [
            ToyBackend(seed=1),
            ToyBackend(width=8),
            ToyBackend(rank=2),
            ToyBackend(max_tokens=256),
            ToyBackend(layers=3),
        ]


class TestDeepToyBackend(TestToyBackend):
    @pytest.fixture
    def backend(self) -> ToyBackend:
        return ToyBackend(layers=4)


class TestBlockwise(OptimizerConformance):
    @pytest.fixture(params=["cma", "gauss-newton"])
    def make(self, request: Any) -> Any:
        options = {"population": 8}
        return lambda seed: make_blockwise(
            request.param, 5, blocks=3, seed=seed, calls=240, options=options
        )


# --- red on planted faults: optimizers


class Sound:
    """A sound optimizer, whose heirs have one fault each."""

    def __init__(self, seed: int) -> None:
        self.inner = CMA(6, seed=seed, population=12)

    @property
    def population(self) -> int:
        return self.inner.population

    def ask(self) -> FloatArray:
        return self.inner.ask()

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.inner.tell(points, losses)

    def recommend(self) -> FloatArray:
        return self.inner.recommend()


class DrawsFromTheGlobalGenerator(Sound):
    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.inner.tell(points, losses + np.random.random(len(losses)))  # noqa: NPY002


class SeedsTheGlobalGenerator(Sound):
    def __init__(self, seed: int) -> None:
        np.random.seed(seed)  # noqa: NPY002
        super().__init__(seed)


class DrawsFromPythonsGenerator(Sound):
    def ask(self) -> FloatArray:
        random.random()
        return super().ask()


class TakesSeed0ForTheClock(Sound):
    def __init__(self, seed: int) -> None:
        super().__init__(seed or random.SystemRandom().randrange(2**32))


class IgnoresItsSeed(Sound):
    def __init__(self, seed: int) -> None:
        super().__init__(7)


class SharesStateBetweenRuns(Sound):
    asks = 0

    def ask(self) -> FloatArray:
        type(self).asks += 1
        return super().ask()

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.inner.tell(points, losses if type(self).asks % 2 else -losses)


class SortsTheCallersLosses(Sound):
    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.inner.tell(points, losses)
        losses.sort()


class ScalesTheCallersPoints(Sound):
    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.inner.tell(points, losses)
        points *= 2


class KeepsTheCallersArray(Sound):
    last: FloatArray | None = None

    def ask(self) -> FloatArray:
        if self.last is not None:
            self.inner.tell(self.told, self.last)
        self.told = self.inner.ask()
        return self.told.copy()

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.last = losses


class IgnoresWhatItIsTold(Sound):
    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.inner.tell(points, np.zeros(len(losses)))


class Climbs(Sound):
    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.inner.tell(points, -losses)


class CrashesOnEqualLosses(Sound):
    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        if np.ptp(losses) == 0:
            raise ZeroDivisionError("no spread of losses to divide by")
        self.inner.tell(points, losses)


class StepsIntoNaNOnTies(Sound):
    ties = False

    def ask(self) -> FloatArray:
        return super().ask() + (np.nan if self.ties else 0.0)

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.ties = len(set(losses.tolist())) < len(losses)
        self.inner.tell(self.inner._asked, losses)


class OverflowsInFloat32(Sound):
    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        with np.errstate(over="ignore"):
            self.inner.tell(points, losses.astype(np.float32))


class AsksForADimensionAPoint(Sound):
    def ask(self) -> FloatArray:
        return super().ask().T


class AsksForOnePointLess(Sound):
    def ask(self) -> FloatArray:
        return super().ask()[1:]

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        self.inner.tell(self.inner._asked, np.append(losses, losses.max()))


class AsksInFloat32(Sound):
    def ask(self) -> FloatArray:
        return super().ask().astype(np.float32)


class RecommendsAllPoints(Sound):
    def recommend(self) -> FloatArray:
        return np.zeros((2, 6))


class AsksWhenItRecommends(Sound):
    def recommend(self) -> FloatArray:
        return self.inner.ask().mean(axis=0)


class LendsOutItsMean(Sound):
    def recommend(self) -> FloatArray:
        return self.inner._es.mean


class ReadsScores(GaussNewton):
    """A sound optimizer that uses scores, whose heirs have one fault each."""

    def __init__(self, seed: int) -> None:
        super().__init__(6, seed=seed, population=12)


class ClimbsOnScores(ReadsScores):
    def tell_scores(self, points: FloatArray, losses: FloatArray, scores: FloatArray, /) -> None:
        super().tell_scores(points, -losses, scores[:, ::-1])


class KeepsTheCallersScores(ReadsScores):
    def tell_scores(self, points: FloatArray, losses: FloatArray, scores: FloatArray, /) -> None:
        super().tell_scores(points, losses, scores)
        self._scores[-len(scores) :] = list(scores)


class BelievesInNaN(ReadsScores):
    def tell_scores(self, points: FloatArray, losses: FloatArray, scores: FloatArray, /) -> None:
        super().tell_scores(points, losses, np.nan_to_num(scores, nan=-1e300))


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (ClimbsOnScores, "test_scores_lead_further_than_losses"),
        (KeepsTheCallersScores, "test_a_replay_with_scores_equals_the_run"),
        (BelievesInNaN, "test_points_without_scores_are_survived"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_optimizer_suite_fails_on_a_fault_with_scores(fault: Any, name: str) -> None:
    assert passes(OptimizerConformance, name, ReadsScores)
    assert not passes(OptimizerConformance, name, fault)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (DrawsFromTheGlobalGenerator, "test_same_seed_same_run"),
        (DrawsFromTheGlobalGenerator, "test_global_random_state_is_untouched"),
        (SeedsTheGlobalGenerator, "test_global_random_state_is_untouched"),
        (DrawsFromPythonsGenerator, "test_global_random_state_is_untouched"),
        (TakesSeed0ForTheClock, "test_same_seed_same_run"),
        (IgnoresItsSeed, "test_another_seed_another_run"),
        (SharesStateBetweenRuns, "test_runs_side_by_side_do_not_disturb_each_other"),
        (DrawsFromTheGlobalGenerator, "test_replay_equals_run"),
        (SortsTheCallersLosses, "test_told_arrays_are_untouched"),
        (ScalesTheCallersPoints, "test_told_arrays_are_untouched"),
        (KeepsTheCallersArray, "test_arrays_belong_to_the_caller"),
        (IgnoresWhatItIsTold, "test_it_beats_random_search_on_a_sphere"),
        (Climbs, "test_it_beats_random_search_on_a_sphere"),
        (CrashesOnEqualLosses, "test_flat_losses_are_survived"),
        (StepsIntoNaNOnTies, "test_losses_with_ties_are_survived"),
        (OverflowsInFloat32, "test_huge_losses_are_survived"),
        (AsksForADimensionAPoint, "test_a_generation_has_the_announced_shape"),
        (AsksForOnePointLess, "test_a_generation_has_the_announced_shape"),
        (AsksInFloat32, "test_a_generation_has_the_announced_shape"),
        (RecommendsAllPoints, "test_a_recommendation_is_a_point"),
        (AsksWhenItRecommends, "test_recommending_does_not_change_the_run"),
        (LendsOutItsMean, "test_recommending_does_not_change_the_run"),
    ],
)
def test_the_optimizer_suite_fails_on_a_planted_fault(fault: Any, name: str) -> None:
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        assert passes(OptimizerConformance, name, Sound)
        assert not passes(OptimizerConformance, name, fault)
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])


def passes(suite: type[Conformance], name: str, subject: Any, *fixtures: Any) -> bool:
    """Whether one check of a suite passes; a skipped one fails this test."""
    try:
        getattr(suite(), name)(subject, *fixtures)
    except (Exception, pytest.fail.Exception):
        return False
    except pytest.skip.Exception as skipped:
        raise AssertionError(f"{name} was skipped: {skipped}") from skipped
    return True


# --- red on planted faults: backends


class Altered(ToyBackend):
    """The toy backend, whose heirs change an answer each."""

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        return [replace(r, logprobs=self.alter(r.logprobs, q)) for q, r in self.pairs(requests)]

    def pairs(self, requests: Sequence[ScoreRequest]) -> list[tuple[ScoreRequest, ScoreReply]]:
        return list(zip(requests, super().score(requests), strict=True))

    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs


class LooksAtItsNeighbours(Altered):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs + 0.01 * logprobs.mean(axis=0)


class ReadsPadding(Altered):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs - 1e-3 * len(request.batch)


class SortsCandidates(Altered):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs[:, np.argsort(request.candidates)]


class NormalisesOverTheCandidates(Altered):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs - np.logaddexp.reduce(logprobs, axis=1)[:, None]


class GivesLogits(Altered):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs + 20.0


class GivesNaNForAnEmptyText(Altered):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        empty = [row[0] is Slot.PROMPT for row in request.batch.rows]
        return np.where(np.array(empty)[:, None], np.nan, logprobs)


class GivesFloat32(Altered):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs.astype(np.float32)


class GivesCandidatesAsRows(Altered):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs.T


class IsNotDeterministic(Altered):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs - 1e-9 * random.SystemRandom().random()


class GivesItsCacheAway(Altered):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], FloatArray] = {}

    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return self.kept.setdefault((request.prompt.digest, request.batch.digest), logprobs)


class ScoresTheFirstPromptOnly(ToyBackend):
    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        return super().score([replace(q, prompt=requests[0].prompt) for q in requests])


class IgnoresThePrompt(ToyBackend):
    def _vectors(self, prompt: Prompt) -> FloatArray:
        return 0 * super()._vectors(prompt)


class IgnoresTheText(ToyBackend):
    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        def blank(row: tuple[Part, ...]) -> tuple[Part, ...]:
            return tuple(part for part in row if isinstance(part, Slot))

        return super().score(
            [replace(q, batch=Batch(tuple(blank(row) for row in q.batch.rows))) for q in requests]
        )


class IgnoresWhatFollowsTheLabel(ToyBackend):
    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        return super().score(
            [
                replace(q, batch=Batch(tuple(r[: r.index(Slot.LABEL) + 1] for r in q.batch.rows)))
                for q in requests
            ]
        )


class RefusesAnEmptyList(ToyBackend):
    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        return [max(super().score(requests), key=id)] if not requests else super().score(requests)


class CountsCallsForSequences(ToyBackend):
    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        return [replace(r, usage=Usage(requests=1, sequences=1)) for r in super().score(requests)]


class CountsItsCallsInItsIdentity(ToyBackend):
    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.identity += "."
        return super().score(requests)


class HasNoIdentity(ToyBackend):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.identity = "toy"


class TakesAnyWidth(ToyBackend):
    def _vectors(self, prompt: Prompt) -> FloatArray:
        if isinstance(prompt, SoftPrompt):
            prompt = SoftPrompt(np.resize(prompt.vectors, (prompt.length, 16)))
        return super()._vectors(prompt)


class RaisesForeignErrors(ToyBackend):
    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        try:
            return super().score(requests)
        except InputError as error:
            raise RuntimeError(str(error)) from error


class TakesAnyInsertion(ToyBackend):
    def _vectors(self, prompt: Prompt) -> FloatArray:
        return super()._vectors(
            SoftPrompt(prompt.vectors) if isinstance(prompt, SoftPrompt) else prompt
        )


class CutsLongRows(ToyBackend):
    def _length(self, row: tuple[Part, ...], tokens: int) -> int:
        return super()._length(row, min(tokens, 512))


class ClaimsTextPrompts(ToyBackend):
    def _vectors(self, prompt: Prompt) -> FloatArray:
        if not isinstance(prompt, SoftPrompt):
            raise InputError("toy takes no text prompts")
        return super()._vectors(prompt)


class MixesThreadsUp(ToyBackend):
    def _score(self, request: ScoreRequest) -> ScoreReply:
        self.current = request
        time.sleep(0.001)  # lets the others in
        return super()._score(self.current)


class EmbedsInFloat64(ToyBackend):
    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        return super().embed(token_ids).astype(np.float64)


class Inspecting(ToyBackend):
    """A toy that says beforehand what a request takes, by answering it."""

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        return Inspection(notes=("all is well",), usage=self._score(request).usage)


class TestInspecting(TestToyBackend):
    @pytest.fixture
    def backend(self) -> ToyBackend:
        return Inspecting()


class KnowsItsWords(Altered):
    """A toy that scores further words, whose heirs have one fault each."""

    words = tuple(f"word{number}" for number in range(350))

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = replace(self.capabilities, words_per_request=None)

    def one_token_words(self) -> Sequence[str]:
        return self.words

    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs - 6.0  # 303 words have a total probability below 1


class DividesByTheWordsNamed(KnowsItsWords):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs - np.log(1000.0 + len(request.candidates))


class TakesEachWordForItself(KnowsItsWords):
    def alter(self, logprobs: FloatArray, request: ScoreRequest) -> FloatArray:
        return logprobs


class KnowsWordsTwice(KnowsItsWords):
    words = (*KnowsItsWords.words, *KnowsItsWords.words)


@pytest.mark.parametrize("fault", [DividesByTheWordsNamed, TakesEachWordForItself, KnowsWordsTwice])
def test_the_backend_suite_fails_on_faults_with_further_words(fault: Any) -> None:
    name = "test_further_words_change_no_score"
    assert passes(BackendConformance, name, KnowsItsWords())
    assert not passes(BackendConformance, name, fault())


class TellsAnotherBill(Inspecting):
    def inspect(self, request: ScoreRequest, /) -> Inspection:
        return Inspection(usage=Usage(sequences=1, tokens=1))


class TellsInOneString(Inspecting):
    def inspect(self, request: ScoreRequest, /) -> Inspection:
        return Inspection(notes="all is well")  # type: ignore[arg-type]


class InspectsWhatItRefuses(Inspecting):
    def inspect(self, request: ScoreRequest, /) -> Inspection:
        return Inspection()


def test_the_backend_suite_fails_on_a_wrong_inspection() -> None:
    bill, long = "test_inspecting_states_the_usage", "test_a_row_that_is_too_long_is_refused"
    assert passes(BackendConformance, bill, Inspecting())
    assert not passes(BackendConformance, bill, TellsAnotherBill())
    assert not passes(BackendConformance, bill, TellsInOneString())
    assert passes(BackendConformance, long, Inspecting())
    assert not passes(BackendConformance, long, InspectsWhatItRefuses())


_MEASURING = "test_measuring_gives_a_std_for_each_layer_above_the_first"


class Deep(ToyBackend):
    """The toy backend with three layers, whose heirs have one fault each."""

    def __init__(self) -> None:
        super().__init__(layers=3)


class ReadsTheFirstLayersOnly(Deep):
    def _vectors(self, prompt: Prompt) -> FloatArray:
        if isinstance(prompt, DeepPrompt):
            prompt = replace(prompt, above=(prompt.above[0], np.zeros_like(prompt.above[1])))
        return super()._vectors(prompt)


class AddsSomethingOfItsOwn(Deep):
    def _vectors(self, prompt: Prompt) -> FloatArray:
        return super()._vectors(prompt) + 0.1 * isinstance(prompt, DeepPrompt)


class TakesAnyDepth(Deep):
    def _vectors(self, prompt: Prompt) -> FloatArray:
        if isinstance(prompt, DeepPrompt):
            prompt = replace(prompt, above=(*prompt.above, *prompt.above, *prompt.above)[:2])
        return super()._vectors(prompt)


class GivesAllTheFirstOnesLayers(Deep):
    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        first = next((q.prompt for q in requests if isinstance(q.prompt, DeepPrompt)), None)
        return super().score(
            [
                replace(q, prompt=replace(q.prompt, above=first.above))
                if first is not None and isinstance(q.prompt, DeepPrompt)
                else q
                for q in requests
            ]
        )


class BillsEveryLayer(Deep):
    def _score(self, request: ScoreRequest) -> ScoreReply:
        reply, times = super()._score(request), getattr(request.prompt, "layers", 1)
        return replace(reply, usage=replace(reply.usage, tokens=times * reply.usage.tokens))


class MeasuresTheFirstLayerToo(Deep):
    def measure(self, request: ScoreRequest, /) -> Spread:
        return Spread(np.ones(3))


class MeasuresNothing(Deep):
    def measure(self, request: ScoreRequest, /) -> Spread:
        return Spread(np.zeros(2))


class MeasuresAtRandom(Deep):
    def measure(self, request: ScoreRequest, /) -> Spread:
        return Spread(np.random.default_rng().random(2))


class BillsRowsItWasNotGiven(Deep):
    def measure(self, request: ScoreRequest, /) -> Spread:
        return Spread(np.ones(2), Usage(sequences=100))


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (ReadsTheFirstLayersOnly, "test_every_layer_of_a_deep_prompt_matters"),
        (AddsSomethingOfItsOwn, "test_every_layer_of_a_deep_prompt_matters"),
        (TakesAnyDepth, "test_a_deep_prompt_of_another_depth_is_refused"),
        (GivesAllTheFirstOnesLayers, "test_a_deep_prompt_does_not_depend_on_its_neighbours"),
        (BillsEveryLayer, "test_a_deep_prompt_does_not_depend_on_its_neighbours"),
        (MeasuresTheFirstLayerToo, _MEASURING),
        (MeasuresNothing, _MEASURING),
        (MeasuresAtRandom, _MEASURING),
        (BillsRowsItWasNotGiven, _MEASURING),
    ],
)
def test_the_backend_suite_fails_on_a_fault_in_deep_prompts(fault: Any, name: str) -> None:
    assert passes(BackendConformance, name, Deep())
    assert not passes(BackendConformance, name, fault())


class TakesDeepPromptsUnclaimed(ToyBackend):
    def _vectors(self, prompt: Prompt) -> FloatArray:
        return super()._vectors(prompt.first if isinstance(prompt, DeepPrompt) else prompt)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (LooksAtItsNeighbours, "test_a_row_does_not_depend_on_its_neighbours"),
        (ReadsPadding, "test_a_row_does_not_depend_on_its_neighbours"),
        (SortsCandidates, "test_columns_follow_the_candidates"),
        (NormalisesOverTheCandidates, "test_a_candidate_does_not_depend_on_the_others"),
        (GivesLogits, "test_scores_are_log_probabilities"),
        (GivesNaNForAnEmptyText, "test_scores_are_log_probabilities"),
        (GivesFloat32, "test_an_answer_has_a_row_a_text_and_a_column_a_candidate"),
        (GivesCandidatesAsRows, "test_an_answer_has_a_row_a_text_and_a_column_a_candidate"),
        (RefusesAnEmptyList, "test_an_answer_has_a_row_a_text_and_a_column_a_candidate"),
        (IsNotDeterministic, "test_a_repeated_call_gives_the_same_answer"),
        (GivesItsCacheAway, "test_an_answer_belongs_to_the_caller"),
        (ScoresTheFirstPromptOnly, "test_a_request_does_not_depend_on_its_neighbours"),
        (IgnoresThePrompt, "test_every_insertion_is_scored"),
        (IgnoresThePrompt, "test_text_prompts_are_scored"),
        (IgnoresTheText, "test_the_text_matters"),
        (IgnoresWhatFollowsTheLabel, "test_the_label_may_stand_before_the_end"),
        (CountsCallsForSequences, "test_usage_counts_the_rows"),
        (CountsItsCallsInItsIdentity, "test_identity_is_stable"),
        (TakesAnyWidth, "test_a_soft_prompt_of_another_width_is_refused"),
        (RaisesForeignErrors, "test_a_soft_prompt_of_another_width_is_refused"),
        (RaisesForeignErrors, "test_a_row_that_is_too_long_is_refused"),
        (TakesDeepPromptsUnclaimed, "test_a_prompt_outside_the_capabilities_is_refused"),
        (TakesAnyInsertion, "test_a_prompt_outside_the_capabilities_is_refused"),
        (CutsLongRows, "test_a_row_that_is_too_long_is_refused"),
        (ClaimsTextPrompts, "test_text_prompts_are_scored"),
        (MixesThreadsUp, "test_threads_do_not_disturb_each_other"),
        (EmbedsInFloat64, "test_words_have_embeddings"),
    ],
)
def test_the_backend_suite_fails_on_a_planted_fault(fault: Any, name: str) -> None:
    assert passes(BackendConformance, name, ToyBackend())
    assert not passes(BackendConformance, name, fault())


def test_the_backend_suite_fails_where_settings_share_an_identity() -> None:
    name = "test_other_settings_have_another_identity"
    assert passes(BackendConformance, name, ToyBackend(), [ToyBackend(seed=1)])
    assert not passes(BackendConformance, name, HasNoIdentity(), [HasNoIdentity(seed=1)])
    assert not passes(BackendConformance, name, ToyBackend(), []), "nothing was compared"


class TextLast(ToyBackend):
    """A causal model without soft prompts: the checks that the toy's capabilities switch off."""

    def __init__(self, *, strict: bool) -> None:
        super().__init__(width=8)  # the width of the soft prompt that the suite offers it
        self.strict = strict
        self.capabilities = replace(
            self.capabilities, soft_prompt_width=None, label_anywhere=False, deterministic=False
        )

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        for request in requests:
            last = all(row[-1] is Slot.LABEL for row in request.batch.rows)
            if self.strict and (isinstance(request.prompt, SoftPrompt) or not last):
                raise InputError("text prompts and the label last are all it takes")
        return super().score(requests)


@pytest.mark.parametrize(
    "name",
    [
        "test_a_prompt_outside_the_capabilities_is_refused",
        "test_a_label_before_the_end_is_refused_where_it_has_to_stand_last",
    ],
)
def test_what_a_backend_does_not_claim_has_to_be_refused(name: str) -> None:
    assert passes(BackendConformance, name, TextLast(strict=True))
    assert not passes(BackendConformance, name, TextLast(strict=False))


# --- how the suites count


def test_the_tally_names_what_is_skipped_and_why() -> None:
    lines = BackendConformance().tally(TextLast(strict=True)).splitlines()
    every = len(BackendConformance.checks())
    assert (
        lines[0] == f"BackendConformance: {every - len(lines[1:])} checks, {len(lines[1:])} skipped"
    )
    assert (
        "  skipped test_every_insertion_is_scored: it takes no soft prompts" in lines
        and "  skipped test_a_repeated_call_gives_the_same_answer: "
        "it does not claim to be deterministic"
        in lines
    )


def test_a_skipped_check_says_why() -> None:
    suite: Any = BackendConformance()
    with pytest.raises(pytest.skip.Exception, match="it takes no soft prompts"):
        suite.test_every_insertion_is_scored(TextLast(strict=True))


def test_a_declared_deviation_has_to_fail() -> None:
    name = "test_flat_losses_are_survived"

    class Declared(OptimizerConformance):
        deviations = {name: "equal losses are not met"}  # noqa: RUF012

    suite: Any = Declared()
    with pytest.raises(pytest.xfail.Exception, match="equal losses are not met"):
        suite.test_flat_losses_are_survived(CrashesOnEqualLosses)
    with pytest.raises(pytest.fail.Exception, match=r"declared as a deviation .* but it passes"):
        suite.test_flat_losses_are_survived(Sound)


def test_a_deviation_that_names_no_check_fails() -> None:
    class Misspelt(OptimizerConformance):
        deviations = {"test_flat_losses_survived": "x"}  # noqa: RUF012

    with pytest.raises(AssertionError, match=r"did you mean 'test_flat_losses_are_survived'"):
        Misspelt().tally(Sound)


@pytest.mark.parametrize("how", ["declared", "taken out"])
def test_a_claim_without_a_check_that_has_to_pass_fails(how: str) -> None:
    name = "test_words_have_embeddings"
    body = {"deviations": {name: "no words"}} if how == "declared" else {name: None}
    suite = type("Emptied", (BackendConformance,), body)
    with pytest.raises(
        AssertionError, match="Embeds is claimed, but each of its checks is declared"
    ):
        suite().tally(ToyBackend())


def test_an_outsiders_run_prints_its_tally(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from lmaas_tune.testing import BackendConformance, ToyBackend

        class TestMine(BackendConformance):
            deviations = {"test_other_settings_have_another_identity": "it has no settings"}

            @pytest.fixture
            def backend(self):
                return ToyBackend()
        """
    )
    result = pytester.runpytest("-p", "no:xdist", "-p", "no:cacheprovider")
    checks = len(BackendConformance.checks())
    result.assert_outcomes(passed=checks - 8 + 1, skipped=7, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            f"TestMine: {checks - 7} checks, 7 skipped",
            "  skipped test_inspecting_states_the_usage: it has no `inspect`",
            "  deviates test_other_settings_have_another_identity: it has no settings",
        ]
    )


def test_a_suite_without_its_fixture_says_which() -> None:
    with pytest.raises(NotImplementedError, match=r"fixture make\(seed\)"):
        OptimizerConformance.make.__wrapped__(OptimizerConformance())


def test_the_toy_backend_needs_no_pytest() -> None:
    code = "import sys, lmaas_tune.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
