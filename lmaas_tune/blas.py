"""`one_thread`: small linear algebra without the threads of BLAS.

Its threads spin while they wait for each other. On matrices of some hundred rows they gain
nothing, and two searches on one machine take each other's cores
(`benchmarks/searches_side_by_side.py`).
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import numpy as np  # noqa: F401  the controller finds the libraries that are loaded
from threadpoolctl import OpenBLASController, ThreadpoolController

_BLAS = ThreadpoolController().select(user_api="blas")
_WITH_OPENMP = any(getattr(lib, "threading_layer", "") == "openmp" for lib in _BLAS.lib_controllers)


class _SharedLimit(AbstractContextManager[None]):
    """A limit for all threads of Python: the first one in sets it, the last one out lifts it.

    With a limit each, the last one out would restore the limit of the first one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._limit = _BLAS.limit(limits=1)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._limit.restore_original_limits()
            # threadpoolctl lets only the thread that set a limit change it, until this call
            OpenBLASController.clear_controlling_thread()


_SHARED = _SharedLimit()


def one_thread() -> AbstractContextManager[object]:
    """Let numpy's BLAS use one thread within the context."""
    # with OpenMP each thread of Python has a limit of its own
    limit: AbstractContextManager[object] = _BLAS.limit(limits=1) if _WITH_OPENMP else _SHARED
    return limit
