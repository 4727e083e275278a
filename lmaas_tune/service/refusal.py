"""Every way in which a request is refused, and how it is said."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse, Response

STATUS = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "unknown_batch": 404,
    "unknown_subspace": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "too_large": 413,
    "unprocessable": 422,
    "rate_limited": 429,
    "client_gone": 499,
    "internal": 500,
    "overloaded": 503,
}
"""The codes of the protocol, each with its status of HTTP."""


class RefusalError(Exception):
    """A request is not answered.

    Args:
        code: One of `STATUS`.
        message: One sentence, with the remedy.
        retry_after: Seconds after which it may go better; told in whole ones, rounded up.
        headers: Of the reply, beside the usual ones.
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
        """Of HTTP."""
        return STATUS[self.code]

    def response(self) -> Response:
        """The reply that says so."""
        error = {"code": self.code, "message": self.message}
        return JSONResponse({"error": error}, status_code=self.status, headers=self.headers)


def too_large(what: str, value: int, bound: int, name: str) -> RefusalError:
    """A refusal of what goes past one of `Bounds`, by its name."""
    return RefusalError("too_large", f"{what}: {value}, and this service takes {bound} ({name})")


def stopping() -> RefusalError:
    """What everybody hears while the service stops."""
    return RefusalError(
        "overloaded", "the service stops: ask again when it is back", retry_after=5.0
    )
