"""Handling of Ctrl-C and SIGTERM: a KeyboardInterrupt for a command, else the process ends."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130
"""Exit status."""

_MAX_INTERRUPTS = 2
"""Interrupts that a command handles: the first ends its run, the second drops active calls."""

_enabled = False  # whether a command handles interrupts now
_count = 0


def watch() -> None:
    """Install the signal handlers, so that an interrupt never shows a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the parent ignores it
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """Raise KeyboardInterrupt for interrupts within the context.

    With the handlers of `watch`, only for the first two, and not during an import, because modules
    may suppress the exception.
    """
    global _enabled
    _enabled = True
    try:
        yield
    finally:
        _enabled = False


def abandoned() -> bool:
    """Whether the user interrupted twice, so that active calls are dropped."""
    return _count >= _MAX_INTERRUPTS


def exit_now() -> None:
    """End the process without waiting for its threads."""
    os._exit(INTERRUPTED)


def _interrupt(_signal: int, frame: FrameType | None) -> None:
    global _count
    _count += 1
    if _enabled and _count <= _MAX_INTERRUPTS and not _is_import(frame):
        raise KeyboardInterrupt
    os.write(2, b"interrupted\n")
    exit_now()


def _is_import(frame: FrameType | None) -> bool:
    """Whether the frame is within an import that a command makes."""
    while frame is not None and frame.f_globals.get("__name__") != "lmaas_tune.cli":
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
