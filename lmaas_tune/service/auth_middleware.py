"""The middleware of every request: API key, quota, size of the body, accounting and log."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from lmaas_tune.backend import Usage
from lmaas_tune.service.errors import ApiError, internal, stopping, too_large
from lmaas_tune.service.key_quota import BodyBuffer, QuotaMeter
from lmaas_tune.service.log import Log, described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lmaas_tune.service.connections import Connections
    from lmaas_tune.service.keys import Key, Keyring
    from lmaas_tune.service.metrics import Metrics
    from lmaas_tune.service.server_limits import ServerLimits

OPEN_PATHS = ("/health", "/openapi.json")
"""Paths that need no key."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")

_METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@dataclass
class RequestContext:
    """The state of one request; endpoints find it at ``request.state.context``.

    Attributes:
        key: Its key; None before that is known, and on open paths.
        quota: The meter of the key's quota.
        status: HTTP status of the answer; 0 before there is one.
        code: Code of the error, if it is one.
        bytes_up: Bytes of the body.
        bytes_down: Bytes of the answer's body.
        reserved: Tokens charged to the quota before the model was called.
        usage: The work of the model for it.
    """

    key: Key | None = None
    quota: QuotaMeter | None = None
    status: int = 0
    code: str | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    reserved: int = 0
    usage: Usage = field(default_factory=Usage)

    def reserve(self, tokens: int) -> None:
        """Charge the tokens that the model may read to the key's quota.

        Raises:
            ApiError: Too few are left.
        """
        if self.quota is not None:
            self.quota.reserve(tokens)
            self.reserved = tokens


class AuthMiddleware:
    """An ASGI middleware before the application.

    The key is checked before the body is read, so that a client without one fills no memory, and
    the key's quota applies from then on. The log of a request names its key, route and sizes, and
    nothing of its content.

    Args:
        app: The application.
        keyring: The keys that may use it.
        limits: `body_bytes`, `body_seconds` and `queue_bytes`.
        connections: The connections of the service.
        metrics: Counts every request.
        log: Logs every request.
        clock: Monotonic seconds.

    Attributes:
        closing: If set, every request is refused: the service stops.
        inside: Requests that were accepted and are not answered yet.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keyring: Keyring,
        limits: ServerLimits,
        connections: Connections,
        metrics: Metrics,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._keyring, self._limits = app, keyring, limits
        self._connections, self._buffer = connections, BodyBuffer(limits.queue_bytes)
        self._metrics, self._log = metrics, log
        self._quotas = {key.name: QuotaMeter(key.quota, clock=clock) for key in keyring.keys}
        self.closing = False
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        context = RequestContext()
        scope.setdefault("state", {})["context"] = context
        began = time.perf_counter()

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_echo(scope)]}
            context.bytes_down += len(message.get("body", b""))
            await send(message)

        with self._connections.busy(scope):
            try:
                with self._accepted(scope, context):
                    replay = await self._received(scope, receive, context)
                    await self._app(scope, replay, counted_send)
            except ApiError as refusal:
                context.code = refusal.code
                await refusal.response()(scope, receive, counted_send)
            except Exception as error:
                self._log.write("fault", **described(error), route=_route(scope))
                if not context.status:
                    await internal().response()(scope, receive, counted_send)
            finally:
                self._account(scope, context, time.perf_counter() - began)

    @contextmanager
    def _accepted(self, scope: Scope, context: RequestContext) -> Iterator[None]:
        """Within ``with``, the request is inside.

        Raises:
            ApiError: It has no key, or the key's quota is used up.
        """
        if self.closing:
            raise stopping()
        if scope["path"] in OPEN_PATHS:
            yield
            return
        context.key = self._key(Headers(scope=scope))
        if self.inside >= self._connections.most_busy:
            raise ApiError(
                "overloaded", "all connections are busy: send it again later", retry_after=1.0
            )
        context.quota = quota = self._quotas[context.key.name]
        quota.enter()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            quota.leave()
            quota.settle(reserved=context.reserved, used=context.usage.tokens)
            self._buffer.leave(context.key.name, context.bytes_up)

    def _key(self, headers: Mapping[str, str]) -> Key:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = self._keyring.find(token.strip() if scheme.lower() == "bearer" else "")
        if key is None:
            raise ApiError(
                "unauthorized",
                "no key of this service came with the request: send Authorization: Bearer KEY",
            )
        return key

    async def _received(self, scope: Scope, receive: Receive, context: RequestContext) -> Receive:
        """The messages for the application, after the whole body has arrived."""
        if context.key is None:  # a request of an open path has no body
            return _replayed(b"", receive)
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit():
            self._check_size(int(length))
        body = bytearray()
        try:
            with anyio.fail_after(self._limits.body_seconds):
                async for part in Request(scope, receive).stream():
                    self._check_size(len(body) + len(part))
                    self._buffer.take(context.key.name, len(part))
                    context.bytes_up += len(part)
                    body += part
        except ClientDisconnect:
            raise ApiError("client_gone", "the client disconnected") from None
        except TimeoutError:
            raise ApiError(
                "timeout",
                f"the body did not arrive within {self._limits.body_seconds} s: send it again, or "
                "a smaller one",
            ) from None
        return _replayed(bytes(body), receive)

    def _check_size(self, size: int) -> None:
        limit = self._limits.body_bytes
        if size > limit:
            raise too_large("bytes of the body", size, limit, "body_bytes")

    def _account(self, scope: Scope, context: RequestContext, seconds: float) -> None:
        route = _route(scope)
        key = context.key.name if context.key else ""
        self._metrics.answered(route, context.status, key, seconds)
        if context.usage.sequences:
            self._metrics.scored(key, context.usage)
        method = scope["method"]
        self._log.write(
            "request",
            key=key or None,
            method=method if method in _METHODS else "other",
            route=route,
            status=context.status,
            code=context.code,
            seconds=round(seconds, 4),
            bytes_up=context.bytes_up,
            bytes_down=context.bytes_down,
            sequences=context.usage.sequences or None,
            tokens=context.usage.tokens or None,
        )


def _echo(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The header with the id of the request, by which a client matches answer and request."""
    request_id = dict(scope["headers"]).get(b"request-id", b"")
    return [(b"request-id", request_id)] if _REQUEST_ID.fullmatch(request_id) else []


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the received body, then further messages: that the client disconnected."""
    unread = [body]  # dropped when it is passed on, because the application has its own copy

    async def replay() -> Message:
        if not unread:
            return await receive()
        return {"type": "http.request", "body": unread.pop(), "more_body": False}

    return replay


def _route(scope: Scope) -> str:
    """The route by the application's pattern: the path in the request may be anything."""
    return str(getattr(scope.get("route"), "path", "none"))
