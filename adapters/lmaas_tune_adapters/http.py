"""One HTTP endpoint: what is sent, what comes back, and every failure as an error of ours."""

from __future__ import annotations

import email.utils
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from lmaas_tune.backend import Usage
from lmaas_tune.errors import InputError, PermanentError, TransientError

CONNECTIONS = 64
"""Most that are kept open to one endpoint; more workers than this wait for each other."""

_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_OVERLOADED = {408, 429, 503, 504, 529}
_REMEDIES = {
    401: "check the key",
    403: "this key may not do that; ask the provider, or take another key",
    404: "check the URL and the model's name",
    405: "check the URL: the server there is of another kind",
    413: "the request is too large for this server: shorten the prompt or the texts",
}
_MAX_REPLY = 64 * 2**20  # bytes; nothing we ask for is near it
_CHUNK = 64 * 1024


class RefusedError(PermanentError):
    """The server said no, and will say no again.

    Attributes:
        status: Of HTTP.
        reason: In the server's words.
    """

    def __init__(self, message: str, *, status: int, reason: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class Key:
    """A secret that does not show: not in a repr, not in an error, not in a pickle.

    Args:
        text: The key itself.

    Raises:
        InputError: It is empty, or holds what no HTTP header can.
    """

    def __init__(self, text: str) -> None:
        text = text.strip()
        if not text or not text.isascii() or not text.isprintable():
            raise InputError("the API key is empty or holds characters that no key has")
        self._text = text

    @classmethod
    def find(cls, *, file: str | os.PathLike[str] | None, variable: str | None) -> Key | None:
        """The key in a file, else in an environment variable, else none.

        Raises:
            InputError: The file cannot be read.
        """
        if file is not None:
            try:
                return cls(Path(file).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"the API key cannot be read from {file}: {error}") from None
        text = os.environ.get(variable) if variable else None
        return cls(text) if text else None

    def __repr__(self) -> str:
        return "Key(***)"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not written down")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign a request, as an `auth` of requests; so no .netrc is looked at."""
        request.headers["Authorization"] = f"Bearer {self._text}"
        return request

    def hidden(self, text: str) -> str:
        """The text without the key, which some servers quote."""
        return text.replace(self._text, "***")


@dataclass(frozen=True)
class Answer:
    """A reply of status 200 to 299.

    Attributes:
        url: Who gave it.
        headers: Names in lower case.
        content: The body.
        usage: One request, and its bytes both ways: head lines, headers and bodies.
    """

    url: str
    headers: Mapping[str, str]
    content: bytes
    usage: Usage

    def json(self) -> Any:
        """The body read as JSON.

        Raises:
            TransientError: It is not JSON; NaN is not.
        """
        try:
            return json.loads(self.content, parse_constant=_no_number)
        except ValueError as error:
            raise TransientError(
                f"{self.url} answered what is not JSON ({error}): {_shown(self.content)}"
            ) from error


class Endpoint:
    """A server by its URL. May be used from several threads.

    Args:
        url: Up to where the paths begin.
        key: Signs each request; None signs none.
        timeout: Seconds that one request may take, from the first byte sent to the last read.

    Raises:
        InputError: No http(s) URL, or one that holds a password or a query.
    """

    def __init__(self, url: str, *, key: Key | None = None, timeout: float = 120.0) -> None:
        self.url = _checked(url)
        self._key, self._timeout = key, timeout
        self._session = requests.Session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.auth = key or _unsigned
        self._session.headers.update({"User-Agent": "lmaas-tune", "Accept": "*/*"})
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def get(self, path: str) -> Answer:
        """See `post`."""
        return self._send("GET", path)

    def post(
        self,
        path: str,
        *,
        content: object = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request, and read its answer whole.

        Args:
            path: Begins with a slash.
            content: Sent as JSON.
            body: Sent as it is, instead.
            headers: Beside the usual ones.

        Raises:
            TransientError: No connection, no whole answer in time, or a status that may pass.
            RefusedError: Any other status than 200 to 299.
        """
        headers = dict(headers or {})
        if body is None:
            body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
            headers.setdefault("Content-Type", "application/json")
        return self._send("POST", path, body, headers)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        url = self.url + path
        deadline = time.monotonic() + self._timeout
        try:
            with self._session.request(
                method,
                url,
                data=body,
                headers=headers,
                timeout=(min(10.0, self._timeout), self._timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = self._read(response, deadline)
        except requests.Timeout as error:
            raise TransientError(
                f"{url} did not answer within {self._timeout:g} s", overloaded=True
            ) from error
        except requests.exceptions.InvalidURL as error:
            raise InputError(f"{url} is no URL that can be asked: {error}") from error
        except requests.exceptions.SSLError as error:
            raise PermanentError(
                f"{url}: no safe connection ({_cause(error)}); check the URL and its certificate"
            ) from error
        except requests.RequestException as error:
            raise TransientError(f"{url} cannot be reached: {_cause(error)}") from error
        if not 200 <= response.status_code < 300:
            raise self._failure(url, response, content)
        usage = Usage(
            requests=1,
            bytes_up=_bytes_up(response.request),
            bytes_down=_bytes_down(response, content),
        )
        return Answer(url, {k.lower(): v for k, v in response.headers.items()}, content, usage)

    def _read(self, response: requests.Response, deadline: float) -> bytes:
        content = bytearray()
        for chunk in response.iter_content(_CHUNK):
            content += chunk
            if time.monotonic() > deadline:
                raise requests.Timeout
            if len(content) > _MAX_REPLY:
                raise PermanentError(
                    f"{response.url} answers more than {_MAX_REPLY >> 20} MB: check the URL"
                )
        promised = response.headers.get("Content-Length")
        encoded = "Content-Encoding" in response.headers
        if promised is not None and not encoded and len(content) != int(promised):
            raise requests.ConnectionError(f"{len(content)} of {promised} bytes came")
        return bytes(content)

    def _failure(self, url: str, response: requests.Response, content: bytes) -> Exception:
        status = response.status_code
        reason = _reason(content) or response.reason or "no reason given"
        reason = self._key.hidden(reason) if self._key else reason
        message = f"{url} answered {status}: {reason.rstrip('.')}"
        if status in _TRANSIENT:
            return TransientError(
                message,
                retry_after=retry_after(response.headers),
                overloaded=status in _OVERLOADED,
            )
        if 300 <= status < 400:
            where = response.headers.get("Location", "another place")
            return RefusedError(f"{message}; it lies at {where} now", status=status, reason=reason)
        remedy = _REMEDIES.get(status)
        return RefusedError(
            f"{message}; {remedy}" if remedy else message, status=status, reason=reason
        )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: in milliseconds, seconds, or as a date.

    A date is taken from the server's own clock, where it tells it.
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
    try:
        then = email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return math.nan
    try:
        return max(0.0, then - email.utils.parsedate_to_datetime(now or "").timestamp())
    except ValueError:
        return max(0.0, then - time.time())


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise InputError(f"{url!r} is no URL: give one like http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"the URL of {parts.hostname!r} holds more than a place: give the key by a file or the "
            "environment, and leave out what follows a question mark"
        )
    return url.rstrip("/")


def _unsigned(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _reason(content: bytes) -> str:
    """What a server says of a failure, in one of the shapes that servers use, on one line."""
    text = content[:2000].decode("utf-8", "replace")
    try:
        found: Any = json.loads(content)
    except ValueError:
        return " ".join(text.split())[:300]
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    if isinstance(found, list):  # FastAPI's list of what is wrong, and where
        found = "; ".join(
            f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg', item)}"
            if isinstance(item, dict)
            else str(item)
            for item in found[:3]
        )
    return " ".join(str(found).split())[:300]


def _cause(error: Exception) -> str:
    """The innermost reason, without the address of an object."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner if isinstance(inner, Exception) else Exception(str(inner))
    return " ".join(str(error).split())[:200] or type(error).__name__


def _shown(content: bytes) -> str:
    return repr(content[:60].decode("utf-8", "replace"))


def _bytes_up(request: requests.PreparedRequest) -> int:
    line = len(f"{request.method} {request.path_url} HTTP/1.1\r\n")
    host = len(f"Host: {urlsplit(request.url or '').netloc}\r\n")
    body = request.body or b""
    return line + host + _header_bytes(request.headers) + len(body)


def _bytes_down(response: requests.Response, content: bytes) -> int:
    line = len(f"HTTP/1.1 {response.status_code} {response.reason}\r\n")
    body = int(response.headers.get("Content-Length") or len(content))
    return line + _header_bytes(response.headers) + body


def _header_bytes(headers: Mapping[str, str | bytes]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.items()) + 2
