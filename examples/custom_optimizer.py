"""Three optimizers at one budget: two by name, and one that this file defines.

It runs in a second on the toy model of the package. Replace `ToyBackend()` by another backend, and
the rest of the program stays the same.
"""

import numpy as np

from lmaas_tune import Optimizer, Settings, Soft, Tuner
from lmaas_tune.prompts import FloatArray
from lmaas_tune.testing.toy import ToyBackend

TRAIN = [
    (f"a {weather} and {mood} day {day}", label)
    for day, (weather, mood, label) in enumerate(
        [("sunny", "good", "good"), ("rainy", "bad", "bad")] * 8
    )
]


class HillClimber:
    """Samples around the best point so far; the step grows on success and shrinks on failure."""

    def __init__(self, dim: int, *, seed: int, calls: int | None) -> None:
        self.population = 10
        self._rng = np.random.default_rng(seed)
        self._best, self._best_loss, self._step = np.zeros(dim), np.inf, 1.0

    def ask(self) -> FloatArray:
        noise = self._rng.standard_normal((self.population, self._best.size))
        return np.asarray(self._best + self._step * noise)

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        winner = int(losses.argmin())
        success = losses[winner] < self._best_loss
        self._step *= 1.5 if success else 0.7
        if success:
            self._best, self._best_loss = points[winner].copy(), float(losses[winner])


def build(dim: int, *, seed: int, calls: int | None) -> Optimizer:
    """The tuner calls this function; a class with this constructor works too."""
    return HillClimber(dim, seed=seed, calls=calls)


settings = Settings(prompt=Soft(intrinsic_dim=8))
for optimizer in ("cma", "nevergrad:PSO", build):
    tuner = Tuner(ToyBackend(), optimizer, settings=settings, budget="calls=201", callbacks=[])
    result = tuner.fit(TRAIN)
    name = optimizer if isinstance(optimizer, str) else "the hill climber"
    start, best = result.steps[0].best.evaluation, result.best.evaluation
    if start is not None and best is not None:
        print(f"{name}: loss {start.loss:.3f} -> {best.loss:.3f} in {result.spent.calls} calls")
