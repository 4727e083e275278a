"""A server in a separate process, which ends with the tests."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen


@contextlib.contextmanager
def server_process(
    command: Sequence[str], log: Path, *, grace: float = 0.0, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start a server in a new process group, and end the group.

    Args:
        command: Starts it.
        log: Receives its output, unless the options redirect it.
        grace: Seconds from SIGTERM to SIGKILL.
        options: Of `subprocess.Popen`.
    """
    with log.open("a") as file:
        process = subprocess.Popen(
            command,
            **{"stdin": subprocess.PIPE, "stdout": file, "stderr": file, **options},
            text=True,
            start_new_session=True,
            preexec_fn=_prepare,
        )
    try:
        yield process
    finally:
        _stop(process, grace)


def wait_until_up(
    process: subprocess.Popen[str],
    url: str,
    log: Path,
    *,
    seconds: float,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Return when the server answers a GET; fail with the end of its log if it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with (
            contextlib.suppress(URLError, OSError),
            urlopen(Request(url, headers=dict(headers or {})), timeout=5),
        ):
            return
        time.sleep(0.2)  # a start that nothing else announces
    raise RuntimeError(f"no server at {url}; the end of its log:\n{log.read_text()[-4000:]}")


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def _prepare() -> None:
    """In the child: Ctrl-C works even if ignored here; on Linux the child ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _stop(process: subprocess.Popen[str], grace: float) -> None:
    if grace and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the group has the number of its first process
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
