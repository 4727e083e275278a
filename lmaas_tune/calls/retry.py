"""When a failed attempt is made again: only after a `TransientError`, and never for ever."""

from __future__ import annotations

import math
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import tenacity
from tenacity import RetryCallState

from lmaas_tune.calls.call import Call, Caller, Reply
from lmaas_tune.errors import InputError, PermanentError, TransientError

T = TypeVar("T")
_JITTER = random.Random()
_SILENCE = 10.0  # seconds between two sentences about calls that are tried again


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often and after which waits a transient failure is tried again.

    The wait doubles from `first_wait` up to `longest_wait`; a provider's `retry_after` makes it
    longer, never shorter.

    Attributes:
        attempts: All attempts, the first included; 1 never tries again.
        first_wait: Seconds.
        longest_wait: Seconds; a provider may ask for more.
        total: Seconds from the first attempt within which the last one may begin.
        jitter: Fraction of a wait that chance may take off, so that many clients do not
            come back at the same moment.

    Raises:
        InputError: A value is out of range.
    """

    attempts: int = 10
    first_wait: float = 0.5
    longest_wait: float = 30.0
    total: float = 300.0
    jitter: float = 0.25

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise InputError(f"retry attempts={self.attempts!r}: it takes a whole number from 1")
        for name in ("first_wait", "longest_wait", "total"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"retry {name}={value!r}: it takes seconds, 0 or more")
        if not 0 <= self.jitter <= 1:
            raise InputError(f"retry jitter={self.jitter!r}: it takes a fraction, from 0 to 1")

    def run(
        self,
        attempt: Callable[[], T],
        *,
        admit: Callable[[float], None] = lambda _: None,
        on_note: Callable[[str], None] = lambda sentence: warnings.warn(sentence, stacklevel=2),
        sleep: Callable[[float], Any] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _JITTER.random,
    ) -> T:
        """What `attempt` returns, as soon as it does not raise a `TransientError`.

        Args:
            attempt: Makes one attempt.
            admit: See `attempts`; so are the others.
            on_note: See `attempts`.
            sleep: See `attempts`.
            clock: See `attempts`.
            chance: See `attempts`.

        Raises:
            PermanentError: See `attempts`.
        """
        for each in self.attempts_of(
            admit=admit, on_note=on_note, sleep=sleep, clock=clock, chance=chance
        ):
            with each:
                return attempt()
        raise AssertionError("the last attempt ends with a result or an error")

    def attempts_of(
        self,
        *,
        admit: Callable[[float], None],
        on_note: Callable[[str], None],
        sleep: Callable[[float], Any],
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> Iterator[AbstractContextManager[None]]:
        """Contexts to make one attempt each in; one that raises a `TransientError` brings another.

        Args:
            admit: Raises where there is no time for a wait of so many seconds.
            on_note: Takes one sentence for the user when the first attempt failed; otherwise a
                dead server would look like a slow one until the last attempt.
            sleep: Waits for so many seconds.
            clock: Gives seconds that only rise.
            chance: Gives numbers from 0 to 1 for the jitter.

        Raises:
            PermanentError: All attempts failed, or the next wait would go past `total`; from
                the last `TransientError`.
        """
        start = clock()

        def wait(state: RetryCallState) -> float:
            doubled = math.ldexp(self.first_wait, min(state.attempt_number - 1, 64))
            backoff = min(doubled, self.longest_wait) * (1 - self.jitter * chance())
            failure = state.outcome.exception() if state.outcome else None
            return max(backoff, getattr(failure, "retry_after", None) or 0.0)

        def stop(state: RetryCallState) -> bool:
            late = clock() - start + state.upcoming_sleep > self.total
            return late or state.attempt_number >= self.attempts

        def before_sleep(state: RetryCallState) -> None:
            admit(state.upcoming_sleep)
            if state.attempt_number == 1 and state.outcome:
                on_note(
                    f"attempt 1 of {self.attempts} failed: {state.outcome.exception()}; trying "
                    f"again in {state.upcoming_sleep:.3g} s"
                )

        attempts = tenacity.Retrying(
            sleep=sleep,
            before_sleep=before_sleep,
            retry=tenacity.retry_if_exception_type(TransientError),
            wait=wait,
            stop=stop,
            reraise=True,
        )
        try:
            yield from attempts
        except TransientError as failure:
            count = attempts.statistics["attempt_number"]
            raise PermanentError(
                self._failure_message(failure, count, clock() - start)
            ) from failure

    def _failure_message(self, failure: TransientError, count: int, elapsed: float) -> str:
        attempts = f"{count} attempt{'s' if count > 1 else ''} in {elapsed:.3g} s"
        sentence = f"no answer after {attempts}: {failure}"
        if count >= self.attempts:
            return sentence
        if failure.retry_after:
            sentence += f"; the provider asks to wait {failure.retry_after:g} s"
        return f"{sentence}; trying again ends {self.total:g} s after the first attempt"


DEFAULT_RETRY = Retry()


class Retrying:
    """Makes a call again after a transient failure.

    Args:
        next_caller: Makes one attempt.
        retry: The policy.
        on_note: Takes a sentence for the user when the first attempt of a call failed, at most
            one in ten seconds, because many calls fail together.
        sleep: Waits so many seconds; by default until then, or until the run is stopped.
        clock: Gives seconds that only rise.
        chance: Gives numbers from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        next_caller: Caller,
        retry: Retry,
        *,
        on_note: Callable[[str], None],
        sleep: Callable[[float], None] | None,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._next, self._retry = next_caller, retry
        self._on_note, self._sleep = on_note, sleep
        self._clock, self._chance = clock, chance
        self._silent_until, self._lock = -math.inf, threading.Lock()

    def __call__(self, call: Call, /) -> list[Reply]:
        """One reply a request, in order.

        Raises:
            PermanentError: See `Retry.attempts_of`.
            BudgetExceededError: The next wait would go past the end of the run.
        """
        for attempt in self._retry.attempts_of(
            admit=call.run.admit,
            on_note=self._note,
            sleep=self._sleep or call.run.stopped.wait,
            clock=lambda: self._clock() - call.waited,  # a late turn in the queue is no failure
            chance=self._chance,
        ):
            with attempt:
                return self._next(call)
        raise AssertionError("the last attempt ends with a result or an error")

    def _note(self, sentence: str) -> None:
        with self._lock:
            if (now := self._clock()) < self._silent_until:
                return
            self._silent_until = now + _SILENCE
        self._on_note(sentence)
