"""Waiting for work: it ends when its client disconnects, or after the longest time to wait."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from lmaas_tune.service.errors import ApiError
from lmaas_tune.service.fair_pool import AbandonedError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from fastapi import Request

    from lmaas_tune.backend import ScoreReply
    from lmaas_tune.service.scheduler import Job, Scheduler

T = TypeVar("T")


async def run_within(seconds: float, work: Coroutine[Any, Any, T], request: Request) -> T:
    """The result of the work, which is cancelled when its client disconnects or the time is over.

    Raises:
        ApiError: It was cancelled.
    """
    result = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(request.receive())  # after the body nothing else arrives
    either: set[asyncio.Future[Any]] = {result, disconnect}
    try:
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return await result
        result.cancel()
        with contextlib.suppress(asyncio.CancelledError, AbandonedError):
            return await result
        if disconnect.done():
            raise ApiError("client_gone", "the client disconnected")
        raise ApiError(
            "overloaded",
            f"this waited {seconds} s for its turn: send it again later, or fewer at once",
            retry_after=seconds / 4,
        )
    finally:
        disconnect.cancel()
        result.cancel()


async def reply_to(job: Job, scheduler: Scheduler) -> ScoreReply:
    """The model's reply to a job; one that is cancelled before its turn is not computed."""
    scheduler.submit(job)
    reply = asyncio.wrap_future(job.reply)
    try:
        return await asyncio.shield(reply)
    except asyncio.CancelledError:
        if scheduler.withdraw(job):
            raise
        return await reply
