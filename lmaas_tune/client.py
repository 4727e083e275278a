"""How calls are made: the user's side of a backend. *A hit is free, every attempt is paid.*"""

from __future__ import annotations

import math
import operator
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np

from lmaas_tune.backend import (
    Backend,
    Capabilities,
    Measures,
    ScoreReply,
    ScoreRequest,
    Spread,
    Usage,
)
from lmaas_tune.errors import InputError, LMaaSError, PermanentError
from lmaas_tune.middleware.billing import Billing
from lmaas_tune.middleware.cache import ScoreCache, score_key
from lmaas_tune.middleware.deadline import Deadline
from lmaas_tune.middleware.meter import Meter, Spent, paying
from lmaas_tune.middleware.pace import DEFAULT_PACE, Pace, Stopped, Throttle
from lmaas_tune.middleware.retry import DEFAULT_RETRY, Retry
from lmaas_tune.prompts import FloatArray

T = TypeVar("T")

_ROUNDING = 1e-6  # a log-probability may come out this far above 0
_JITTER = random.Random()
_WAIT = 0.5  # seconds between two looks for a signal
_LOOK = 0.02  # seconds between two looks whether the last calls have ended
_GRACE = 10.0  # seconds that calls under way have to come to their end after an interrupt
_QUIET = 10.0  # seconds between two sentences about calls that are tried again


class Ledger(Protocol):
    """Where a run writes down each answer when it arrives. Called from several threads."""

    def known(self, key: bytes) -> tuple[FloatArray, Spent] | None:
        """Scores that were written down, as `keep` got them, and what they took.

        That is nothing for what the run has booked already.
        """
        ...

    def keep(self, key: bytes, logprobs: FloatArray, spent: Spent) -> None:
        """Write an answer down: (rows, candidates) log-probabilities, and perhaps one row more
        that counts the bounds among them."""
        ...

    def lose(self, spent: Spent) -> None:
        """Write down what was paid for no answer."""
        ...


@dataclass(frozen=True)
class _Part:
    """As much of a request as one call takes, and what share of it that is."""

    key: bytes
    request: ScoreRequest
    share: float


@dataclass(frozen=True)
class _Run:
    """What the calls of one `Client.score` share."""

    meters: Sequence[Meter]
    ledger: Ledger | None
    expected: Usage  # of one request
    deadline: Deadline
    stopped: threading.Event
    under_way: set[bytes] = field(default_factory=set)  # keys of the calls that a thread makes

    def admit(self, seconds: float) -> None:
        """See that a wait ends before the run does.

        Raises:
            BudgetExceededError: It does not.
            Stopped: The run has ended already.
        """
        if self.stopped.is_set():
            raise Stopped
        for meter in self.meters:
            meter.admit(Spent(seconds=seconds))

    def book(self, part: Spent) -> None:
        for meter in self.meters:
            meter.book(part)


class Client:
    """How the user calls a backend: cache, then pace, then retry, then meter, then backend.

    May be called from several threads.

    Args:
        backend: The provider's side.
        cache: A cache, or the file of one; None keeps nothing.
        retry: When a transient failure is tried again.
        pace: How many calls are under way at once and how many a minute, for a backend that
            takes them one by one (`Capabilities.rows_per_call`).
        price: Money for the usage of one answer, where the backend names none: a `Price`, or
            any function.
        sleep: Waits for so many seconds; by default until then, or until the call is given up.
        clock: Gives seconds that only rise.
        chance: Gives numbers from 0 to 1, for the jitter of waits.

    Attributes:
        backend: As given.
        meter: Books all that this client ever spends, on top of the meter of a run.

    Raises:
        InputError: The price gives no finite number from 0 up.
        StorageError: The cache's folder cannot be written.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        cache: ScoreCache | str | os.PathLike[str] | None = None,
        retry: Retry = DEFAULT_RETRY,
        pace: Pace = DEFAULT_PACE,
        price: Callable[[Usage], float] | None = None,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _JITTER.random,
    ) -> None:
        self.backend = backend
        self.meter = Meter(clock=clock)
        self._cache = ScoreCache(cache) if isinstance(cache, str | os.PathLike) else cache
        self._retry, self._billing = retry, Billing(price)
        self._threads, self._throttle = pace.threads, Throttle(pace, clock=clock)
        self._sleep, self._clock, self._chance = sleep, clock, chance
        self._quiet_until, self._lock = -math.inf, threading.Lock()
        self.priced(Usage(requests=1, sequences=1, tokens=1))  # a bad price shows before any call

    @property
    def identity(self) -> str:
        """The backend's."""
        return self.backend.identity

    @property
    def capabilities(self) -> Capabilities:
        """The backend's."""
        return self.backend.capabilities

    @property
    def spent(self) -> Spent:
        """All that this client ever spent."""
        return self.meter.spent

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        meter: Meter | None = None,
        ledger: Ledger | None = None,
        expected: Usage | None = None,
    ) -> list[ScoreReply]:
        """Answer every request, in order.

        What neither the ledger nor the cache holds goes to the backend, equal requests once: as
        one list, or, where the backend takes so many rows a call, cut and by several threads at
        once. Only that has usage: the reply of a hit, or of the second of two equal requests,
        took nothing. An answer is kept when it arrives, whatever becomes of the others.

        Args:
            requests: Usually one generation of prompts on one batch.
            meter: The run's; it is asked before every attempt, and books all of them.
            ledger: The run's, where calls are made one by one.
            expected: What a request is thought to take; each call's share of it, by characters, is
                set aside before it is made.

        Returns:
            One reply a request; its log-probabilities are read-only float64 and at most 0, but
            NaN or -inf where the backend said so. Such a reply is never cached.

        Raises:
            BudgetExceededError: The meter refused an attempt.
            PermanentError: The backend failed for good, or its replies do not fit the requests.
            InputError: The backend cannot take one of the requests.
        """
        if not requests:
            return []
        meters = [self.meter] if meter is None else [self.meter, meter]
        deadline = Deadline(min(meter.seconds_left for meter in meters))
        run = _Run(meters, ledger, expected or Usage(), deadline, threading.Event())
        cut = [self._cut(request) for request in requests]
        parts = {part.key: part for own in cut for part in own}
        scores, usages = self._written_down(parts, ledger, meter)
        scores |= self._look_up([key for key in parts if key not in scores])
        missing = [part for key, part in parts.items() if key not in scores]
        paid = self._pay(missing, run)
        usages |= {key: reply.usage for key, reply in paid.items()}
        scores |= {key: _with_bounds(reply) for key, reply in paid.items()}
        replies, hits = [], 0
        for own in cut:
            taken = [usages.pop(part.key) for part in own if part.key in usages]
            hits += not taken
            split = [_split(scores[part.key], len(part.request.batch)) for part in own]
            logprobs = np.concatenate([part for part, _ in split])
            logprobs.setflags(write=False)
            bounds = sum(count for _, count in split)
            replies.append(ScoreReply(logprobs, sum(taken, Usage()), bounds))
        run.book(Spent(hits=hits))
        return replies

    def measure(self, request: ScoreRequest, *, meter: Meter | None = None) -> Spread:
        """How widely spread what enters the model's layers is, see `Measures`.

        Raises:
            BudgetExceededError: The meter refused an attempt.
            PermanentError: The backend failed for good.
            InputError: It measures nothing, or not this request.
        """
        backend = self.backend
        if not isinstance(backend, Measures):
            raise InputError(f"{self.identity} does not measure its layers")
        meters = [self.meter] if meter is None else [self.meter, meter]

        def attempt() -> Spread:
            planned = Spent(sequences=len(request.batch))
            with paying(meters, planned) as bill:
                bill.spent = Spent(requests=1)  # of a failed attempt, nobody tells what it took
                spread = self._answered(lambda: backend.measure(request))
                spread = replace(spread, usage=self.priced(spread.usage))
                bill.spent = Spent.of(spread.usage)
            if not all(0 < std < float("inf") for std in spread.stds):
                raise PermanentError(
                    f"backend {self.identity!r} measured {spread.stds} as the spread of what "
                    "enters its layers, which must be positive and finite: the model overflows "
                    "on these rows (try dtype float32)"
                )
            return spread

        wait = self._sleep or time.sleep
        return self._retry.run(attempt, sleep=wait, clock=self._clock, chance=self._chance)

    def priced(self, usage: Usage) -> Usage:
        """The usage with its money, by this client's price where the backend names none.

        Raises:
            InputError: The price gives no finite number from 0 up.
        """
        return self._billing.priced(usage)

    def _cut(self, request: ScoreRequest) -> list[_Part]:
        rows = self.capabilities.rows_per_call
        batches = [request.batch] if rows is None else request.batch.cut(rows)
        pieces = [replace(request, batch=batch) for batch in batches]
        whole = max(1, request.characters)
        return [
            _Part(score_key(self.identity, piece), piece, piece.characters / whole)
            for piece in pieces
        ]

    def _written_down(
        self, parts: Mapping[bytes, _Part], ledger: Ledger | None, meter: Meter | None
    ) -> tuple[dict[bytes, FloatArray], dict[bytes, Usage]]:
        """What the run has asked before; booked as if it were paid now, where it was cut short."""
        scores: dict[bytes, FloatArray] = {}
        usages: dict[bytes, Usage] = {}
        if ledger is None:
            return scores, usages
        for key in parts:
            if (answer := ledger.known(key)) is not None:
                scores[key], spent = answer
                if spent.requests:
                    usages[key] = spent.usage
                if meter is not None:
                    meter.book(spent)
        return scores, usages

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, FloatArray]:
        return self._cache.get_many(keys) if self._cache is not None else {}

    def _pay(self, parts: Sequence[_Part], run: _Run) -> dict[bytes, ScoreReply]:
        """Answers from the backend, by key."""
        if not parts:
            return {}
        if self.capabilities.rows_per_call is None:
            return self._ask(parts, run)
        paid: dict[bytes, ScoreReply] = {}
        with ThreadPoolExecutor(min(len(parts), self._threads)) as pool:
            try:
                calls = [pool.submit(self._ask_one, part, run) for part in parts]
                for call in _finished(calls):
                    paid |= call.result()
            except BaseException as error:  # those under way come to their end, and are kept
                run.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                self._throttle.wake()
                if isinstance(error, KeyboardInterrupt) and (waiting := len(run.under_way)):
                    run.deadline.shorten(_GRACE)
                    warnings.warn(
                        f"calls under way are waited for, at most {_GRACE:g} s, and kept: "
                        f"{waiting}; interrupt again to leave them",
                        stacklevel=2,
                    )
                while run.under_way:
                    time.sleep(_LOOK)
                raise
        return paid

    def _ask_one(self, part: _Part, run: _Run) -> dict[bytes, ScoreReply]:
        """One call of several that are made at once."""
        run.under_way.add(part.key)
        try:
            return self._ask([part], run)
        finally:
            run.under_way.discard(part.key)

    def _ask(self, parts: Sequence[_Part], run: _Run) -> dict[bytes, ScoreReply]:
        """One call: attempts until one succeeds, each of them admitted and booked."""
        requests = [part.request for part in parts]
        expected = _scaled(run.expected, sum(part.share for part in parts))
        spent, queued = Spent(), 0.0

        def attempt() -> list[ScoreReply]:
            nonlocal spent, queued
            again, planned = spent.requests > 0, self._billing.planned(requests, expected)
            run.admit(self._throttle.ahead(planned.tokens))
            asked = self._clock()
            turn = self._throttle.turn(planned.tokens, stopped=run.stopped.is_set)
            with turn as took, paying(run.meters, planned) as bill, run.deadline.applied():
                queued += self._clock() - asked
                try:
                    replies = [self._settled(reply) for reply in self._call(requests)]
                    usage = sum((reply.usage for reply in replies), Usage())
                    bill.spent = self._billing.answered(requests, expected, usage)
                except BaseException as error:
                    bill.spent = self._billing.failed(requests, expected, error)
                    raise
                finally:
                    bill.spent += Spent(retries=int(again))
                    spent += bill.spent
                took(bill.spent.tokens, bill.spent.requests)
            return replies

        def wait(seconds: float) -> None:
            (self._sleep or run.stopped.wait)(seconds)

        def trying() -> float:
            return self._clock() - queued  # a turn that comes late is no failure

        try:
            replies = self._retry.run(
                attempt,
                admit=run.admit,
                tell=self._tell,
                sleep=wait,
                clock=trying,
                chance=self._chance,
            )
            replies = self._checked(replies, requests)
        except BaseException:
            if run.ledger is not None and spent.requests:
                run.ledger.lose(spent)
            raise
        self._keep(parts, replies, spent, run.ledger)
        return {part.key: reply for part, reply in zip(parts, replies, strict=True)}

    def _keep(
        self,
        parts: Sequence[_Part],
        replies: Sequence[ScoreReply],
        spent: Spent,
        ledger: Ledger | None,
    ) -> None:
        if self._cache is not None:
            answers = zip(parts, replies, strict=True)
            self._cache.put_many({part.key: _with_bounds(reply) for part, reply in answers})
        if ledger is not None and self.capabilities.rows_per_call is not None:
            ledger.keep(parts[0].key, _with_bounds(replies[0]), spent)

    def _call(self, requests: list[ScoreRequest]) -> list[ScoreReply]:
        return self._answered(lambda: list(self.backend.score(requests)))

    def _answered(self, ask: Callable[[], T]) -> T:
        """What the backend says, whatever fails in it as an error of ours."""
        try:
            return ask()
        except LMaaSError:
            raise
        except Exception as error:
            raise PermanentError(
                f"backend {self.identity!r} failed with {type(error).__name__}: {error}"
            ) from error

    def _tell(self, sentence: str) -> None:
        """Say that a call is tried again, but not of each of many that fail together."""
        with self._lock:
            if (now := self._clock()) < self._quiet_until:
                return
            self._quiet_until = now + _QUIET
        warnings.warn(sentence, stacklevel=2)

    def _settled(self, reply: ScoreReply) -> ScoreReply:
        """The reply with its price."""
        try:
            usage = self.priced(reply.usage)
            Spent.of(usage)
            return replace(reply, usage=usage)
        except (AttributeError, TypeError, InputError) as error:
            raise PermanentError(
                f"backend {self.identity!r} gave a reply whose usage cannot be booked: {error}"
            ) from error

    def _checked(self, replies: list[ScoreReply], requests: list[ScoreRequest]) -> list[ScoreReply]:
        """The replies in float64, or an error that names the first that does not fit."""
        if len(replies) != len(requests):
            raise PermanentError(
                f"backend {self.identity!r} gave {len(replies)} replies to {len(requests)} requests"
            )
        checked = []
        for number, (reply, request) in enumerate(zip(replies, requests, strict=True), start=1):
            try:
                checked.append(replace(reply, logprobs=_logprobs(reply, request)))
            except (ValueError, TypeError) as error:
                raise PermanentError(
                    f"backend {self.identity!r}, reply {number} of {len(requests)}: {error}"
                ) from error
        return checked


def _scaled(usage: Usage, share: float) -> Usage:
    return replace(usage, tokens=math.ceil(usage.tokens * share), money=usage.money * share)


def _logprobs(reply: ScoreReply, request: ScoreRequest) -> FloatArray:
    logprobs = np.array(reply.logprobs, dtype=np.float64)
    shape = (len(request.batch), len(request.candidates))
    if logprobs.shape != shape:
        raise ValueError(f"scores of shape {logprobs.shape} for {shape} (rows, candidates)")
    if (logprobs > _ROUNDING).any():
        raise ValueError(f"a log-probability of {np.nanmax(logprobs):g}, which is above 0")
    if not 0 <= operator.index(reply.bounds) <= logprobs.size:
        raise ValueError(f"{reply.bounds} bounds among {logprobs.size} scores")
    logprobs = np.minimum(logprobs, 0.0)
    logprobs.setflags(write=False)
    return logprobs


def _finished(calls: Sequence[Future[T]]) -> Iterator[Future[T]]:
    """Calls as they finish. A signal just before a wait does not end it, so waits are short."""
    left = set(calls)
    while left:
        done, left = wait_for(left, timeout=_WAIT, return_when=FIRST_COMPLETED)
        yield from done


def _with_bounds(reply: ScoreReply) -> FloatArray:
    """The log-probabilities as they are kept: where some are bounds, a last row counts them."""
    if not reply.bounds:
        return reply.logprobs
    last = np.zeros((1, reply.logprobs.shape[1]))
    last[0, 0] = reply.bounds
    return np.concatenate([reply.logprobs, last])


def _split(kept: FloatArray, rows: int) -> tuple[FloatArray, int]:
    """The log-probabilities of so many rows, and how many are bounds; see `_with_bounds`."""
    return kept[:rows], int(kept[rows:].sum())
