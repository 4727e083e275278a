"""The thread that calls the model: fair queuing among keys, many requests in one forward pass."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lmaas_tune.service.errors import ApiError, stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lmaas_tune.backend import Backend, ScoreReply, ScoreRequest
    from lmaas_tune.service.server_limits import ServerLimits


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A request that waits for the model.

    Attributes:
        key: Name of its key.
        rows: Rows to score.
        tokens: Most tokens that the model will read, estimated.
        prepare: Builds the request for the model; called at the job's turn, so that nothing large
            waits in the queue.
        reply: Receives the reply, or the error.
    """

    key: str
    rows: int
    tokens: int
    prepare: Callable[[], ScoreRequest]
    reply: Future[ScoreReply] = field(default_factory=Future)


class Observer(Protocol):
    """Is notified of the scheduler's calls, from its thread."""

    def passed(self, requests: int, seconds: float, /) -> None:
        """The model answered this number of requests together."""
        ...


class Scheduler:
    """Takes waiting jobs in rounds, and scores requests on the same batch together.

    Fair queuing: the next job is that of the waiting key with the fewest rows so far, so that a
    key with a thousand requests does not delay one with two. Idle keys accrue no credit: a key
    that returns starts at the level of the others.

    Args:
        backend: The model. Only this thread calls it for scores.
        limits: `queue` and `round_rows`.
        observer: Is notified of each call.
    """

    def __init__(self, backend: Backend, limits: ServerLimits, observer: Observer) -> None:
        self._backend, self._limits, self._observer = backend, limits, observer
        self._waiting: dict[str, deque[Job]] = {}
        self._served: defaultdict[str, int] = defaultdict(int)  # rows
        self._level = 0  # rows that the last key had when its turn came
        self._jobs = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return self._jobs

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ApiError: The queue is full, or the service stops.
        """
        with self._changed:
            if self._closing:
                raise stopping()
            if self._jobs >= self._limits.queue:
                raise ApiError(
                    "overloaded",
                    f"{self._jobs} requests wait already: send it again later, or fewer at once",
                    retry_after=1.0,
                )
            if job.key not in self._waiting:
                self._waiting[job.key] = deque()
                self._served[job.key] = max(self._served[job.key], self._level)
            self._waiting[job.key].append(job)
            self._jobs += 1
            self._changed.notify()

    def withdraw(self, job: Job) -> bool:
        """Remove a job from the queue; False if its turn has come already."""
        with self._changed:
            jobs = self._waiting.get(job.key, ())
            if job not in jobs:
                return False
            self._remove(job)
            return True

    def close(self, grace: float) -> None:
        """Accept no more jobs; return when all accepted ones are answered.

        Args:
            grace: Seconds after which jobs that still wait are refused. A running one is always
                finished.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace)
        with self._changed:
            late = [job for jobs in self._waiting.values() for job in jobs]
            for job in late:
                self._remove(job)
        for job in late:
            if job.reply.set_running_or_notify_cancel():
                job.reply.set_exception(stopping())
        self._thread.join()

    def _work(self) -> None:
        while self._round():
            pass

    def _round(self) -> bool:
        """Answer the jobs of one round; False if there will be no more."""
        jobs = self._take()
        for group in _grouped(_prepared(jobs)):
            self._answer(group)
        return bool(jobs)

    def _take(self) -> list[Job]:
        """The jobs of the next round, at least one; none when closed and empty."""
        jobs: list[Job] = []
        rows = 0
        with self._changed:
            while not jobs or (self._waiting and rows < self._limits.round_rows):
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    break
                job = self._next()
                if job.reply.set_running_or_notify_cancel():
                    jobs.append(job)
                    rows += job.rows
        return jobs

    def _next(self) -> Job:
        key = min(self._waiting, key=lambda name: self._served[name])
        job = self._waiting[key][0]
        self._remove(job)
        self._level = self._served[key]
        self._served[key] += job.rows
        return job

    def _remove(self, job: Job) -> None:
        self._waiting[job.key].remove(job)
        self._jobs -= 1
        if not self._waiting[job.key]:
            del self._waiting[job.key]

    def _answer(self, group: Sequence[tuple[Job, ScoreRequest]]) -> None:
        # a model with a limit of rows a call takes one request a call
        step = len(group) if self._backend.capabilities.rows_per_call is None else 1
        for start in range(0, len(group), step):
            part = group[start : start + step]
            began = time.perf_counter()
            outcomes = self._scores([request for _, request in part])
            self._observer.passed(len(part), time.perf_counter() - began)
            for (job, _), outcome in zip(part, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    job.reply.set_exception(outcome)
                else:
                    job.reply.set_result(outcome)

    def _scores(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply | Exception]:
        """A reply or an error for each request: if one fails, the others are scored without it."""
        try:
            return _checked(list(self._backend.score(requests)), requests)
        except BaseException as error:  # a panic in a tokenizer is no Exception
            if len(requests) == 1:
                return [_as_exception(error)]
        middle = len(requests) // 2
        return self._scores(requests[:middle]) + self._scores(requests[middle:])


def _prepared(jobs: Iterable[Job]) -> list[tuple[Job, ScoreRequest]]:
    prepared = []
    for job in jobs:
        try:
            prepared.append((job, job.prepare()))
        except BaseException as error:
            job.reply.set_exception(_as_exception(error))
    return prepared


def _as_exception(error: BaseException) -> Exception:
    """The error as the caller may receive it; the scheduler's thread continues."""
    return error if isinstance(error, Exception) else RuntimeError(type(error).__name__)


def _grouped(
    prepared: Iterable[tuple[Job, ScoreRequest]],
) -> list[list[tuple[Job, ScoreRequest]]]:
    """Jobs grouped by batch and label words, which share forward passes."""
    groups: defaultdict[tuple[object, ...], list[tuple[Job, ScoreRequest]]] = defaultdict(list)
    for job, request in prepared:
        groups[request.batch.digest, request.candidates].append((job, request))
    return list(groups.values())


def _checked(
    replies: list[ScoreReply], requests: Sequence[ScoreRequest]
) -> list[ScoreReply | Exception]:
    shapes = [reply.logprobs.shape for reply in replies]
    if shapes != [(len(request.batch), len(request.candidates)) for request in requests]:
        raise RuntimeError("the model's replies do not fit the requests")
    return list(replies)
