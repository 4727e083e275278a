"""A proxy on loopback that damages a share of the requests between a client and a service."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import http.client
import json
import random
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import numpy as np

from tests.support.server import QuietHandler, Server

TRICKLES = {
    "100 Continue without end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a status line without end": (b"HTTP/1.1 2", b"0"),
    "a header without end": (b"HTTP/1.1 200 OK\r\nA: ", b"x"),
    "headers without end": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "a chunk extension without end": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"a",
    ),
    "trailers without end": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"A: b\r\n",
    ),
}
"""Answers that are never whole: their first bytes, and the bytes that repeat."""

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_LONGEST_STALL = 60.0  # seconds; a client gives up long before


@dataclass(frozen=True)
class Request:
    """A request of a client."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def route(self) -> str:
        """Method and path, as ``POST /v1/score``."""
        return f"{self.method} {'/'.join(self.path.split('?')[0].split('/')[:3])}"

    @property
    def name(self) -> str:
        """The route and content of a request, equal for repeated ones."""
        return f"{self.route} {hashlib.sha256(self.path.encode() + self.body).hexdigest()}"


@dataclass(frozen=True)
class Reply:
    """A reply of the service. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_json(self) -> bool:
        return self.headers.get("content-type", "").startswith("application/json")

    def encoded(self, *, length: int | None = None) -> bytes:
        """The bytes of the reply; `length` is the stated one."""
        promised = len(self.body) if length is None else length
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, f"content-length: {promised}", "", ""]).encode() + self.body


class FaultyProxy(Server):
    """Passes requests on, and spoils some. Which one gets which fault is drawn from the seed, the
    request, and how often it came before: not from the order in which threads come.

    Args:
        upstream: URL of the service.
        share: Of the requests that are spoilt; may be changed.
        kinds: Faults to choose from, see `KINDS`.
        seed: Of the choice.
        labels: Columns of the service's scores.
        lets_in: Called with each request first, and may wait; if false, the proxy hangs up.
        answers: Gives an answer instead of the service's, to some requests.

    Attributes:
        met: Number of requests with each fault.
        routes: Number of requests to each route.
        answered: By its name, how often a request got the undamaged answer.
    """

    def __init__(
        self,
        upstream: str,
        *,
        share: float = 0.2,
        kinds: tuple[str, ...] | None = None,
        seed: int = 0,
        labels: int = 2,
        lets_in: Callable[[Request], bool] = lambda _: True,
        answers: Callable[[Request], Reply | None] = lambda _: None,
    ) -> None:
        super().__init__(lambda connection: _Handler(connection, self))
        self.upstream = urlsplit(upstream).netloc
        self.lets_in, self.answers = lets_in, answers
        self.met: Counter[str] = Counter()
        self.routes: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.share = share
        self.kinds, self._seed = kinds or KINDS, seed
        self._labels = labels
        self._asked: Counter[str] = Counter()
        self._last: dict[str, tuple[str, Reply]] = {}

    def table(self) -> str:
        """The numbers of requests and of faults, as text."""
        asked, spoilt = sum(self._asked.values()), sum(self.met.values())
        lines = [f"{asked} requests, {spoilt} of them spoilt"]
        return "\n".join([*lines, *(f"{self.met[kind]:6}  {kind}" for kind in self.kinds)])

    def draw(self, request: Request) -> str | None:
        """The fault of this request, or None."""
        with self._lock:
            before = self._asked[request.name]
            self._asked[request.name] += 1
        chance = random.Random(f"{self._seed}|{request.name}|{before}")
        return chance.choice(self.kinds) if chance.random() < self.share else None

    def count(self, counter: Counter[str], name: str) -> None:
        """Add 1 to a counter, under a lock."""
        with self._lock:
            counter[name] += 1

    def remember(self, request: Request, reply: Reply) -> tuple[str, Reply] | None:
        """Store an answer; returns the last one of this kind, with the name of its request."""
        with self._lock:
            before = self._last.get(request.route)
            self._last[request.route] = (request.name, reply)
        return before

    def without_a_label(self, reply: Reply) -> Reply:
        """One column of the scores is gone, or one value of an object; the rest is whole."""
        if reply.is_json:
            content = json.loads(reply.body)
            content.popitem()
            return replace(reply, body=json.dumps(content).encode())
        columns = np.frombuffer(reply.body, "<f4").reshape(-1, self._labels)[:, :-1]
        body = columns.tobytes()
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        return replace(
            reply, body=body, headers={**reply.headers, "content-digest": f"sha-256=:{digest}:"}
        )


class _Handler(QuietHandler):
    """One connection of a client, and one to the service."""

    def __init__(self, connection: socket.socket, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        self._service: http.client.HTTPConnection | None = None
        super().__init__(connection)

    def finish(self) -> None:
        if self._service is not None:
            self._service.close()
        super().finish()

    def answer(self, body: bytes) -> None:
        request = Request(self.command, self.path, dict(self.headers.items()), body)
        if not self.proxy.lets_in(request):
            self.close_connection = True
            return
        if (reply := self.proxy.answers(request)) is not None:
            self.send(reply)
            return
        kind = self.proxy.draw(request)
        if kind is None:
            self.deliver(request, self.ask(request))
        elif _FAULTS[kind](self, request):
            self.proxy.count(self.proxy.met, kind)

    def ask(self, request: Request) -> Reply:
        """The service's answer; 502 where there is none."""
        self.proxy.count(self.proxy.routes, request.route)
        if self._service is None:
            self._service = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            self._service.request(request.method, request.path, request.body, dict(request.headers))
            response = self._service.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self._service.close()
            self._service = None
            return _refusal(502)
        headers = {name.lower(): value for name, value in response.getheaders()}
        kept = {name: value for name, value in headers.items() if name not in _HOP_BY_HOP}
        return Reply(response.status, kept, content)

    def deliver(self, request: Request, reply: Reply) -> None:
        """Pass an answer on as it is."""
        self.send(reply)
        if reply.status < 300:
            self.proxy.remember(request, reply)
            self.proxy.count(self.proxy.answered, request.name)

    def send(self, reply: Reply, *, length: int | None = None) -> None:
        self.wfile.write(reply.encoded(length=length))

    def reset(self) -> None:
        """Reset the connection."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def wait_for_its_end(self) -> None:
        """Send nothing until the client hangs up."""
        with suppress(OSError):
            select.select([self.connection], [], [], _LONGEST_STALL)
        self.close_connection = True


def _refusal(status: int, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps({"error": {"code": "faulty", "message": "spoilt by the proxy"}}).encode()
    return Reply(status, {"content-type": "application/json", **(headers or {})}, body)


_Fault = Callable[[_Handler, Request], bool]
"""Answers a request, and says whether it did so wrongly."""


def _refuse(status: int, headers: Mapping[str, str] | None = None) -> _Fault:
    def fault(handler: _Handler, request: Request) -> bool:
        handler.send(_refusal(status, headers))
        return True

    return fault


def _by_date(handler: _Handler, request: Request) -> bool:
    now = email.utils.formatdate(usegmt=True)
    handler.send(_refusal(429, {"date": now, "retry-after": now}))
    return True


def _reset(handler: _Handler, request: Request) -> bool:
    reply = handler.ask(request)
    half = replace(reply, body=reply.body[: len(reply.body) // 2])
    handler.send(half, length=len(reply.body))
    handler.reset()
    return True


def _stall(handler: _Handler, request: Request) -> bool:
    handler.wait_for_its_end()
    return True


def _trickle(first: bytes, then: bytes) -> _Fault:
    def fault(handler: _Handler, request: Request) -> bool:
        end = time.monotonic() + _LONGEST_STALL
        with suppress(OSError):  # the client hung up
            handler.wfile.write(first)
            while time.monotonic() < end:
                if select.select([handler.connection], [], [], 0.05)[0]:
                    break
                handler.wfile.write(then)
        handler.close_connection = True
        return True

    return fault


def _spoil(change: Callable[[FaultyProxy, Reply], Reply]) -> _Fault:
    def fault(handler: _Handler, request: Request) -> bool:
        reply = handler.ask(request)
        if reply.status >= 300:
            handler.send(reply)
            return False
        handler.send(change(handler.proxy, reply))
        return True

    return fault


def _truncated(proxy: FaultyProxy, reply: Reply) -> Reply:
    return replace(reply, body=reply.body[: len(reply.body) // 2])


def _wrong(proxy: FaultyProxy, reply: Reply) -> Reply:
    if reply.is_json:
        return replace(reply, body=b'{"something": "else"}')
    return replace(reply, body=bytes(255 - byte for byte in reply.body))


def _nan(proxy: FaultyProxy, reply: Reply) -> Reply:
    if reply.is_json:
        content = json.loads(reply.body)
        return replace(reply, body=json.dumps({**content, next(iter(content)): np.nan}).encode())
    return replace(reply, body=np.float32(np.nan).tobytes() + reply.body[4:])


def _twice(handler: _Handler, request: Request) -> bool:
    handler.ask(request)
    handler.deliver(request, handler.ask(request))
    return True


def _of_another(handler: _Handler, request: Request) -> bool:
    reply = handler.ask(request)
    before = handler.proxy.remember(request, reply) if reply.status < 300 else None
    if before is None or before[0] == request.name:
        handler.deliver(request, reply)
        return False
    handler.send(before[1])
    return True


_FAULTS: dict[str, _Fault] = {
    "429, to wait seconds": _refuse(429, {"retry-after": "0.01"}),
    "429, to wait milliseconds": _refuse(429, {"retry-after-ms": "10"}),
    "429, to wait until a date": _by_date,
    "500": _refuse(500),
    "503": _refuse(503, {"retry-after": "0.01"}),
    "reset in its middle": _reset,
    "stalled": _stall,
    "truncated": _spoil(_truncated),
    "wrong body": _spoil(_wrong),
    "a label missing": _spoil(FaultyProxy.without_a_label),
    "NaN put in": _spoil(_nan),
    "sent twice": _twice,
    "another's answer": _of_another,
    **{name: _trickle(*pieces) for name, pieces in TRICKLES.items()},
}

KINDS = tuple(_FAULTS)
"""All faults."""
