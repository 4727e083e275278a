"""Hill climbing: steps around the best point, shorter when none of them was better."""

from __future__ import annotations

import numpy as np

from lmaas_tune.prompts import FloatArray


class HillClimbing:
    """Steps around the best point so far.

    Args:
        dim: Dimensions of the space.
        seed: The same seed and losses give the same points.
        calls: What the budget allows, or None; not looked at.
        population: Points a generation.
    """

    def __init__(
        self, dim: int, *, seed: int, calls: int | None = None, population: int = 8
    ) -> None:
        self.population = population
        self._rng = np.random.default_rng(seed)
        self._best, self._loss, self._step = np.zeros(dim), np.inf, 1.0

    def ask(self) -> FloatArray:
        """(population, dim) points."""
        noise = self._rng.standard_normal((self.population, len(self._best)))
        return np.asarray(self._best + self._step * noise)

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """Take the losses of the points asked."""
        first = int(np.argmin(losses))
        if losses[first] < self._loss:
            self._best, self._loss = points[first].copy(), float(losses[first])
            self._step *= 1.1
        else:
            self._step *= 0.8
