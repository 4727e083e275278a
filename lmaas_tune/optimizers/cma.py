"""CMA-ES by pycma: generation-exact, silent, on a random stream of its own.

pycma's defaults serve an interactive run that ends when it has converged. A run here has paid
for a budget, so nothing ends it early: pycma's stopping rules are never asked (its rule for flat
losses alone would end an accuracy-like objective at generation 6 of 400).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.optimizers.generation import losses_in_ask_order
from lmaas_tune.optimizers.sealed import quiet
from lmaas_tune.optimizers.settings import (
    check_calls,
    check_dim,
    check_population,
    check_positive,
    check_seed,
)
from lmaas_tune.prompts import FloatArray

StepRule: TypeAlias = Literal["csa", "tpa"]
"""How the step size adapts, see `CMA`."""

STEP_RULES: Mapping[str, str] = {"csa": "CMAAdaptSigmaCSA", "tpa": "CMAAdaptSigmaTPA"}

_NUMERICAL = (ArithmeticError, AssertionError, RuntimeError, ValueError)
"""What pycma raises when its distribution has run out of float64: a told generation is checked
before it gets there, so that nothing else is left to raise."""


class CMA:
    """CMA-ES (pycma): learns where to look, how far, and along which directions.

    The points equal those of a bare ``cma.CMAEvolutionStrategy(dim * [0], sigma0, {"seed": seed,
    ...})`` loop bit for bit; only seed 0, which is the clock to pycma, is a seed here. Starts at
    zero. Where the distribution has run out of float64 (it shrank to a point, or grew past all
    numbers), the search starts again around its last mean and `restarts` counts it.

    Args:
        dim: Dimensions of the search space; two or more with ``step_rule="tpa"``.
        seed: Decides every point.
        calls: Not used.
        population: Points a generation; pycma's 4 + 3 ln(dim) where None.
        sigma0: Standard deviation of each coordinate at the start.
        step_rule: How the step size adapts. ``csa`` (cumulative path length): pycma's only
            default until 4.4. ``tpa`` (two points along the last step): pycma's default from
            4.5 on for 300 dimensions or more; there it goes much faster. The results of 2022
            were most likely CSA's.
        bounds: b: every coordinate stays in [-b, b], by pycma's own transformation.
        diagonal: Learn one scale a coordinate and no correlation: linear in `dim`.

    Attributes:
        population: Points a generation.
        restarts: How often the search had to start again.

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
        if step_rule == "tpa" and self._dim == 1:
            raise InputError("step_rule='tpa' needs two dimensions or more; take 'csa' for dim=1")
        if not isinstance(diagonal, bool):
            raise InputError(f"diagonal={diagonal!r} is neither True nor False")
        self._sigma0 = check_positive("sigma0", sigma0)
        self._options: dict[str, object] = {
            "seed": np.nan,  # pycma then leaves numpy's global generator alone
            "randn": np.random.RandomState(check_seed(seed)).randn,
            "CMA_diagonal": diagonal,
            "verbose": -10,  # no output, no files, no file of signals looked for
        }
        if population is not None:
            self._options["popsize"] = check_population(population, at_least=3)
        if bounds is not None:
            b = check_positive("bounds", bounds)
            self._options["bounds"] = [-b, b]
        self._step_rule = STEP_RULES[step_rule]
        self._mean: FloatArray = np.zeros(self._dim)
        self._es = self._start()
        self.population = int(self._es.popsize)
        self.restarts = 0
        self._asked: list[FloatArray] = []  # pycma's own arrays, which it wants back

    def ask(self) -> FloatArray:
        """See `lmaas_tune.optimizers.base.Optimizer.ask`."""
        with quiet():
            self._asked = self._sample()
        return np.array(self._asked)

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """See `lmaas_tune.optimizers.base.Optimizer.tell`; the order of the points is free."""
        asked = np.array(self._asked) if self._asked else None
        ordered = losses_in_ask_order(asked, points, losses)
        with quiet():
            try:
                self._es.tell(self._asked, ordered.tolist())
                mean = np.array(self._es.result.xfavorite)
                exhausted = not np.isfinite(mean).all()
            except _NUMERICAL:
                exhausted = True
            if exhausted:
                self._restart()
            else:
                self._mean = mean
        self._asked = []

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
            import cma  # here, as it takes half a second and not every run needs it

            rule = getattr(cma.sigma_adaptation, self._step_rule)
            return cma.CMAEvolutionStrategy(
                self._mean, self._sigma0, {**self._options, "AdaptSigma": rule}
            )


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
