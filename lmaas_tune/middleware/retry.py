"""When a failed attempt is made again: only after a `TransientError`, and never for ever."""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from lmaas_tune.errors import InputError, PermanentError, TransientError

T = TypeVar("T")
_JITTER = random.Random()


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
        tell: Callable[[str], None] = lambda sentence: warnings.warn(sentence, stacklevel=2),
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _JITTER.random,
    ) -> T:
        """What `attempt` returns, as soon as it does not raise a `TransientError`.

        Args:
            attempt: Makes one attempt.
            admit: Raises where there is no time for a wait of so many seconds.
            tell: Takes one sentence for the user when the first attempt failed: else a dead server
                would look like a slow one until the last.
            sleep: Waits for so many seconds.
            clock: Gives seconds that only rise.
            chance: Gives numbers from 0 to 1 for the jitter.

        Raises:
            PermanentError: All attempts failed, or the next wait would go past `total`; from
                the last `TransientError`.
        """
        start = clock()

        def elapsed() -> float:
            return clock() - start

        def wait(state: RetryCallState) -> float:
            doubled = math.ldexp(self.first_wait, min(state.attempt_number - 1, 64))
            backoff = min(doubled, self.longest_wait) * (1 - self.jitter * chance())
            failure = state.outcome.exception() if state.outcome else None
            return max(backoff, getattr(failure, "retry_after", None) or 0.0)

        def stop(state: RetryCallState) -> bool:
            late = elapsed() + state.upcoming_sleep > self.total
            return late or state.attempt_number >= self.attempts

        def before_sleep(state: RetryCallState) -> None:
            admit(state.upcoming_sleep)
            if state.attempt_number == 1 and state.outcome:
                tell(
                    f"attempt 1 of {self.attempts} failed: {state.outcome.exception()}; trying "
                    f"again in {state.upcoming_sleep:.3g} s"
                )

        retrying = Retrying(
            sleep=sleep,
            before_sleep=before_sleep,
            retry=retry_if_exception_type(TransientError),
            wait=wait,
            stop=stop,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except TransientError as failure:
            count = retrying.statistics["attempt_number"]
            raise PermanentError(self._epitaph(failure, count, elapsed())) from failure

    def _epitaph(self, failure: TransientError, count: int, elapsed: float) -> str:
        attempts = f"{count} attempt{'s' if count > 1 else ''} in {elapsed:.3g} s"
        sentence = f"no answer after {attempts}: {failure}"
        if count >= self.attempts:
            return sentence
        if failure.retry_after:
            sentence += f"; the provider asks to wait {failure.retry_after:g} s"
        return f"{sentence}; trying again ends {self.total:g} s after the first attempt"


DEFAULT_RETRY = Retry()
