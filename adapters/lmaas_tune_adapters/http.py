"""One HTTP endpoint: what is sent, what comes back, and every failure as an error of ours."""

from __future__ import annotations

import email.utils
import json
import math
import os
import ssl
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.utils import get_environ_proxies, select_proxy

from lmaas_tune.backend import Usage
from lmaas_tune.calls import deadline
from lmaas_tune.calls.retry import Retry
from lmaas_tune.concealed import shown
from lmaas_tune.errors import InputError, LMaaSError, PermanentError, TransientError
from lmaas_tune_adapters.timed import TimedAdapter

CONNECTIONS = 64
"""Most that are kept open to one endpoint; more workers than this wait for each other."""

_TRANSIENT = {408, 409, 425, 429} | set(range(500, 600)) - {501, 505, 511}
_OVERLOADED = {408, 429, 503, 504, 524, 529}
_LASTING = {"insufficient_quota", "billing_not_active"}
"""Codes of errors that do not pass, whatever their status: OpenAI's 429 of an empty account."""
_REMEDIES = {
    401: "check the key",
    403: "this key may not do that; ask the provider, or take another key",
    404: "check the URL and the model's name",
    405: "check the URL: the server there is of another kind",
    413: "the request is too large for this server: shorten the prompt or the texts",
}
_MAX_REPLY = 64 * 2**20  # bytes; nothing we ask for is near it
_BLOCK = 16 * 1024  # bytes sent at once: one record of TLS, which has a timeout of its own
_CHUNK = 64 * 1024  # bytes read at once
_CONNECT = 10.0  # seconds


class RefusedError(PermanentError):
    """The server said no, and will say no again.

    Attributes:
        status: Of HTTP.
        reason: In the server's words.
        code: The server's short name of what is wrong, where its body has one as ``error.code``.
    """

    def __init__(self, message: str, *, status: int, reason: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.code = status, reason, code


AT_START = Retry(attempts=4)
"""Nothing is lost yet, and who mistyped a port should hear of it within seconds."""


class BusyError(TransientError):
    """The server has no room for this request now (503): a smaller one might find some."""


class ServerError(TransientError):
    """The server failed at this request (5xx, but for 503): perhaps at all of its kind."""


NOTHING = Usage()

Part = TypeVar("Part")


class _Hidden(str):
    """Sent as it is, shown as nothing: reports of crashes print the headers of requests."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Key:
    """A secret that does not show: not in a repr, not in an error, not in a pickle.

    Args:
        text: The key itself.

    Raises:
        InputError: It is empty, or holds what no HTTP header can.
    """

    def __init__(self, text: str) -> None:
        text = text.strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
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
            except (OSError, ValueError) as error:  # no UTF-8, or no name that a file can have
                reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
                raise InputError(
                    f"the API key cannot be read from {shown(file)} ({reason}): give the path of a "
                    "file that holds the key and nothing else"
                ) from None
        text = os.environ.get(variable) if variable else None
        return cls(text) if text else None

    def __repr__(self) -> str:
        return "Key(***)"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not written down")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign a request, as an `auth` of requests; so no .netrc is looked at."""
        request.headers["Authorization"] = _Hidden(f"Bearer {self._text}")
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
        usage: One request, and its bytes both ways: head lines, headers and bodies as they were
            on the wire (the framing of a chunked body, a few bytes a chunk, is left out).
        key: What is hidden where a body is quoted.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    usage: Usage
    key: Key | None = field(default=None, repr=False)

    def json(self) -> Any:
        """The body read as JSON.

        Raises:
            TransientError: It is not JSON; NaN is not.
        """
        try:
            return json.loads(self.content, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            shown = quoted(self.content.decode("utf-8", "replace"), self.key, most=60)
            with paid(self.usage):
                raise TransientError(
                    f"{self.url} answered what is not JSON ({error}): {shown!r}"
                ) from error


class Endpoint:
    """A server by its URL. May be used from several threads.

    Args:
        url: Up to where the paths begin.
        key: Signs each request; None signs none.
        timeout: Seconds from the connection until the answer is whole. A deadline that applies
            (`lmaas_tune.calls.deadline`) may come before.

    Raises:
        InputError: No http(s) URL, or one that holds a password or a query.
    """

    def __init__(self, url: str, *, key: Key | None = None, timeout: float = 120.0) -> None:
        if not 0 < timeout < math.inf:
            raise InputError(f"timeout={timeout!r}: it takes seconds, more than 0")
        self.url = _checked(url)
        self._key, self._timeout = key, timeout
        self._session, self._process = _session(key), os.getpid()
        self._inherited: requests.Session | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        """See `post`."""
        return self._send("GET", path, None, headers or {})

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
            PermanentError: No safe connection, or an answer of absurd size.
        """
        headers = dict(headers or {})
        if body is None:
            body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
            headers.setdefault("Content-Type", "application/json")
        return self._send("POST", path, body, headers)

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        url, outer = self.url + path, sys.exc_info()[1]
        seconds = max(1e-3, min(self._timeout, deadline.left()))
        if self._process != os.getpid():  # a fork: its parent reads from the same connections
            self._inherited, self._session = self._session, _session(self._key)  # never closed here
            self._process = os.getpid()
        try:
            with (
                deadline.Deadline(seconds).applied(),
                self._session.request(
                    method,
                    url,
                    data=_Blocks(body) if body else body,
                    headers=headers,
                    timeout=(min(_CONNECT, seconds), seconds),
                    allow_redirects=False,
                    stream=True,
                ) as response,
            ):
                content = self._read(url, response.raw)
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise self._unanswered(url, error, outer, seconds) from self._tellable(error)
        if not 200 <= response.status_code < 300:
            raise self._refusal(url, response, content)
        usage = Usage(
            requests=1,
            bytes_up=_bytes_up(response.request),
            bytes_down=_bytes_down(response.raw),
        )
        names = {name.lower(): value for name, value in response.headers.items()}
        return Answer(url, names, content, usage, self._key)

    def _read(self, url: str, raw: urllib3.BaseHTTPResponse) -> bytes:
        """The body, as it comes: `requests` itself would wait for whole blocks of it."""
        content = bytearray()
        while piece := raw.read1(_CHUNK, decode_content=True):
            content += piece
            if len(content) > _MAX_REPLY:
                raise _perhaps_paid(
                    PermanentError(
                        f"{url} answers with more than {_MAX_REPLY >> 20} MB: check the URL"
                    )
                )
        return bytes(content)

    def _unanswered(
        self, url: str, error: Exception, outer: BaseException | None, seconds: float
    ) -> Exception:
        cause = _innermost(error, outer)
        said = quoted(str(cause), self._key, most=200) or type(cause).__name__
        if isinstance(error, requests.ConnectTimeout) or "handshake operation timed" in said:
            return TransientError(
                f"{url} cannot be reached: no connection in time", overloaded=True
            )
        if isinstance(error, requests.exceptions.InvalidURL):
            return InputError(f"{url} is no URL that can be asked: {said}")
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return PermanentError(
                f"{url}: no safe connection ({said}); check the URL and its certificate"
            )
        if isinstance(error, requests.exceptions.ProxyError):
            return TransientError(
                f"the proxy {_proxy(url)} gives no connection to {url}: {said}; check HTTP_PROXY, "
                "HTTPS_PROXY and NO_PROXY in the environment"
            )
        if isinstance(cause, TimeoutError) or isinstance(error, requests.Timeout):
            late = TransientError(f"{url} did not answer within {seconds:.4g} s", overloaded=True)
            return _perhaps_paid(late)
        if _broken_off(error):
            return _perhaps_paid(TransientError(f"{url} broke off its answer: {said}"))
        if isinstance(error, requests.RequestException):
            return TransientError(f"{url} cannot be reached: {said}")
        return PermanentError(f"{url} cannot be asked: {said}")  # a bundle of certificates is gone

    def _tellable(self, error: Exception) -> Exception | None:
        """The error without its signed request, unless it quotes a server that quotes the key."""
        if isinstance(error, requests.RequestException):
            error.request = error.response = None
        text = "".join(traceback.format_exception(error))
        return error if self._key is None or self._key.hidden(text) == text else None

    def _refusal(self, url: str, response: requests.Response, content: bytes) -> Exception:
        status = response.status_code
        code, said = _failure(content)
        reason = quoted(said or response.reason or "no reason given", self._key, most=300)
        message = f"{url} answered {status}: {reason.rstrip('.')}"
        if status in _TRANSIENT and code not in _LASTING:
            kind = TransientError if status < 500 else ServerError if status != 503 else BusyError
            return kind(
                message,
                retry_after=retry_after(response.headers),
                overloaded=status in _OVERLOADED,
            )
        remedy = _REMEDIES.get(status)
        if 300 <= status < 400 and "Location" in response.headers:
            where = quoted(response.headers["Location"], self._key, most=200)
            remedy = f"what is asked for lies at {where}"
        return RefusedError(
            f"{message}; {remedy}" if remedy else message, status=status, reason=reason, code=code
        )


def _broken_off(error: Exception) -> bool:
    """Whether a request was sent before it failed; requests wraps what came before any answer."""
    raw = error.args[0] if isinstance(error, requests.RequestException) and error.args else error
    kinds = urllib3.exceptions.HTTPError if raw is error else urllib3.exceptions.ProtocolError
    return isinstance(raw, kinds)


def _perhaps_paid(error: LMaaSError) -> LMaaSError:
    """The error of a request that was sent, and perhaps answered."""
    error.usage, error.usage_unknown = Usage(requests=1), True
    return error


def _proxy(url: str) -> str:
    """Through which a URL is asked, without its password."""
    parts = urlsplit(select_proxy(url, get_environ_proxies(url)) or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else parts.path


def _session(key: Key | None) -> requests.Session:
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.auth = key or _unsigned
    session.headers.update({"User-Agent": "lmaas-tune", "Accept": "*/*"})
    adapter = TimedAdapter(pool_maxsize=CONNECTIONS, pool_block=True)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


class _Blocks:
    """A body sent in blocks, each of which looks at the deadline."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __len__(self) -> int:
        return len(self._body)

    def __iter__(self) -> Iterator[bytes]:
        return (self._body[start : start + _BLOCK] for start in range(0, len(self), _BLOCK))


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
    then, theirs = _timestamp(date), _timestamp(now or "")
    seconds = then - (time.time() if math.isnan(theirs) else theirs)
    return 0.0 if seconds < 0 else seconds


def _timestamp(date: str) -> float:
    """Seconds since 1970; NaN for what is no date, which the standard library may choke on."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        if parts.scheme not in ("http", "https") or not host or parts.port == 0:
            raise ValueError
    except ValueError:
        shown = "what is given" if {"@", "?", "#"} & set(url) else repr(url)  # a password may be in
        raise InputError(f"{shown} is no URL: give one like http://127.0.0.1:8000") from None
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


def _failure(content: bytes) -> tuple[str | None, str]:
    """The code and the words of a failure, in one of the shapes that servers use."""
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
    if isinstance(found, list):  # FastAPI's list of what is wrong, and where
        found = "; ".join(
            f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg', item)}"
            if isinstance(item, dict)
            else str(item)
            for item in found[:3]
        )
    return code if isinstance(code, str) else None, str(found)


def quoted(text: str, key: Key | None, *, most: int) -> str:
    """Another's words on one printable line, without the key; cut last, lest half a key stay."""
    text = key.hidden(text) if key else text
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]


def _innermost(error: Exception, outer: BaseException | None) -> BaseException:
    """What began it, after what the caller was at: its words hold no address of an object."""
    found: BaseException = error
    while (inner := found.__cause__ or found.__context__) not in (None, outer):
        found = inner
    return found


def _bytes_up(request: requests.PreparedRequest) -> int:
    line = len(f"{request.method} {request.path_url} HTTP/1.1\r\n")
    host = len(f"Host: {urlsplit(request.url or '').netloc}\r\n")
    body = int(request.headers.get("Content-Length", 0))
    return line + host + _header_bytes(request.headers.items()) + body


def _bytes_down(raw: urllib3.BaseHTTPResponse) -> int:
    line = len(f"HTTP/1.1 {raw.status} {raw.reason}\r\n")
    return line + _header_bytes(raw.headers.iteritems()) + raw.tell()


def _header_bytes(headers: Iterable[tuple[str, str | bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers) + 2


@contextmanager
def paid(usage: Usage) -> Iterator[None]:
    """What fails inside has been paid already, and says so; without tokens, not how much."""
    try:
        yield
    except LMaaSError as error:
        error.usage, error.usage_unknown = usage, not usage.tokens
        raise


def joined(
    parts: Iterable[tuple[Part, Usage]], before: Usage = NOTHING
) -> tuple[list[Part], Usage]:
    """All parts of a call, and what they took; an error tells what those before it took, too."""
    found: list[Part] = []
    usage = before
    try:
        for part, taken in parts:
            found.append(part)
            usage += taken
    except LMaaSError as error:
        own = Usage(requests=0 if isinstance(error, InputError) else 1)
        error.usage = usage + (own if error.usage is None else error.usage)
        raise
    return found, usage


def tokens_read(reply: Any) -> int | None:
    """How many an OpenAI-compatible server says that it read, 0 where it says nothing; None if that
    is no number."""
    usage = reply.get("usage") if isinstance(reply, Mapping) else None
    try:
        return max(0, int((usage or {}).get("prompt_tokens") or 0))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
