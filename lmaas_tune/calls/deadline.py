"""When the call under way must end: set by who makes it, kept by who waits for its answer.

A client sets the end of its run before it asks a backend. A backend that waits for others can ask
`left` how long it may, and needs no argument for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Deadline:
    """A moment that can be brought forward while others wait for it. Safe among threads.

    Args:
        seconds: From now. It never lies after the deadline that applies here already.
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._outer = _current.get()

    def left(self) -> float:
        """Seconds from now; 0 or less when it has passed."""
        own = self._at - time.monotonic()
        return own if self._outer is None else min(own, self._outer.left())

    def shorten(self, seconds: float) -> None:
        """Let it pass so many seconds from now, unless it passes before."""
        self._at = min(self._at, time.monotonic() + seconds)

    @contextmanager
    def applied(self) -> Iterator[Deadline]:
        """Let it apply to what this thread does within ``with``."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def left() -> float:
    """Seconds that the call under way may still take; infinity where nothing ends it."""
    deadline = _current.get()
    return math.inf if deadline is None else deadline.left()
