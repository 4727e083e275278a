"""`Optimizer`: the ask-and-tell interface of a minimiser, with its optional extensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from lmaas_tune.objectives import Targets
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


class ScoreLoss(Protocol):
    """The loss of scores, as an optimizer may know it.

    It is the cross-entropy of log-odds, which are linear in the scores as long as the heads stay
    the same.
    """

    def linearised(
        self, scores: FloatArray, /
    ) -> tuple[Callable[[FloatArray], FloatArray], Targets]:
        """The log-odds of other scores by the heads that are fitted to these.

        Each row's head is fitted to other rows.

        Args:
            scores: (rows, words).

        Returns:
            A function from (rows, words) scores to (rows, labels) log-odds, and the (rows,)
            right columns.
        """
        ...


@runtime_checkable
class UsesScores(Protocol):
    """An optimizer that is told the scores beside the losses, by `tell_scores` instead of `tell`.

    It works without them too: a search may not give them.
    """

    def begin(self, loss: ScoreLoss, /) -> None:
        """Take the loss of scores, before the first `ask`."""
        ...

    def tell_scores(self, points: FloatArray, losses: FloatArray, scores: FloatArray, /) -> None:
        """Take what `tell` takes, and the (population, rows, words) scores of the points.

        The scores of points that failed are not all finite.
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
