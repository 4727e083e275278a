"""Error answers of the HTTP API: one exception, and the translation of all others into it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from lmaas_tune.errors import InputError, TransientError
from lmaas_tune.service import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI, Request


class ApiError(Exception):
    """A request is refused.

    Args:
        code: One of `wire.STATUS`.
        message: One sentence, with the remedy.
        retry_after: Seconds after which it may succeed; sent as a whole number, rounded up.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        if code == "unauthorized":
            self.headers["WWW-Authenticate"] = "Bearer"

    @property
    def status(self) -> int:
        """The HTTP status."""
        return wire.STATUS[self.code]

    def response(self) -> Response:
        """The answer."""
        error = {"code": self.code, "message": self.message}
        return JSONResponse({"error": error}, status_code=self.status, headers=self.headers)


def too_large(subject: str, value: int, limit: int, name: str) -> ApiError:
    """The error of a value above one of `ServerLimits`."""
    return ApiError("too_large", f"{subject}: {value}, and this service takes {limit} ({name})")


def stopping() -> ApiError:
    """The error of every request while the service stops."""
    return ApiError("overloaded", "the service stops: send it again when it runs", retry_after=5.0)


def internal() -> ApiError:
    """The error of a request on which the service itself failed."""
    return ApiError("internal", "the service failed on this request; its log shows where")


def bad_json(faults: list[tuple[tuple[int | str, ...], str]]) -> ApiError:
    """The error of a malformed body or query: its first faults and their places."""
    listed = "; ".join(f"{'.'.join(map(str, place))}: {fault}" for place, fault in faults[:3])
    return ApiError("bad_request", f"this does not match /openapi.json: {listed}")


def add_error_handlers(app: FastAPI, note: Callable[[Request, ApiError], None]) -> None:
    """Answer every exception with the error that it stands for.

    Args:
        app: The application.
        note: Called with each error before it is sent.
    """

    def handle(kind: type[Exception], translate: Callable[[Any], ApiError]) -> None:
        async def handler(request: Request, error: Exception) -> Response:
            translated = translate(error)
            note(request, translated)
            return translated.response()

        app.add_exception_handler(kind, handler)

    handle(ApiError, lambda error: error)
    handle(wire.MalformedError, lambda error: ApiError("bad_request", str(error)))
    handle(InputError, lambda error: ApiError("unprocessable", str(error)))
    handle(TransientError, _model_is_busy)
    handle(RequestValidationError, lambda error: bad_json(_faults(error)))
    handle(HTTPException, _by_status)
    handle(Exception, lambda _: internal())  # the middleware logs it


def _faults(error: RequestValidationError) -> list[tuple[tuple[int | str, ...], str]]:
    return [(fault["loc"], fault["msg"]) for fault in error.errors()]


def _model_is_busy(error: TransientError) -> ApiError:
    """The model may be a remote service itself, with its own waiting time."""
    return ApiError(
        "overloaded", "the model is busy: send it again later", retry_after=error.retry_after or 1.0
    )


def _by_status(error: HTTPException) -> ApiError:
    """The error for one that the framework raised."""
    if error.status_code == wire.STATUS["not_found"]:
        return ApiError("not_found", "there is no such path: /openapi.json lists all")
    if error.status_code == wire.STATUS["method_not_allowed"]:
        headers = dict(error.headers or {})
        return ApiError("method_not_allowed", "this path takes another method", headers=headers)
    if error.status_code < 500:
        return ApiError("bad_request", "the body cannot be read: see /openapi.json")
    return internal()
