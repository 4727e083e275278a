"""`CMA`: CMA-ES by pycma, generation by generation, silent, with its own random stream.

pycma's defaults are for interactive runs that end on convergence. Here the budget ends a run, so
pycma's stopping rules are not used. Its rule for flat losses alone would end a run with an
accuracy-like objective at generation 6 of 400.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.optimizers.generation import check_no_pending_ask, losses_in_ask_order
from lmaas_tune.optimizers.isolation import quiet
from lmaas_tune.optimizers.settings import (
    check_calls,
    check_dim,
    check_population,
    check_positive,
    check_seed,
)
from lmaas_tune.prompts import FloatArray

StepRule: TypeAlias = Literal["csa", "tpa"]
"""Rule of step-size adaptation, see `CMA`."""

STEP_RULES: tuple[StepRule, ...] = get_args(StepRule)

_NUMERICAL = (ArithmeticError, AssertionError, RuntimeError, ValueError)
"""Exceptions of pycma when its distribution leaves the range of float64. Generations are checked
before, so that there is no other cause."""


class CMA:
    """CMA-ES (pycma): adapts mean, step size and covariance of its search distribution.

    The points equal those of a plain ``cma.CMAEvolutionStrategy(dim * [0], sigma0, {"seed": seed,
    ...})`` loop bit for bit, except that seed 0 is a seed here and the clock in pycma. It starts
    at zero. If the distribution leaves the range of float64 (it collapsed or diverged), the search
    restarts at its last mean.

    Args:
        dim: Dimension of the search space.
        seed: Seed of all points.
        calls: Not used.
        population: Points a generation; None for pycma's 4 + 3 ln(dim).
        sigma0: Initial standard deviation of each coordinate.
        step_rule: Rule of step-size adaptation. ``csa`` (cumulative step-size adaptation):
            pycma's default until 4.4. ``tpa`` (two-point adaptation): pycma's default from 4.5
            for 300 dimensions or more, where it adapts much faster. The results of 2022 most
            likely used CSA.
        bounds: b: every coordinate stays in [-b, b], by pycma's transformation.
        diagonal: Learn a diagonal covariance, with cost linear in `dim`.

    Attributes:
        population: Points a generation.
        restarts: Number of restarts.

    Raises:
        InputError: A setting is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        seed: int,
        calls: int | None = None,
        population: int | None = None,
        sigma0: float = 1.0,
        step_rule: StepRule = "csa",
        bounds: float | None = None,
        diagonal: bool = False,
    ) -> None:
        self._dim = check_dim(dim)
        check_calls(calls)
        if step_rule not in STEP_RULES:
            raise InputError(f"step_rule={step_rule!r}: {did_you_mean(str(step_rule), STEP_RULES)}")
        if not isinstance(diagonal, bool):
            raise InputError(f"diagonal={diagonal!r} is neither True nor False")
        self._sigma0 = check_positive("sigma0", sigma0)
        stream = np.random.RandomState(check_seed(seed))
        self._options: dict[str, object] = {
            "seed": np.nan,  # pycma then does not seed numpy's global generator
            "randn": stream.randn,
            "AdaptSigma": _step_rule(step_rule, stream),
            "CMA_diagonal": diagonal,
            "verbose": -9,  # no output, no files
        }
        if population is not None:
            self._options["popsize"] = check_population(population, at_least=3)
        if bounds is not None:
            b = check_positive("bounds", bounds)
            self._options["bounds"] = [-b, b]
        self._mean: FloatArray = np.zeros(self._dim)
        self._es = self._start()
        self.population = int(self._es.popsize)
        self.restarts = 0
        self._points: list[FloatArray] = []  # pycma's own array objects, which its tell needs
        self._asked: FloatArray | None = None

    def ask(self) -> FloatArray:
        """See `lmaas_tune.optimizers.base.Optimizer.ask`."""
        check_no_pending_ask(self._asked)
        with quiet():
            self._points = self._sample()
        self._asked = np.array(self._points)
        return self._asked.copy()

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """See `lmaas_tune.optimizers.base.Optimizer.tell`; the order of the points is free."""
        ordered = losses_in_ask_order(self._asked, points, losses)
        with quiet():
            try:
                self._es.tell(self._points, ordered.tolist())
                mean = np.array(self._es.result.xfavorite)
            except _NUMERICAL:
                mean = np.array([np.nan])
            if np.isfinite(mean).all():
                self._mean = mean
            else:
                self._restart()
        self._points, self._asked = [], None

    def recommend(self) -> FloatArray:
        """(dim,) mean of the distribution."""
        return self._mean.copy()

    def _sample(self) -> list[FloatArray]:
        if self._es.countiter == 0:
            return list(self._es.ask())
        try:
            points = list(self._es.ask())
        except _NUMERICAL:
            points = []
        if points and np.isfinite(points).all():
            return points
        self._restart()
        return list(self._es.ask())

    def _restart(self) -> None:
        self._es = self._start()
        self.restarts += 1

    def _start(self) -> Any:
        with quiet():
            return _library().CMAEvolutionStrategy(self._mean, self._sigma0, self._options)


def _step_rule(name: StepRule, stream: np.random.RandomState) -> type:
    """pycma's class for the rule; it draws from `stream` only."""
    rules = _library().sigma_adaptation
    if name == "csa":
        rule: type = rules.CMAAdaptSigmaCSA
        return rule

    class TwoPoint(rules.CMAAdaptSigmaTPA):  # type: ignore[misc, name-defined]
        """pycma's TPA, without its draws from the global generator."""

        def check_consistency(self, es: Any) -> None:
            """Make the same draws as pycma, so that the points are equal; the check only warns."""
            if es.countiter > 3:
                stream.randint(0, es.N)
                stream.randint(0, es.N, 1)

    return TwoPoint


def _library() -> Any:
    """pycma, imported on first use: it takes half a second, and warns."""
    with quiet():
        import cma
    return cma


def diagonal_cma(
    dim: int,
    *,
    seed: int,
    calls: int | None = None,
    population: int | None = None,
    sigma0: float = 1.0,
    step_rule: StepRule = "csa",
    bounds: float | None = None,
) -> CMA:
    """CMA-ES with a diagonal covariance (pycma): linear in the dimensions; options as for cma."""
    return CMA(
        dim,
        seed=seed,
        calls=calls,
        population=population,
        sigma0=sigma0,
        step_rule=step_rule,
        bounds=bounds,
        diagonal=True,
    )
