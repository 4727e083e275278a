"""Reads files of API keys, and detects keys passed instead of a file name: no message shows any."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lmaas_tune.errors import InputError

KEY = re.compile(r"(?<![\w-])(?:(?:sk|gsk|xai|nvapi)[-_][\w.+/=-]{6,}|hf_[A-Za-z0-9]{20,})")
"""Keys of well-known providers."""

_SUFFIX = re.compile(r"\.\w{1,5}")
_LONG = 16  # characters; file names without a suffix are seldom longer, keys are


def looks_secret(text: str) -> bool:
    """Whether a text given as a file name may be a secret."""
    path = Path(text)
    try:
        if path.exists() or (path.name != text and path.parent.is_dir()):
            return False
    except (OSError, ValueError):  # no valid file name
        return True
    return bool(KEY.match(text)) or (len(text) >= _LONG and not _SUFFIX.fullmatch(path.suffix))


def shown(file: str | os.PathLike[str]) -> str:
    """A file name for a message; hidden if it may be a secret."""
    text = os.fspath(file)
    return "the file that was named for it" if looks_secret(text) else text


def read_hidden(file: str | os.PathLike[str], what: str, *, remedy: str = "") -> str:
    """The text of a file of keys, also of one that begins with a byte order mark.

    Raises:
        InputError: It cannot be read; the message names `what`, and ends in the remedy.
    """
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # no UTF-8, or no name that a file can have
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputError(f"{what} cannot be read from {shown(file)} ({reason}){remedy}") from None
