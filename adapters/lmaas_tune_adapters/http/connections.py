"""Connections that end with the deadline of a call, however slowly bytes are sent or received.

A socket's timeout limits one wait only, so a server that sends a byte now and then is never late.
Here each wait gets the time that is left until the deadline. A proxy's answer to CONNECT and
encrypted connections are read in the same way.
"""

from __future__ import annotations

import http.client
import io
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter

from lmaas_tune.calls import deadline

if TYPE_CHECKING:
    import socket

    from requests import PreparedRequest

_LOOK = 1.0  # seconds between two looks at a deadline, which may be brought forward


class TimedAdapter(HTTPAdapter):
    """The adapter of requests, with connections that end at `lmaas_tune.calls.deadline`."""

    def get_connection_with_tls_context(
        self, request: PreparedRequest, *args: Any, **kwargs: Any
    ) -> Any:
        """Return the pool of a request, with timed connections."""
        pool: Any = super().get_connection_with_tls_context(request, *args, **kwargs)
        if not issubclass(pool.ConnectionCls, _TimedConnection):  # SOCKS has its own classes
            pool.ConnectionCls = type("Timed", (_TimedConnection, pool.ConnectionCls), {})
        return pool


class _TimedResponse(http.client.HTTPResponse):
    """Reads everything from the status line to the trailers through `_TimedReader`."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(sock, self.fp))


class _TimedConnection(http.client.HTTPConnection):
    response_class = _TimedResponse

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Pickle as text: errors that are sent to other processes may hold a connection."""
        return str, (str(self),)

    def send(self, data: Any) -> None:
        """Send one block."""
        if self.sock is not None:  # else it is connected first, with its own timeout
            self.sock.settimeout(_wait(deadline.left()))
        super().send(data)


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the deadline.

    Args:
        sock: Read from.
        held: The library's own reader; while it is open, the socket stays open.
    """

    def __init__(self, sock: socket.socket, held: io.BufferedReader) -> None:
        self._sock, self._held = sock, held

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for some bytes."""
        while True:
            self._sock.settimeout(min(_LOOK, _wait(deadline.left())))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue  # `_wait` raises once the deadline has passed

    def close(self) -> None:
        """Release the socket."""
        self._held.close()
        super().close()


def _wait(seconds: float) -> float:
    """Return the timeout of one wait.

    Raises:
        TimeoutError: There is no time left.
    """
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds
