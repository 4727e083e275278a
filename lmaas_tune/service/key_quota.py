"""Quotas of one API key: requests and tokens a minute, concurrent requests and their bytes."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from lmaas_tune.service.errors import ApiError
from lmaas_tune.service.server_limits import Count, WholeNumbers

if TYPE_CHECKING:
    from collections.abc import Callable


class KeyQuota(WholeNumbers):
    """The quota of a key; None is no limit. ``--limits`` and the file of keys set it by name.

    Attributes:
        requests: Requests a minute; refused ones are not counted.
        tokens: Tokens a minute. The most that a request may take is reserved before the model is
            called; its actual tokens are charged when it is answered.
        concurrent: Requests at once, from the first byte of the body to the end of the answer.
    """

    kind: ClassVar[str] = "limit"

    requests: Count | None = None
    tokens: Count | None = None
    concurrent: Count | None = 64


DEFAULT_QUOTA = KeyQuota()


class QuotaMeter:
    """Counts the use of one key against its quota. For the event loop's thread.

    Args:
        quota: The key's.
        clock: Monotonic seconds.
    """

    def __init__(self, quota: KeyQuota, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota = quota
        self._requests = _TokenBucket(quota.requests, clock)
        self._tokens = _TokenBucket(quota.tokens, clock)
        self._running = 0

    def enter(self) -> None:
        """Begin a request; `leave` ends it.

        Raises:
            ApiError: It exceeds the quota.
        """
        quota = self._quota
        if quota.concurrent is not None and self._running >= quota.concurrent:
            raise _exceeded("requests at once", quota.concurrent, 1.0)
        if wait := self._requests.wait():
            raise _exceeded("requests a minute", quota.requests, wait)
        if wait := self._tokens.wait():
            raise _exceeded("tokens a minute", quota.tokens, wait)
        self._requests.take(1)
        self._running += 1

    def leave(self) -> None:
        """End a request."""
        self._running -= 1

    def reserve(self, tokens: int) -> None:
        """Charge the most that a request may take; `settle` corrects it afterwards.

        A request of more tokens than the quota of a minute passes when that quota is unused.

        Raises:
            ApiError: Too few tokens are left now.
        """
        if wait := self._tokens.wait(tokens):
            raise _exceeded("tokens a minute", self._quota.tokens, wait)
        self._tokens.take(tokens)

    def settle(self, *, reserved: int, used: int) -> None:
        """Charge the tokens that an answer took in place of those reserved for it."""
        self._tokens.take(used - reserved)


class BodyBuffer:
    """Counts the bytes of the bodies of unanswered requests. For the event loop's thread.

    A key may fill at most as much as stays free for the others: alone half, so that the next key
    still finds room.

    Args:
        size: Bytes of all keys together.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._filled: Counter[str] = Counter()

    def take(self, key: str, amount: int) -> None:
        """Add bytes; `leave` removes them.

        Raises:
            ApiError: They are more than would stay free.
        """
        if self._filled[key] + amount > self._size - self._filled.total():
            raise ApiError(
                "overloaded",
                f"bodies of {self._filled[key]} bytes wait for this key already (queue_bytes): "
                "send it again later, or fewer at once",
                retry_after=1.0,
            )
        self._filled[key] += amount

    def leave(self, key: str, amount: int) -> None:
        """Remove bytes."""
        self._filled[key] -= amount


class _TokenBucket:
    """Starts full and refills evenly to the amount of one minute; its level may be negative."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._rate = (per_minute or 0) / 60
        self._full, self._level = per_minute, float(per_minute or 0)
        self._clock, self._filled = clock, clock()

    def wait(self, amount: int = 1) -> float:
        """Seconds until this amount can be taken; a full bucket always suffices."""
        if self._full is None:
            return 0.0
        now = self._clock()
        self._level = min(self._full, self._level + (now - self._filled) * self._rate)
        self._filled = now
        return max(0.0, (min(amount, self._full) - self._level) / self._rate)

    def take(self, amount: int) -> None:
        self._level -= amount


def _exceeded(unit: str, limit: int | None, wait: float) -> ApiError:
    return ApiError(
        "rate_limited",
        f"this key may use {limit} {unit}: wait for the seconds of Retry-After, or ask for more",
        retry_after=wait,
    )
