"""Waiting for an event in another thread or process, with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 60.0  # seconds until a test gives up, on a machine that pauses too


def until(condition: Callable[[], T], event: str = "it", *, seconds: float = DEADLINE) -> T:
    """The condition's value, as soon as it is true.

    Raises:
        AssertionError: It was not true in time.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{event} did not happen in {seconds:g} s"
        time.sleep(0.005)
    return value
