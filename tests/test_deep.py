"""Deep prompts: a subspace a layer, searched in turn by the same tuner, journal and budgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cma
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmaas_tune import (
    Budget,
    ScoreRequest,
    Settings,
    TunedPrompt,
    Tuner,
    TuneResult,
    Usage,
    preset,
)
from lmaas_tune.backend import Spread
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Meter, Spent
from lmaas_tune.errors import BudgetExceededError, InputError, PermanentError, TransientError
from lmaas_tune.journal import FILE_NAME
from lmaas_tune.optimizers import make_blockwise
from lmaas_tune.optimizers.blockwise import Blockwise
from lmaas_tune.optimizers.cma import CMA
from lmaas_tune.prompts import DeepPrompt, FloatArray, Prompt, SoftPrompt, Subspace
from lmaas_tune.prompts.deep import DeepSpace, draw_deep
from lmaas_tune.prompts.soft import RandomEmbedding
from lmaas_tune.task import Batch, Slot
from tests.support.small_models import (
    FIELDS,
    SMALL,
    TRAIN,
    VALIDATION,
    Bowl,
    WordBowl,
    changed,
    usage_of,
)

LAYERS, LENGTH, WIDTH = 4, 2, 3
ONE_ROW = Batch((("good ", Slot.PROMPT, Slot.LABEL),))


class Deep(WordBowl):
    """A bowl with layers: it reads the better, the nearer each layer's mean is to its own optimum.

    Attributes:
        measured: How often it was asked for its spread.
    """

    def __init__(self, *, layers: int = LAYERS, width: int = WIDTH, **can: Any) -> None:
        super().__init__(width=width, deep_layers=layers, **can)
        self.measured = 0

    def gain(self, prompt: Prompt) -> float:
        if not isinstance(prompt, DeepPrompt):
            return super().gain(prompt)
        means = np.stack([prompt.first.vectors, *prompt.above]).mean(axis=(1, 2))
        return 4.0 / (1.0 + float(((means - self.OPTIMUM) ** 2).sum()))

    def measure(self, request: ScoreRequest, /) -> Spread:
        self.measured += 1
        layers = self.capabilities.deep_layers or 0
        return Spread(np.arange(1.0, layers), usage_of(request))


DEEP = changed(SMALL, deep="all", projection="normal", budget=Budget(calls=62))
"""The start, its measuring, and 3 rounds over 4 layers with 5 prompts each."""
WORDS = changed(DEEP, start="words", prompt_length=None)


def fit(
    backend: Bowl | None = None, *, settings: Settings = DEEP, resume: bool = False, **wish: Any
) -> TuneResult:
    own = {"optimizer", "start"} & wish.keys()
    changes = {name: wish.pop(name) for name in FIELDS & wish.keys() - own}
    tuner = Tuner(
        Deep() if backend is None else backend,
        settings=changed(settings, **changes),
        template="{text} {prompt} {label}",
        callbacks=(),
        **wish,
    )
    return tuner.fit(TRAIN, VALIDATION, resume=resume)


def subspace(**changes: Any) -> Subspace:
    settings = {"start": "words", "words": "so be it", "dim": 5, "projection": "normal"}
    return Subspace(**{**settings, "alpha": 1.0, "seed": 0, **changes})


def space(*, stds: Sequence[float] | None = (1.0, 2.0, 3.0), **changes: Any) -> DeepSpace:
    layers = changes.pop("layers", "all")
    drawn = draw_deep([subspace(**changes)], Deep(), layers=layers)
    return drawn if stds is None else drawn.with_stds(np.array(stds))


def layers_of(prompt: Prompt) -> FloatArray:
    """(layers, L, H)"""
    assert isinstance(prompt, DeepPrompt)
    return np.array([prompt.first.vectors, *prompt.above])


# --- the prompt


def test_a_deep_prompt_is_told_apart_by_every_number_of_it() -> None:
    first = SoftPrompt(np.ones((2, 3)))
    zeros = np.zeros((2, 3))
    one = zeros.copy()
    one[1, 2] = 1
    prompts = [
        first,
        DeepPrompt(first, []),
        DeepPrompt(first, [zeros]),
        DeepPrompt(first, [zeros, zeros]),
        DeepPrompt(first, [zeros, one]),
        DeepPrompt(first, [one, zeros]),
        DeepPrompt(SoftPrompt(2 * first.vectors), [zeros, zeros]),
    ]
    assert len({prompt.digest for prompt in prompts}) == len(prompts)
    assert prompts[3].digest == DeepPrompt(SoftPrompt(np.ones((2, 3))), [zeros, zeros]).digest
    assert str(prompts[3]) == "a soft prompt of width 3, inserted by 'concat', through 3 layers"


def test_a_deep_prompt_takes_nobodys_array_but_those_that_cannot_be_written() -> None:
    mine, first = np.zeros((2, 3), dtype=np.float32), SoftPrompt(np.ones((2, 3)))
    prompt = DeepPrompt(first, [mine, first.vectors, first.vectors[:]])
    mine[0, 0] = 7
    assert prompt.above[0][0, 0] == 0
    assert prompt.above[1] is first.vectors
    assert not np.shares_memory(prompt.above[2], first.vectors)
    with pytest.raises(ValueError, match="read-only"):
        prompt.above[0][0, 0] = 7


@pytest.mark.parametrize(
    ("above", "sentence"),
    [
        (
            [np.zeros((2, 3)), np.zeros((3, 3))],
            r"layer 2 .* shape \(3, 3\), and the first \(2, 3\)",
        ),
        ([np.full((2, 3), np.nan)], "must be finite"),
        ([np.zeros(3)], r"the shape \(L, H\), not \(3,\)"),
    ],
)
def test_layers_that_cannot_be_get_one_sentence(above: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        DeepPrompt(SoftPrompt(np.ones((2, 3))), above)


# --- the space


def test_the_origin_is_the_start_with_nothing_above_it() -> None:
    (prompt,) = space().prompts(np.zeros((1, 20)))
    (start,) = space().starts
    assert prompt.digest == start.digest
    assert start.first.digest == SoftPrompt(Deep().embed((2, 2, 2))).digest
    assert not layers_of(start)[1:].any()


@pytest.mark.parametrize("projection", ["normal", "hadamard"])
def test_c12_each_layer_is_searched_on_the_scale_of_what_enters_it(projection: str) -> None:
    dim, alpha, sigma = 400, 0.2, 0.2  # the reference's: std(A_i) = alpha std_i / (sqrt(d) sigma)
    drawn = draw_deep(
        [subspace(dim=dim, projection=projection, alpha=alpha / sigma, length=200)],
        Deep(width=60),
        layers="all",
    ).with_stds(np.array([0.5, 4.0, 30.0]))
    units = np.eye(4 * dim)[[i * dim for i in range(4)]]  # one column of each A
    columns = [layers_of(p) - layers_of(drawn.starts[0]) for p in drawn.prompts(units)]
    for layer, std in enumerate([Deep().embedding_std, 0.5, 4.0, 30.0]):
        expected = alpha * std / (np.sqrt(dim) * sigma)
        assert np.sqrt(np.mean(columns[layer][layer] ** 2)) == pytest.approx(expected, rel=0.02)
        assert not np.delete(columns[layer], layer, axis=0).any()  # no other layer moves


def test_uniform_and_vocabulary_have_their_own_rule_above_the_first_layer() -> None:
    dim = 100
    point = np.eye(4 * dim)[[2 * dim]]
    uniform = space(stds=None, dim=dim, projection="uniform", length=300)
    assert not uniform.needs_stds
    column = layers_of(uniform.prompts(point)[0])[2]
    assert np.abs(column).max() == pytest.approx(1 / np.sqrt(dim), rel=0.02)  # C8's bound
    words, normal = (
        layers_of(space(dim=dim, projection=kind).prompts(point)[0])[2]
        for kind in ("vocabulary", "normal")
    )
    np.testing.assert_array_equal(words, normal)


def test_every_layer_has_an_a_of_its_own_that_its_seed_decides() -> None:
    point = np.tile([1.0, -2.0, 0.5, 0.0, 3.0], 4)[None]
    columns = layers_of(space(stds=(1, 1, 1), start="zero", length=9, words="").prompts(point)[0])
    for one in range(1, 4):
        for other in range(one):
            correlation = np.corrcoef(columns[one].ravel(), columns[other].ravel())[0, 1]
            assert abs(correlation) < 0.7
    (again,), (another,) = (
        space(stds=(1, 1, 1), start="zero", length=9, words="", seed=seed).prompts(point)
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(layers_of(again), columns)
    assert (layers_of(another) != columns).any(axis=(1, 2)).all()


def test_the_first_layers_a_is_that_of_a_plain_soft_prompt() -> None:
    plain = RandomEmbedding(
        [SoftPrompt(Deep().embed((2, 2, 2)))], dim=5, projection="normal", scale=0.5, seed=0
    )
    point = np.arange(20.0)[None]
    (deep,), (soft,) = space().prompts(point), plain.prompts(point[:, :5])
    assert isinstance(deep, DeepPrompt)
    assert deep.first.digest == soft.digest


def test_only_the_layers_that_are_searched_move() -> None:
    some = space(layers=(1, 3))
    assert (some.dim, some.blocks) == (10, 2)
    moved = layers_of(some.prompts(np.ones((1, 10)))[0]) != layers_of(some.starts[0])
    assert moved.any(axis=(1, 2)).tolist() == [False, True, False, True]
    own, every = some.prompts(np.ones((1, 10)))[0], space().prompts(np.ones((1, 20)))[0]
    np.testing.assert_array_equal(layers_of(own)[3], layers_of(every)[3])


def test_layers_at_rest_are_one_array_for_all_prompts_and_generations() -> None:
    drawn = space()
    points = np.zeros((3, 20))
    points[:, :5] = 1.0
    points[:, 10:15] = np.random.default_rng(0).standard_normal((3, 5))
    first, second = drawn.prompts(points), drawn.prompts(points)
    for prompt in (*first, *second):
        assert isinstance(prompt, DeepPrompt)
        assert prompt.first is first[0].first
        assert prompt.above[0] is first[0].above[0]
        assert prompt.above[2] is first[0].above[2]
    assert first[0].above[1] is not first[1].above[1]
    points[:, :5] = 2.0
    assert drawn.prompts(points)[0].first.digest != first[0].first.digest


@given(st.floats(-3, 3), st.integers(0, 10_000))
def test_the_image_is_linear_around_the_start(factor: float, seed: int) -> None:
    one, other = np.random.default_rng(seed).standard_normal((2, 1, 20))
    drawn = space()

    def image(point: FloatArray) -> FloatArray:
        return layers_of(drawn.prompts(point)[0]) - layers_of(drawn.starts[0])

    expected = image(one) + factor * image(other)
    np.testing.assert_allclose(image(one + factor * other), expected, atol=1e-4)


def test_the_digest_follows_all_that_decides_a_prompt_but_what_is_measured() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"alpha": 2.0},
        {"dim": 6},
        {"layers": (0, 1)},
        {"layers": (1, 2)},
        {"words": "so be that"},
        {"projection": "hadamard"},
    ]
    assert len({space(**change).digest for change in changes}) == len(changes)
    assert space(stds=None).digest == space().digest
    layers = np.ones((3, 3, 3))
    raised = draw_deep([subspace()], Deep(), layers="all", above=list(layers))
    assert raised.digest != space().digest


def test_a_space_begins_at_another_of_its_starts() -> None:
    drawn = draw_deep(
        [subspace(words="so be it"), subspace(words="very well")], Deep(), layers="all"
    )
    assert [start.first.length for start in drawn.starts] == [3, 2]
    second = drawn.begin_at(1).with_stds(np.ones(3))
    (prompt,) = second.prompts(np.zeros((1, 20)))
    assert prompt.digest == drawn.starts[1].digest


def test_a_scale_that_was_not_measured_or_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="the scale of the layers is unknown"):
        space(stds=None).prompts(np.ones((1, 20)))
    for stds in ([1.0, 2.0], [1.0, 2.0, 0.0], [1.0, np.nan, 1.0]):
        with pytest.raises(InputError, match="give one for each, positive and finite"):
            space(stds=stds)


# --- divide and conquer


def bare(seed: int) -> Any:
    stream = np.random.RandomState(int(np.random.SeedSequence(3).generate_state(3)[seed]))
    options = {"seed": np.nan, "randn": stream.randn, "popsize": 6, "verbose": -9}
    options["AdaptSigma"] = cma.sigma_adaptation.CMAAdaptSigmaCSA
    return cma.CMAEvolutionStrategy(5 * [0], 0.2, options)


def test_c12_blocks_are_searched_as_the_reference_does_it() -> None:
    """Its loop told again: for round, for layer: ask, score with the others at their best, tell,
    and set the layer to the best that its CMA-ES ever saw."""

    def loss(point: FloatArray) -> float:
        return float(((point - 0.3) ** 2).sum() + point[:5].sum() * point[5:10].sum())

    ours = make_blockwise("cma", 5, blocks=3, seed=3, options={"population": 6, "sigma0": 0.2})
    theirs, best = [bare(layer) for layer in range(3)], np.zeros((3, 5))
    for _ in range(8):
        for layer, es in enumerate(theirs):
            points = []
            for own in (asked := es.ask()):
                point = best.copy()
                point[layer] = own
                points.append(point.ravel())
            np.testing.assert_array_equal(ours.ask(), points)
            losses = [loss(point) for point in points]
            es.tell(asked, losses)
            best[layer] = es.result.xbest
            ours.tell(np.array(points), np.array(losses))


def test_a_generation_may_be_told_in_any_order() -> None:
    def run(turned: bool) -> list[FloatArray]:
        optimizer, asked = make_blockwise("cma", 3, blocks=2, seed=1), []
        for _ in range(6):
            asked.append(points := optimizer.ask())
            told = points[::-1] if turned else points
            optimizer.tell(told, (told**2).sum(axis=1))
        return asked

    for one, other in zip(run(False), run(True), strict=True):
        np.testing.assert_array_equal(one, other)


def test_blocks_may_differ_in_their_population() -> None:
    blocks = [CMA(3, seed=0, population=4), CMA(3, seed=1, population=7)]
    optimizer = Blockwise(blocks, dim=3, calls=24)
    sizes = []
    while optimizer.ended is None:
        sizes.append(optimizer.population)
        points = optimizer.ask()
        assert points.shape == (sizes[-1], 6)
        optimizer.tell(points, points.sum(axis=1))
    assert sizes == [4, 7, 4, 7]  # 22 of 24 calls


def test_without_a_number_of_calls_the_rounds_never_end() -> None:
    optimizer = make_blockwise("random", 2, blocks=2, seed=0)
    for _ in range(50):
        points = optimizer.ask()
        optimizer.tell(points, points.sum(axis=1))
    assert optimizer.ended is None


def test_calls_that_pay_no_round_and_a_search_without_blocks_are_refused() -> None:
    with pytest.raises(InputError, match=r"39 calls pay no round over 2 layers.* 40 prompts"):
        make_blockwise("random", 2, blocks=2, seed=0, calls=39)
    with pytest.raises(InputError, match="one block or more"):
        Blockwise([], dim=3)


# --- the search


def test_a_search_through_the_layers_improves_on_its_start() -> None:
    result = fit(budget=Budget(calls=402), head="none")  # a bias for ten rows has its own optimum
    assert result.start.prompt.digest == space_start()
    before, after = result.start.score(Deep(), TRAIN), result.prompt.score(Deep(), TRAIN)
    assert after.loss < before.loss / 2
    assert isinstance(result.prompt.prompt, DeepPrompt)
    assert all(layer.any() for layer in layers_of(result.prompt.prompt))


def space_start() -> str:
    zeros = np.zeros((LENGTH, WIDTH))
    return DeepPrompt(SoftPrompt(zeros), [zeros] * (LAYERS - 1)).digest


def test_every_generation_moves_one_layer_from_the_bottom_up() -> None:
    steps = fit().steps[1:]
    assert len(steps) == 12
    for number, step in enumerate(steps):
        blocks = step.points.reshape(5, LAYERS, -1)
        moving = (blocks != blocks[0]).any(axis=(0, 2))
        assert np.flatnonzero(moving).tolist() == [number % LAYERS]


def test_measuring_the_layers_is_one_call_that_is_paid() -> None:
    measured, told = Deep(), fit(projection="uniform")
    result = fit(measured)
    assert measured.measured == 1
    assert result.spent.calls == 62
    assert told.spent.calls == 61  # whose scale needs no measuring
    rows = len(TRAIN)
    assert result.spent.sequences - told.spent.sequences == rows
    assert result.spent.tokens - told.spent.tokens == sum(len(t.split()) + 2 for t, _ in TRAIN)


def test_what_was_measured_is_recorded_and_not_paid_again(tmp_path: Path) -> None:
    result = fit(out=tmp_path)
    lines = (tmp_path / FILE_NAME).read_text().splitlines()
    assert json.loads(lines[3])["key"] == "stds"  # behind the start and its validation
    assert json.loads(lines[3])["stds"] == [1.0, 2.0, 3.0]
    again = Deep()
    resumed = fit(again, out=tmp_path, resume=True)
    assert (again.measured, again.asked) == (0, [])
    assert resumed.prompt.prompt.digest == result.prompt.prompt.digest


def test_a_run_that_is_cut_off_anywhere_ends_with_the_same_prompt(tmp_path: Path) -> None:
    undisturbed = Deep()
    whole = fit(undisturbed, out=tmp_path / "whole")
    data = (tmp_path / "whole" / FILE_NAME).read_bytes()
    lines = data.splitlines(keepends=True)
    for kept in range(1, len(lines), 3):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        again = Deep()
        resumed = fit(again, out=folder, resume=True)
        paid = sum(len(json.loads(line).get("evaluations", ())) for line in lines[1:kept])
        assert again.asked == undisturbed.asked[paid:]
        assert again.measured == (kept <= 3)
        assert resumed.prompt.prompt.digest == whole.prompt.prompt.digest
        assert TunedPrompt.load(folder).prompt.digest == whole.prompt.prompt.digest
        assert resumed.spent.calls == whole.spent.calls
        assert resumed.stop_reason == whole.stop_reason


def test_c2_the_bbtv2_preset_spends_exactly_sixteen_rounds_over_twenty_four_layers() -> None:
    settings = changed(preset("bbtv2"), intrinsic_dim=2, prompt_length=1)  # what costs no calls
    backend = Deep(layers=24, insertions=frozenset({"add"}))
    rows = [("good a", "good"), ("bad b", "bad")]
    tuner = Tuner(backend, settings=settings, template="{text} {prompt} {label}", callbacks=())
    result = tuner.fit(rows, rows)
    assert len(result.steps) == 16 * 24
    assert sum(len(step.evaluations) for step in result.steps) == 7680
    assert result.spent.calls == 7680 + 1  # and the measuring
    assert result.spent.validation_calls == 76  # every hundredth candidate
    assert result.stop_reason.startswith("rounds: 16 over 24 layers")


def test_whole_rounds_end_a_run_and_a_smaller_budget_does_too() -> None:
    assert fit(budget=Budget(calls=80)).spent.calls == 62  # 3 rounds; the rest pays no fourth
    by_rows = fit(budget=Budget(sequences=30 * (len(TRAIN) + 1)))
    assert by_rows.stop_reason.startswith("budget")
    assert by_rows.spent.sequences <= 30 * (len(TRAIN) + 1)


def test_any_optimizer_searches_the_layers() -> None:
    for optimizer in ("random", "nevergrad:PSO", lambda dim, *, seed, calls: CMA(dim, seed=seed)):
        result = fit(optimizer=optimizer, budget=Budget(calls=400))
        assert isinstance(result.best.prompt, DeepPrompt)
        assert result.best.evaluation.loss < result.start.score(Deep(), VALIDATION).loss


@pytest.mark.parametrize(("optimizer", "kept"), [("cma", 1), ("gauss-newton", 5)])
def test_all_scores_are_kept_only_if_the_blocks_use_them(optimizer: str, kept: int) -> None:
    for step in fit(optimizer=optimizer).steps[1:]:
        assert sum(evaluation.scores is not None for evaluation in step.evaluations) == kept


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    one, same, other = (fit(seed=seed).prompt.prompt.digest for seed in (1, 1, 2))
    assert one == same != other


def test_the_best_of_several_starts_goes_through_the_layers() -> None:
    backend = Deep()
    result = fit(
        backend,
        settings=WORDS,
        prompt_init=("so it", "a considerably longer start"),
        budget=Budget(calls=63),
    )
    assert result.spent.calls == 2 + 1 + 60
    lengths = {step.best.prompt.first.length for step in result.steps}
    assert len(lengths) == 1


# --- what is refused, before anything is paid


@pytest.mark.parametrize(
    ("backend", "wish", "sentence"),
    [
        (Deep(), {"deep": (0, 4)}, r"deep=\(0, 4\): bowl has layers 0 to 3, and no 4"),
        (Deep(), {"budget": Budget(calls=21)}, "19 calls pay no round over 4 layers.* 20 prompts"),
        (WordBowl(), {}, "bowl takes no deep prompts: leave out deep='all', or take a local model"),
        (
            WordBowl(deep_layers=3),
            {},
            "bowl does not measure its layers.* take projection='uniform'",
        ),
        (
            Bowl(width=None),
            {},
            "takes text prompts only, and this search is over soft ones",
        ),
    ],
)
def test_what_cannot_work_gets_one_sentence_and_costs_nothing(
    backend: Any, wish: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        fit(backend, **wish)
    assert backend.asked == []


def test_a_search_goes_on_from_a_saved_deep_prompt(tmp_path: Path) -> None:
    first = fit(out=tmp_path)
    saved = TunedPrompt.load(tmp_path)
    second = fit(start=saved, seed=1)
    assert second.start.prompt.digest == first.prompt.prompt.digest
    assert second.best.evaluation.loss <= first.best.evaluation.loss
    with pytest.raises(InputError, match=r"through 4 layers: set prompt=Deep\(\)"):
        fit(start=saved, deep=None)
    with pytest.raises(InputError, match="has 4 layers, and bowl has 3"):
        fit(Deep(layers=3), start=saved)
    with pytest.raises(InputError, match="asked for text prompts, and the start is a soft one"):
        fit(settings=WORDS, start=saved, deep=None, prompt="text")


def test_a_soft_prompt_is_a_start_for_all_layers() -> None:
    start = SoftPrompt(np.full((2, WIDTH), 0.5))
    result = fit(start=start)
    assert result.start.prompt.first.digest == start.digest
    assert not np.any(result.start.prompt.above)


# --- paying for what is measured


class Failing(Deep):
    """One whose measuring fails a few times first."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__()
        self._error, self._times = error, times

    def measure(self, request: ScoreRequest, /) -> Spread:
        self._times -= 1
        if self._times >= 0:
            raise self._error
        return super().measure(request)


REQUEST = ScoreRequest(DeepPrompt(SoftPrompt(np.ones((1, WIDTH))), []), ONE_ROW, ("good", "bad"))


def test_measuring_is_tried_again_and_every_attempt_is_paid() -> None:
    waits: list[float] = []
    meter = Meter()
    client = Client(Failing(TransientError("busy"), 2), sleep=waits.append)
    spread = client.measure(REQUEST, meter=meter)
    assert spread.stds.tolist() == [1.0, 2.0, 3.0]
    assert len(waits) == 2
    assert meter.spent.requests == client.meter.spent.requests == 3
    assert meter.spent.sequences == 1


def test_measuring_has_its_price_and_stays_within_the_budget() -> None:
    client = Client(Deep(), price=lambda usage: float(usage.tokens))
    assert client.measure(REQUEST).usage.money == 2.0
    with pytest.raises(BudgetExceededError):
        client.measure(REQUEST, meter=Meter(Budget(calls=1, sequences=1), spent=Spent(sequences=1)))


def test_attempts_to_measure_that_are_billed_stay_within_the_budget() -> None:
    call = sum(len(text.split()) + LENGTH for text, _ in TRAIN)
    error = TransientError("busy")
    error.usage = Usage(requests=1, sequences=len(TRAIN), tokens=call)
    client = Client(Failing(error, 9), sleep=lambda seconds: None)
    budget = 10 * call + call // 2
    result = fit(client, budget=Budget(tokens=budget), validation_rows="join")
    assert "the next request needs" in result.stop_reason
    assert result.spent.tokens <= budget


def test_what_fails_in_measuring_is_an_error_of_ours() -> None:
    with pytest.raises(PermanentError, match="failed with KeyError"):
        Client(Failing(KeyError("layer"), 1)).measure(REQUEST)
    with pytest.raises(InputError, match="does not measure its layers"):
        Client(Bowl()).measure(REQUEST)


@pytest.mark.parametrize("std", [np.nan, np.inf, 0.0])
def test_a_spread_that_is_none_ends_the_run_and_is_paid(std: float, tmp_path: Path) -> None:
    class Overflowing(Deep):
        def measure(self, request: ScoreRequest, /) -> Spread:
            spread = super().measure(request)
            return replace(spread, stds=spread.stds * std)

    client = Client(Overflowing())
    with pytest.raises(PermanentError, match=r"measured .* must be positive and finite.*float32"):
        client.measure(REQUEST)
    assert client.spent.requests == 1
    with pytest.raises(PermanentError, match="must be positive and finite"):
        fit(Overflowing(), out=tmp_path)


@pytest.mark.parametrize("std", [np.nan, 1.0])
def test_what_measuring_in_vain_cost_is_remembered_however_often_a_run_is_resumed(
    std: float, tmp_path: Path
) -> None:
    class InVain(Deep):
        """Overflows; or fails, and tells what that took."""

        def measure(self, request: ScoreRequest, /) -> Spread:
            if np.isnan(std):
                spread = super().measure(request)
                return replace(spread, stds=spread.stds * std)
            error = PermanentError("gone")
            error.usage = Usage(requests=1, sequences=4, tokens=500)
            raise error

    spent = []
    for again in range(3):
        with pytest.raises(PermanentError):
            fit(InVain(), out=tmp_path, resume=bool(again))
        spent.append(TunedPrompt.load(tmp_path).provenance["spent"]["requests"])
    assert np.diff(spent).tolist() == [1, 1]


# --- the saved prompt


def test_a_saved_deep_prompt_predicts_as_it_did(tmp_path: Path) -> None:
    result = fit(out=tmp_path)
    loaded = TunedPrompt.load(tmp_path)
    assert loaded.prompt.digest == result.prompt.prompt.digest
    np.testing.assert_array_equal(loaded.scores(Deep(), TRAIN), result.prompt.scores(Deep(), TRAIN))
    content = json.loads((tmp_path / "prompt.json").read_text())
    assert (content["kind"], content["layers"], content["shape"]) == ("deep", 4, [2, 3])
    assert content["settings"]["deep"] == "all"


def test_a_saved_deep_prompt_is_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    result = fit(out=tmp_path)
    saved = TunedPrompt.load(tmp_path)
    for backend, sentence in (
        (WordBowl(), "goes through 4 layers, and bowl takes no deep prompts: it was tuned for"),
        (Deep(layers=3), "goes through 4 layers, and bowl takes those through 3"),
        (Deep(width=8), "has width 3, and bowl takes width 8"),
        (Deep(insertions=frozenset({"add"})), "enters by insertion 'concat', and bowl takes add"),
    ):
        with pytest.raises(InputError, match=sentence):
            saved.predict(backend, TRAIN)
    assert result.prompt.predict(Deep(), TRAIN)
