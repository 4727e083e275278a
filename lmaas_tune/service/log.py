"""What a service logs: JSON lines without prompts, texts or keys."""

from __future__ import annotations

import json
import logging
import queue
import threading
import traceback
from datetime import datetime, timezone
from typing import TextIO

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

    def fault(self, event: str, error: BaseException, **fields: object) -> None:
        """Log an error nobody expected: its kind and place, as its words may quote a text."""
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
        self.write(event, error=type(error).__name__, at=places, **fields)

    def close(self, seconds: float = 2.0) -> None:
        """Write what is left, as far as it can be written in time."""
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
        event = str(record.msg).strip()
        if record.exc_info and record.exc_info[1] is not None:
            self._log.fault(event, record.exc_info[1])
        else:
            self._log.write(event)
