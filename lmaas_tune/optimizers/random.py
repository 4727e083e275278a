"""Random search, the baseline for all optimizers."""

from __future__ import annotations

import numpy as np

from lmaas_tune.optimizers.generation import check_no_pending_ask, losses_in_ask_order
from lmaas_tune.optimizers.settings import check_dim, check_population, check_positive, check_seed
from lmaas_tune.prompts import FloatArray


class RandomSearch:
    """Independent normal points around zero: the baseline, which does not learn.

    Args:
        dim: Dimension of the search space.
        seed: Seed of all points.
        calls: Not used.
        population: Points a generation.
        scale: Standard deviation of each coordinate.

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
        scale: float = 1.0,
    ) -> None:
        self._dim = check_dim(dim)
        self._rng = np.random.default_rng(check_seed(seed))
        self.population = check_population(population, at_least=1)
        self._scale = check_positive("scale", scale)
        self._asked: FloatArray | None = None

    def ask(self) -> FloatArray:
        """See `lmaas_tune.optimizers.base.Optimizer.ask`."""
        check_no_pending_ask(self._asked)
        self._asked = self._scale * self._rng.standard_normal((self.population, self._dim))
        return self._asked.copy()

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """Check the generation; the losses are not used."""
        losses_in_ask_order(self._asked, points, losses)
        self._asked = None
