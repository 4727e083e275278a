"""How a request waits for what is done for it elsewhere, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from lmaas_tune.backend import ScoreReply
from lmaas_tune.service.aside import DroppedError
from lmaas_tune.service.refusal import RefusalError
from lmaas_tune.service.scheduler import Job, Scheduler

T = TypeVar("T")


async def waited(work: Coroutine[Any, Any, T], request: Request, seconds: float) -> T:
    """What work gives, which is cancelled when its client leaves, or has waited too long."""
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body only its end can come
    either: set[asyncio.Future[Any]] = {doing, gone}
    try:
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return await doing
        doing.cancel()
        with contextlib.suppress(asyncio.CancelledError, DroppedError):
            return await doing
        if gone.done():
            raise RefusalError("client_gone", "the client went away")
        raise RefusalError(
            "overloaded",
            f"this waited {seconds} s for its turn: send it again later, or fewer at once",
            retry_after=seconds / 4,
        )
    finally:
        gone.cancel()
        doing.cancel()


async def scored(scheduler: Scheduler, job: Job) -> ScoreReply:
    """The answer to a job; one that is cancelled before its turn is not computed."""
    scheduler.submit(job)
    answer = asyncio.wrap_future(job.reply)
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        if scheduler.withdraw(job):
            raise
        return await answer
