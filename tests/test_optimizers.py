"""Our optimizers: equal to the bare libraries, and free of the traps that those set."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cma
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmaas_tune.errors import InputError
from lmaas_tune.optimizers import Optimizer, make_optimizer, optimizer_names
from lmaas_tune.optimizers.cma import CMA
from lmaas_tune.optimizers.isolation import BorrowedRandomness
from lmaas_tune.optimizers.nevergrad import Nevergrad
from lmaas_tune.optimizers.random import RandomSearch
from lmaas_tune.prompts import FloatArray

RULES = {
    "csa": cma.sigma_adaptation.CMAAdaptSigmaCSA,
    "tpa": cma.sigma_adaptation.CMAAdaptSigmaTPA,
}

Loss = Callable[[FloatArray], FloatArray]


def sphere(points: FloatArray) -> FloatArray:
    return ((points - 0.5) ** 2).sum(axis=1)


def accuracy_like(points: FloatArray) -> FloatArray:
    """One value nearly everywhere, and two at most."""
    return (points[:, 0] > 50).astype(float)


def hinge_at_zero(points: FloatArray) -> FloatArray:
    """Falls, and is exactly 0 from there on."""
    return np.maximum(0.0, 0.3 - points[:, 0])


def run(optimizer: Optimizer, calls: int, loss: Loss = sphere) -> FloatArray:
    """All points of the generations that fit into `calls`."""
    asked: list[FloatArray] = []
    told = 0
    while told + optimizer.population <= calls:
        points = optimizer.ask()
        optimizer.tell(points, loss(points))
        asked.append(points)
        told += len(points)
    return np.concatenate(asked)


def global_randomness() -> tuple[Any, ...]:
    """State of numpy's global generator and of Python's; comparable."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return name, keys.tobytes(), *rest, random.getstate()


@pytest.fixture
def keep_global_randomness() -> Iterator[None]:
    """For tests whose bare libraries seed the global generators."""
    state = np.random.get_state()  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


def bare_pycma(
    dim: int, generations: int, *, seed: int, rule: str, sigma0: float = 1.0, **options: Any
) -> tuple[FloatArray, FloatArray]:
    """Points and last mean of pycma's own loop, as a user would write it."""
    es = cma.CMAEvolutionStrategy(
        dim * [0],
        sigma0,
        {"seed": seed, "AdaptSigma": RULES[rule], "verbose": -9, **options},
    )
    asked = []
    for _ in range(generations):
        points = es.ask()
        asked += [point.copy() for point in points]
        es.tell(points, [float(sphere(point[None])[0]) for point in points])
    return np.array(asked), es.result.xfavorite


# --- C1-C7: pycma


@pytest.mark.usefixtures("keep_global_randomness")
@pytest.mark.parametrize("rule", ["csa", "tpa"])
@pytest.mark.parametrize(
    ("dim", "generations", "ours", "bare"),
    [
        (20, 150, {}, {}),
        (20, 60, {"population": 20, "sigma0": 0.3}, {"popsize": 20, "sigma0": 0.3}),
        (20, 60, {"bounds": 1.0}, {"bounds": [-1, 1]}),
        (20, 60, {"diagonal": True}, {"CMA_diagonal": True}),
        (3, 60, {"population": 4}, {"popsize": 4}),
        (500, 5, {"population": 20}, {"popsize": 20}),
    ],
    ids=["defaults", "options", "bounds", "diagonal", "mirrored", "d500"],
)
def test_c1_points_equal_a_bare_pycma_loop_bit_for_bit(
    rule: str, dim: int, generations: int, ours: dict[str, Any], bare: dict[str, Any]
) -> None:
    expected, mean = bare_pycma(dim, generations, seed=42, rule=rule, **bare)
    optimizer = make_optimizer("cma", dim, seed=42, options={"step_rule": rule, **ours})
    np.testing.assert_array_equal(run(optimizer, len(expected)), expected)
    np.testing.assert_array_equal(optimizer.recommend(), mean)


@pytest.mark.usefixtures("keep_global_randomness")
def test_c1_a_run_of_the_papers_length_still_equals_pycmas() -> None:
    expected, mean = bare_pycma(500, 400, seed=7, rule="csa", popsize=20)
    optimizer = make_optimizer("cma", 500, seed=7, options={"population": 20})
    np.testing.assert_array_equal(run(optimizer, 8000), expected)
    np.testing.assert_array_equal(optimizer.recommend(), mean)


@pytest.mark.parametrize("name", ["cma", "diagonal-cma"])
def test_c2_8000_calls_are_400_generations_applied(name: str) -> None:
    optimizer = make_optimizer(name, 10, seed=1, calls=8000, options={"population": 20})
    assert len(run(optimizer, 8000)) == 8000
    assert optimizer._es.countiter == 400  # pycma's own count of the generations it took


@pytest.mark.parametrize("loss", [accuracy_like, hinge_at_zero, lambda points: 0 * points[:, 0]])
def test_c3_flat_losses_spend_the_whole_budget(loss: Loss) -> None:
    optimizer = CMA(10, seed=1, population=20)
    assert len(run(optimizer, 2000, loss)) == 2000
    assert optimizer._es.countiter == 100
    assert optimizer.restarts == 0


def test_c4_seed_0_is_a_seed() -> None:
    np.testing.assert_array_equal(run(CMA(5, seed=0), 400), run(CMA(5, seed=0), 400))


@pytest.mark.parametrize("rule", ["csa", "tpa"])
def test_c5_no_global_random_state_is_touched_and_several_runs_are_independent(rule: str) -> None:
    before = global_randomness()
    first, second = (CMA(4, seed=seed, step_rule=rule, population=4) for seed in (1, 2))
    mixed: list[FloatArray] = []
    for _ in range(30):
        mixed.append(run(second, 4))
        run(first, 4)
        second.recommend()
    assert global_randomness() == before
    alone = run(CMA(4, seed=2, step_rule=rule, population=4), 120)
    np.testing.assert_array_equal(np.concatenate(mixed), alone)


@pytest.mark.parametrize("name", optimizer_names())
def test_c6_replaying_recorded_losses_goes_on_as_the_run_would(name: str) -> None:
    optimizer, replayed = (make_optimizer(name, 6, seed=5, calls=400) for _ in range(2))
    for _ in range(10):
        points = optimizer.ask()
        losses = sphere(points)
        optimizer.tell(points, losses)
        np.testing.assert_array_equal(replayed.ask(), points)
        replayed.tell(points, losses)
    np.testing.assert_array_equal(optimizer.ask(), replayed.ask())


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in [*optimizer_names(), "nevergrad:CMA"]]
    + [(name, {"step_rule": "tpa"}) for name in ("cma", "diagonal-cma")],
)
def test_c7_a_generation_may_be_told_in_any_order(name: str, options: dict[str, object]) -> None:
    straight, shuffled = (
        make_optimizer(name, 6, seed=5, calls=400, options=options) for _ in range(2)
    )
    rng = np.random.default_rng(0)
    for _ in range(15):
        points = straight.ask()
        np.testing.assert_array_equal(shuffled.ask(), points)
        losses = np.round(sphere(points))  # with ties
        order = rng.permutation(len(points))
        straight.tell(points, losses)
        shuffled.tell(points[order], losses[order])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rule=st.sampled_from(["csa", "tpa"]), diagonal=st.booleans())
def test_whatever_finite_losses_are_told_the_next_points_are_finite(
    data: st.DataObject, rule: str, diagonal: bool
) -> None:
    optimizer = CMA(3, seed=7, step_rule=rule, diagonal=diagonal)
    finite = st.floats(allow_nan=False, allow_infinity=False)
    for _ in range(6):
        points = optimizer.ask()
        assert np.isfinite(points).all()
        optimizer.tell(points, data.draw(arrays(float, len(points), elements=finite)))


@pytest.mark.parametrize("loss", [sphere, accuracy_like, lambda points: -points[:, 0]])
@pytest.mark.parametrize("rule", ["csa", "tpa"])
def test_a_search_that_runs_out_of_float64_starts_again_and_spends_the_budget(
    rule: str, loss: Loss
) -> None:
    optimizer = CMA(2, seed=1, step_rule=rule)
    asked = run(optimizer, 4_200, loss)
    assert len(asked) == 4_200
    assert np.isfinite(asked).all()
    assert np.isfinite(optimizer.recommend()).all()
    if rule == "tpa" and loss is sphere:
        assert optimizer.restarts > 0


def test_cma_says_nothing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (sphere, accuracy_like, lambda points: 1e308 * np.tanh(sphere(points))):
            run(CMA(3, seed=1, step_rule="tpa", bounds=0.7, sigma0=5.0), 1200, loss)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_libraries_leaves_the_process_alone() -> None:
    code = """
import random, warnings
import numpy as np
from lmaas_tune.optimizers import make_optimizer

def state():
    return str((np.random.get_state(), random.getstate(), warnings.filters))

before = state()
for name in ("cma", "one-plus-one"):
    optimizer = make_optimizer(name, 3, seed=1)
    points = optimizer.ask()
    optimizer.tell(points, points[:, 0])
print(state() == before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in optimizer_names()), ("cma", {"step_rule": "tpa"})],
)
def test_one_dimension_is_enough(name: str, options: dict[str, object]) -> None:
    asked = run(make_optimizer(name, 1, seed=1, calls=120, options=options), 120)
    assert len(asked) >= 100  # the population of tbpsa grows, and the next may not fit
    assert asked.shape[1] == 1
    assert np.isfinite(asked).all()


def test_the_step_rule_decides_at_500_dimensions_whatever_pycma_defaults_to() -> None:
    best = {}
    for rule in RULES:
        optimizer = CMA(500, seed=1, population=20, step_rule=rule, diagonal=True)
        best[rule] = sphere(run(optimizer, 3000)[-20:]).min()
    assert best["tpa"] < best["csa"]
    default = CMA(500, seed=1, population=20, diagonal=True)
    assert sphere(run(default, 3000)[-20:]).min() == best["csa"]


@settings(max_examples=20, deadline=None)
@given(b=st.floats(0.1, 10), sigma0=st.floats(0.01, 20), seed=st.integers(0, 2**32 - 1))
def test_bounded_points_stay_in_their_bounds(b: float, sigma0: float, seed: int) -> None:
    optimizer = CMA(4, seed=seed, bounds=b, sigma0=sigma0)
    asked = run(optimizer, 80, lambda points: -points.sum(axis=1))
    assert np.abs(asked).max() <= b
    assert np.abs(optimizer.recommend()).max() <= b


def test_the_default_population_is_pycmas() -> None:
    assert [CMA(dim, seed=1).population for dim in (1, 20, 500)] == [4, 12, 22]


# --- what every optimizer refuses


@pytest.mark.parametrize("name", optimizer_names())
def test_a_generation_is_asked_once_and_told_once_as_it_was_asked(name: str) -> None:
    optimizer = make_optimizer(name, 3, seed=1, calls=100)
    points, losses = np.zeros((optimizer.population, 3)), np.zeros(optimizer.population)
    with pytest.raises(InputError, match="tell without an ask"):
        optimizer.tell(points, losses)
    points = optimizer.ask()
    with pytest.raises(InputError, match="ask without a tell"):
        optimizer.ask()
    with pytest.raises(InputError, match="told as a whole"):
        optimizer.tell(np.vstack([points, points]), np.zeros(2 * len(points)))
    with pytest.raises(InputError, match="told as a whole"):
        optimizer.tell(points, losses[:, None])
    with pytest.raises(InputError, match="did not ask"):
        optimizer.tell(points + 1e-9, losses)
    optimizer.tell(points, losses)
    with pytest.raises(InputError, match="tell without an ask"):
        optimizer.tell(points, losses)


@pytest.mark.parametrize("name", optimizer_names())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_refused_by_its_number(name: str, value: float) -> None:
    optimizer = make_optimizer(name, 3, seed=1, calls=100)
    points = optimizer.ask()
    losses = np.zeros(len(points))
    losses[-1] = value
    with pytest.raises(InputError, match=f"loss of point {len(points) - 1} is {value}"):
        optimizer.tell(points, losses)


@pytest.mark.parametrize(
    ("name", "dim", "seed", "options", "sentence"),
    [
        ("cma", 0, 1, {}, "dim=0 must be at least 1"),
        ("cma", 2.5, 1, {}, "dim=2.5 is not a whole number"),
        ("random", 3, -1, {}, "seed=-1 must be from 0 to 4294967295"),
        ("random", 3, True, {}, "seed=True is not a whole number"),
        ("random", 3, 1, {"population": 0}, "population=0 must be at least 1"),
        ("random", 3, 1, {"scale": 0.0}, "scale=0.0 must be finite and above 0"),
        ("random", 3, 1, {"scal": 2.0}, r"'random' has no option 'scal'; did you mean 'scale'\?"),
        ("cma", 3, 1, {"sigma": 1.0}, r"no option 'sigma'; did you mean 'sigma0'\?"),
        ("cma", 3, 1, {"seed": 1}, "no option 'seed'"),
        ("cma", 3, 1, {"sigma0": float("nan")}, "sigma0=nan must be finite"),
        ("cma", 3, 1, {"sigma0": "1"}, "sigma0='1' is not a number"),
        ("cma", 3, 1, {"step_rule": "csb"}, r"step_rule='csb': did you mean 'csa'\?"),
        ("cma", 3, 1, {"population": 2}, "population=2 must be at least 3"),
        ("cma", 3, 1, {"bounds": -1}, "bounds=-1 must be finite and above 0"),
        ("cma", 3, 1, {"diagonal": "yes"}, "diagonal='yes' is neither True nor False"),
        ("diagonal-cma", 3, 1, {"diagonal": True}, "no option 'diagonal'"),
        ("tbpsa", 3, 1, {"population": 10}, "a multiple of 4"),
        ("de", 3, 1, {"population": 3}, "population=3 must be at least 4"),
        ("nevergrad:CMA", 3, 1, {"workers": 0}, "workers=0 must be at least 1"),
        ("nevergrad:CMA", 3, 1, {"popsize": 4}, "no option 'popsize'"),
        ("nevergrad:OnePlusOn", 3, 1, {}, r"no optimizer 'OnePlusOn'.*mean '.*OnePlusOne"),
        ("nevergrad:", 3, 1, {}, "its registry lists them"),
        ("nevergrad:NGOpt", 3, 1, {}, "cannot run here"),  # it has to know the number of calls
        ("nevergrad:Cobyla", 3, 1, {}, "in a thread"),
        ("nevergrad:SPSA", 3, 1, {"workers": 2}, "does not support parallelization"),
        (3, 3, 1, {}, "optimizer=3 is neither a name nor a class or function"),
        (lambda dim, *, seed, calls: dim, 3, 1, {}, "gave a int, which has no ask and tell"),
    ],
)
def test_what_cannot_work_gets_one_sentence(
    name: Any, dim: Any, seed: Any, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        make_optimizer(name, dim, seed=seed, options=options)
    assert "\n" not in str(caught.value)


def test_a_factory_of_ones_own_serves_as_well_as_a_name() -> None:
    built = make_optimizer(RandomSearch, 3, seed=np.int64(1), options={"population": 7})
    assert built.ask().shape == (7, 3)


# --- nevergrad


def bare_nevergrad(algorithm: Any, dim: int, calls: int, population: int, seed: int) -> FloatArray:
    """Nevergrad's own ask and tell, a whole population at a time."""
    import nevergrad

    space = nevergrad.p.Array(init=np.zeros(dim))
    space.random_state = np.random.RandomState(seed)
    inner = algorithm(space, budget=calls, num_workers=1)
    asked = []
    for _ in range(calls // population):
        candidates = [inner.ask() for _ in range(population)]
        for candidate in candidates:
            inner.tell(candidate, float(sphere(candidate.value[None])[0]))
        asked += [candidate.value for candidate in candidates]
    return np.array(asked)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "registered", "population"),
    [
        ("one-plus-one", "OnePlusOne", 1),
        ("cauchy-one-plus-one", "CauchyOnePlusOne", 1),
        ("de", "TwoPointsDE", 30),
        ("pso", "PSO", 40),
        ("nevergrad:CMA", "CMA", 12),
        ("nevergrad:DiagonalCMA", "DiagonalCMA", 12),
    ],
)
def test_points_equal_nevergrads_own_asked_a_population_at_a_time(
    name: str, registered: str, population: int
) -> None:
    import nevergrad

    expected = bare_nevergrad(
        nevergrad.optimizers.registry[registered], 20, 5 * population * 4, population, seed=3
    )
    optimizer = make_optimizer(name, 20, seed=3, calls=5 * population * 4)
    assert optimizer.population == population
    np.testing.assert_array_equal(run(optimizer, len(expected)), expected)


def test_nevergrads_cma_applies_every_generation() -> None:
    optimizer = make_optimizer("nevergrad:CMA", 20, seed=1, calls=600)
    run(optimizer, 600)
    assert optimizer._inner.optim.es.countiter == 600 // 12


def test_a_population_that_grows_is_announced_before_each_ask() -> None:
    optimizer = make_optimizer("tbpsa", 5, seed=1, options={"population": 8})
    rng = np.random.default_rng(0)
    while optimizer.population == 8:
        points = optimizer.ask()
        assert len(points) == 8
        optimizer.tell(points, rng.standard_normal(8))  # noise makes it grow
    grown = optimizer.population
    assert len(optimizer.ask()) == grown > 8


def test_an_algorithm_that_draws_from_the_global_generators_is_lent_its_own() -> None:
    before = global_randomness()
    first = run(make_optimizer("nevergrad:QrDE", 5, seed=2, calls=90), 90)
    assert global_randomness() == before
    random.random()
    np.random.random()  # noqa: NPY002
    second = run(make_optimizer("nevergrad:QrDE", 5, seed=2, calls=90), 90)
    np.testing.assert_array_equal(first, second)


def test_borrowed_randomness_is_given_back_after_an_error_and_goes_on_where_it_was() -> None:
    borrowed = BorrowedRandomness(1)
    before = global_randomness()
    with pytest.raises(KeyError), borrowed():
        drawn = [random.random(), np.random.random()]  # noqa: NPY002
        raise KeyError
    assert global_randomness() == before
    with borrowed():
        drawn += [random.random(), np.random.random()]  # noqa: NPY002
    whole, stream = random.Random(1), np.random.RandomState(1)
    assert drawn == [whole.random(), stream.random(), whole.random(), stream.random()]


def failing(error: Exception) -> Callable[..., Any]:
    def algorithm(space: Any, *, budget: int | None, num_workers: int) -> Any:
        raise error

    return algorithm


@pytest.mark.parametrize(
    ("error", "numpy_version", "sentence"),
    [
        (TypeError("only 0-d arrays"), "2.3.1", r"fails with numpy 2.3.1 .*'numpy<2.3'"),
        (TypeError("only 0-d arrays"), "2.2.6", r"cannot run here \(TypeError: only 0-d"),
        (ModuleNotFoundError("No module named 'nlopt'"), "2.3.1", r"named 'nlopt'\): install it"),
    ],
)
def test_failures_inside_nevergrad_become_one_sentence(
    error: Exception, numpy_version: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "__version__", numpy_version)
    with pytest.raises(InputError, match=f"^nevergrad:NGOpt .*{sentence}"):
        Nevergrad(failing(error), 3, name="NGOpt", seed=1, calls=None)
