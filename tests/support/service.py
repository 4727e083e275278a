"""A running service on a free port of this machine, and clients for tests."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests

from lmaas_tune.backend import Backend, ScoreReply, ScoreRequest
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt
from lmaas_tune.service.key_quota import KeyQuota
from lmaas_tune.service.keys import read_keys
from lmaas_tune.service.server import Service, bind
from lmaas_tune.service.server_limits import ServerLimits
from lmaas_tune.task import Batch, Slot
from lmaas_tune.testing.toy import ToyBackend
from tests.support.process import server_process
from tests.support.waiting import DEADLINE

ALICE, BOB, MONITOR = (name + "-key-0123456789abcdefghij" for name in ("alice", "bob", "monitor"))
KEYS = f"alice {ALICE}\nbob {BOB}\nmonitor {MONITOR} metrics=yes\n"

TEXTS = ("a gripping film", "two hours I will not get back", "so dull")
BATCH = Batch(
    tuple((text, Slot.PROMPT, " It was", Slot.LABEL) for text in TEXTS),
)
WORDS = ("bad", "good")
ROWS = [[text, {"slot": "prompt"}, " It was", {"slot": "label"}] for text in TEXTS]
SUBSPACE = {
    "start": "zero",
    "length": 5,
    "dim": 4,
    "projection": "normal",
    "alpha": 1.0,
    "seed": 7,
}


@dataclass(eq=False)
class Visitor:
    """A client of a service, with a key or without."""

    url: str
    key: str | None = None

    def __post_init__(self) -> None:
        self._session = requests.Session()
        self._session.trust_env = False
        if self.key is not None:
            self._session.headers["Authorization"] = f"Bearer {self.key}"

    def get(self, path: str) -> requests.Response:
        return self._session.get(self.url + path, timeout=DEADLINE)

    def post(self, path: str, content: Any) -> requests.Response:
        """Bytes go as they are, anything else as JSON."""
        if isinstance(content, bytes):
            headers = {"Content-Type": "application/octet-stream"}
            return self._session.post(
                self.url + path, data=content, headers=headers, timeout=DEADLINE
            )
        return self._session.post(self.url + path, json=content, timeout=DEADLINE)

    def batch(self, rows: Sequence[Any] = ROWS, candidates: Sequence[str] = WORDS) -> str:
        """The id of a registered batch."""
        answer = self.post("/v1/batches", {"rows": rows, "candidates": candidates})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def subspace(self, **changes: Any) -> str:
        """The id of a registered subspace."""
        answer = self.post("/v1/subspaces", SUBSPACE | changes)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def score(self, path: str, content: Any, columns: int = len(WORDS)) -> FloatArray:
        """(rows, candidates) log-probabilities."""
        answer = self.post(path, content)
        assert answer.status_code == 200, answer.text
        return scores(answer, columns)

    def gauge(self, name: str) -> float:
        """One of the metrics, with a key that may read them."""
        lines = self.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@dataclass
class Site:
    """A running service."""

    url: str
    log: io.StringIO
    service: Service

    def visitor(self, key: str | None = ALICE) -> Visitor:
        return Visitor(self.url, key)

    def logged(self) -> list[dict[str, Any]]:
        """All lines of its log so far."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@contextmanager
def running(
    backend: Backend | None = None,
    *,
    keys: str = KEYS,
    limits: Mapping[str, object] | None = None,
    folder: Path,
    port: int = 0,
    log: io.StringIO | None = None,
    **bounds: int,
) -> Iterator[Site]:
    """A service with these keys, in threads of this process; port 0 takes a free one."""
    path = folder / "keys"
    path.write_text(keys)
    keyring = read_keys(path, quota=KeyQuota.of(limits or {}))
    log = io.StringIO() if log is None else log
    with (
        bind("127.0.0.1", port) as place,
        Service(
            backend or ToyBackend(),
            socket=place,
            keyring=keyring,
            limits=ServerLimits.of(bounds),
            log=log,
        ) as service,
    ):
        yield Site(service.url, log, service)


class Held(ToyBackend):
    """A backend that answers only after `go` is set.

    Attributes:
        begun: Set while a call waits.
        go: The test sets it.
        asked: The requests of each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()
        self.asked: list[list[ScoreRequest]] = []

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.asked.append(list(requests))
        self.begun.set()
        assert self.go.wait(DEADLINE)
        return super().score(requests)


def expected(backend: Backend, prompt: Prompt, batch: Batch = BATCH) -> FloatArray:
    """The scores of the backend itself, as float32."""
    (reply,) = backend.score([ScoreRequest(prompt, batch, WORDS)])
    return reply.logprobs.astype(np.float32)


def scores(answer: requests.Response, columns: int = len(WORDS)) -> FloatArray:
    """The body of a scoring answer."""
    return np.frombuffer(answer.content, "<f4").reshape(-1, columns)


def post(path: str, content: Any, key: str = ALICE) -> bytes:
    """The bytes of a whole POST request with JSON."""
    body = json.dumps(content).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def connected(url: str) -> socket.socket:
    """A connection to a service."""
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=DEADLINE)


def soft(seed: int = 0, length: int = 5, width: int = 16) -> SoftPrompt:
    """Vectors drawn at random."""
    return SoftPrompt(np.random.default_rng(seed).standard_normal((length, width)))


def raw(prompt: SoftPrompt) -> bytes:
    """The vectors as they are sent."""
    return prompt.vectors.astype("<f4").tobytes()


def text(words: str) -> dict[str, str]:
    """A text prompt as it is sent."""
    return {"kind": "text", "text": words}


def command(
    *flags: str, log: Path, **options: Any
) -> AbstractContextManager[subprocess.Popen[str]]:
    """``lmaas-tune serve`` with these flags, as a process that ends with the test."""
    serve = [sys.executable, "-m", "lmaas_tune", "serve", *flags]
    return server_process(serve, log, stdout=subprocess.PIPE, **options)


def listening(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The first output of a process started with ``--json``: its address."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "it ended before it listened"
    content: dict[str, Any] = json.loads(line)
    return content
