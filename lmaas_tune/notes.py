"""Notes for the user: the type of `on_note`, and its default."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import TypeAlias

OnNote: TypeAlias = Callable[[str], None]
"""Called with each note for the user, a sentence."""


def warn(note: str) -> None:
    """Issue a note as a `UserWarning` of the caller's line outside this package."""
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(note, stacklevel=level)
