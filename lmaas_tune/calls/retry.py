"""Retries of calls after a `TransientError`: the policy, and the wrapper that applies it."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import tenacity
from tenacity import RetryCallState

from lmaas_tune.calls.call import Call, Caller, Reply
from lmaas_tune.errors import PermanentError, TransientError
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.validate import nonnegative, validate, whole

T = TypeVar("T")
_JITTER = random.Random()
_SILENCE = 10.0  # seconds between two notes about retries


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Policy of retries after temporary failures, with exponential backoff.

    The wait doubles from `first_wait` up to `longest_wait`; a provider's `retry_after` makes it
    longer, never shorter.

    Attributes:
        attempts: Largest number of attempts, including the first; 1 disables retries.
        first_wait: Seconds before the first retry.
        longest_wait: Seconds; a provider may ask for more.
        total: Seconds from the first attempt within which the last may start.
        jitter: Largest fraction by which a wait is shortened at random, so that clients do not
            retry at the same moment.

    Raises:
        InputError: A value is out of range.
    """

    attempts: int = whole(least=1, default=10)
    first_wait: float = nonnegative(default=0.5)
    longest_wait: float = nonnegative(default=30.0)
    total: float = nonnegative(default=300.0)
    jitter: float = nonnegative(default=0.25, most=1)

    def __post_init__(self) -> None:
        validate(self, of="retry")

    def run(
        self,
        attempt: Callable[[], T],
        *,
        admit: Callable[[float], None] = lambda _: None,
        on_note: OnNote = warn,
        sleep: Callable[[float], Any] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _JITTER.random,
    ) -> T:
        """Call `attempt` until it does not raise a `TransientError`, and return its result.

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
        on_note: OnNote,
        sleep: Callable[[float], Any],
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> Iterator[AbstractContextManager[None]]:
        """Contexts for one attempt each; a `TransientError` within one leads to the next.

        Args:
            admit: Raises if the budget leaves no time for a wait of the given seconds.
            on_note: Called with a note for the user when the first attempt failed, so that a dead
                server does not look like a slow one.
            sleep: Waits the given seconds.
            clock: Monotonic clock in seconds.
            chance: Random numbers from 0 to 1 for the jitter.

        Raises:
            PermanentError: All attempts failed, or the next wait would exceed `total`; from the
                last `TransientError`.
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
        return f"{sentence}; retries end {self.total:g} s after the first attempt"


DEFAULT_RETRY = Retry()


class Retrying:
    """Retries a call after a temporary failure, of which the run gets a note.

    One note comes in ten seconds at most, because many calls fail together.

    Args:
        next_caller: Makes one attempt.
        retry: The policy.
        sleep: Waits the given seconds; by default it also returns when the run is stopped.
        clock: Monotonic clock in seconds.
        chance: Random numbers from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        next_caller: Caller,
        retry: Retry,
        *,
        sleep: Callable[[float], None] | None,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._next, self._retry = next_caller, retry
        self._sleep, self._clock, self._chance = sleep, clock, chance
        self._silent_until, self._lock = -math.inf, threading.Lock()

    def __call__(self, call: Call, /) -> list[Reply]:
        """One reply a request, in order.

        Raises:
            PermanentError: See `Retry.attempts_of`.
            BudgetExceededError: The next wait would exceed the budget.
        """
        for attempt in self._retry.attempts_of(
            admit=call.run.admit,
            on_note=partial(self._note, call.run.on_note),
            sleep=self._sleep or call.run.stopped.wait,
            clock=lambda: (
                self._clock() - call.waited
            ),  # waits in the queue do not count as failures
            chance=self._chance,
        ):
            with attempt:
                return self._next(call)
        raise AssertionError("the last attempt ends with a result or an error")

    def _note(self, on_note: OnNote, sentence: str) -> None:
        with self._lock:
            if (now := self._clock()) < self._silent_until:
                return
            self._silent_until = now + _SILENCE
        on_note(sentence)
