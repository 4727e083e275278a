"""`Client`: calls a backend through cache, retries, pace and meter, and joins the answers."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import TypeAlias, TypeVar, cast

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
from lmaas_tune.calls.cache import Cached, ScoreCache, score_key
from lmaas_tune.calls.call import Call, Recorder, Reply, RunContext
from lmaas_tune.calls.cost import CostModel
from lmaas_tune.calls.deadline import Deadline
from lmaas_tune.calls.meter import Meter, Spent
from lmaas_tune.calls.metered import Metered
from lmaas_tune.calls.pace import DEFAULT_PACE, Pace, Paced, Throttle
from lmaas_tune.calls.recorded import Recorded
from lmaas_tune.calls.retry import DEFAULT_RETRY, Retry, Retrying
from lmaas_tune.errors import InputError, PermanentError
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.reprs import call_repr

T = TypeVar("T")

_Part: TypeAlias = tuple[bytes, ScoreRequest]  # with its key in the cache

_JITTER = random.Random()
_SIGNAL_INTERVAL = 0.5  # seconds between two checks for a signal
_POLL_INTERVAL = 0.02  # seconds between two checks for the end of the active calls
_GRACE_PERIOD = 10.0  # seconds that active calls may take after an interrupt


class Client:
    """Calls a backend: recorded, cached, retried, paced and metered, in this order.

    Safe for concurrent threads.

    Args:
        backend: The backend.
        cache: A cache, or the path of its file; None caches nothing.
        retry: Policy of retries after temporary failures.
        pace: Limits of concurrent calls and of calls a minute, for a backend that takes a
            limited number of rows a call (`Capabilities.rows_per_call`).
        price: Money for the usage of one answer if the backend reports none: a `Price`, or any
            function.
        on_note: Called with each note for the user; by default it issues a `UserWarning`.
        sleep: Waits the given seconds; by default it also returns when the run is stopped.
        clock: Monotonic clock in seconds.
        chance: Random numbers from 0 to 1, for the jitter of waits.

    Attributes:
        backend: The backend.
        meter: Books all spending of this client, in addition to the meter of a run.
        on_note: Called with each note for the user.

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
        on_note: OnNote = warn,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _JITTER.random,
    ) -> None:
        self.backend, self.on_note = backend, on_note
        self.meter = Meter(clock=clock)
        self._price = price
        self._cost = self.new_cost_model()
        self._cost.priced(Usage(requests=1, sequences=1, tokens=1))  # a bad price fails here
        self._threads, self._throttle = pace.threads, Throttle(pace, clock=clock)
        if isinstance(cache, str | os.PathLike):
            cache = ScoreCache(cache)
        retrying = partial(Retrying, sleep=sleep, clock=clock, chance=chance)
        paced = partial(Paced, clock=clock)
        self._call = Recorded(
            Cached(retrying(paced(Metered(backend), self._throttle), retry), cache)
        )

    @classmethod
    def of(cls, backend: Backend | Client) -> Client:
        """A client around a backend; a client is returned as it is."""
        return backend if isinstance(backend, Client) else cls(backend)

    def with_notes(self, on_note: OnNote) -> Client:
        """The same client, with the same meter, cache and pace; its notes go to `on_note`."""
        other = copy.copy(self)
        other.on_note = on_note
        return other

    def __repr__(self) -> str:
        return call_repr(self, backend=self.identity, spent=self.spent)

    @property
    def identity(self) -> str:
        """Identity of the backend."""
        return self.backend.identity

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities of the backend."""
        return self.backend.capabilities

    @property
    def spent(self) -> Spent:
        """Total spending of this client."""
        return self.meter.spent

    def new_cost_model(self) -> CostModel:
        """A cost model with this client's price and no observations."""
        return CostModel(self._price, rows_per_call=self.capabilities.rows_per_call)

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        meter: Meter | None = None,
        recorder: Recorder | None = None,
        cost: CostModel | None = None,
        fresh: bool = False,
    ) -> list[ScoreReply]:
        """Answer every request, in order.

        The backend gets only the requests that neither recorder nor cache holds, and equal
        requests once: as one list, or, if it takes a limited number of rows a call, split into
        calls that several threads make. Only its replies have usage. Each answer is recorded and
        cached when it arrives. If the budget limits tokens or money and the cost of a request is
        still unknown, the first one is sent alone.

        Args:
            requests: Usually one generation of prompts on one batch.
            meter: Meter of the run; it admits and books every attempt.
            recorder: Recorder of the run.
            cost: Cost model of the run; it estimates the reservation for each call.
            fresh: Whether answers in the cache are paid again, to learn what they cost.

        Returns:
            One reply a request; its log-probabilities are read-only float64 and at most 0, or
            NaN or -inf from the backend. Such a reply is never cached.

        Raises:
            BudgetExceededError: A meter did not admit an attempt.
            PermanentError: The backend failed for good, or its replies do not fit the requests.
            InputError: The backend cannot take one of the requests.
        """
        run = self._run(meter, recorder, cost, fresh=fresh)
        limited = meter is not None and meter.budget.limits_usage
        replies: list[ScoreReply] = []
        while len(replies) < len(requests):
            rest = requests[len(replies) :]
            alone = limited and len(rest) > 1 and not run.cost.knows(rest[0].batch)
            asked = rest[:1] if alone else rest
            parts = self._parts(asked)
            calls = self._calls(asked, parts, run, is_part=alone)
            if self.capabilities.rows_per_call is None:
                answers = dict(zip(calls[0].keys, self._call(calls[0]), strict=True))
            else:
                answers = self._call_in_threads(calls, run)
            paid = {key for call in calls for key in call.paid}
            replies += _replies(asked, parts, answers, paid, run)
        return replies

    def measure(
        self,
        request: ScoreRequest,
        *,
        meter: Meter | None = None,
        recorder: Recorder | None = None,
        cost: CostModel | None = None,
    ) -> Spread:
        """Measure the standard deviations of the inputs of the model's layers, see `Measures`.

        Args:
            request: A prompt on some rows.
            meter: Meter of the run; it admits and books every attempt.
            recorder: Recorder of the run; it records what is paid.
            cost: Cost model of the run; it estimates the reservation, as for a score.

        Raises:
            BudgetExceededError: A meter did not admit an attempt.
            PermanentError: The backend failed for good.
            InputError: The backend cannot measure its layers, or not with this request.
        """
        if not isinstance(self.backend, Measures):
            raise InputError(f"{self.identity} does not measure its layers")
        run = self._run(meter, recorder, cost)
        expected = run.cost.expected([request])
        call = Call(requests=[request], ask=_measured, run=run, expected=expected)
        (reply,) = self._call(call)
        spread = cast("Spread", reply)
        if not all(0 < std < float("inf") for std in spread.stds):
            raise PermanentError(
                f"backend {self.identity!r} measured the stds {spread.stds} of the inputs "
                "of its layers, which must be positive and finite: the model overflows on these "
                "rows (try dtype float32)"
            )
        return spread

    def _run(
        self,
        meter: Meter | None,
        recorder: Recorder | None,
        cost: CostModel | None,
        *,
        fresh: bool = False,
    ) -> RunContext:
        meters = [self.meter] if meter is None else [self.meter, meter]
        return RunContext(
            meters=meters,
            meter=meter,
            recorder=recorder,
            cost=cost or self._cost,
            deadline=Deadline(min(meter.seconds_left for meter in meters)),
            on_note=self.on_note,
            fresh=fresh,
        )

    def _parts(self, requests: Sequence[ScoreRequest]) -> list[list[_Part]]:
        """The parts of each request that the backend takes at a time, with their keys."""
        rows = self.capabilities.rows_per_call
        return [
            [(score_key(self.identity, part), part) for part in request.cut(rows)]
            for request in requests
        ]

    def _calls(
        self,
        requests: Sequence[ScoreRequest],
        parts: Sequence[list[_Part]],
        run: RunContext,
        *,
        is_part: bool,
    ) -> list[Call]:
        """One call for all parts, or one for each if the backend limits the rows of a call."""
        distinct = dict(itertools.chain(*parts))
        expected, longest = run.cost.expected(requests), max(r.characters for r in requests)
        if self.capabilities.rows_per_call is None:
            return [
                Call(
                    requests=list(distinct.values()),
                    ask=_scored,
                    run=run,
                    keys=list(distinct),
                    expected=_scale_usage(expected, len(distinct)),
                    is_part=is_part,
                )
            ]
        return [
            Call(
                requests=[part],
                ask=_scored,
                run=run,
                keys=[key],
                expected=_scale_usage(expected, part.characters / max(1, longest)),
                is_part=True,
            )
            for key, part in distinct.items()
        ]

    def _call_in_threads(self, calls: Sequence[Call], run: RunContext) -> dict[bytes, Reply]:
        """The answers to calls of one part each, made by several threads, by key."""
        answers: dict[bytes, Reply] = {}
        new = []
        for call in calls:  # what was paid before is booked first, so that the budget admits less
            if run.recorder is not None and run.recorder.has_part(call.keys[0]):
                answers |= self._make(call)
            else:
                new.append(call)
        pool = ThreadPoolExecutor(max(1, min(len(new), self._threads)))
        try:
            futures = [pool.submit(self._make, call) for call in new]
            for future in _finished(futures):
                answers |= future.result()
        except BaseException as error:  # the active calls finish, and their answers are recorded
            run.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            self._throttle.wake()
            if isinstance(error, KeyboardInterrupt) and (active := len(run.active)):
                run.deadline.shorten(_GRACE_PERIOD)
                run.on_note(
                    f"waiting at most {_GRACE_PERIOD:g} s to keep the answers of active calls: "
                    f"{active}; interrupt again to drop them"
                )
            while run.active:  # a second interrupt ends this wait
                time.sleep(_POLL_INTERVAL)
            raise
        pool.shutdown()
        return answers

    def _make(self, call: Call) -> dict[bytes, Reply]:
        (key,) = call.keys
        call.run.active.add(key)
        try:
            return {key: self._call(call)[0]}
        finally:
            call.run.active.discard(key)


def _scored(requests: Sequence[ScoreRequest]) -> Callable[[Backend], Sequence[Reply]]:
    return methodcaller("score", list(requests))


def _measured(requests: Sequence[ScoreRequest]) -> Callable[[Backend], Sequence[Reply]]:
    (request,) = requests
    return lambda backend: [cast("Measures", backend).measure(request)]


def _replies(
    requests: Sequence[ScoreRequest],
    parts: Sequence[list[_Part]],
    answers: Mapping[bytes, Reply],
    paid: Set[bytes],
    run: RunContext,
) -> list[ScoreReply]:
    """One reply a request, joined from the answers to its parts; the cost model learns from it."""
    replies = []
    for request, its_parts in zip(requests, parts, strict=True):
        keys = [key for key, _ in its_parts]
        reply = _join([cast("ScoreReply", answers[key]) for key in keys])
        usage = sum((answers[key].usage for key in keys if key in paid), Usage())
        run.book(Spent(hits=int(paid.isdisjoint(keys))))
        paid = paid - set(keys)  # the second of two equal requests is a hit
        replies.append(replace(reply, usage=usage))
        run.cost.observe(request, usage)
    return replies


def _scale_usage(usage: Usage, share: float) -> Usage:
    return replace(usage, tokens=math.ceil(usage.tokens * share), money=usage.money * share)


def _join(parts: Sequence[ScoreReply]) -> ScoreReply:
    """The replies to the parts of a request as one, without usage."""
    logprobs = np.concatenate([part.logprobs for part in parts])
    logprobs.setflags(write=False)
    return ScoreReply(logprobs, bounds=sum(part.bounds for part in parts))


def _finished(futures: Sequence[Future[T]]) -> Iterator[Future[T]]:
    """Futures as they finish. Waits are short, because a signal just before one is missed."""
    left = set(futures)
    while left:
        done, left = wait_for(left, timeout=_SIGNAL_INTERVAL, return_when=FIRST_COMPLETED)
        yield from done
