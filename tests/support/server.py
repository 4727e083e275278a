"""A server on loopback for stand-ins of providers: one class owns the socket and the threads."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, TypeAlias, TypeVar

S = TypeVar("S", bound="Server")

Answer: TypeAlias = Callable[[str, str, bytes], tuple[int, Any]]
"""From path, Authorization and body of a request to status and JSON of the reply."""


class Server:
    """Serves each connection in a thread, within ``with``.

    Args:
        handle: Serves one connection until its end; the server closes it.
        tls: Encrypts the connections; None does not.

    Attributes:
        url: Its address.
        connections: Number of connections so far.
    """

    def __init__(
        self, handle: Callable[[socket.socket], object], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._handle, self._tls = handle, tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def all_hung_up(self) -> bool:
        """Whether no connection is open."""
        with self._lock:
            return not self._open

    def __enter__(self: S) -> S:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10)  # no connection is accepted after this
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed: the end
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:  # the handshake happens in the connection's thread
                connection = self._tls.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
            self.connections += 1
            with self._lock:
                self._open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError):  # the client hung up
                self._handle(connection)
        finally:
            connection.close()
            with self._lock:
                self._open.discard(connection)


def json_handler(answer: Answer) -> Callable[[socket.socket], object]:
    """A handler that replies to every GET and POST with JSON."""

    class Handler(QuietHandler):
        def answer(self, body: bytes) -> None:
            status, reply = answer(self.path, self.headers.get("Authorization") or "", body)
            content = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


class QuietHandler(BaseHTTPRequestHandler):
    """Reads HTTP requests from a connection, and calls `answer` for each."""

    protocol_version = "HTTP/1.1"

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection, connection.getpeername(), None)  # type: ignore[arg-type]

    def answer(self, body: bytes) -> None:
        """Answer the request, whose head is in the attributes of the base class."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_POST = do_GET  # noqa: N815  # their names are fixed

    def log_message(self, *_: Any) -> None:
        """Log nothing."""
