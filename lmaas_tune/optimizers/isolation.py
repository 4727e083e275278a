"""Run a library so that the rest of the process sees nothing of it.

Warning filters and the global random generators belong to the whole process. A library that
reaches for them does so here, one thread at a time, and everything is put back afterwards.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_turn = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings raised inside are dropped, numpy's floating-point ones too."""
    with _turn, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


class BorrowedRandomness:
    """The global random generators of numpy and Python, seen inside as one run's own.

    Args:
        seed: What they are seeded with before the first use; later uses go on from there.
    """

    def __init__(self, seed: int) -> None:
        self._numpy = np.random.RandomState(seed).get_state()
        self._python = random.Random(seed).getstate()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, the global generators are this run's; outside, nobody sees a draw."""
        with _turn:
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
