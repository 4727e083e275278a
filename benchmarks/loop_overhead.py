"""Overhead of the loop around a backend, measured on a backend that answers at once.

    python benchmarks/loop_overhead.py

Prints milliseconds an evaluation at d = 100 and 500 (journal on disk), beside bare pycma's
ask and tell in the same process, and what is ours of it.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence

import cma
import numpy as np

from lmaas_tune import Capabilities, ScoreReply, ScoreRequest, Settings, Soft, Tuner
from lmaas_tune.prompts import FloatArray
from lmaas_tune.versions import versions

CALLS = 2000
POPULATION = 20
TRAIN = [(f"text {i}", "yes" if i % 2 else "no") for i in range(32)]


class InstantBackend:
    """Answers at once, always the same."""

    identity = "instant"
    capabilities = Capabilities(soft_prompt_width=576)
    embedding_std, vocabulary_size = 0.1, 10

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        return (1, 2, 3, 4, 5)

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        return np.zeros((len(token_ids), 576), dtype=np.float32)

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        rng = np.random.default_rng(0)
        return [ScoreReply(-1 - rng.random((len(r.batch), 2))) for r in requests]


def bare_pycma(dim: int) -> float:
    """Milliseconds of ask and tell an evaluation."""
    es = cma.CMAEvolutionStrategy(dim * [0.0], 1.0, {"popsize": POPULATION, "verbose": -9})
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(CALLS // POPULATION):
        es.tell(es.ask(), list(rng.random(POPULATION)))
    return (time.perf_counter() - start) / CALLS * 1000


def whole_run(dim: int) -> float:
    """Milliseconds an evaluation of a whole `fit`, journal included."""
    settings = Settings(
        prompt=Soft(prompt_init="five tokens", prompt_length=5, intrinsic_dim=dim),
        optimizer="cma",
        optimizer_options={"population": POPULATION},
        score_start=False,
    )
    with tempfile.TemporaryDirectory() as out:
        tuner = Tuner(
            InstantBackend(),
            settings=settings,
            budget=f"calls={CALLS}",
            callbacks=[],
            out=out,
        )
        start = time.perf_counter()
        tuner.fit(TRAIN)
        return (time.perf_counter() - start) / CALLS * 1000


print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores;", versions())
print("| d | whole loop | bare pycma | the loop's own |\n|---|---|---|---|")
for dim in (100, 500):
    whole, bare = whole_run(dim), bare_pycma(dim)
    print(f"| {dim} | {whole:.2f} ms | {bare:.2f} ms | {whole - bare:.2f} ms |")
