"""`Deadline`: the time by which the current call must end, as a context variable.

A client sets the deadline of its run before it calls a backend. A backend reads the remaining
seconds from `left`, without an argument.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Deadline:
    """A point in time that can be moved to an earlier one. Safe for concurrent threads.

    Args:
        seconds: Seconds from now. An enclosing deadline still applies if it is earlier.
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._outer = _current.get()

    def left(self) -> float:
        """Remaining seconds; 0 or less when it has passed."""
        own = self._at - time.monotonic()
        return own if self._outer is None else min(own, self._outer.left())

    def shorten(self, seconds: float) -> None:
        """Move the deadline to `seconds` from now, unless it is earlier."""
        self._at = min(self._at, time.monotonic() + seconds)

    @contextmanager
    def applied(self) -> Iterator[Deadline]:
        """Apply the deadline to this thread within ``with``."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def left() -> float:
    """Remaining seconds of the current call; infinity without a deadline."""
    deadline = _current.get()
    return math.inf if deadline is None else deadline.left()
