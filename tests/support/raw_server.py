"""A server of raw bytes on loopback: sends given bytes, and records all requests."""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tests.support.server import Server

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
