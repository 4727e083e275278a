"""One thread of BLAS while an optimizer or a head computes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from threadpoolctl import OpenBLASController, threadpool_info, threadpool_limits

from lmaas_tune import Tuner
from lmaas_tune.blas import one_thread
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


@pytest.mark.parametrize("leaving", [(0, 1), (1, 0)])
def test_the_last_of_two_threads_restores_what_the_first_one_found(leaving: Any) -> None:
    OpenBLASController.clear_controlling_thread()  # of the fixture, which is this thread
    limits = ExitStack(), ExitStack()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        threads = one, other
        for thread, limit in zip(threads, limits, strict=True):
            thread.submit(lambda limit=limit: limit.enter_context(one_thread())).result()
        for index in leaving:
            assert blas_threads() == {1}
            threads[index].submit(limits[index].close).result()
        assert blas_threads() == {2}
