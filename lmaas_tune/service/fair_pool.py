"""A thread pool that is fair among keys: it runs one task of each key at a time."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from lmaas_tune.prompts.projections import Checkpoint
from lmaas_tune.service.errors import ApiError, stopping

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class AbandonedError(Exception):
    """The client of this task no longer waits."""


class FairPool:
    """Threads for work other than scoring, so that no key delays another key or the event loop.

    For the event loop, except `close`.

    Args:
        name: Prefix of the threads' names.
        threads: Their number.
        most: Tasks of one key that may wait or run.
        limit: The name of `most` among `ServerLimits`.
    """

    def __init__(self, name: str, *, threads: int, most: int, limit: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most, self._limit = most, limit
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: Counter[str] = Counter()
        self._closing = False

    @property
    def tasks(self) -> int:
        """Tasks that wait or run."""
        return self._tasks.total()

    async def run(self, key: str, task: Callable[[Checkpoint], T]) -> T:
        """The result of a task, run in the key's turn.

        A task that is cancelled while it waits never starts. One that is cancelled later ends at
        its next checkpoint, or completes if it has none.

        Raises:
            ApiError: Too many tasks of this key wait already, or the service stops.
            AbandonedError: The task was cancelled at a checkpoint.
        """
        if self._tasks[key] >= self._most:
            raise ApiError(
                "overloaded",
                f"{self._most} requests of this kind wait for this key already ({self._limit}): "
                "send it again later, or fewer at once",
                retry_after=1.0,
            )
        abandoned = threading.Event()

        def checkpoint() -> None:
            if self._closing:
                raise stopping()
            if abandoned.is_set():
                raise AbandonedError

        def start() -> T:
            checkpoint()
            return task(checkpoint)

        self._tasks[key] += 1
        try:
            async with self._turns[key]:
                running = asyncio.get_running_loop().run_in_executor(self._pool, start)
                try:
                    return await asyncio.shield(running)
                except asyncio.CancelledError:
                    abandoned.set()
                    return await running  # the turn ends when the thread is free
        finally:
            self._tasks[key] -= 1

    def stop(self) -> None:
        """End the tasks that wait, and those that run at their next checkpoint."""
        self._closing = True

    def close(self) -> None:
        """Return when no thread runs a task."""
        self.stop()
        self._pool.shutdown()
