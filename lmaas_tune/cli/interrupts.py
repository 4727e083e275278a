"""Ctrl-C and SIGTERM: an error that a command takes in good order, or the end of the process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130
"""Exit status."""

_MAX_INTERRUPTS = 2
"""So many interrupts a command takes: one ends its run, another leaves the calls under way."""

_enabled = False  # whether an error would be taken
_count = 0


def watch() -> None:
    """Show no traceback for an interrupt of this process, whatever it meets, from here on."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """Take an interrupt within as KeyboardInterrupt, which the caller expects.

    One of a process that is watched, too: the first two, and not amid an import, as modules lose
    errors that they do not expect.
    """
    global _enabled
    _enabled = True
    try:
        yield
    finally:
        _enabled = False


def abandoned() -> bool:
    """Whether the user has left what is under way, and waits for none of it."""
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
    """Whether a module is being imported, by what a command calls."""
    while frame is not None and frame.f_globals.get("__name__") != "lmaas_tune.cli":
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
