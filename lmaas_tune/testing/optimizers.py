"""`OptimizerConformance`: requirements on every optimizer, as tests to inherit."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from lmaas_tune.objectives import Targets, cross_entropy, log_softmax
from lmaas_tune.optimizers.base import Optimizer, Recommends, UsesScores
from lmaas_tune.prompts import FloatArray
from lmaas_tune.testing.suite import Conformance, check, require

Make: TypeAlias = Callable[[int], Optimizer]
Loss: TypeAlias = Callable[[FloatArray], FloatArray]

_SURVIVED_CALLS = 400


class OptimizerConformance(Conformance):
    """Subclass it, and give a fixture that builds your optimizer, with 2 to 50 dimensions.

        class TestMine(OptimizerConformance):
            @pytest.fixture
            def make(self):
                return lambda seed: Mine(dim=10, seed=seed, calls=1000)

    A check that cannot pass is declared: ``deviations = {"test_...": "the reason"}``.
    """

    @pytest.fixture
    def make(self) -> Make:
        """Builds the optimizer from a seed, always for the same number of dimensions."""
        raise NotImplementedError("give the suite a fixture make(seed) -> Optimizer")

    def switches(self, subject: Make) -> dict[str, str | None]:
        """The optional protocols."""
        optimizer = subject(0)
        return {
            "Recommends": None if isinstance(optimizer, Recommends) else "it has no `recommend`",
            "UsesScores": None if isinstance(optimizer, UsesScores) else "it has no `tell_scores`",
        }

    def test_tally(self, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
        """Print which checks run."""
        self.report(make, capsys)

    @check()
    def test_a_generation_has_the_announced_shape(self, make: Make) -> None:
        """(population, dim) float64, with `population` as read before `ask`."""
        optimizer, dims = make(0), set()
        for _ in _generations(optimizer):
            population = optimizer.population
            points = optimizer.ask()
            require(
                isinstance(points, np.ndarray) and points.dtype == np.float64,
                f"ask gives a {type(points).__name__} of {getattr(points, 'dtype', 'no dtype')}, "
                "not a float64 array",
            )
            require(
                points.ndim == 2 and len(points) == population,
                f"ask gives the shape {points.shape} where population is {population}",
            )
            dims.add(points.shape[1])
            optimizer.tell(points, _sphere(points))
        require(len(dims) == 1, f"the number of dimensions changes within a run: {dims}")

    @check()
    def test_all_points_are_finite(self, make: Make) -> None:
        """No NaN, no infinity."""
        run = _run(make(0), _sphere)
        require(all(np.isfinite(points).all() for points in run), "ask gives NaN or infinity")

    @check()
    def test_same_seed_same_run(self, make: Make) -> None:
        """Seed 0 too, also if other code draws from the global generators meanwhile."""
        for seed in (0, 3):
            first = _run(make(seed), _sphere)
            random.random()
            np.random.random()  # noqa: NPY002
            require(_equal(first, _run(make(seed), _sphere)), f"two runs of seed {seed} differ")

    @check()
    def test_another_seed_another_run(self, make: Make) -> None:
        """Seeds 1 and 2 give different points."""
        require(
            not _equal(_run(make(1), _sphere), _run(make(2), _sphere)),
            "seeds 1 and 2 give the same points",
        )

    @check()
    def test_runs_side_by_side_do_not_disturb_each_other(self, make: Make) -> None:
        """Two runs whose generations alternate equal the same runs alone."""
        pair = make(1), make(2)
        together: tuple[list[FloatArray], list[FloatArray]] = ([], [])
        for _ in _generations(pair[0]):
            for optimizer, run in zip(pair, together, strict=True):
                run += _run(optimizer, _sphere, generations=1)
        for seed, run in zip((1, 2), together, strict=True):
            require(_equal(run, _run(make(seed), _sphere)), "another run changes the points of ask")

    @check()
    def test_replay_equals_run(self, make: Make) -> None:
        """A replay with recorded losses gives the same points, and continues the same way."""
        optimizer = make(4)
        points, losses = [], []
        for _ in _generations(optimizer):
            points.append(optimizer.ask())
            losses.append(_sphere(points[-1]))
            optimizer.tell(points[-1], losses[-1])
        replayed = make(4)
        for recorded, loss in zip(points, losses, strict=True):
            require(np.array_equal(replayed.ask(), recorded), "a replay gives other points")
            replayed.tell(recorded, loss)
        require(
            np.array_equal(replayed.ask(), optimizer.ask()),
            "a replayed run continues with other points",
        )

    @check()
    def test_global_random_state_is_untouched(self, make: Make) -> None:
        """Neither numpy's nor Python's global generator is used, from construction to the end."""
        before = _global_random_state()
        _run(make(0), _sphere)
        require(_global_random_state() == before, "a global random generator was seeded or drawn")

    @check()
    def test_told_arrays_are_untouched(self, make: Make) -> None:
        """`tell` neither sorts nor writes into the caller's arrays."""
        optimizer = make(0)
        for _ in _generations(optimizer):
            points = optimizer.ask()
            losses = _sphere(points)
            before = points.copy(), losses.copy()
            optimizer.tell(points, losses)
            require(np.array_equal(points, before[0]), "tell changes the array of points")
            require(np.array_equal(losses, before[1]), "tell changes the array of losses")

    @check()
    def test_arrays_belong_to_the_caller(self, make: Make) -> None:
        """Writing into the arrays after `tell` has no effect on the run."""
        optimizer, run = make(0), []
        for _ in _generations(optimizer):
            points = optimizer.ask()
            losses = _sphere(points)
            run.append(points.copy())
            optimizer.tell(points, losses)
            points.fill(1e3)
            losses.fill(1e3)
        require(_equal(run, _run(make(0), _sphere)), "the run keeps the caller's arrays")

    @check()
    def test_flat_losses_are_survived(self, make: Make) -> None:
        """The same loss in every call, as an accuracy may give: the budget can still be spent."""
        self._survives(make, lambda points: np.zeros(len(points)), "equal losses")

    @check()
    def test_losses_with_ties_are_survived(self, make: Make) -> None:
        """Few distinct values, as an accuracy has."""
        self._survives(make, lambda points: np.round(_sphere(points) / 20), "losses in steps")

    @check()
    def test_huge_losses_are_survived(self, make: Make) -> None:
        """Up to the end of float64, of both signs, and penalties among small losses."""

        def penalised(points: FloatArray) -> FloatArray:
            losses = _sphere(points)
            losses[::2] = 1e300
            return losses

        self._survives(make, lambda points: 1e307 * np.tanh(_sphere(points)), "losses up to 1e307")
        self._survives(make, lambda points: -1e307 / (1 + _sphere(points)), "losses down to -1e307")
        self._survives(make, penalised, "penalties of 1e300")

    @check()
    def test_it_beats_random_search_on_a_sphere(self, make: Make) -> None:
        """The median best of three runs against that of random search with ten times the calls."""
        dim = make(0).ask().shape[1]
        calls = min(max(100 * dim, 500), 2000)
        centre = np.random.default_rng(0).standard_normal(dim)

        def loss(points: FloatArray) -> FloatArray:
            losses: FloatArray = ((points - centre) ** 2).sum(axis=1)
            return losses

        ours, randoms = [], []
        for seed in range(3):
            ours.append(_best(make(seed), loss, calls))
            rng = np.random.default_rng(seed)
            randoms.append(loss(rng.standard_normal((10 * calls, dim))).min())
        require(
            np.median(ours) < np.median(randoms),
            f"after {calls} calls in {dim} dimensions its loss is {np.median(ours):.3g}; random "
            f"search reaches {np.median(randoms):.3g} with ten times the calls",
        )

    @check(needs="Recommends")
    def test_a_recommendation_is_a_point(self, make: Make) -> None:
        """(dim,) and finite, after every generation."""
        optimizer = make(0)
        for _ in _generations(optimizer):
            points = optimizer.ask()
            optimizer.tell(points, _sphere(points))
            recommended = optimizer.recommend()  # type: ignore[attr-defined]
            require(
                np.shape(recommended) == points.shape[1:] and np.isfinite(recommended).all(),
                f"recommend gives {recommended!r}, not a finite point of {points.shape[1:]}",
            )

    @check(needs="Recommends")
    def test_recommending_does_not_change_the_run(self, make: Make) -> None:
        """A run with calls of `recommend` equals one without."""
        optimizer, run = make(0), []
        for _ in _generations(optimizer):
            points = optimizer.ask()
            run.append(points.copy())
            optimizer.tell(points, _sphere(points))
            optimizer.recommend().fill(1e3)  # type: ignore[attr-defined]
        require(_equal(run, _run(make(0), _sphere)), "recommend changes the points of ask")

    @check(needs="UsesScores")
    def test_scores_lead_further_than_losses(self, make: Make) -> None:
        """On scores that are linear in the point; random search has ten times the calls."""
        dim = make(0).ask().shape[1]
        ours, randoms = [], []
        for seed in range(3):
            planted = _Planted(dim, seed)
            ours.append(min(planted.losses(points).min() for points in _scored_run(make, planted)))
            rng = np.random.default_rng(seed)
            randoms.append(planted.losses(rng.standard_normal((2000, dim))).min())
        require(
            np.median(ours) < np.median(randoms),
            f"its loss is {np.median(ours):.3g}; random search reaches {np.median(randoms):.3g}",
        )

    @check(needs="UsesScores")
    def test_a_replay_with_scores_equals_the_run(self, make: Make) -> None:
        """The same points, and arrays that the caller may write into afterwards."""
        planted = _Planted(make(0).ask().shape[1], 0)
        run = _scored_run(make, planted)
        require(_equal(run, _scored_run(make, planted, spoil=True)), "a replay asks other points")

    @check(needs="UsesScores")
    def test_points_without_scores_are_survived(self, make: Make) -> None:
        """Some points of a generation, or all of them, have no finite scores."""
        planted = _Planted(make(0).ask().shape[1], 0)
        for every in (1, 2):
            run = _scored_run(make, planted, missing=every)
            require(all(np.isfinite(points).all() for points in run), "ask gives NaN or infinity")

    def _survives(self, make: Make, loss: Loss, losses: str) -> None:
        optimizer = make(0)
        calls = 0
        while calls < _SURVIVED_CALLS:
            points = optimizer.ask()
            require(
                np.isfinite(points).all(), f"{losses}: after {calls} calls points are not finite"
            )
            optimizer.tell(points, loss(points))
            calls += len(points)


class _Planted:
    """Scores of 20 rows that are linear in the point, up to normalisation; see `ScoreLoss`."""

    def __init__(self, dim: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.targets = rng.integers(0, 2, 20)
        self._offset = rng.standard_normal((20, 2))
        self._slopes = rng.standard_normal((dim, 20, 2)) / dim**0.5

    def linearised(
        self, scores: FloatArray, /
    ) -> tuple[Callable[[FloatArray], FloatArray], Targets]:
        """The scores are the log-odds."""
        return lambda other: np.asarray(other, dtype=np.float64), self.targets

    def scores(self, points: FloatArray) -> FloatArray:
        """(population, rows, labels)."""
        return log_softmax(self._offset + np.tensordot(points, self._slopes, (1, 0)))

    def losses(self, points: FloatArray) -> FloatArray:
        """(population,) cross-entropies."""
        return np.array([cross_entropy(each, self.targets) for each in self.scores(points)])


def _scored_run(
    make: Make, planted: _Planted, *, spoil: bool = False, missing: int = 0
) -> list[FloatArray]:
    """The points of a run of 200 calls that is told scores.

    Args:
        make: Builds the optimizer.
        planted: Gives the scores.
        spoil: Write into all arrays after they are told.
        missing: Every n-th point has no scores; 0 for none.
    """
    optimizer: Any = make(0)
    optimizer.begin(planted)
    run: list[FloatArray] = []
    while sum(map(len, run)) < 200:
        points = optimizer.ask()
        run.append(points.copy())
        losses, scores = planted.losses(points), planted.scores(points)
        if missing:
            losses[::missing], scores[::missing] = losses.max() + 1.0, np.nan
        optimizer.tell_scores(points, losses, scores)
        for array in (points, losses, scores) if spoil else ():
            array.fill(1e3)
    return run


def _sphere(points: FloatArray) -> FloatArray:
    losses: FloatArray = ((points - 0.5) ** 2).sum(axis=1)
    return losses


def _generations(optimizer: Optimizer) -> range:
    """Eight generations, and a hundred points or more."""
    return range(max(8, math.ceil(100 / optimizer.population)))


def _run(optimizer: Optimizer, loss: Loss, *, generations: int | None = None) -> list[FloatArray]:
    run = []
    for _ in _generations(optimizer) if generations is None else range(generations):
        points = optimizer.ask()
        run.append(points.copy())
        optimizer.tell(points, loss(points))
    return run


def _best(optimizer: Optimizer, loss: Loss, calls: int) -> float:
    best, used = np.inf, 0
    while used + optimizer.population <= calls:
        points = optimizer.ask()
        losses = loss(points)
        best, used = min(best, float(losses.min())), used + len(points)
        optimizer.tell(points, losses)
    return float(best)


def _equal(one: list[FloatArray], other: list[FloatArray]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in pairs)


def _global_random_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return name, np.asarray(keys).tobytes(), *rest, random.getstate()
