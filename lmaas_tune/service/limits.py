"""What one key may use: so many requests and tokens a minute, so many requests at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from lmaas_tune.service.numbers import WholeNumbers
from lmaas_tune.service.refusal import RefusalError


@dataclass(frozen=True, kw_only=True)
class Limits(WholeNumbers):
    """What a key may use; None is no limit.

    Attributes:
        requests: Requests a minute, refused ones not counted.
        tokens: Tokens a minute. They are known when a request is answered and booked then, so
            a key can go past this by what its requests at work come to; it then waits longer.
        concurrent: Requests at once, from the first byte of the body to the end of the answer.

    Raises:
        InputError: A limit is no whole number from 1 up.
    """

    kind: ClassVar[str] = "limit"
    may_be_none: ClassVar[bool] = True

    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = 64


USUAL = Limits()
"""Those of a key where nothing else is said."""


class Allowance:
    """What is left of a key's limits. For one thread: that of the event loop.

    Args:
        limits: The key's.
        clock: Gives seconds that only rise.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._requests = _Bucket(limits.requests, clock)
        self._tokens = _Bucket(limits.tokens, clock)
        self._running = 0

    def enter(self) -> None:
        """Begin a request; `leave` ends it.

        Raises:
            RefusalError: It goes past a limit.
        """
        limits = self._limits
        if limits.concurrent is not None and self._running >= limits.concurrent:
            raise _past("requests at once", limits.concurrent, 1.0)
        if wait := self._requests.wait():
            raise _past("requests a minute", limits.requests, wait)
        if wait := self._tokens.wait():
            raise _past("tokens a minute", limits.tokens, wait)
        self._requests.take(1)
        self._running += 1

    def leave(self) -> None:
        """End a request."""
        self._running -= 1

    def book(self, tokens: int) -> None:
        """Book what an answer took."""
        self._tokens.take(tokens)


class _Bucket:
    """Full at the start, refilled evenly to the amount of one minute; may go into debt."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._rate = (per_minute or 0) / 60
        self._full, self._level = per_minute, float(per_minute or 0)
        self._clock, self._filled = clock, clock()

    def wait(self) -> float:
        """Seconds until one can be taken."""
        if self._full is None:
            return 0.0
        now = self._clock()
        self._level = min(self._full, self._level + (now - self._filled) * self._rate)
        self._filled = now
        return max(0.0, (1 - self._level) / self._rate)

    def take(self, amount: int) -> None:
        self._level -= amount


def _past(what: str, limit: int | None, wait: float) -> RefusalError:
    return RefusalError(
        "rate_limited",
        f"this key may use {limit} {what}: wait as long as Retry-After says, or ask for more",
        retry_after=wait,
    )
