"""The log of a service: JSON lines without prompts, texts or keys, written in a separate thread."""

from __future__ import annotations

import json
import logging
import logging.handlers
import math
import queue
import threading
import time
import traceback
from datetime import datetime, timezone
from typing import Any, TextIO

_LINES = 10_000  # lines that wait for a slow reader; further ones are dropped


class Log:
    """Logs events through a queue, so that a slow reader of the log delays nothing else.

    Lines that do not fit the queue are dropped, and counted in the next line that does.

    Args:
        stream: Where the lines are written.
    """

    def __init__(self, stream: TextIO) -> None:
        lines: queue.Queue[logging.LogRecord] = queue.Queue()
        self._logger = logging.Logger("lmaas_tune.service")
        self._logger.addHandler(_BoundedHandler(lines))
        self._rare = _OncePerSecond()
        self._logger.addFilter(self._rare)
        listener = logging.handlers.QueueListener(lines, _Writer(stream))
        listener.start()
        self._end = threading.Thread(target=listener.stop, name="log", daemon=True)

    def write(self, event: str, **fields: object) -> None:
        """Log an event; fields that are None are left out."""
        self._logger.info(event, extra={"fields": fields})

    def rarely(self, event: str, **fields: object) -> None:
        """Log an event that a flood of clients can cause: at most one line a second.

        The next line counts the events in between, as `before`.
        """
        self._logger.warning(event, extra={"fields": fields})

    def close(self, seconds: float = 2.0) -> None:
        """Write the lines that are left, as far as the time suffices; a second call waits too."""
        for event, count in self._rare.suppressed().items():
            self.write(event, before=count)
        if self._end.ident is None:
            self._end.start()
        self._end.join(seconds)


class Relay(logging.Handler):
    """Passes records of other loggers on, without their arguments, which may quote a text.

    Args:
        log: Where they are logged.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        error = record.exc_info[1] if record.exc_info else None
        self._log.rarely(str(record.msg).strip(), **(described(error) if error else {}))


def described(error: BaseException) -> dict[str, Any]:
    """An unexpected error by its type and place; its message may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    return {"error": type(error).__name__, "at": places}


class _OncePerSecond(logging.Filter):
    """Passes one warning of each kind a second, with the number of those suppressed before it."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, int]] = {}  # time of the last line, warnings since

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        if record.levelno < logging.WARNING:
            return True
        now = time.monotonic()
        written, count = self._seen.get(record.msg, (-math.inf, 0))
        is_due = now - written >= 1
        self._seen[record.msg] = (now, 0) if is_due else (written, count + 1)
        vars(record)["fields"]["before"] = count or None
        return is_due

    def suppressed(self) -> dict[str, int]:
        """Warnings since the last line of their kind."""
        return {event: count for event, (_, count) in self._seen.items() if count}


class _BoundedHandler(logging.handlers.QueueHandler):
    """Queues records as JSON, and drops those for which there is no room."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self.setFormatter(_JsonFormatter())
        self._lines, self._dropped = lines, 0

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        if self._lines.qsize() >= _LINES:
            self._dropped += 1
            return
        vars(record)["fields"]["dropped"] = self._dropped or None
        self._dropped = 0
        super().emit(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        content = {"time": moment.isoformat(timespec="milliseconds"), "event": record.msg}
        content |= vars(record)["fields"]
        return json.dumps({name: value for name, value in content.items() if value is not None})


class _Writer(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # its name is fixed
        """Ignore a closed stream."""
