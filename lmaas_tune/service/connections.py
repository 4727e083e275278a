"""Limits on connections: their number, slow requests, slow readers, exhausted file descriptors.

uvicorn's own `limit_concurrency` counts idle connections and refuses ``/health`` with all others,
and uvicorn waits for the head of a request without limit. Here a new connection replaces the one
that has been idle longest: a client that opens many, or sends little on each, does not
exclude others.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from lmaas_tune.service.log import Log, described

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Scope

    from lmaas_tune.service.server_limits import ServerLimits

Address: TypeAlias = tuple[str, int]

BACKLOG = 128
"""Connections that the event loop accepts at once, before it can close another for them."""

_SPARE = 16  # connections beside those of requests in progress, so that /health finds one
_OTHERS = 64  # approximate number of descriptors that the rest of the process needs
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connections:
    """All connections of a service. For the event loop's thread.

    Args:
        limits: `connections`, `head_seconds` and `body_seconds`.
        log: Gets a line a second about closed connections.

    Attributes:
        most_busy: Requests that may be in progress at once.
    """

    def __init__(self, limits: ServerLimits, log: Log) -> None:
        self.most_busy = max(1, min(limits.connections, _descriptors() - BACKLOG - _OTHERS))
        self._limits, self._log = limits, log
        self._open: dict[Address, _Connection] = {}  # first the one used longest ago

    def protocol(self, **given: Any) -> asyncio.Protocol:
        """Called by uvicorn for each connection, with the arguments of its own protocols."""
        return _Connection(H11Protocol(**given), self._limits, self)

    @contextmanager
    def busy(self, scope: Scope) -> Iterator[None]:
        """Within ``with``, the connection of a request is not closed."""
        connection = self._open.get(scope["client"])
        if connection is None:  # the client has disconnected already
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
        """Count a connection, and close another one if there are too many."""
        if len(self._open) >= self.most_busy + _SPARE:
            self._log.rarely("connections_full", most=self.most_busy)
            self._close_idle()
        self._open[connection.address] = connection

    def closed(self, connection: _Connection) -> None:
        """Stop counting a connection."""
        if self._open.get(connection.address) is connection:
            del self._open[connection.address]

    def slow(self, connection: _Connection, why: str) -> None:
        """Close a connection that is too slow."""
        self._log.rarely("connection_ended", why=why)
        connection.end()

    def failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle errors of the event loop itself, such as accepting without descriptors."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            self._log.rarely("no_descriptors", error=errno.errorcode[error.errno])
            self._close_idle()  # the loop accepts again after a second
        else:
            self._log.rarely("fault", **({} if error is None else described(error)))

    def _close_idle(self) -> None:
        for connection in self._open.values():
            if connection.idle:
                self._open.pop(connection.address)
                connection.end()
                return


_NO_HEAD = "sent no whole head of a request"
_NO_READER = "did not read its answer"


class _Connection(asyncio.Protocol):
    """Passes all events on to uvicorn's protocol, and times them."""

    def __init__(self, inner: H11Protocol, limits: ServerLimits, connections: Connections) -> None:
        self._inner, self._connections = inner, connections
        self._seconds = {_NO_HEAD: limits.head_seconds, _NO_READER: limits.body_seconds}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.idle = True

    def begin(self) -> None:
        """A request has arrived."""
        self.idle = False
        self._stop(_NO_HEAD)

    def finish(self) -> None:
        """It is answered."""
        self.idle = True

    def end(self) -> None:
        """Close it, with anything in transit."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
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
        """Close the connection for this reason, unless the timer is stopped in time."""
        slow = self._connections.slow
        loop = asyncio.get_running_loop()
        self._timers[why] = loop.call_later(self._seconds[why], slow, self, why)

    def _stop(self, why: str) -> None:
        if timer := self._timers.pop(why, None):
            timer.cancel()


def _descriptors() -> int:
    """The number of files that this process may have open."""
    try:
        import resource
    except ImportError:  # no Unix: no such limit
        return 1 << 20
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
