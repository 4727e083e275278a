"""`GaussNewton`: minimises the loss on a model of all scores.

A call returns a score for each row and word, and an optimizer of losses is told one number of it.
This one is told the scores. A Gaussian process models how the log-odds of each row change with the
point, and Gauss-Newton steps minimise the known loss on its mean. (The model of what is inside a
known function: Astudillo and Frazier, "Bayesian optimization of composite functions", ICML 2019.
The process: Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006,
chapters 2 and 5. Its kernel, the damping and the exploring points are ours.)
"""

from __future__ import annotations

import numpy as np

from lmaas_tune.heads.logistic import minimise
from lmaas_tune.objectives import Targets, cross_entropy
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

_FARTHEST = 1e9
"""The largest step and radius, whose squares are far from infinity."""

_LONGEST = 16.0
"""Length of the exploring steps, at most, in radii, while they change nothing."""

_SHARE = 0.5
"""Length of the exploring steps, as a share of the way to the minimiser."""

_LENGTHS = 1.0, 2.0, 4.0, 8.0, 16.0
"""Lengths at which the model may bend, in radii."""

_NOISES = 1e-5, 1e-4, 1e-3, 1e-2
"""Variances of the noise that the model may assume, as shares of the points' mean variance."""

_ITERATIONS = 4
"""Gauss-Newton steps on the model, at most."""

_MOST = 500
"""Points that the model is fitted to, at most: those nearest to the best one."""


class GaussNewton:
    """Tries the minimisers of the loss on a model of the scores, and points around them.

    The first generation measures around zero. Each later one asks the minimisers of the loss on
    the model for two dampings, and random points around the first of these, where the next
    model has to be right.

    Without scores (`tell`), it is a random search around the best point, with steps that grow
    after a better one and shrink otherwise.

    Args:
        dim: Dimension of the search space.
        seed: Seed of all points.
        calls: Not used.
        population: Points a generation.
        step: Length of the first exploring steps, and the least length of the others.
        radius: The unit of lengths, in units of sqrt(dim); without scores, the length of the first
            steps.
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
        population: int = 5,
        step: float = 1.0,
        radius: float = 1.0,
        damping: float = 0.02,
    ) -> None:
        self._dim = check_dim(dim)
        self._rng = np.random.default_rng(check_seed(seed))
        self.population = check_population(population, at_least=len(_FACTORS) + 1)
        self._step = check_positive("step", step, at_most=_FARTHEST)
        self._radius = check_positive("radius", radius, at_most=_FARTHEST) * dim**0.5
        self._damping = check_positive("damping", damping)
        self._loss: ScoreLoss | None = None
        self._asked: FloatArray | None = None
        self._dampings: FloatArray = np.empty(0)  # of the first points of the generation
        self._told: list[tuple[FloatArray, FloatArray]] = []  # points, with (rows, words) scores
        self._best, self._lowest = np.zeros(dim), np.inf
        self._length = self._radius  # of the exploring steps without scores

    def begin(self, loss: ScoreLoss) -> None:
        """See `lmaas_tune.optimizers.base.UsesScores.begin`."""
        self._loss = loss

    def ask(self) -> FloatArray:
        """See `lmaas_tune.optimizers.base.Optimizer.ask`."""
        check_no_pending_ask(self._asked)
        minimisers = self._minimisers()
        center = minimisers[0] if len(minimisers) else self._best
        steps = self._rng.normal(size=(self.population - len(minimisers), self._dim))
        length = self._length
        if self._loss is not None:
            length = max(self._step, _SHARE * float(np.linalg.norm(center - self._best)))
        steps *= length / np.linalg.norm(steps, axis=1, keepdims=True)
        if not np.isfinite(self._lowest):  # nothing is known of zero, where the steps begin
            steps[0] = 0.0
        self._asked = np.concatenate([minimisers, center + steps])
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
        self.tell(points, losses)
        whole = np.isfinite(scores).all(axis=(1, 2))
        if whole.sum() > 1 and not np.ptp(scores[whole], axis=0).any():
            # the steps change nothing, as where points stand for words
            self._step = min(2 * self._step, max(self._step, _LONGEST * self._radius))
        self._told += [
            (p.copy(), s.copy()) for p, s in zip(points[whole], scores[whole], strict=True)
        ]
        self._told.sort(key=lambda told: float(np.linalg.norm(told[0] - self._best)))
        del self._told[_MOST:]

    def _minimisers(self) -> FloatArray:
        """The minimisers of the loss on the model, one for each damping; none without scores."""
        self._dampings = np.empty(0)
        others = [(point, scores) for point, scores in self._told if (point != self._best).any()]
        if self._loss is None or not others or len(others) == len(self._told):
            return np.empty((0, self._dim))
        odds, targets = self._loss.linearised(self._told[0][1])  # the best point is the nearest
        start = odds(self._told[0][1])
        model = _Model(
            np.array([point for point, _ in others]) - self._best,
            np.array([odds(scores) for _, scores in others]) - start,
            unit=self._radius,
        )
        self._dampings = self._damping * _FACTORS
        penalties = self._dampings / self._radius**2
        found: FloatArray = self._best + np.array(
            [model.minimiser(start, targets, penalty) for penalty in penalties]
        )
        return found


class _Model:
    """A Gaussian process of changes that are zero at the point zero.

    Its kernel is the squared exponential given the value at zero. The length at which it bends and
    the noise are those, of a few, under which the changes are likeliest.

    Args:
        points: (points, dim), without zero.
        changes: (points, rows, labels) there.
        unit: Of the lengths.
    """

    def __init__(self, points: FloatArray, changes: FloatArray, *, unit: float) -> None:
        self._points, self._squares = points, (points**2).sum(axis=1)
        self._shape = changes.shape[1:]
        values = changes.reshape(len(points), -1)
        between = self._squares[:, None] + self._squares - 2 * points @ points.T
        likeliest = -np.inf
        for length in unit * np.array(_LENGTHS):
            near = _nearness(self._squares, length)
            kernel = 1 + _nearness(between, length) - near[:, None] - near
            variances, vectors = np.linalg.eigh(kernel)
            rotated = vectors.T @ values
            whole = max(kernel.trace(), np.finfo(float).eps)
            for noise in np.array(_NOISES) * whole / len(points):
                noisy = np.maximum(variances, 0) + noise
                fit = (rotated**2 / noisy[:, None]).sum() or 1e-300
                likelihood = -np.log(noisy).sum() - len(points) * np.log(fit)  # for the best scale
                if likelihood > likeliest:
                    likeliest, self._length = likelihood, length
                    self._weights = vectors @ (rotated / noisy[:, None])

    def minimiser(self, start: FloatArray, targets: Targets, penalty: float) -> FloatArray:
        """The point with about the least loss, plus penalty/2 times its squared length.

        Args:
            start: (rows, labels) log-odds at zero, to which the changes are added.
            targets: (rows,) the right columns.
            penalty: Positive.
        """
        zero: FloatArray = np.zeros(self._points.shape[1])
        point, now = zero, cross_entropy(start, targets)
        for _ in range(_ITERATIONS):
            slopes = self._slopes(point)
            offset = start + self._changes(point) - np.tensordot(slopes, point, (1, 0))
            step = minimise(offset, slopes, targets, zero, np.full(len(zero), penalty)) - point
            for share in (1.0, 0.5, 0.25, 0.125):  # the full step overshoots where the model bends
                tried = point + share * step
                odds = start + self._changes(tried)
                loss = cross_entropy(odds, targets) + penalty / 2 * float(tried @ tried)
                if loss < now:
                    break
            else:
                break
            point, now = tried, loss
        return point

    def _changes(self, point: FloatArray) -> FloatArray:
        """(rows, labels) expected at a point."""
        near = _nearness(((self._points - point) ** 2).sum(axis=1), self._length)
        at_zero = _nearness(point @ point, self._length)
        kernel = 1 + near - _nearness(self._squares, self._length) - at_zero
        changes: FloatArray = (kernel @ self._weights).reshape(self._shape)
        return changes

    def _slopes(self, point: FloatArray) -> FloatArray:
        """(rows, dim, labels) of the expected changes at a point."""
        steps = self._points - point
        near = _nearness((steps**2).sum(axis=1), self._length)
        at_zero = _nearness(point @ point, self._length)
        kernel = (near[:, None] * steps + at_zero * point) / self._length**2
        slopes: FloatArray = (kernel.T @ self._weights).reshape(len(point), *self._shape)
        return slopes.transpose(1, 0, 2)


def _nearness(squares: FloatArray, length: float) -> FloatArray:
    near: FloatArray = np.exp(squares / (-2 * length**2))
    return near
