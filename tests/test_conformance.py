"""The public suites: green on what is ours, red on every planted fault."""

from __future__ import annotations
import pytest
from lmaas_tune.optimizers import make_optimizer
from lmaas_tune.testing import BackendConformance, OptimizerConformance, ToyBackend


class TestToyBackend(BackendConformance):
    @pytest.fixture
    def backend(self):
        return ToyBackend()

    @pytest.fixture
    def differing(self):
        return [
            ToyBackend(seed=1),
            ToyBackend(width=8),
            ToyBackend(rank=2),
            ToyBackend(max_tokens=99),
        ]


class Ours(OptimizerConformance):
    pass


@pytest.mark.parametrize("name", ["cma"])
class TestX(OptimizerConformance):
    @pytest.fixture
    def make(self, name):
        return lambda seed: make_optimizer(name, 10, seed=seed, calls=1000)
