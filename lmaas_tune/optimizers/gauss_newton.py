"""`GaussNewton`: minimises the loss of a linear model of all scores.

A call returns a score for each row and word, and an optimizer of losses is told one number of it.
This one is told the scores. From differences of scores it estimates the slopes of the log-odds at
the best point, and minimises the known loss on the linear model (derivative-free Gauss-Newton;
Cartis and Roberts, "A derivative-free Gauss-Newton method", Math. Prog. Comp. 11, 2019, and in
subspaces, "Scalable subspace methods for derivative-free nonlinear least-squares optimization",
Math. Prog. 199, 2023; the weights, the ridge and the damping are ours).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmaas_tune.heads.logistic import minimise
from lmaas_tune.optimizers.base import ScoreLoss
from lmaas_tune.optimizers.generation import check_no_pending_ask, losses_in_ask_order
from lmaas_tune.optimizers.settings import check_dim, check_population, check_positive, check_seed
from lmaas_tune.prompts import FloatArray

_FACTORS = np.array([1.0, 0.25])
"""Dampings that are tried at once, as multiples of the best one so far."""

_DAMPINGS = 1e-6, 1e6
"""The least and the largest damping: without bounds, a long search reaches infinity."""

_LONGER, _SHORTER = 1.5, 0.7
"""Factors of the exploring steps in a search without scores."""

_NEAR = 0.01
"""Squared distance, in squared radii, below which all differences count the same."""

_RIDGE = 1e-4
"""Of the regression for the slopes, as a share of the largest weight."""

_MOST = 500
"""Differences that are kept, or four a dimension if these are more."""


@dataclass(frozen=True, eq=False)
class _Difference:
    """How the scores change along a step.

    Attributes:
        direction: (dim,) of length 1.
        middle: (dim,) point in the middle of the step.
        slopes: (rows, words) change of the scores a unit of length.
    """

    direction: FloatArray
    middle: FloatArray
    slopes: FloatArray


class GaussNewton:
    """Tries the minimisers of a linear model of the scores, and measures its slopes beside them.

    The first generation measures around zero. Each later one asks the minimisers of the model for
    two dampings, and short steps along further coordinates from the best point. A difference
    counts less for the model the farther it is from the best point, because slopes change.

    Without scores (`tell`), it is a coordinate search: steps from the best point, which grow
    after a better one and shrink otherwise.

    Args:
        dim: Dimension of the search space.
        seed: Seed of all points.
        calls: Not used.
        population: Points a generation.
        step: Length of the steps that measure slopes. Longer ones suffer less from rounded scores.
        radius: Distance at which a difference counts little, in units of sqrt(dim); without
            scores, the length of the first steps in these units.
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
        population: int = 7,
        step: float = 0.3,
        radius: float = 1.0,
        damping: float = 0.15,
    ) -> None:
        self._dim = check_dim(dim)
        self._rng = np.random.default_rng(check_seed(seed))
        self.population = check_population(population, at_least=len(_FACTORS) + 1)
        self._step = check_positive("step", step)
        self._radius = check_positive("radius", radius) * dim**0.5
        self._damping = check_positive("damping", damping)
        self._loss: ScoreLoss | None = None
        self._asked: FloatArray | None = None
        self._dampings: FloatArray = np.empty(0)  # of the first points of the generation
        self._differences: list[_Difference] = []
        self._best, self._lowest = np.zeros(dim), np.inf
        self._scores: FloatArray | None = None  # of the best point
        self._coordinates: list[int] = []  # left to explore in this round
        self._length = self._radius  # of the exploring steps without scores

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
        if np.isfinite(self._lowest):
            self._length *= _LONGER if ordered.min() < self._lowest else _SHORTER
        if len(self._dampings):
            found = ordered[: len(self._dampings)]
            better = found.min() < self._lowest
            damping = self._dampings[found.argmin()] if better else 4 * self._damping
            self._damping = float(np.clip(damping, *_DAMPINGS))
        if ordered.min() < self._lowest:
            self._best, self._lowest = asked[ordered.argmin()], float(ordered.min())

    def tell_scores(self, points: FloatArray, losses: FloatArray, scores: FloatArray, /) -> None:
        """See `lmaas_tune.optimizers.base.UsesScores.tell_scores`."""
        base, whole = self._best, np.isfinite(scores).all(axis=(1, 2))
        at_base = np.flatnonzero((points == base).all(axis=1) & whole)
        if self._scores is None and len(at_base):
            self._scores = scores[at_base[0]].copy()
        if self._scores is not None:
            new = [
                _Difference(step / length, base + step / 2, (each - self._scores) / length)
                for step, each in zip(points[whole] - base, scores[whole], strict=True)
                if (length := float(np.linalg.norm(step)))
            ]
            self._differences += new
            if new and not any(each.slopes.any() for each in new):
                self._step *= 2  # the steps change nothing, as where points stand for words
        self.tell(points, losses)
        at_best = np.flatnonzero((points == self._best).all(axis=1) & whole)
        if len(at_best):
            self._scores = scores[at_best[0]].copy()
        nearest = np.argsort(self._distances(), kind="stable")[: max(_MOST, 4 * self._dim)]
        self._differences = [self._differences[i] for i in sorted(nearest)]

    def _distances(self) -> FloatArray:
        """(differences,) distances from the best point, in radii."""
        middles = [difference.middle for difference in self._differences]
        steps = np.array(middles).reshape(-1, self._dim) - self._best
        distances: FloatArray = np.linalg.norm(steps, axis=1) / self._radius
        return distances

    def _minimisers(self) -> FloatArray:
        """The minimisers of the linear model, one for each damping; none without scores."""
        if self._loss is None or self._scores is None or not self._differences:
            self._dampings = np.empty(0)
            return np.empty((0, self._dim))
        odds, targets = self._loss.linearised(self._scores)
        design = self._slopes(
            # the log-odds are affine in the scores, so that differences lose their constant
            np.array([odds(each.slopes) for each in self._differences])
            - odds(np.zeros_like(self._scores))
        )
        self._dampings = self._damping * _FACTORS
        penalties = self._dampings[:, None] / self._radius**2 * np.ones(self._dim)
        zeros = np.zeros(self._dim)
        found = [minimise(odds(self._scores), design, targets, zeros, each) for each in penalties]
        points: FloatArray = self._best + np.array(found)
        return points

    def _slopes(self, changes: FloatArray) -> FloatArray:
        """(rows, dim, labels) slopes of the log-odds at the best point, by weighted regression.

        Args:
            changes: (differences, rows, labels) of the log-odds along each difference.
        """
        directions = np.array([difference.direction for difference in self._differences])
        weights = 1 / (_NEAR + self._distances() ** 2)
        weighted = directions.T * weights
        gram = weighted @ directions + _RIDGE * weights.max() * np.eye(self._dim)
        right = np.tensordot(weighted, changes, (1, 0))
        slopes = np.linalg.solve(gram, right.reshape(self._dim, -1)).reshape(right.shape)
        design: FloatArray = slopes.transpose(1, 0, 2)
        return design

    def _exploring(self, count: int) -> FloatArray:
        """(count, dim) steps along coordinates, each of which takes its turn, in random order."""
        while len(self._coordinates) < count:
            self._coordinates += self._rng.permutation(self._dim).tolist()
        chosen, self._coordinates = self._coordinates[:count], self._coordinates[count:]
        steps = np.zeros((count, self._dim))
        length = self._length if self._scores is None and self._loss is None else self._step
        steps[np.arange(count), chosen] = length * self._rng.choice([-1.0, 1.0], count)
        return steps
