"""How calls are made: the user's side of a backend. *A hit is free, every attempt is paid.*"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lmaas_tune.backend import Backend, Capabilities, ScoreReply, ScoreRequest, Usage
from lmaas_tune.errors import InputError, LMaaSError, PermanentError
from lmaas_tune.middleware.cache import ScoreCache, score_key
from lmaas_tune.middleware.meter import Meter, Spent
from lmaas_tune.middleware.retry import DEFAULT_RETRY, Retry
from lmaas_tune.prompts import FloatArray

_ROUNDING = 1e-6  # a log-probability may come out this far above 0
_JITTER = random.Random()


class Client:
    """How the user calls a backend: cache, then retry, then meter, then backend.

    May be called from several threads.

    Args:
        backend: The provider's side.
        cache: A cache, or the file of one; None keeps nothing.
        retry: When a transient failure is tried again.
        price: Money for the usage of one answer, where the backend names none: a `Price`, or
            any function.
        sleep: Waits for so many seconds.
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
        price: Callable[[Usage], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _JITTER.random,
    ) -> None:
        self.backend = backend
        self.meter = Meter(clock=clock)
        self._cache = ScoreCache(cache) if isinstance(cache, str | os.PathLike) else cache
        self._retry = retry
        self._price = price
        self._sleep, self._clock, self._chance = sleep, clock, chance
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
        self, requests: Sequence[ScoreRequest], *, meter: Meter | None = None
    ) -> list[ScoreReply]:
        """Answer every request, in order.

        What the cache does not hold goes to the backend as one list, equal requests once. Only
        that has usage: the reply of a hit, or of the second of two equal requests, took nothing.

        Args:
            requests: Usually one generation of prompts on one batch.
            meter: The run's; it is asked before every attempt, and books all of them.

        Returns:
            One reply a request; its log-probabilities are read-only float64 and at most 0, but
            NaN or -inf where the backend said so. Such a reply is never cached.

        Raises:
            BudgetExceededError: The meter refused an attempt.
            PermanentError: The backend failed for good, or its replies do not fit the requests.
            InputError: The backend cannot take one of the requests.
        """
        meters = [self.meter] if meter is None else [self.meter, meter]
        keys = [score_key(self.identity, request) for request in requests]
        scores = self._look_up(keys)
        missing = {key: r for key, r in zip(keys, requests, strict=True) if key not in scores}
        _book(meters, Spent(hits=len(keys) - len(missing)))
        paid: dict[bytes, ScoreReply] = {}
        if missing:
            paid = dict(zip(missing, self._ask(list(missing.values()), meters), strict=True))
            self._keep(paid)
        scores |= {key: reply.logprobs for key, reply in paid.items()}
        usages = {key: reply.usage for key, reply in paid.items()}
        return [ScoreReply(scores[key], usages.pop(key, Usage())) for key in keys]

    def priced(self, usage: Usage) -> Usage:
        """The usage with its money, by this client's price where the backend names none.

        Raises:
            InputError: The price gives no finite number from 0 up.
        """
        if usage.money or self._price is None:
            return usage
        money = self._price(usage)
        if not 0 <= money < float("inf"):
            raise InputError(f"the price gives {money!r} for {usage}: it takes 0 or more")
        return replace(usage, money=money)

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, FloatArray]:
        return self._cache.get_many(keys) if self._cache is not None else {}

    def _keep(self, replies: Mapping[bytes, ScoreReply]) -> None:
        if self._cache is not None:
            self._cache.put_many({key: reply.logprobs for key, reply in replies.items()})

    def _ask(self, requests: list[ScoreRequest], meters: list[Meter]) -> list[ScoreReply]:
        """Attempts until one succeeds; each of them admitted and booked."""
        rows = sum(len(request.batch) for request in requests)
        failures = 0

        def attempt() -> list[ScoreReply]:
            nonlocal failures
            for meter in meters:
                meter.admit(Spent(sequences=rows))
            if failures:
                _book(meters, Spent(retries=1))
            try:
                replies = self._call(requests)
            except InputError:  # refused before anything was sent
                raise
            except BaseException:
                failures += 1
                _book(meters, Spent(requests=1))  # what else it took, nobody told
                raise
            return self._settled(replies, meters)

        def wait(seconds: float) -> None:
            for meter in meters:
                meter.admit(Spent(seconds=seconds))  # no use in waiting past the end of the run
            self._sleep(seconds)

        replies = self._retry.run(attempt, sleep=wait, clock=self._clock, chance=self._chance)
        return self._checked(replies, requests)

    def _call(self, requests: list[ScoreRequest]) -> list[ScoreReply]:
        try:
            return list(self.backend.score(requests))
        except LMaaSError:
            raise
        except Exception as error:
            raise PermanentError(
                f"backend {self.identity!r} failed with {type(error).__name__}: {error}"
            ) from error

    def _settled(self, replies: list[ScoreReply], meters: list[Meter]) -> list[ScoreReply]:
        """The replies with their prices, booked."""
        priced = []
        for reply in replies:
            try:
                usage = self.priced(reply.usage)
                _book(meters, Spent.of(usage))
                priced.append(replace(reply, usage=usage))
            except (AttributeError, TypeError, InputError) as error:
                raise PermanentError(
                    f"backend {self.identity!r} gave a reply whose usage cannot be booked: {error}"
                ) from error
        return priced

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


def _logprobs(reply: ScoreReply, request: ScoreRequest) -> FloatArray:
    logprobs = np.array(reply.logprobs, dtype=np.float64)
    shape = (len(request.batch), len(request.candidates))
    if logprobs.shape != shape:
        raise ValueError(f"scores of shape {logprobs.shape} for {shape} (rows, candidates)")
    if (logprobs > _ROUNDING).any():
        raise ValueError(f"a log-probability of {np.nanmax(logprobs):g}, which is above 0")
    logprobs = np.minimum(logprobs, 0.0)
    logprobs.setflags(write=False)
    return logprobs


def _book(meters: list[Meter], part: Spent) -> None:
    for meter in meters:
        meter.book(part)
