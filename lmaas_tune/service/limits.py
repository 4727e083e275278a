"""What one key may use: requests and tokens a minute, requests and bytes at once."""

from __future__ import annotations

import time
from collections import Counter
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
        tokens: Tokens a minute. What a request may take at most is reserved before the model is
            asked, and what it took is booked when it is answered.
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

    def reserve(self, tokens: int) -> None:
        """Take what a request may need before it is asked; `settle` gives back what is left.

        A request of more tokens than a minute has is let through when none of them is used.

        Raises:
            RefusalError: As much is not left now.
        """
        if wait := self._tokens.wait(tokens):
            raise _past("tokens a minute", self._limits.tokens, wait)
        self._tokens.take(tokens)

    def settle(self, *, reserved: int, used: int) -> None:
        """Book what an answer took in place of what was reserved for it."""
        self._tokens.take(used - reserved)


class Room:
    """Bytes of the bodies of requests that are not answered yet. For the event loop's thread.

    A key may fill as much as stays free for the others: alone half, and whoever comes then finds
    room still.

    Args:
        size: Of all keys together.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._filled: Counter[str] = Counter()

    def take(self, key: str, amount: int) -> None:
        """Fill so many bytes more; `leave` empties them.

        Raises:
            RefusalError: That would be more than stays free.
        """
        if self._filled[key] + amount > self._size - self._filled.total():
            raise RefusalError(
                "overloaded",
                f"bodies of {self._filled[key]} bytes wait for this key already (queue_bytes): "
                "send it again later, or fewer at once",
                retry_after=1.0,
            )
        self._filled[key] += amount

    def leave(self, key: str, amount: int) -> None:
        """Empty so many bytes."""
        self._filled[key] -= amount


class _Bucket:
    """Full at the start, refilled evenly to the amount of one minute; may go into debt."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._rate = (per_minute or 0) / 60
        self._full, self._level = per_minute, float(per_minute or 0)
        self._clock, self._filled = clock, clock()

    def wait(self, amount: int = 1) -> float:
        """Seconds until so much can be taken, or all that a full one has."""
        if self._full is None:
            return 0.0
        now = self._clock()
        self._level = min(self._full, self._level + (now - self._filled) * self._rate)
        self._filled = now
        return max(0.0, (min(amount, self._full) - self._level) / self._rate)

    def take(self, amount: int) -> None:
        self._level -= amount


def _past(what: str, limit: int | None, wait: float) -> RefusalError:
    return RefusalError(
        "rate_limited",
        f"this key may use {limit} {what}: wait as long as Retry-After says, or ask for more",
        retry_after=wait,
    )
