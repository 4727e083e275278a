"""What a service logs: JSON lines without prompts, texts or keys."""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
import time
import traceback
from datetime import datetime, timezone
from typing import Any, TextIO

_LINES = 10_000
_END = ""


class Log:
    """Writes one JSON object a line, in a thread of its own: a reader that stalls stalls nobody.

    What does not fit the buffer then is dropped, and counted in the next line that does.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(_LINES)
        self._dropped = 0
        self._rare: dict[
            str, tuple[float, int]
        ] = {}  # when it was written, how often it came since
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def write(self, event: str, **fields: object) -> None:
        """Log an event; fields that are None are left out."""
        content = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
        content |= {"event": event}
        if self._dropped:
            fields["dropped"] = self._dropped
        known = {name: value for name, value in fields.items() if value is not None}
        try:
            self._lines.put_nowait(json.dumps({**content, **known}))
            self._dropped = 0
        except queue.Full:
            self._dropped += 1

    def rarely(self, event: str, **fields: object) -> None:
        """Log an event that a flood of clients can cause: a line a second.

        What came between two lines is counted in the later one, as `before`.
        """
        now = time.monotonic()
        written, count = self._rare.get(event, (-math.inf, 0))
        if now - written < 1:
            self._rare[event] = (written, count + 1)
            return
        self._rare[event] = (now, 0)
        self.write(event, before=count or None, **fields)

    def close(self, seconds: float = 2.0) -> None:
        """Write what is left, as far as it can be written in time."""
        for event, (_, count) in self._rare.items():
            if count:
                self.write(event, before=count)
        try:
            self._lines.put(_END, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _write(self) -> None:
        while line := self._lines.get():
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads it any more
                continue


class Relay(logging.Handler):
    """Passes records of the standard logging on, without their arguments.

    Args:
        log: Where to.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        error = record.exc_info[1] if record.exc_info else None
        self._log.rarely(str(record.msg).strip(), **(described(error) if error else {}))


def described(error: BaseException) -> dict[str, Any]:
    """An error nobody expected: its kind and place, as its words may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    return {"error": type(error).__name__, "at": places}
