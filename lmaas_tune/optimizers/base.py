"""`Optimizer`: the ask-and-tell interface of a minimiser, with its optional extensions."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lmaas_tune.prompts import FloatArray


class Optimizer(Protocol):
    """A minimiser over R^dim, deterministic given its seed and the losses.

    It never uses a global random generator, and never changes an array passed to it.

    Attributes:
        population: Number of points that the next `ask` returns: one generation, whose losses
            are all told before the next `ask`.
    """

    @property
    def population(self) -> int: ...

    def ask(self) -> FloatArray:
        """(population, dim) float64 points to evaluate."""
        ...

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """Take the (population, dim) points of the last `ask` and their (population,) losses.

        Losses are finite: failed points have a penalty.
        """
        ...


@runtime_checkable
class Recommends(Protocol):
    """An optimizer that estimates the optimum beyond the points it asked."""

    def recommend(self) -> FloatArray:
        """(dim,) the estimated optimum, for example the mean of CMA-ES."""
        ...


@runtime_checkable
class Ends(Protocol):
    """An optimizer that can end a run before the budget does.

    Attributes:
        ended: The reason, as a sentence that begins with its cause ("rounds: ..."); None while
            it has not ended.
    """

    @property
    def ended(self) -> str | None: ...


class OptimizerFactory(Protocol):
    """A class or function that builds an optimizer.

    Further keyword arguments are options with defaults.
    """

    def __call__(self, dim: int, *, seed: int, calls: int | None) -> Optimizer:
        """Build an optimizer for R^dim and about `calls` points (None: unknown)."""
        ...
