"""API keys, which are sent to a server and never printed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lmaas_tune.errors import InputError
from lmaas_tune.key_hiding import read_hidden, shown

if TYPE_CHECKING:
    import requests


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
        """Replace the key in a text, as some servers quote it."""
        return text.replace(self._text, "***")


def quoted(text: str, key: Key | None, *, most: int) -> str:
    """Quote foreign text on one printable line, without the key.

    It is cut after the key was replaced, so that no part of a key remains.
    """
    text = key.hidden(text) if key else text
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]
