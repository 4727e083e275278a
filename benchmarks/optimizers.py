"""Overhead of our optimizers over the libraries that they wrap, in one process and one run.

    python benchmarks/optimizers.py

Prints milliseconds an evaluation of ask and tell, ours and the bare library's, and their ratio:
the median of five pairs of runs that take turns, so that a busy machine slows both alike.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import cma
import nevergrad
import numpy as np

from lmaas_tune.optimizers import make_optimizer
from lmaas_tune.versions import versions

CALLS = 600
PAIRS = 5
NEVERGRAD = {
    "one-plus-one": ("OnePlusOne", 1),
    "de": ("TwoPointsDE", 30),
    "pso": ("PSO", 40),
}


def ours(name: str, dim: int, **options: object) -> float:
    """Seconds of a run of `CALLS` points."""
    optimizer = make_optimizer(name, dim, seed=1, calls=CALLS, options=options)
    told = 0
    start = time.perf_counter()
    while told < CALLS:
        points = optimizer.ask()
        optimizer.tell(points, np.square(points).sum(axis=1))
        told += len(points)
    return time.perf_counter() - start


def bare_pycma(dim: int, *, diagonal: bool) -> float:
    """Seconds of a run of `CALLS` points."""
    rule = cma.sigma_adaptation.CMAAdaptSigmaCSA
    options = {"popsize": 20, "verbose": -9, "AdaptSigma": rule, "CMA_diagonal": diagonal}
    es = cma.CMAEvolutionStrategy(dim * [0.0], 1.0, {"seed": 1, **options})
    start = time.perf_counter()
    for _ in range(CALLS // 20):
        points = es.ask()
        es.tell(points, np.square(points).sum(axis=1).tolist())
    return time.perf_counter() - start


def bare_nevergrad(name: str, population: int, dim: int) -> float:
    """Seconds of a run of `CALLS` points."""
    space = nevergrad.p.Array(init=np.zeros(dim))
    optimizer: Any = nevergrad.optimizers.registry[name](space, budget=CALLS, num_workers=1)
    start = time.perf_counter()
    for _ in range(CALLS // population):
        candidates = [optimizer.ask() for _ in range(population)]
        for candidate in candidates:
            optimizer.tell(candidate, float(np.square(candidate.value).sum()))
    return time.perf_counter() - start


def row(name: str, dim: int, own: Callable[[], float], bare: Callable[[], float]) -> None:
    """Print one line of the table."""
    pairs = [(own(), bare()) for _ in range(PAIRS)]
    one, other = (statistics.median(side) / CALLS * 1000 for side in zip(*pairs, strict=True))
    ratio = statistics.median(mine / its for mine, its in pairs)
    print(f"| {name} | {dim} | {one:.3f} | {other:.3f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores;", versions())
    print("| optimizer | d | ours, ms | bare, ms | ratio |\n|---|---|---|---|---|")
    for dim in (10, 100, 500):
        for name, diagonal in (("cma", False), ("diagonal-cma", True)):
            row(
                name,
                dim,
                partial(ours, name, dim, population=20),
                partial(bare_pycma, dim, diagonal=diagonal),
            )
        for name, (registered, population) in NEVERGRAD.items():
            row(
                name,
                dim,
                partial(ours, name, dim),
                partial(bare_nevergrad, registered, population, dim),
            )


if __name__ == "__main__":
    main()
