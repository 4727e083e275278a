"""What every request passes: its key, the key's limits, the size of its body, the books."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmaas_tune.backend import Usage
from lmaas_tune.service.bounds import Bounds
from lmaas_tune.service.connections import Connections
from lmaas_tune.service.keys import Key, Keyring
from lmaas_tune.service.limits import Allowance, Room
from lmaas_tune.service.log import Log, described
from lmaas_tune.service.metrics import Metrics
from lmaas_tune.service.refusal import RefusalError, stopping, too_large

OPEN_PATHS = ("/health", "/openapi.json")
"""Need no key."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")

_METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@dataclass
class Visit:
    """One request on its way through; handlers find it at ``request.state.visit``.

    Attributes:
        key: Whose it is; None before that is known, and on open paths.
        allowance: What is left of the key's limits.
        status: Of the answer; 0 before there is one.
        code: Of the refusal, if it is one.
        bytes_up: Of the body.
        bytes_down: Of the answer's body.
        reserved: Tokens that were taken from the allowance before the model was asked.
        usage: What the model did for it.
    """

    key: Key | None = None
    allowance: Allowance | None = None
    status: int = 0
    code: str | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    reserved: int = 0
    usage: Usage = field(default_factory=Usage)

    def reserve(self, tokens: int) -> None:
        """Take what the model may read from the key's limit.

        Raises:
            RefusalError: As much is not left.
        """
        if self.allowance is not None:
            self.allowance.reserve(tokens)
            self.reserved = tokens


class Gate:
    """Stands before the application, as ASGI.

    A key is looked at before the body is read, so that nobody without one fills memory; and the
    limits of a key hold from then on. Nothing of a request is logged but who, what and how much.

    Args:
        app: What answers.
        keyring: Who may come in.
        bounds: `body_bytes`, `body_seconds` and `queue_bytes`.
        connections: Those that requests come on.
        metrics: Counts every request.
        log: Tells of every request.
        clock: Gives seconds that only rise.

    Attributes:
        closing: When set, everything is refused: the service stops.
        inside: Requests that were let in and are not answered yet.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keyring: Keyring,
        bounds: Bounds,
        connections: Connections,
        metrics: Metrics,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._keyring, self._bounds = app, keyring, bounds
        self._connections, self._room = connections, Room(bounds.queue_bytes)
        self._metrics, self._log = metrics, log
        self._allowances = {key.name: Allowance(key.limits, clock=clock) for key in keyring.keys}
        self.closing = False
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = Visit()
        scope.setdefault("state", {})["visit"] = visit
        began = time.perf_counter()

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_echo(scope)]}
            visit.bytes_down += len(message.get("body", b""))
            await send(message)

        with self._connections.busy(scope):
            try:
                with self._let_in(scope, visit):
                    await self._app(scope, await self._read(scope, receive, visit), tell)
            except RefusalError as refusal:
                visit.code = refusal.code
                await refusal.response()(scope, receive, tell)
            except Exception as error:
                self._log.write("fault", **described(error), route=_route(scope))
                if not visit.status:
                    await internal().response()(scope, receive, tell)
            finally:
                self._book(scope, visit, time.perf_counter() - began)

    @contextmanager
    def _let_in(self, scope: Scope, visit: Visit) -> Iterator[None]:
        """Raises `RefusalError` for who has no key, or used it up."""
        if self.closing:
            raise stopping()
        if scope["path"] in OPEN_PATHS:
            yield
            return
        visit.key = self._key(Headers(scope=scope))
        if self.inside >= self._connections.most_busy:
            raise RefusalError(
                "overloaded", "all connections are busy: send it again later", retry_after=1.0
            )
        visit.allowance = allowance = self._allowances[visit.key.name]
        allowance.enter()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            allowance.leave()
            allowance.settle(reserved=visit.reserved, used=visit.usage.tokens)
            self._room.leave(visit.key.name, visit.bytes_up)

    def _key(self, headers: Mapping[str, str]) -> Key:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = self._keyring.find(token.strip() if scheme.lower() == "bearer" else "")
        if key is None:
            raise RefusalError(
                "unauthorized",
                "no key of this service came with the request: send Authorization: Bearer KEY",
            )
        return key

    async def _read(self, scope: Scope, receive: Receive, visit: Visit) -> Receive:
        """The body is read whole before the application sees any of it."""
        if visit.key is None:  # an open path is asked without a body
            return _again(b"", receive)
        bound = self._bounds.body_bytes
        promised = Headers(scope=scope).get("content-length", "0")
        if promised.isdigit() and int(promised) > bound:
            raise too_large("bytes of the body", int(promised), bound, "body_bytes")
        body = bytearray()
        try:
            with anyio.fail_after(self._bounds.body_seconds):
                async for part in _parts(receive):
                    if len(body) + len(part) > bound:
                        size = len(body) + len(part)
                        raise too_large("bytes of the body", size, bound, "body_bytes")
                    self._room.take(visit.key.name, len(part))
                    visit.bytes_up += len(part)
                    body += part
        except TimeoutError:
            raise RefusalError(
                "timeout",
                f"the body did not arrive within {self._bounds.body_seconds} s: send it again, or "
                "a smaller one",
            ) from None
        return _again(bytes(body), receive)

    def _book(self, scope: Scope, visit: Visit, seconds: float) -> None:
        route = _route(scope)
        key = visit.key.name if visit.key else ""
        self._metrics.answered(route, visit.status, key, seconds)
        if visit.usage.sequences:
            self._metrics.scored(key, visit.usage)
        method = scope["method"]
        self._log.write(
            "request",
            key=key or None,
            method=method if method in _METHODS else "other",
            route=route,
            status=visit.status,
            code=visit.code,
            seconds=round(seconds, 4),
            bytes_up=visit.bytes_up,
            bytes_down=visit.bytes_down,
            sequences=visit.usage.sequences or None,
            tokens=visit.usage.tokens or None,
        )


def internal() -> RefusalError:
    """What is heard when something fails that should not."""
    return RefusalError("internal", "the service failed on this request; its log says where")


def _echo(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The request's own name, by which a client knows the answer to it from any other."""
    named = dict(scope["headers"]).get(b"request-id", b"")
    return [(b"request-id", named)] if _REQUEST_ID.fullmatch(named) else []


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Raises:
        RefusalError: The client went away before its end.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusalError("client_gone", "the client went away")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then what else comes: that the client went away."""
    unread = [body]  # given away, not kept: the application has its own copy

    async def again() -> Message:
        if not unread:
            return await receive()
        return {"type": "http.request", "body": unread.pop(), "more_body": False}

    return again


def _route(scope: Scope) -> str:
    """As the application names it: what a client wrote may be anything."""
    return str(getattr(scope.get("route"), "path", "none"))
