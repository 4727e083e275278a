"""Overhead of a backend behind HTTP, compared with a client that only sends bytes.

    python benchmarks/remote_throughput.py                  # our own service, started for this
    python benchmarks/remote_throughput.py --backend vllm --url U --model M --api-key-file F

Both sides send the same kind of request from as many threads, in turns:
one through `Client` and backend, from prompts to log-probabilities, the other by `http.client`,
its bodies made before the clock starts and its answers only read. No prompt is sent twice, so
that no server answers from memory; the rows are the same under all prompts, as in a run. Prints
rows a second of both, their ratio, and what a row costs this process in seconds of the processor.

The ratio is of this server: where client and server share the processor, one with a model of two
tiny layers (that of the tests) answers a row in 3 ms, so that every 0.3 ms of the client count a
tenth. A real model is a real server's load, and slow on a processor: SmolLM2-135M takes 0.3 s a
row there, and ``--prompts 2 --rounds 4`` some minutes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import numpy as np
from lmaas_tune_adapters.http import Endpoint

from lmaas_tune import Client, Example, Pace, ScoreRequest, Template, load_backend
from lmaas_tune.backend import Backend
from lmaas_tune.demo_model import SMOLLM2, ready_model
from lmaas_tune.prompts import PointPrompt, Prompt, SoftPrompt, Subspace
from lmaas_tune.versions import versions

ROWS = 32
TEXT = "the movie is good and the story is told well "
TEMPLATE = Template("{prompt} {text} It was {label}")
SUBSPACE = Subspace(
    start="words", words="Overall it is so", dim=500, projection="normal", alpha=1.0, seed=0
)


@dataclass(frozen=True)
class Ready:
    """A request made before the clock starts."""

    path: str
    body: bytes
    headers: Mapping[str, str]


class _Captured(Exception):  # noqa: N818  # carries a request out of the backend, and is no error
    pass


class Bare:
    """Sends what is ready and reads what comes, by connections that stay open.

    Args:
        url: Of the server.
        key_file: Holds its key.
        workers: Threads, each with its connection.
    """

    def __init__(self, url: str, key_file: str | None, workers: int) -> None:
        self._address = urlsplit(url)
        self._key = {}
        if key_file is not None:
            key = Path(key_file).read_text(encoding="utf-8").strip()
            self._key = {"Authorization": f"Bearer {key}"}
        self._workers = workers

    def send(self, ready: Sequence[Ready]) -> None:
        """Send all and read every answer."""
        waiting: SimpleQueue[Ready] = SimpleQueue()
        for request in ready:
            waiting.put(request)
        with ThreadPoolExecutor(self._workers) as pool:
            for worker in [pool.submit(self._work, waiting) for _ in range(self._workers)]:
                worker.result()

    def _work(self, waiting: SimpleQueue[Ready]) -> None:
        connection = http.client.HTTPConnection(self._address.netloc)
        while not waiting.empty():
            request = waiting.get()
            connection.request("POST", request.path, request.body, {**request.headers, **self._key})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the bare client got {answer.status}")
        connection.close()


def requests_of(backend: Any, rng: np.random.Generator, prompts: int) -> list[ScoreRequest]:
    """So many fresh prompts on the same rows."""
    # of a point only z is sent, so that long texts would be time of the model's alone
    text = TEXT if backend.capabilities.point_prompts else TEXT * 10
    examples = [Example({"text": f"{number} {text}"}) for number in range(ROWS)]
    batch = TEMPLATE.batch(examples)
    fresh = _prompts(backend, rng, prompts)
    return [ScoreRequest(prompt, batch, ("good", "bad")) for prompt in fresh]


def _prompts(backend: Any, rng: np.random.Generator, count: int) -> list[Prompt]:
    if backend.capabilities.point_prompts:
        points = rng.standard_normal((count, SUBSPACE.dim))
        return [PointPrompt(SUBSPACE, point) for point in points]
    shape = (count, 5, backend.capabilities.soft_prompt_width)
    return [SoftPrompt(v) for v in backend.embedding_std * rng.standard_normal(shape)]


def ready_of(backend: Backend, requests: Sequence[ScoreRequest]) -> list[Ready]:
    """What the backend would send for them; nothing is sent."""
    ready = []

    def capture(_: Endpoint, path: str, *, body: bytes, headers: Mapping[str, str]) -> None:
        ready.append(Ready(path, body, headers))
        raise _Captured

    parts = [
        replace(request, batch=batch)
        for request in requests
        for batch in request.batch.cut(backend.capabilities.rows_per_call or ROWS)
    ]
    with mock.patch.object(Endpoint, "post", capture):
        for part in parts:
            try:
                backend.score([part])
            except _Captured:
                continue
    return ready


def measure(backend: Any, bare: Bare, *, workers: int, prompts: int, rounds: int) -> None:
    """Let both sides work in turns, and print what came of it."""
    client = Client(backend, pace=Pace(workers=workers))
    rng = np.random.default_rng(0)
    (warm,) = client.score(requests_of(backend, rng, 1))  # both sides find the server warm
    rows = ROWS * prompts
    walls: dict[str, list[float]] = {"bare": [], "backend": []}
    processor = dict.fromkeys(walls, 0.0)
    ready: list[Ready] = []
    for number in range(rounds):
        ready = ready_of(backend, requests_of(backend, rng, prompts))
        fresh = requests_of(backend, rng, prompts)
        for name in sorted(walls, reverse=number % 2 == 1):
            wall, own = time.perf_counter(), time.process_time()
            bare.send(ready) if name == "bare" else client.score(fresh)
            walls[name].append(time.perf_counter() - wall)
            processor[name] += time.process_time() - own
    for name, label in (("bare", "a bare client"), ("backend", "through the backend")):
        print(
            f"{label:20}{rows / statistics.median(walls[name]):6.0f} rows/s, "
            f"{processor[name] / rounds / rows * 1000:.2f} ms of the processor a row"
        )
    ratios = [a / b for a, b in zip(walls["bare"], walls["backend"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    size = sum(len(request.body) for request in ready) / len(ready)
    print(
        f"ratio {middle:.2f}, half of the rounds from {low:.2f} to {high:.2f} ({rounds} rounds of "
        f"{prompts} prompts on {ROWS} rows of {warm.usage.tokens / ROWS:.0f} tokens, "
        f"{workers} workers, requests of {size:,.0f} bytes)"
    )


@contextmanager
def service() -> Iterator[str]:
    """The URL of our own service with the demo's model, until the block ends."""
    model = ready_model(SMOLLM2, load_backend("hf").convert_gguf, say=print)  # type: ignore[attr-defined]
    command = [sys.executable, "-m", "lmaas_tune", "serve", "--json", "--port", "0"]
    command += ["--model", str(model), "--limits", "requests=1000000,tokens=1000000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield json.loads(process.stdout.readline() if process.stdout else b"{}")["url"]
        finally:
            process.terminate()


def main() -> None:
    """Read the flags, open the backend, measure."""
    parser = argparse.ArgumentParser(description="Throughput of a backend behind HTTP.")
    parser.add_argument("--backend", default="lmaas")
    parser.add_argument("--url", help="of a running server; our own service needs none")
    parser.add_argument("--model")
    parser.add_argument("--api-key-file")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=10, help="of one round")
    parser.add_argument("--rounds", type=int, default=20, help="2 or more")
    given = parser.parse_args()
    options = {"model": given.model, "api_key_file": given.api_key_file}
    options = {name: value for name, value in options.items() if value is not None}
    with nullcontext(given.url) if given.url else service() as url:
        backend = load_backend(given.backend)(url=url, **options)
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores;", versions())
        print(backend.identity)
        bare = Bare(url, given.api_key_file, given.workers)
        measure(backend, bare, workers=given.workers, prompts=given.prompts, rounds=given.rounds)


if __name__ == "__main__":
    main()
