"""Connections: so many at once, each with a request in time; and what happens without descriptors.

uvicorn's own `limit_concurrency` counts idle connections, and refuses ``/health`` with all others;
and it waits for the head of a request for ever. Here a new connection takes the place of the one
that has been idle longest: who opens many, or sends little on each, shuts out nobody.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from lmaas_tune.service.bounds import Bounds
from lmaas_tune.service.log import Log, described

Address: TypeAlias = tuple[str, int]

BACKLOG = 128
"""Connections that the event loop accepts at once, before it can end another for them."""

_SPARE = 16  # connections beside those of requests under way, so that /health finds one
_OTHERS = 64  # descriptors that the rest of the process needs, about
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connections:
    """All connections of a service. For the event loop's thread.

    Args:
        bounds: `connections`, `head_seconds` and `body_seconds`.
        log: Is told what was ended, a line a second.

    Attributes:
        most_busy: Requests that may be under way at once.
    """

    def __init__(self, bounds: Bounds, log: Log) -> None:
        self.most_busy = max(1, min(bounds.connections, _descriptors() - BACKLOG - _OTHERS))
        self._bounds, self._log = bounds, log
        self._open: dict[Address, _Connection] = {}  # first the one used longest ago

    def protocol(self, **given: Any) -> asyncio.Protocol:
        """What uvicorn calls for each connection, with what its own protocols take."""
        return _Connection(H11Protocol(**given), self._bounds, self)

    @contextmanager
    def busy(self, scope: Scope) -> Iterator[None]:
        """While it is inside, the connection of a request is not ended."""
        connection = self._open.get(scope["client"])
        if connection is None:  # the client has gone already
            yield
            return
        connection.begin()
        try:
            yield
        finally:
            connection.finish()
            if self._open.pop(connection.address, None):
                self._open[connection.address] = connection

    def opened(self, connection: _Connection) -> None:
        """Count a connection, and end another one where there are too many."""
        if len(self._open) >= self.most_busy + _SPARE:
            self._log.rarely("connections_full", most=self.most_busy)
            self._end_one()
        self._open[connection.address] = connection

    def closed(self, connection: _Connection) -> None:
        """Count a connection no more."""
        if self._open.get(connection.address) is connection:
            del self._open[connection.address]

    def slow(self, connection: _Connection, why: str) -> None:
        """End a connection that is too slow."""
        self._log.rarely("connection_ended", why=why)
        connection.end()

    def failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handles what fails in the event loop itself, as accepting without descriptors does."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            self._log.rarely("no_descriptors", error=errno.errorcode[error.errno])
            self._end_one()  # the loop accepts again after a second
        else:
            self._log.rarely("fault", **({} if error is None else described(error)))

    def _end_one(self) -> None:
        for connection in self._open.values():
            if connection.idle:
                self._open.pop(connection.address)
                connection.end()
                return


_NO_HEAD = "sent no whole head of a request"
_NO_READER = "did not read its answer"


class _Connection(asyncio.Protocol):
    """Passes on to uvicorn's protocol what happens, and times it."""

    def __init__(self, inner: H11Protocol, bounds: Bounds, connections: Connections) -> None:
        self._inner, self._connections = inner, connections
        self._seconds = {_NO_HEAD: bounds.head_seconds, _NO_READER: bounds.body_seconds}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.idle = True

    def begin(self) -> None:
        """A request is there."""
        self.idle = False
        self._stop(_NO_HEAD)

    def finish(self) -> None:
        """It is answered."""
        self.idle = True

    def end(self) -> None:
        """Close it, whatever is on its way."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        host, port = transport.get_extra_info("peername")[:2]
        self.address = (str(host), int(port))
        self._connections.opened(self)
        self._time(_NO_HEAD)
        self._inner.connection_made(self._transport)

    def data_received(self, data: bytes) -> None:
        if self.idle and _NO_HEAD not in self._timers:
            self._time(_NO_HEAD)
        self._inner.data_received(data)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._time(_NO_READER)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._stop(_NO_READER)
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(_NO_HEAD)
        self._stop(_NO_READER)
        self._connections.closed(self)
        self._inner.connection_lost(exc)

    def _time(self, why: str) -> None:
        """End the connection for this reason, unless it is stopped in time."""
        slow = self._connections.slow
        loop = asyncio.get_running_loop()
        self._timers[why] = loop.call_later(self._seconds[why], slow, self, why)

    def _stop(self, why: str) -> None:
        if timer := self._timers.pop(why, None):
            timer.cancel()


def _descriptors() -> int:
    """How many files this process may have open."""
    try:
        import resource
    except ImportError:  # no Unix: no such limit
        return 1 << 20
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
