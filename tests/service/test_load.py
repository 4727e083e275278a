"""Sixty-four clients of three keys at once: every answer right, none another's, memory flat."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import FloatArray, Subspace, TextPrompt
from lmaas_tune.prompts.soft import draw
from lmaas_tune.task import Batch, Slot
from lmaas_tune.testing.toy import ToyBackend
from tests.support.service import (
    ALICE,
    BOB,
    KEYS,
    MONITOR,
    SUBSPACE,
    Visitor,
    command,
    listening,
    text,
)

CLIENTS = 64
REQUESTS = 30  # of each: five minutes of one every ten seconds
PROMPTS = 12
DIM = 20


class Customer:
    """One key with rows, label words and a subspace of its own, and what it should get."""

    def __init__(self, url: str, key: str, seed: int) -> None:
        self.url, self.key = url, key
        self._words = [f"{word}{seed}" for word in ("bad", "good", "fine")]
        rows = [f"text {n} of {seed}" for n in range(4)]
        visitor = Visitor(url, key)
        batch = visitor.batch(
            [[row, {"slot": "prompt"}, {"slot": "label"}] for row in rows], self._words
        )
        subspace = visitor.subspace(dim=DIM, seed=seed)
        self._batch = Batch(tuple((row, Slot.PROMPT, Slot.LABEL) for row in rows))
        points = np.random.default_rng(seed).standard_normal((PROMPTS, DIM)).astype(np.float32)
        space = draw([Subspace(**SUBSPACE | {"dim": DIM, "seed": seed})], ToyBackend())
        self.asked: list[tuple[str, object, FloatArray]] = []
        for n, (point, prompt) in enumerate(zip(points, space.prompts(points), strict=True)):
            words = f"words {n} of {seed}"
            self.asked += [
                (f"/v1/score/{batch}/{subspace}", point.astype("<f4").tobytes(), self._own(prompt)),
                (f"/v1/score/{batch}", text(words), self._own(TextPrompt(words))),
            ]

    def _own(self, prompt: object) -> FloatArray:
        request = ScoreRequest(prompt, self._batch, tuple(self._words))  # type: ignore[arg-type]
        return ToyBackend().score([request])[0].logprobs.astype(np.float32)

    def ask(self, count: int, seed: int) -> list[float]:
        """Seconds of each answer; every one is compared."""
        visitor, chance, seconds = Visitor(self.url, self.key), random.Random(seed), []
        for path, content, wanted in chance.choices(self.asked, k=count):
            began = time.perf_counter()
            got = visitor.score(path, content, columns=3)
            seconds.append(time.perf_counter() - began)
            np.testing.assert_allclose(got, wanted, atol=1e-6, rtol=0)
        return seconds


def resident(url: str) -> float:
    """Bytes of memory of the service, as it tells."""
    lines = Visitor(url, MONITOR).get("/metrics").text.splitlines()
    name = "process_resident_memory_bytes "
    found = [line for line in lines if line.startswith(name)]
    if not found:
        pytest.skip("this system does not tell how much memory a process has")
    return float(found[0].split()[1])


def all_ask(customers: Sequence[Customer], count: int, seed: int) -> list[float]:
    with ThreadPoolExecutor(CLIENTS) as threads:
        turns = itertools.cycle(customers)
        asking = [threads.submit(next(turns).ask, count, seed + n) for n in range(CLIENTS)]
        return [second for one in asking for second in one.result()]


def test_many_clients_get_right_answers_and_memory_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text(KEYS)
    flags = ("--backend", "toy", "--port", "0", "--api-key-file", str(tmp_path / "keys"), "--json")
    with command(*flags, log=tmp_path / "log") as process:
        url = listening(process)["url"]
        customers = [Customer(url, key, seed) for seed, key in enumerate((ALICE, BOB, MONITOR))]
        began = time.perf_counter()
        all_ask(customers, REQUESTS // 6, seed=10**6)  # pools and buffers reach their size
        before = resident(url)
        seconds = all_ask(customers, REQUESTS, seed=0)
        after = resident(url)
        took = time.perf_counter() - began
    with capsys.disabled():
        p50, p99 = np.percentile(seconds, [50, 99])
        print(
            f"\n{CLIENTS} clients, {len(seconds):,} requests: p50 {p50:.3f} s, p99 {p99:.3f} s; "
            f"memory {before / 2**20:.0f} MiB, grown by {(after - before) / 2**20:.1f} MiB; "
            f"{took:.0f} s in all"
        )
    assert after - before < 8 * 2**20
