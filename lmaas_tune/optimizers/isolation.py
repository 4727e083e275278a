"""Isolates libraries that change global state: warning filters and random generators.

Such a library runs within these contexts, one thread at a time; the state is restored afterwards.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_lock = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings within the context, including numpy's floating-point warnings."""
    with _lock, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


class BorrowedRandomness:
    """Replaces the state of the global random generators of numpy and Python within a context.

    Args:
        seed: Seed for the first use; later uses continue the stream.
    """

    def __init__(self, seed: int) -> None:
        self._numpy = np.random.RandomState(seed).get_state()
        self._python = random.Random(seed).getstate()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within the context, the global generators have the state of this run."""
        with _lock:
            self._swap()
            try:
                yield
            finally:
                self._swap()

    def _swap(self) -> None:
        numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
        np.random.set_state(self._numpy)  # noqa: NPY002
        random.setstate(self._python)
        self._numpy, self._python = numpy_state, python_state
