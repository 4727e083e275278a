"""`one_thread`: small linear algebra without the threads of BLAS.

Its threads spin while they wait for each other. On matrices of some hundred rows they gain
nothing, and two searches on one machine take each other's cores
(`benchmarks/searches_side_by_side.py`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np  # noqa: F401  the controller finds the libraries that are loaded
from threadpoolctl import ThreadpoolController

_BLAS = ThreadpoolController()


def one_thread() -> AbstractContextManager[object]:
    """Let numpy's BLAS use one thread within the context."""
    limit: AbstractContextManager[object] = _BLAS.limit(limits=1, user_api="blas")
    return limit
