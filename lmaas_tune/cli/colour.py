"""Colours of a terminal."""

from __future__ import annotations

import os
import re
from typing import TextIO

BOLD, RED, YELLOW = "1", "1;31", "33"


def has_colours(stream: TextIO) -> bool:
    """Whether a stream shows colours, by the variables that Python itself heeds."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.name == "posix" and os.environ.get("TERM") != "dumb" and stream.isatty()


def coloured(pattern: str, colour: str, text: str, stream: TextIO) -> str:
    """The text with its matches of a pattern in a colour, where the stream shows it."""
    if not has_colours(stream):
        return text
    return re.sub(pattern, rf"\033[{colour}m\g<0>\033[0m", text, flags=re.MULTILINE)
