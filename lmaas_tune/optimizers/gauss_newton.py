"""`GaussNewton`: minimises the loss of an interpolated linear model of all scores.

A call returns a score for each row and word, and an optimizer of losses is told one number of it.
This one is told the scores. It interpolates a linear model of the log-odds around the best point,
from all points so far, and minimises the known loss on the model (derivative-free Gauss-Newton;
Cartis and Roberts, "A derivative-free Gauss-Newton method", Math. Prog. Comp. 11, 2019, and in
subspaces, "Scalable subspace methods for derivative-free nonlinear least-squares optimization",
Math. Prog. 199, 2023; the ridge interpolation and the damping are ours).
"""

from __future__ import annotations

import numpy as np

from lmaas_tune.heads.logistic import minimise
from lmaas_tune.optimizers.base import ScoreLoss
from lmaas_tune.optimizers.generation import check_no_pending_ask, losses_in_ask_order
from lmaas_tune.optimizers.settings import check_dim, check_population, check_positive, check_seed
from lmaas_tune.prompts import FloatArray

_FACTORS = 4.0 ** np.arange(-2, 3)
"""Dampings that are tried at once, as multiples of the best one so far."""

_LONGER, _SHORTER = 1.5, 0.7
"""Factors of the exploring steps in a search without scores."""

_NOISE = 0.03
"""Share of the error of the linear model at the radius; it grows with the distance squared."""


class GaussNewton:
    """Tries the minimisers of a linear model of the scores, and new directions beside them.

    The first generation explores around zero. Each later one asks the minimisers of the model for
    five dampings, and steps along further coordinates from the best point. A point's weight in
    the model falls with its distance from the best one, because the model is exact only nearby.

    Without scores (`tell`), it is a coordinate search: steps from the best point, which grow
    after a better one and shrink otherwise.

    Args:
        dim: Dimension of the search space.
        seed: Seed of all points.
        calls: Not used.
        population: Points a generation.
        radius: Length of the exploring steps, in units of sqrt(dim).
        damping: Weight of the squared distance from the best point in the first generation, in
            units of 1 / (radius² dim).

    Raises:
        InputError: A setting is out of its range.
    """

    def __init__(
        self,
        dim: int,
        *,
        seed: int,
        calls: int | None = None,
        population: int = 20,
        radius: float = 0.75,
        damping: float = 0.1,
    ) -> None:
        self._dim = check_dim(dim)
        self._rng = np.random.default_rng(check_seed(seed))
        self.population = check_population(population, at_least=len(_FACTORS) + 1)
        self._radius = check_positive("radius", radius) * dim**0.5
        self._damping = check_positive("damping", damping)
        self._loss: ScoreLoss | None = None
        self._asked: FloatArray | None = None
        self._dampings: FloatArray = np.empty(0)  # of the first points of the generation
        self._points = np.empty((0, dim))  # that were told with scores
        self._scores: list[FloatArray] = []
        self._best, self._lowest = np.zeros(dim), np.inf
        self._coordinates: list[int] = []  # left to explore in this round
        self._length = self._radius  # of the exploring steps

    def begin(self, loss: ScoreLoss) -> None:
        """See `lmaas_tune.optimizers.base.UsesScores.begin`."""
        self._loss = loss

    def ask(self) -> FloatArray:
        """See `lmaas_tune.optimizers.base.Optimizer.ask`."""
        check_no_pending_ask(self._asked)
        minimisers = self._minimisers()
        steps = self._exploring(self.population - len(minimisers))
        if not np.isfinite(self._lowest):  # nothing is known of zero, where the steps begin
            steps[0] = 0.0
        self._asked = np.concatenate([minimisers, self._best + steps])
        return self._asked.copy()

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """See `lmaas_tune.optimizers.base.Optimizer.tell`; the order of the points is free."""
        ordered = losses_in_ask_order(self._asked, points, losses)
        asked, self._asked = self._asked, None
        if asked is None:  # losses_in_ask_order has refused it
            return
        if not self._scores and np.isfinite(self._lowest):
            self._length *= _LONGER if ordered.min() < self._lowest else _SHORTER
        if len(self._dampings):
            found = ordered[: len(self._dampings)]
            better = found.min() < self._lowest
            self._damping = self._dampings[found.argmin()] if better else 4 * self._damping
        if ordered.min() < self._lowest:
            self._best, self._lowest = asked[ordered.argmin()], float(ordered.min())

    def tell_scores(self, points: FloatArray, losses: FloatArray, scores: FloatArray, /) -> None:
        """See `lmaas_tune.optimizers.base.UsesScores.tell_scores`."""
        whole = np.isfinite(scores).all(axis=(1, 2))
        self._points = np.concatenate([self._points, points[whole]])
        self._scores += [each.copy() for each in scores[whole]]
        self.tell(points, losses)

    def _minimisers(self) -> FloatArray:
        """The minimisers of the linear model, one for each damping; none without scores."""
        (at_best,) = np.nonzero((self._points == self._best).all(axis=1))
        if self._loss is None or not len(at_best) or len(self._points) < 2:
            self._dampings = np.empty(0)
            return np.empty((0, self._dim))
        best = self._scores[at_best[0]]
        odds, targets = self._loss.linearised(best)
        centre = odds(best)
        steps = self._points - self._best
        changes = np.array([odds(each) for each in self._scores]) - centre
        # the span of all steps so far, in which the model knows anything
        basis, sizes, _ = np.linalg.svd(steps.T, full_matrices=False)
        basis = basis[:, sizes > 1e-9 * sizes[0]]
        design = self._slopes(steps @ basis, changes)
        self._dampings = self._damping * _FACTORS
        zeros = np.zeros(basis.shape[1])
        found = [
            minimise(centre, design, targets, zeros, np.full_like(zeros, damping / self._radius**2))
            for damping in self._dampings
        ]
        points: FloatArray = self._best + np.array(found) @ basis.T
        return points

    def _slopes(self, steps: FloatArray, changes: FloatArray) -> FloatArray:
        """(rows, steps' dimensions, labels) slopes of the log-odds, by weighted ridge regression.

        Args:
            steps: (points, dimensions) from the best point.
            changes: (points, rows, labels) of the log-odds.
        """
        distance = (steps**2).sum(axis=1) / self._radius**2
        weights = 1 / (_NOISE + distance**2)
        gram = steps.T @ (weights[:, None] * steps)
        ridge = 1e-3 * np.trace(gram) / len(gram)
        right = np.tensordot((weights[:, None] * steps).T, changes, (1, 0))
        flat = right.reshape(len(gram), -1)
        slopes = np.linalg.solve(gram + ridge * np.eye(len(gram)), flat).reshape(right.shape)
        design: FloatArray = slopes.transpose(1, 0, 2)
        return design

    def _exploring(self, count: int) -> FloatArray:
        """(count, dim) steps along coordinates, each of which takes its turn, in random order."""
        while len(self._coordinates) < count:
            self._coordinates += self._rng.permutation(self._dim).tolist()
        chosen, self._coordinates = self._coordinates[:count], self._coordinates[count:]
        steps = np.zeros((count, self._dim))
        steps[np.arange(count), chosen] = self._length * self._rng.choice([-1.0, 1.0], count)
        return steps
