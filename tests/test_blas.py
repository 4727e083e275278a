"""One thread of BLAS while an optimizer or a head computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from lmaas_tune import Tuner
from lmaas_tune.heads.linear import BiasHead
from lmaas_tune.optimizers.random import RandomSearch
from lmaas_tune.testing.toy import ToyBackend

ROWS = [(f"a {label} thing {i}", label) for i in range(8) for label in ("good", "bad")]


def blas_threads() -> set[int]:
    """Of numpy; scipy has a library of its own."""
    return {pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with threadpool_limits(2, user_api="blas"):
        yield


def test_heads_and_optimizers_compute_with_one_thread() -> None:
    seen: dict[str, set[int]] = {}

    class Head(BiasHead):
        def fit(self, *given: Any) -> Any:
            seen["fit"] = blas_threads()
            return super().fit(*given)

    class Optimizer(RandomSearch):
        def ask(self) -> Any:
            seen["ask"] = blas_threads()
            return super().ask()

        def tell(self, *given: Any) -> Any:
            seen["tell"] = blas_threads()
            return super().tell(*given)

    Tuner(ToyBackend(), optimizer=Optimizer, head=Head(), budget="calls=80").fit(ROWS)
    assert seen == {"fit": {1}, "ask": {1}, "tell": {1}}
    assert blas_threads() == {2}
