"""Usage of requests: bytes on the wire, sums over the parts of a call, and paid failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from lmaas_tune.backend import Usage
from lmaas_tune.errors import InputError, LMaaSError

if TYPE_CHECKING:
    import requests
    import urllib3

NO_USAGE = Usage()

Part = TypeVar("Part")


def usage_of(response: requests.Response) -> Usage:
    """Usage of one answered request, with its bytes both ways."""
    return Usage(
        requests=1,
        bytes_up=_bytes_up(response.request),
        bytes_down=_bytes_down(response.raw),
    )


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
    """Attach usage to errors inside, which have been paid; without tokens it is incomplete."""
    try:
        yield
    except LMaaSError as error:
        error.usage, error.usage_unknown = usage, not usage.tokens
        raise


def joined(
    parts: Iterable[tuple[Part, Usage]], before: Usage = NO_USAGE
) -> tuple[list[Part], Usage]:
    """Collect all parts of a call and add up their usage; an error carries it too."""
    found: list[Part] = []
    usage = before
    try:
        for part, part_usage in parts:
            found.append(part)
            usage += part_usage
    except LMaaSError as error:
        failed = Usage(requests=0 if isinstance(error, InputError) else 1)
        error.usage = usage + (failed if error.usage is None else error.usage)
        raise
    return found, usage


def tokens_read(reply: Any) -> int | None:
    """Read the prompt tokens in a reply of an OpenAI-compatible server.

    Returns:
        0 where the reply does not count them; None where the count is no number.
    """
    usage = reply.get("usage") if isinstance(reply, Mapping) else None
    try:
        return max(0, int((usage or {}).get("prompt_tokens") or 0))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
