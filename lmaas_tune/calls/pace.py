"""Limits of concurrent calls and of rates a minute: the policy, and the wrapper that applies it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from lmaas_tune.calls.call import Call, Caller, Reply, Stopped
from lmaas_tune.errors import InputError, TransientError
from lmaas_tune.validate import checked_by, validate, whole

_MINUTE = 60.0  # seconds
_LONGEST = 300.0  # seconds; a longer Retry-After delays its own call only


def _workers(name: str, value: Any) -> int | str:
    if value == "adaptive":
        return "adaptive"
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name}={value!r}: it takes a whole number from 1, or 'adaptive'")
    return int(value)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Limits of concurrent calls, and of requests and tokens in any sixty seconds.

    Attributes:
        workers: Concurrent calls; or ``adaptive``: starts at one and adds one for every success
            until the provider is overloaded (429, 503, timeout), then halves, and adds one for
            every round of successes (additive increase, multiplicative decrease).
        most_workers: Upper limit of ``adaptive``.
        requests_per_minute: None for no limit.
        tokens_per_minute: Estimated tokens of calls, corrected when they are answered. None for
            no limit.

    Raises:
        InputError: A value is out of range.
    """

    workers: int | Literal["adaptive"] = checked_by(_workers, default="adaptive")
    most_workers: int = whole(least=1, default=32)
    requests_per_minute: int | None = whole(least=1, optional=True)
    tokens_per_minute: int | None = whole(least=1, optional=True)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def threads(self) -> int:
        """The largest number of concurrent calls."""
        return self.most_workers if self.workers == "adaptive" else self.workers


DEFAULT_PACE = Pace()


class Throttle:
    """Delays calls to keep the limits of a pace. Safe for concurrent threads.

    Args:
        pace: The policy.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, pace: Pace, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace, self._clock = pace, clock
        self._changed = threading.Condition()
        self._window = 1.0 if pace.workers == "adaptive" else float(pace.workers)
        self._doubling = pace.workers == "adaptive"  # until the first overload
        self._active = 0
        self._started = 0  # number of calls started so far
        self._halved_at = 0  # value of `_started` at the last overload
        self._not_before = -math.inf
        self._recent: deque[list[float]] = (
            deque()
        )  # [time, tokens] of the requests of the last minute
        self._requests = 1  # of the last answered call, as an estimate for the next

    @property
    def window(self) -> int:
        """How many calls may be under way now."""
        return int(self._window)

    def ahead(self, tokens: int) -> float:
        """Seconds that a call will surely wait for its turn, those for other calls left out."""
        with self._changed:
            wait = self.delay(tokens)
        return wait if wait < math.inf else 0.0

    @contextmanager
    def turn(
        self, tokens: int, *, stopped: Callable[[], bool]
    ) -> Iterator[Callable[[int, int], None]]:
        """Wait for a free slot, and hold it during the call.

        Args:
            tokens: Estimated tokens of the call.
            stopped: Whether the run was stopped, which ends the wait.

        Yields:
            A function to call with the tokens and requests that the call really took.

        Raises:
            Stopped: The run was stopped.
        """
        entry, number, foreseen = self._enter(tokens, stopped)
        made = foreseen

        def took(tokens: int, requests: int) -> None:
            nonlocal made
            made = requests
            entry[1] = tokens
            with self._changed:  # unexpected requests of the call count from its end
                now = self._clock()
                self._recent.extend([now, 0.0] for _ in range(requests - foreseen))

        try:
            yield took
        except TransientError as error:
            self._failed(error, number)
            raise
        else:
            self._went_well(made)
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def wake(self) -> None:
        """Wake the waiting threads, so that they check whether the run was stopped."""
        with self._changed:
            self._changed.notify_all()

    def _enter(self, tokens: int, stopped: Callable[[], bool]) -> tuple[list[float], int, int]:
        with self._changed:
            while True:
                if stopped():
                    raise Stopped
                wait = self.delay(tokens)
                if wait <= 0:
                    break
                self._changed.wait(min(wait, _MINUTE))
            self._active += 1
            self._started += 1
            now, requests = self._clock(), self._requests
            entry = [now, float(tokens)]
            self._recent.extend([entry, *([now, 0.0] for _ in range(requests - 1))])
            return entry, self._started, requests

    def delay(self, tokens: int) -> float:
        """Seconds until a call may start: 0 for now, infinity while all slots are taken."""
        if self._active >= self.window:
            return math.inf
        now, pace = self._clock(), self._pace
        while self._recent and self._recent[0][0] <= now - _MINUTE:
            self._recent.popleft()
        begin = self._not_before
        if pace.requests_per_minute is not None:
            begin = max(begin, self._wait_for_requests(pace.requests_per_minute))
        if pace.tokens_per_minute is not None:
            begin = max(begin, self._wait_for_tokens(tokens, pace.tokens_per_minute))
        return max(0.0, begin - now)

    def _wait_for_requests(self, most: int) -> float:
        """Time from which the requests of one more call fit; a call above the limit runs alone."""
        over = len(self._recent) + min(self._requests, most) - most
        return self._recent[over - 1][0] + _MINUTE if over > 0 else -math.inf

    def _wait_for_tokens(self, tokens: int, most: int) -> float:
        """Time from which `tokens` more fit; a call above the limit runs alone."""
        used = sum(entry[1] for entry in self._recent)
        until = -math.inf
        for when, taken in self._recent:
            if used + tokens <= most:
                break
            used -= taken
            until = when + _MINUTE
        return until

    def _went_well(self, requests: int) -> None:
        with self._changed:
            self._requests = max(1, requests)
            if self._pace.workers == "adaptive":
                more = 1.0 if self._doubling else 1.0 / self._window
                self._window = min(self._window + more, float(self._pace.most_workers))

    def _failed(self, error: TransientError, number: int) -> None:
        if not error.overloaded:
            return
        with self._changed:
            # a longer wait ends this call (`Retry.total`), and need not delay others
            if error.retry_after is not None and error.retry_after <= _LONGEST:
                self._not_before = max(self._not_before, self._clock() + error.retry_after)
            # calls that were active at the last overload give no new information
            if self._pace.workers == "adaptive" and number > self._halved_at:
                self._window, self._doubling = max(1.0, self._window / 2), False
                self._halved_at = self._started


class Paced:
    """Makes each call wait for a slot of the throttle.

    Args:
        next_caller: Makes the call.
        throttle: The throttle.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self, next_caller: Caller, throttle: Throttle, *, clock: Callable[[], float]
    ) -> None:
        self._next, self._throttle, self._clock = next_caller, throttle, clock

    def __call__(self, call: Call, /) -> list[Reply]:
        """One reply a request, in order.

        Raises:
            BudgetExceededError: The wait would exceed the budget.
            Stopped: The run was stopped.
        """
        tokens, before = call.planned.tokens, call.spent
        call.run.admit(self._throttle.ahead(tokens))
        asked = self._clock()
        with self._throttle.turn(tokens, stopped=call.run.stopped.is_set) as took:
            call.waited += self._clock() - asked
            used = tokens  # a failed call counts with its estimate
            try:
                replies = self._next(call)
                used = call.spent.tokens - before.tokens
            finally:
                took(used, call.spent.requests - before.requests)
        return replies
