"""Three floods of a service, with and without a key, and the throughput left for other keys.

    python benchmarks/service_abuse.py

Each flood meets a service of its own, with the toy model and the usual bounds, in a process of its
own. Prints, for

- draws: 16 subspaces of 500 MB that one key has drawn. How long another key's registration of one
  row takes meanwhile, and the end at SIGTERM with all others still waiting.
- batches: 50 of 8 MB, 8 at a time, and 50 that hold as many values as a body may. The most memory
  of the process, beside what the bounds say: what is kept for the key, the bodies that may be
  inside, and what reading one takes.
- connections: 500 that send a byte of a header now and then; 3,000 that send nothing; and as many
  while the process has no descriptor left. How long ``/health`` takes, and the lines of the log.

Needs Linux, for limits and memory of another process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from lmaas_tune.service.server_limits import MIB, ServerLimits

ALICE, BOB = "a" * 43, "b" * 43
LABEL = {"slot": "label"}
LARGE = {
    "start": "zero",
    "length": 500,
    "dim": 8192,
    "projection": "uniform",
    "alpha": 1.0,
}  # 500 x 32 x 8192 float32 on the toy model of width 32
READING = 6  # a body is held so often while it arrives and is read: bytes, texts, copies
DRAWS, BATCHES, SLOW, FLOOD = 16, 50, 500, 3000


@dataclass(frozen=True)
class Served:
    """A service in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def post(self, path: str, content: Any, key: str = ALICE) -> requests.Response:
        """Send JSON."""
        headers = {"Authorization": f"Bearer {key}"}
        return requests.post(self.url + path, json=content, headers=headers, timeout=300)

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), timeout=60)

    def health(self) -> float:
        """Seconds until it says that it is well."""
        answer, seconds = timed(lambda: requests.get(self.url + "/health", timeout=60))
        assert answer.status_code == 200
        return seconds

    def memory(self) -> float:
        """MiB that the process has now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB

    def lines(self) -> int:
        """Of its log."""
        return self.log.read_text().count("\n")


@contextmanager
def serving() -> Iterator[Served]:
    """A service with two keys."""
    with tempfile.TemporaryDirectory() as folder:
        keys, log = Path(folder, "keys"), Path(folder, "log")
        keys.write_text(f"alice {ALICE}\nbob {BOB}\n")
        command = [sys.executable, "-m", "lmaas_tune", "serve", "--backend", "toy"]
        command += ["--backend-options", "width=32", "--port", "0", "--api-key-file", str(keys)]
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [*command, "--json"], stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            assert process.stdout is not None
            try:
                url = json.loads(process.stdout.readline())["url"]
                yield Served(url, process, log)
            finally:
                process.kill()


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and its seconds."""
    began = time.perf_counter()
    return what(), time.perf_counter() - began


def draws() -> None:
    """One key draws; another registers a row; the service is told to stop."""
    with serving() as it, ThreadPoolExecutor(DRAWS) as threads:
        asked = [
            threads.submit(it.post, "/v1/subspaces", {**LARGE, "seed": n}) for n in range(DRAWS)
        ]
        time.sleep(1)  # all have come, and the first is under way
        row = {"rows": [["x", LABEL]], "candidates": ["a", "b"]}
        answer, seconds = timed(lambda: it.post("/v1/batches", row, BOB))
        waiting = sum(not one.done() for one in asked)
        print(f"draws: {waiting} of {DRAWS} wait; another key's row {seconds:.2f} s", end="; ")
        assert answer.status_code == 201
        it.process.send_signal(signal.SIGTERM)
        _, seconds = timed(it.process.wait)
        codes = [one.result().status_code for one in asked]
        print(
            f"SIGTERM {seconds:.1f} s (grace {ServerLimits().grace_seconds} s), "
            f"{codes.count(503)} told that it stops"
        )


def batches(kind: str, row: list[Any]) -> None:
    """A key registers batches of a thousand such rows."""
    with serving() as it, ThreadPoolExecutor(8) as threads:
        start, most, done = it.memory(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                most[0] = max(most[0], it.memory())

        watching = threading.Thread(target=watch)
        watching.start()
        rows = [[*row, LABEL, str(n)] for n in range(1000)]
        bodies = [{"rows": rows, "candidates": [f"a{n}", "b"]} for n in range(BATCHES)]
        answers = list(threads.map(lambda body: it.post("/v1/batches", body), bodies))
        done.set()
        watching.join()
        taken = sum(answer.status_code == 201 for answer in answers)
        size = len(json.dumps(bodies[0])) / 1e6
        print(
            f"{kind}: {taken} of {BATCHES} batches of {size:.1f} MB registered; most memory "
            f"{most[0] - start:.0f} MiB above the start's {start:.0f}"
        )


def connections() -> None:
    """Slow ones, silent ones, and no descriptors."""
    with serving() as it:
        with many(it, SLOW) as slow:
            began, open_ones, worst = time.monotonic(), len(slow), 0.0
            while time.monotonic() - began < 20:
                time.sleep(1)
                open_ones = sum(map(drip, slow))
                worst = max(worst, it.health())
            print(f"{SLOW} slow: {open_ones} open after 20 s; /health {worst:.2f} s", end="; ")
            print(f"{it.lines()} lines of log")
        with many(it, FLOOD):
            print(f"{FLOOD} silent: /health {it.health():.2f} s; {it.lines()} lines of log")
        resource.prlimit(it.process.pid, resource.RLIMIT_NOFILE, (60, 60))
        with many(it, SLOW):
            seconds = max(it.health() for _ in range(5))
            text = it.log.read_text()
            print(
                f"{SLOW} silent and no descriptor left ({text.count('no_descriptors')} lines say "
                f"so): /health {seconds:.2f} s; {it.lines()} lines of log"
            )
        it.process.send_signal(signal.SIGTERM)
        assert it.process.wait() == 0


@contextmanager
def many(it: Served, count: int) -> Iterator[list[socket.socket]]:
    """So many connections."""
    with ExitStack() as stack:
        yield [stack.enter_context(it.connect()) for _ in range(count)]


def drip(connection: socket.socket) -> bool:
    """Send one byte more of a header; whether the connection is still open."""
    try:
        connection.sendall(b"x")
        connection.setblocking(False)
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def main() -> None:
    """Run all three."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    draws()
    batches("long rows", ["x" * 8150])
    batches("short texts", ["ab", "c"] * 120)
    kept, body = ServerLimits().batch_bytes, ServerLimits().body_bytes
    inside = ServerLimits().queue_bytes // 2 + READING * body
    print(f"  the bounds: {kept // MIB} MiB kept, {inside // MIB} MiB of bodies on their way")
    connections()


if __name__ == "__main__":
    main()
