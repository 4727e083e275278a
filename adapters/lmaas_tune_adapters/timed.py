"""Connections that end with the deadline of a call, whatever trickles in or is slow to go out.

The timeout of a socket is for one wait: a server that sends a byte now and then is never late. So
each wait here gets what is left until the deadline. The answer of a proxy to CONNECT and encrypted
connections are read through the same door.
"""

from __future__ import annotations

import http.client
import io
import socket
from typing import Any

from requests import PreparedRequest
from requests.adapters import HTTPAdapter

from lmaas_tune.calls import deadline

_GLANCE = 1.0  # seconds after which a wait looks whether its deadline was brought forward


class TimedAdapter(HTTPAdapter):
    """Of requests, with connections that heed `lmaas_tune.calls.deadline`."""

    def get_connection_with_tls_context(
        self, request: PreparedRequest, *args: Any, **kwargs: Any
    ) -> Any:
        """The pool for a request, its connections timed."""
        pool: Any = super().get_connection_with_tls_context(request, *args, **kwargs)
        if not issubclass(pool.ConnectionCls, _Timed):  # SOCKS has classes of its own
            pool.ConnectionCls = type("Timed", (_Timed, pool.ConnectionCls), {})
        return pool


class _Answer(http.client.HTTPResponse):
    """Reads all that comes, status line to trailers, through `_Incoming`."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Incoming(sock, self.fp))


class _Timed(http.client.HTTPConnection):
    response_class = _Answer

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """An error that is sent to another process may hold its connection."""
        return str, (str(self),)

    def send(self, data: Any) -> None:
        """Send one block."""
        if self.sock is not None:  # else it is made first, with a timeout of its own
            self.sock.settimeout(_wait(deadline.left()))
        super().send(data)


class _Incoming(io.RawIOBase):
    """What comes over a socket until the deadline.

    Args:
        sock: Read from.
        held: What the library would read from; open, it keeps the socket open.
    """

    def __init__(self, sock: socket.socket, held: io.BufferedReader) -> None:
        self._sock, self._held = sock, held

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for some bytes."""
        while True:
            self._sock.settimeout(min(_GLANCE, _wait(deadline.left())))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue  # the deadline says whether that was the last wait

    def close(self) -> None:
        """Let go of the socket."""
        self._held.close()
        super().close()


def _wait(seconds: float) -> float:
    """A timeout for one wait.

    Raises:
        TimeoutError: There is no time left.
    """
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds
