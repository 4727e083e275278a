"""What an optimizer must do: a minimiser that asks for points and is told their losses."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lmaas_tune.prompts import FloatArray


class Optimizer(Protocol):
    """A minimiser over R^dim. The same seed and the same tells give the same asks.

    It never touches a global random generator, and never changes an array it is given.

    Attributes:
        population: Number of points that the next `ask` gives: one generation, which is told
            as a whole before the next `ask`.
    """

    @property
    def population(self) -> int: ...

    def ask(self) -> FloatArray:
        """(population, dim) float64 points to evaluate."""
        ...

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """Take the (population, dim) points of the last `ask` and their (population,) losses.

        Losses are finite: what failed was given a penalty before it came here.
        """
        ...


@runtime_checkable
class Recommends(Protocol):
    """An optimizer that has a view of where the optimum lies beyond the points it asked."""

    def recommend(self) -> FloatArray:
        """(dim,) the point it would bet on, for example the mean of CMA-ES."""
        ...


@runtime_checkable
class Ends(Protocol):
    """An optimizer that comes to an end of its own, before the budget may.

    Attributes:
        ended: Why, in a sentence that begins with its cause ("rounds: ..."); None before the end.
    """

    @property
    def ended(self) -> str | None: ...


class OptimizerFactory(Protocol):
    """How an optimizer is built: a class with this constructor, or a function.

    Further keyword arguments are its options; they have defaults.
    """

    def __call__(self, dim: int, *, seed: int, calls: int | None) -> Optimizer:
        """Build one for R^dim that will be asked for about `calls` points (None: unknown)."""
        ...
