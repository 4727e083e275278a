"""An endpoint that sends one request and reads its answer before a deadline."""

from __future__ import annotations

import json
import math
import os
import ssl
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.utils import get_environ_proxies, select_proxy

from lmaas_tune.backend import Usage
from lmaas_tune.calls import deadline
from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import InputError, LMaaSError, PermanentError, TransientError
from lmaas_tune_adapters.http.connections import TimedAdapter
from lmaas_tune_adapters.http.errors import error_of
from lmaas_tune_adapters.http.key import Key, quoted
from lmaas_tune_adapters.http.usage import paid, usage_of

CONNECTIONS = 64
"""Most open connections to one endpoint; more workers than this wait for each other."""

AT_START = Retry(attempts=4)
"""Before a run, when nothing can be lost, a mistyped port should be reported within seconds."""

_MAX_REPLY = 64 * 2**20  # bytes; all expected answers are far smaller
_BLOCK = 16 * 1024  # bytes sent at once: one record of TLS, which has its own timeout
_CHUNK = 64 * 1024  # bytes read at once
_CONNECT = 10.0  # seconds


@dataclass(frozen=True)
class Answer:
    """An answer of status 200 to 299.

    Attributes:
        url: Of the request.
        headers: Names in lower case.
        content: The body.
        usage: One request, with the bytes of head lines, headers and bodies on the wire (the
            framing of a chunked body, a few bytes a chunk, is not counted).
        key: Is hidden where the body is quoted.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    usage: Usage
    key: Key | None = field(default=None, repr=False)

    def json(self) -> Any:
        """Parse the body as JSON.

        Raises:
            TransientError: It is no JSON, which has no NaN.
        """
        try:
            return json.loads(self.content, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            start = quoted(self.content.decode("utf-8", "replace"), self.key, most=60)
            with paid(self.usage):
                raise TransientError(
                    f"{self.url} sent an answer that is not JSON ({error}): {start!r}"
                ) from error


class Endpoint:
    """A server by its URL. May be used from several threads.

    Args:
        url: Up to where the paths begin.
        key: Signs each request; None signs none.
        timeout: Seconds from the connection to the end of the answer. The deadline of the call
            (`lmaas_tune.calls.deadline`) may end it earlier.

    Raises:
        InputError: The URL is none of http or https, or holds a password or a query.
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

    @property
    def signed(self) -> bool:
        """Whether requests carry a key."""
        return self._key is not None

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
        """Send one request, and read its whole answer.

        Args:
            path: Begins with a slash.
            content: Sent as JSON.
            body: Sent unchanged, in place of `content`.
            headers: Added to the usual ones.

        Raises:
            TransientError: No connection, no whole answer in time, or a status that may pass.
            RefusedError: Any other status than 200 to 299.
            PermanentError: No safe connection, or a far too large answer.
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
        if self._process != os.getpid():  # after a fork, the parent reads from these connections
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
        except requests.exceptions.InvalidURL:  # it quotes the password of the proxy
            raise _invalid_proxy(url) from None
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise self._no_answer(url, error, outer, seconds) from self._without_key(error)
        except ValueError:
            if _parses(_proxy_of(url)):
                raise
            raise _invalid_proxy(url) from None
        if not 200 <= response.status_code < 300:
            raise error_of(url, response, content, self._key)
        names = {name.lower(): value for name, value in response.headers.items()}
        return Answer(url, names, content, usage_of(response), self._key)

    def _read(self, url: str, raw: urllib3.BaseHTTPResponse) -> bytes:
        """Read the body as it arrives; `requests` itself would wait for whole blocks."""
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

    def _no_answer(
        self, url: str, error: Exception, outer: BaseException | None, seconds: float
    ) -> Exception:
        """Make the error of a request without a whole answer."""
        cause = _innermost(error, outer)
        reason = quoted(str(cause), self._key, most=200) or type(cause).__name__
        if isinstance(error, requests.ConnectTimeout) or "handshake operation timed" in reason:
            return TransientError(
                f"{url} cannot be reached: no connection in time", overloaded=True
            )
        if isinstance(error, requests.exceptions.InvalidSchema):
            return PermanentError(f"{url} cannot be called: {reason}")
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return PermanentError(
                f"{url}: no safe connection ({reason}); check the URL and its certificate"
            )
        if isinstance(error, requests.exceptions.ProxyError):
            return TransientError(
                f"the proxy {_proxy(url)} gives no connection to {url}: {reason}; check "
                "HTTP_PROXY, HTTPS_PROXY and NO_PROXY in the environment"
            )
        if isinstance(cause, TimeoutError) or isinstance(error, requests.Timeout):
            late = TransientError(f"{url} did not answer within {seconds:.4g} s", overloaded=True)
            return _perhaps_paid(late)
        if _broken_off(error):
            return _perhaps_paid(TransientError(f"{url} broke off its answer: {reason}"))
        if isinstance(error, requests.RequestException):
            return TransientError(f"{url} cannot be reached: {reason}")
        return PermanentError(f"{url} cannot be called: {reason}")  # no file of certificates

    def _without_key(self, error: Exception) -> Exception | None:
        """Take the signed request off an error; None if it still contains the key."""
        if isinstance(error, requests.RequestException):
            error.request = error.response = None
        text = "".join(traceback.format_exception(error))
        return error if self._key is None or self._key.hidden(text) == text else None


def _broken_off(error: Exception) -> bool:
    """Whether a request was sent before it failed; requests wraps failures before the answer."""
    raw = error.args[0] if isinstance(error, requests.RequestException) and error.args else error
    after_sending = (urllib3.exceptions.ProtocolError, urllib3.exceptions.InvalidHeader)
    return isinstance(raw, urllib3.exceptions.HTTPError if raw is error else after_sending)


def _perhaps_paid(error: LMaaSError) -> LMaaSError:
    """Mark the error of a request that was sent, and perhaps answered."""
    error.usage, error.usage_unknown = Usage(requests=1), True
    return error


def _proxy_of(url: str) -> str:
    return select_proxy(url, get_environ_proxies(url)) or ""


def _invalid_proxy(url: str) -> InputError:
    return InputError(
        f"{url} cannot be called: the address of its proxy is no valid URL; check HTTP_PROXY, "
        "HTTPS_PROXY and NO_PROXY in the environment"
    )


def _parses(url: str) -> bool:
    try:
        urlsplit(url)
    except ValueError:
        return False
    return True


def _proxy(url: str) -> str:
    """The proxy for a URL, without its password."""
    parts = urlsplit(_proxy_of(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else parts.path


class _Session(requests.Session):
    """A session without redirects.

    Even where it follows none, requests parses the address of the next request, which may raise
    anything, and reads the body to its end.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: there is no next request."""


def _session(key: Key | None) -> requests.Session:
    session = _Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.auth = key or _unsigned
    session.headers.update({"User-Agent": "lmaas-tune", "Accept": "*/*"})
    adapter = TimedAdapter(pool_maxsize=CONNECTIONS, pool_block=True)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _unsigned(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class _Blocks:
    """A body sent in blocks, so that the deadline is checked before each."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __len__(self) -> int:
        return len(self._body)

    def __iter__(self) -> Iterator[bytes]:
        return (self._body[start : start + _BLOCK] for start in range(0, len(self), _BLOCK))


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        if parts.scheme not in ("http", "https") or not host or parts.port == 0:
            raise ValueError
    except ValueError:
        # a password may be in it
        shown = "the given address" if {"@", "?", "#"} & set(url) else repr(url)
        raise InputError(f"{shown} is no URL: give one like http://127.0.0.1:8000") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"the URL of {parts.hostname!r} holds more than an address and a path: give the key by "
            "a file or the environment, and leave out the part behind a question mark"
        )
    return url.rstrip("/")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _innermost(error: Exception, outer: BaseException | None) -> BaseException:
    """The first cause of an error below the caller's own; its text holds no object's address."""
    found: BaseException = error
    while (inner := found.__cause__ or found.__context__) not in (None, outer):
        found = inner
    return found
