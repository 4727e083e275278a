"""Nevergrad's optimizers: a few for 100 to 500 dimensions, and any other by name.

Nevergrad silently drops generations if their points are told after the next ask. A generation here
is therefore the algorithm's own population, asked and told as a whole. Nevergrad's
``num_workers`` is a parameter of the algorithm (the (1+1)-ES with 20 workers is far worse), so it
does not depend on the concurrency of a backend.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

import numpy as np

from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.extras import need
from lmaas_tune.optimizers.base import OptimizerFactory
from lmaas_tune.optimizers.generation import check_no_pending_ask, losses_in_ask_order
from lmaas_tune.optimizers.isolation import BorrowedRandomness, quiet
from lmaas_tune.optimizers.settings import (
    check_calls,
    check_dim,
    check_population,
    check_positive,
    check_seed,
    check_workers,
)
from lmaas_tune.prompts import FloatArray

Algorithm: TypeAlias = Callable[..., Any]
"""A factory of nevergrad: takes (parametrization, budget=, num_workers=)."""


class Nevergrad:
    """An algorithm of nevergrad, generation by generation, with its own random stream.

    Args:
        algorithm: Nevergrad's class or configured family.
        name: Nevergrad's name of the algorithm, for messages.
        dim: Dimension of the search space.
        seed: Seed of all points.
        calls: Number of calls of the run, which some algorithms use.
        workers: Nevergrad's ``num_workers``.
        scale: Initial standard deviation of each coordinate.
        borrow_randomness: Whether the algorithm may draw from the global generators, whose state
            is restored afterwards.

    Raises:
        InputError: A setting is out of its range, or nevergrad cannot run this algorithm here.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        dim: int,
        *,
        name: str,
        seed: int,
        calls: int | None,
        workers: int = 1,
        scale: float = 1.0,
        borrow_randomness: bool = False,
    ) -> None:
        self._name, self._workers = name, check_workers(workers)
        self._globals = BorrowedRandomness(seed) if borrow_randomness else None
        space = _library().p.Array(init=np.zeros(check_dim(dim)))
        space.set_mutation(sigma=check_positive("scale", scale))
        space.random_state = np.random.RandomState(check_seed(seed))
        budget = check_calls(calls)

        def build() -> Any:
            inner = algorithm(space, budget=budget, num_workers=self._workers)
            _own_population(inner)  # resolves a choice among algorithms before the first paid call
            return inner

        self._inner = self._call(build)
        if _runs_a_thread(self._inner):
            raise InputError(
                f"nevergrad:{name} runs another library's loop in a thread that no seed can repeat "
                "and that keeps the program from ending: choose an optimizer that is asked and told"
            )
        self._candidates: list[Any] = []
        self._asked: FloatArray | None = None

    @property
    def population(self) -> int:
        """Population of the algorithm, which may change during a run."""
        return _own_population(self._inner) or self._workers

    def ask(self) -> FloatArray:
        """See `lmaas_tune.optimizers.base.Optimizer.ask`."""
        check_no_pending_ask(self._asked)
        count = range(self.population)
        self._candidates = self._call(lambda: [self._inner.ask() for _ in count])
        self._asked = np.array([candidate.value for candidate in self._candidates], dtype=float)
        return self._asked.copy()

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """See `lmaas_tune.optimizers.base.Optimizer.tell`; the order of the points is free."""
        ordered = losses_in_ask_order(self._asked, points, losses).tolist()
        pairs = list(zip(self._candidates, ordered, strict=True))
        self._call(lambda: [self._inner.tell(candidate, loss) for candidate, loss in pairs])
        self._candidates, self._asked = [], None

    def recommend(self) -> FloatArray:
        """(dim,) nevergrad's recommendation."""
        return np.array(self._call(lambda: self._inner.provide_recommendation().value), dtype=float)

    def _call(self, action: Callable[[], Any]) -> Any:
        with ExitStack() as stack:
            stack.enter_context(quiet())
            if self._globals is not None:
                stack.enter_context(self._globals())
            try:
                return action()
            except Exception as error:  # 500 algorithms may raise anything
                raise InputError(_sentence(self._name, error)) from error


def one_plus_one(dim: int, *, seed: int, calls: int | None = None, scale: float = 1.0) -> Nevergrad:
    """(1+1)-ES with Gaussian steps (nevergrad): one point at a time, strong in high dimensions."""
    algorithm = _library().optimizers.registry["OnePlusOne"]
    return Nevergrad(algorithm, dim, name="OnePlusOne", seed=seed, calls=calls, scale=scale)


def cauchy_one_plus_one(
    dim: int, *, seed: int, calls: int | None = None, scale: float = 1.0
) -> Nevergrad:
    """(1+1)-ES with Cauchy steps (nevergrad): one point at a time, some far away."""
    algorithm = _library().optimizers.registry["CauchyOnePlusOne"]
    return Nevergrad(algorithm, dim, name="CauchyOnePlusOne", seed=seed, calls=calls, scale=scale)


def differential_evolution(
    dim: int,
    *,
    seed: int,
    calls: int | None = None,
    population: int = 30,
    scale: float = 1.0,
) -> Nevergrad:
    """Differential evolution, two-point crossover (nevergrad): for long runs of many calls."""
    algorithm = _library().families.DifferentialEvolution(
        crossover="twopoints", popsize=check_population(population, at_least=4)
    )
    return Nevergrad(algorithm, dim, name="TwoPointsDE", seed=seed, calls=calls, scale=scale)


def particle_swarm(
    dim: int,
    *,
    seed: int,
    calls: int | None = None,
    population: int = 40,
    scale: float = 1.0,
) -> Nevergrad:
    """Particle swarm optimization (nevergrad): for long runs of many calls."""
    algorithm = _library().families.ConfPSO(
        transform="arctan", popsize=check_population(population, at_least=2)
    )
    return Nevergrad(algorithm, dim, name="PSO", seed=seed, calls=calls, scale=scale)


def tbpsa(
    dim: int,
    *,
    seed: int,
    calls: int | None = None,
    population: int = 20,
    scale: float = 1.0,
) -> Nevergrad:
    """Test-based population-size adaptation (nevergrad): for noisy losses; its population grows."""
    if check_population(population, at_least=4) % 4:
        raise InputError(f"population={population}: that of tbpsa is a multiple of 4")
    algorithm = _library().families.ParametrizedTBPSA(naive=False, initial_popsize=population // 4)
    return Nevergrad(algorithm, dim, name="TBPSA", seed=seed, calls=calls, scale=scale)


def by_name(name: str) -> OptimizerFactory:
    """A factory for the algorithm `name` of nevergrad's registry.

    Its options: ``workers`` (nevergrad's ``num_workers``: points asked before one is told, for
    algorithms without a population of their own) and ``scale``.

    Raises:
        InputError: Nevergrad has no algorithm of this name.
    """
    registry = _library().optimizers.registry
    if name not in registry:
        close = difflib.get_close_matches(name, registry, cutoff=0.5)
        hint = did_you_mean(name, registry) if close else "its registry lists them"
        raise InputError(f"nevergrad has no optimizer {name!r} among its {len(registry)}; {hint}")

    def build(
        dim: int, *, seed: int, calls: int | None = None, workers: int = 1, scale: float = 1.0
    ) -> Nevergrad:
        return Nevergrad(
            registry[name],
            dim,
            name=name,
            seed=seed,
            calls=calls,
            workers=workers,
            scale=scale,
            borrow_randomness=True,
        )

    return build


def _library() -> Any:
    """Nevergrad, imported on first use: its import takes seconds and draws random numbers."""
    need("this optimizer", "nevergrad", extra="nevergrad")
    with quiet(), BorrowedRandomness(0)():
        import nevergrad
    return nevergrad


def _own_population(inner: Any) -> int | None:
    """Population size of the algorithm; None if it has none."""
    while hasattr(inner, "optim"):  # a choice among algorithms: the chosen one decides
        inner = inner.optim
    for attribute in ("_popsize", "llambda"):  # CMA; differential evolution, swarms
        size = getattr(inner, attribute, None)
        if isinstance(size, int):
            return size
    adapted = getattr(getattr(inner, "popsize", None), "llambda", None)  # TBPSA
    return None if adapted is None else int(adapted)


def _runs_a_thread(inner: Any) -> bool:
    """Whether the algorithm, or a part of it, is a loop in a thread (nevergrad: "recast")."""
    parts = [getattr(inner, "optim", None), getattr(inner, "_optim", None)]
    parts += [*(getattr(inner, "optims", None) or ()), *(getattr(inner, "optimizers", None) or ())]
    return bool(inner.recast) or any(_runs_a_thread(part) for part in parts if part is not None)


def _sentence(name: str, error: Exception) -> str:
    """The error message for a failure of nevergrad."""
    cause = f"{type(error).__name__}: {error}".split("\n")[0]
    if isinstance(error, ImportError):
        return (
            f"nevergrad:{name} needs a package that is not installed ({error}): "
            "install it or choose another optimizer"
        )
    numpy_version = tuple(int(part) for part in np.__version__.split(".")[:2])
    if isinstance(error, TypeError) and numpy_version >= (2, 3):
        return (
            f"nevergrad:{name} fails with numpy {np.__version__} ({cause}): NGOpt and its kin in "
            "nevergrad 1.0.12 need numpy below 2.3; pip install 'numpy<2.3' or choose another"
        )
    return f"nevergrad:{name} cannot run here ({cause}): choose another optimizer"
