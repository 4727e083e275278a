"""Work that takes time and is not scoring, in threads beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lmaas_tune.service.refusal import RefusalError, stopping
from lmaas_tune.spaces import Checkpoint

T = TypeVar("T")


class DroppedError(Exception):
    """Nobody waits for this work any more."""


class Aside:
    """Threads that do one piece of work of a key at a time, so that no key holds up another.

    For the event loop, except `close`.

    Args:
        name: Of the threads.
        threads: How many.
        most: Pieces of work of one key that may wait or be under way.
        bound: Name of the bound that `most` is.
    """

    def __init__(self, name: str, *, threads: int, most: int, bound: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most, self._bound = most, bound
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._taken: Counter[str] = Counter()
        self._closing = False

    @property
    def taken(self) -> int:
        """Pieces of work that wait or are under way."""
        return self._taken.total()

    async def do(self, key: str, work: Callable[[Checkpoint], T]) -> T:
        """What the work gives, when the key's turn has come.

        A task that is cancelled while it waits never begins the work. One that is cancelled
        later ends at the work's next checkpoint, or with the outcome where there is none.

        Raises:
            RefusalError: Too much waits for this key already, or the service stops.
            DroppedError: The task was cancelled at a checkpoint.
        """
        if self._taken[key] >= self._most:
            raise RefusalError(
                "overloaded",
                f"{self._most} requests of this kind wait for this key already ({self._bound}): "
                "send it again later, or fewer at once",
                retry_after=1.0,
            )
        dropped = threading.Event()

        def checkpoint() -> None:
            if self._closing:
                raise stopping()
            if dropped.is_set():
                raise DroppedError

        def begin() -> T:
            checkpoint()
            return work(checkpoint)

        self._taken[key] += 1
        try:
            async with self._turns[key]:
                doing = asyncio.get_running_loop().run_in_executor(self._pool, begin)
                try:
                    return await asyncio.shield(doing)
                except asyncio.CancelledError:
                    dropped.set()
                    return await doing  # the turn is over when the thread is free
        finally:
            self._taken[key] -= 1

    def stop(self) -> None:
        """End what waits, and what is under way at its next checkpoint."""
        self._closing = True

    def close(self) -> None:
        """Return when no thread is at work any more."""
        self.stop()
        self._pool.shutdown()
