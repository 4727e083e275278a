"""Failures of HTTP requests, as errors of the SDK: one table from status to error and remedy."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmaas_tune.errors import PermanentError, TransientError
from lmaas_tune_adapters.http.key import Key, quoted

if TYPE_CHECKING:
    import requests

_TRANSIENT = {408, 409, 425, 429} | set(range(500, 600)) - {501, 505, 511}
_OVERLOADED = {408, 429, 503, 504, 524, 529}
_LASTING = {"insufficient_quota", "billing_not_active"}
"""Codes of permanent errors under any status, such as OpenAI's 429 for an empty account."""
_REMEDIES = {
    401: "check the key",
    403: "this key may not do that; ask the provider, or take another key",
    404: "check the URL and the model's name",
    405: "check the URL: the server there is of another kind",
    413: "the request is too large for this server: shorten the prompt or the texts",
}


class RefusedError(PermanentError):
    """The server refuses a request, and would refuse it again.

    Attributes:
        status: Of HTTP.
        reason: In the server's words.
        code: The server's short name of the error, where its body has one as ``error.code``.
    """

    def __init__(self, message: str, *, status: int, reason: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.code = status, reason, code


class BusyError(TransientError):
    """The server has no room for a request now (503); it may have room for a smaller one."""


class ServerError(TransientError):
    """The server failed at a request (5xx, but for 503), and perhaps fails at all of its kind.

    Attributes:
        status: Of HTTP.
    """

    status: int


def error_of(url: str, response: requests.Response, content: bytes, key: Key | None) -> Exception:
    """Make the error of a status other than 200 to 299."""
    status = response.status_code
    code, message = _error_in(content)
    reason = quoted(message or response.reason or "no reason given", key, most=300)
    message = f"{url} answered {status}: {reason.rstrip('.')}"
    if status in _TRANSIENT and code not in _LASTING:
        kind = TransientError if status < 500 else ServerError if status != 503 else BusyError
        error = kind(
            message, retry_after=retry_after(response.headers), overloaded=status in _OVERLOADED
        )
        if isinstance(error, ServerError):
            error.status = status
        return error
    remedy = _REMEDIES.get(status)
    if 300 <= status < 400 and "Location" in response.headers:
        location = quoted(response.headers["Location"], key, most=200)
        remedy = f"the server has moved it to {location}"
    return RefusedError(
        f"{message}; {remedy}" if remedy else message, status=status, reason=reason, code=code
    )


def _error_in(content: bytes) -> tuple[str | None, str]:
    """The code and the message in an error's body, in one of the shapes that servers use."""
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None, content.decode("utf-8", "replace")
    code = None
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and found.get(name):
            code = code or found.get("code")
            found = found[name]
    if isinstance(found, dict):
        code = code or found.get("code")
    if isinstance(found, list):  # FastAPI's list of faults and their locations
        found = "; ".join(map(_fault, found[:3]))
    return code if isinstance(code, str) else None, str(found)


def _fault(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    location = item.get("loc")
    parts = location if isinstance(location, list) else [] if location is None else [location]
    return f"{'.'.join(map(str, parts))}: {item.get('msg', item)}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, given in milliseconds, seconds, or as a date.

    A date is compared with the server's own clock, if it sends that.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except KeyError:
            continue
        except ValueError:
            seconds = _seconds_until(headers[name], headers.get("date"))
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def _seconds_until(date: str, now: str | None) -> float:
    then, server_time = _timestamp(date), _timestamp(now or "")
    seconds = then - (time.time() if math.isnan(server_time) else server_time)
    return 0.0 if seconds < 0 else seconds


def _timestamp(date: str) -> float:
    """Seconds since 1970; NaN for an invalid date, for which the standard library may raise."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan
