"""How many calls are under way at once and how many a minute: one place decides for all."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from lmaas_tune.calls.call import Call, Caller, Reply, Stopped
from lmaas_tune.errors import InputError, TransientError

_MINUTE = 60.0  # seconds
_LONGEST = 300.0  # seconds that one answer's Retry-After holds up all calls


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The most that a provider is asked at once, and in any sixty seconds.

    Attributes:
        workers: Calls under way at once; or ``adaptive``: from one on, one more for every call
            that goes well until the provider is overloaded (429, 503, no answer in time), then
            half, and from there one more for every round that goes well.
        most_workers: The most that ``adaptive`` goes up to.
        requests_per_minute: None for no limit.
        tokens_per_minute: Of the calls' tokens as far as they are known beforehand, corrected
            when they are answered. None for no limit.

    Raises:
        InputError: A value is out of range.
    """

    workers: int | Literal["adaptive"] = "adaptive"
    most_workers: int = 32
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if (name, value) == ("workers", "adaptive") or (value is None and "minute" in name):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                words = ", or 'adaptive'" if name == "workers" else ""
                raise InputError(f"{name}={value!r}: it takes a whole number from 1{words}")

    @property
    def threads(self) -> int:
        """The most calls that can be under way."""
        return self.most_workers if self.workers == "adaptive" else self.workers


DEFAULT_PACE = Pace()


class Throttle:
    """Lets calls pass at a pace. Safe among threads.

    Args:
        pace: The policy.
        clock: Gives seconds that only rise.
    """

    def __init__(self, pace: Pace, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace, self._clock = pace, clock
        self._changed = threading.Condition()
        self._window = 1.0 if pace.workers == "adaptive" else float(pace.workers)
        self._doubling = pace.workers == "adaptive"  # until the first overload
        self._active = 0
        self._started = 0  # calls that ever began
        self._halved_at = 0  # what `_started` was at the last overload
        self._not_before = -math.inf
        self._recent: deque[list[float]] = deque()  # [when, tokens] of the last minute's requests
        self._requests = 1  # of the last call, and so perhaps of the next

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
        """Wait for a turn, and hold it while the call is made.

        Args:
            tokens: What the call will take, as far as it is known.
            stopped: Whether the caller has given up; then waiting ends.

        Yields:
            Takes the tokens and the requests that the call really took.

        Raises:
            Stopped: The caller has given up.
        """
        entry, number, foreseen = self._enter(tokens, stopped)

        def took(tokens: int, requests: int) -> None:
            entry[1] = tokens
            with self._changed:  # those of a call that were not foreseen count from its end
                now = self._clock()
                self._recent.extend([now, 0.0] for _ in range(requests - foreseen))
                self._requests = max(1, requests)

        try:
            yield took
        except TransientError as error:
            self._failed(error, number)
            raise
        else:
            self._went_well()
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait look whether they are stopped."""
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
        """Seconds until a call may begin: 0 for now, infinity while another has to end first."""
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
        """When those of one more call fit; a call that alone has too many goes by itself."""
        over = len(self._recent) + min(self._requests, most) - most
        return self._recent[over - 1][0] + _MINUTE if over > 0 else -math.inf

    def _wait_for_tokens(self, tokens: int, most: int) -> float:
        """When so many more fit; a call that alone is too large goes when nothing else does."""
        used = sum(entry[1] for entry in self._recent)
        until = -math.inf
        for when, taken in self._recent:
            if used + tokens <= most:
                break
            used -= taken
            until = when + _MINUTE
        return until

    def _went_well(self) -> None:
        with self._changed:
            if self._pace.workers == "adaptive":
                more = 1.0 if self._doubling else 1.0 / self._window
                self._window = min(self._window + more, float(self._pace.most_workers))

    def _failed(self, error: TransientError, number: int) -> None:
        if not error.overloaded:
            return
        with self._changed:
            # who asks for more ends the call (`Retry.total`), and need not hold up the next ones
            if error.retry_after is not None and error.retry_after <= _LONGEST:
                self._not_before = max(self._not_before, self._clock() + error.retry_after)
            # calls that were under way at the last overload say nothing new
            if self._pace.workers == "adaptive" and number > self._halved_at:
                self._window, self._doubling = max(1.0, self._window / 2), False
                self._halved_at = self._started


class Paced:
    """Makes each call wait for its turn.

    Args:
        next_caller: Makes the call.
        throttle: Gives the turns.
        clock: Gives seconds that only rise.
    """

    def __init__(
        self, next_caller: Caller, throttle: Throttle, *, clock: Callable[[], float]
    ) -> None:
        self._next, self._throttle, self._clock = next_caller, throttle, clock

    def __call__(self, call: Call, /) -> list[Reply]:
        """One reply a request, in order.

        Raises:
            BudgetExceededError: The turn would come after the run has to end.
            Stopped: The run has ended already.
        """
        tokens, before = call.planned.tokens, call.spent
        call.run.admit(self._throttle.ahead(tokens))
        asked = self._clock()
        with self._throttle.turn(tokens, stopped=call.run.stopped.is_set) as took:
            call.waited += self._clock() - asked
            replies = self._next(call)
            took(call.spent.tokens - before.tokens, call.spent.requests - before.requests)
        return replies
