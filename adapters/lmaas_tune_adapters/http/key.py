"""API keys, which are sent to a server and never printed."""

from __future__ import annotations

import html
import os
import re
from typing import TYPE_CHECKING, Any

from lmaas_tune.errors import InputError
from lmaas_tune.key_hiding import read_hidden, shown

if TYPE_CHECKING:
    import requests


_RUN = 12
"""A run of so many characters of a key is hidden, as some servers quote a part; shorter ones are
common words."""

_LOOKED_AT = 1 << 16  # characters of a foreign text; of those behind them none is quoted

_CHARACTER = re.compile(
    r"\\+u00[0-9a-f]{2}|%[0-9a-f]{2}|&#?\w{1,8};|\\*.", re.IGNORECASE | re.DOTALL
)
"""One character, as it is or as JSON, a URL or HTML writes it."""


class _Hidden(str):
    """A header that is sent unchanged; its repr, which crash reports print, is concealed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Key:
    """A secret that no repr, error or pickle contains.

    Args:
        text: The key itself.

    Raises:
        InputError: It is empty, or holds characters that no HTTP header can.
    """

    def __init__(self, text: str) -> None:
        text = text.strip()
        if not text:
            raise InputError("the API key is empty")
        if not text.isascii() or not text.isprintable() or " " in text:
            raise InputError(
                "the API key holds what no key has: spaces, line breaks or other than ASCII"
            )
        self._text = text

    @classmethod
    def find(cls, *, file: str | os.PathLike[str] | None, variable: str | None) -> Key | None:
        """Read the key from a file, else from an environment variable, else return None.

        Raises:
            InputError: The file cannot be read, or what is found is no key.
        """
        if file is not None:
            remedy = ": give the path of a file that holds the key and nothing else"
            text, source = read_hidden(file, "the API key", remedy=remedy), shown(file)
        elif variable and os.environ.get(variable):
            text, source = os.environ[variable], f"the variable {variable}"
        else:
            return None
        try:
            return cls(text)
        except InputError as error:
            raise InputError(f"{source}: {error}; it must hold the key and nothing else") from None

    def __repr__(self) -> str:
        return "Key(***)"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not written down")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign a request, as an `auth` of requests, which then ignores .netrc."""
        request.headers["Authorization"] = _Hidden(f"Bearer {self._text}")
        return request

    def hidden(self, text: str) -> str:
        """Replace the key in a text, also where a server quotes a part or writes it escaped."""
        key, _ = _unescaped(self._text)
        plain, places = _unescaped(text)
        length = min(_RUN, len(key))
        runs = {key[i : i + length] for i in range(len(key) - length + 1)}
        shown, end = [], 0
        for start in range(len(plain)):
            if plain[start : start + length] in runs:
                if start >= end:
                    shown += [text[places[end] : places[start]], "***"]
                end = start + length
        return "".join([*shown, text[places[end] :]]).replace(self._text, "***")


def quoted(text: str, key: Key | None, *, most: int) -> str:
    """Quote foreign text on one printable line, without the key.

    It is cut after the key was replaced, so that no part of a key remains.
    """
    text = text[:_LOOKED_AT]
    text = key.hidden(text) if key else text
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]


def _unescaped(text: str) -> tuple[str, list[int]]:
    """The characters that a text stands for, and where each begins in it; last where it ends."""
    found = list(_CHARACTER.finditer(text))
    plain = "".join(_plain(match[0]) for match in found)
    return plain, [*(match.start() for match in found), len(text)]


def _plain(written: str) -> str:
    """The character that one match of `_CHARACTER` stands for."""
    if len(written) > 1 and written[0] == "&":
        return (html.unescape(written) or "&")[0]
    if len(written) > 1 and (written[0] == "%" or written[-5:-2].lower() == "u00"):
        return chr(int(written[-2:], 16))
    return written[-1]
