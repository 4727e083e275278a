"""Servers on loopback: a base for stand-ins of providers, and a server of raw bytes."""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, TypeAlias, TypeVar

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


_DROPS = 200
"""Pieces of a reply that comes drop by drop: several seconds of them."""


@dataclass(frozen=True)
class Say:
    """What the server does with one request.

    Attributes:
        data: Sent as it is.
        then: The next step: the next request; the end of the connection, in order or by a reset;
            silence until the client hangs up; or `drop` at intervals until it does.
        drop: Sent at intervals if the reply trickles.
    """

    data: bytes
    then: Literal["keep", "close", "reset", "silence", "trickle"] = "keep"
    drop: bytes = b"."


def reply(
    body: bytes = b"", *, status: str = "200 OK", headers: dict[str, str] | None = None
) -> bytes:
    """A whole HTTP reply with its length."""
    head = {"Content-Length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class RawServer(Server):
    """Answers requests in the order they come, from any number of connections.

    Args:
        answer: Takes the bytes of a request; or one reply for all.
        unhurried: Seconds between reads of a body.
        tls: Encrypts the connections; None does not.

    Attributes:
        heard: The bytes of every request, in order.
        most: Most connections that were busy with a request at the same time.
    """

    def __init__(
        self,
        answer: Callable[[bytes], Say] | Say | bytes,
        *,
        unhurried: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(self._answer_all, tls=tls)
        says = Say(answer) if isinstance(answer, bytes) else answer
        self._answer = says if callable(says) else lambda _: says
        self._unhurried = unhurried
        self._busy = self.most = 0
        self.heard: list[bytes] = []

    def _answer_all(self, connection: socket.socket) -> None:
        for request in self._requests(connection):
            if not self._say(connection, request):
                break

    def _requests(self, connection: socket.socket) -> Iterator[bytes]:
        buffer = bytearray()
        while True:
            while b"\r\n\r\n" not in buffer:
                if not (piece := connection.recv(65536)):
                    return
                buffer += piece
            size = buffer.index(b"\r\n\r\n") + 4
            for line in buffer[:size].lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    size += int(line.split(b":")[1])
            while len(buffer) < size:
                select.select([], [], [], self._unhurried)
                if not (piece := connection.recv(65536)):
                    return
                buffer += piece
            yield bytes(buffer[:size])
            del buffer[:size]

    def _say(self, connection: socket.socket, request: bytes) -> bool:
        with self._lock:
            self.heard.append(request)
            self._busy += 1
            self.most = max(self.most, self._busy)
        try:
            say = self._answer(request)
            connection.sendall(say.data)
            if say.then == "reset":
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif say.then == "silence":
                connection.recv(1)
            for _ in range(_DROPS if say.then == "trickle" else 0):
                if select.select([connection], [], [], 0.02)[0]:  # the client hung up
                    break
                connection.sendall(say.drop)
            return say.then == "keep"
        finally:
            with self._lock:
                self._busy -= 1
