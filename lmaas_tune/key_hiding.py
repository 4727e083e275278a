"""Keys typed where the name of a file belongs: no message repeats them."""

from __future__ import annotations

import os
import re
from pathlib import Path

KEY = re.compile(r"(?<![\w-])(?:(?:sk|gsk|xai|nvapi)[-_][\w.+/=-]{6,}|hf_[A-Za-z0-9]{20,})")
"""How keys of well-known providers begin."""

_SUFFIX = re.compile(r"\.\w{1,5}")
_LONG = 16  # characters; keys have more, names of files seldom without a suffix


def looks_secret(text: str) -> bool:
    """Whether what was given for a file may be the secret itself."""
    path = Path(text)
    try:
        if path.exists() or (path.name != text and path.parent.is_dir()):
            return False
    except (OSError, ValueError):  # no name that a file can have
        return True
    return bool(KEY.match(text)) or (len(text) >= _LONG and not _SUFFIX.fullmatch(path.suffix))


def shown(file: str | os.PathLike[str]) -> str:
    """A file as a message names it."""
    text = os.fspath(file)
    return "the file that was named for it" if looks_secret(text) else text
