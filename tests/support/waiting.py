"""Waiting for what happens in another thread or process, and never for longer than it may take."""

from __future__ import annotations

import select
import time
from collections.abc import Callable


def wait_for(happened: Callable[[], object], *, seconds: float = 30.0) -> None:
    """Look again and again until it happened.

    Raises:
        AssertionError: It did not, in so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"{happened} did not happen within {seconds:g} s")
        select.select([], [], [], 0.005)
