"""What `compare` adds to the runs that it makes, in processor time, so on a busy machine too.

    python benchmarks/comparison.py

On the toy model, prints two ratios: a run of `compare` to `Tuner.fit` and its test alone, in one
process; and the start of a process of ``--jobs`` (imports, mostly) to such a run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from joblib.externals.loky import get_reusable_executor

from lmaas_tune import Tuner, compare
from lmaas_tune.lab.optimizers import NamedTask
from lmaas_tune.testing.toy import ToyBackend

OPTIMIZERS = ("cma", "diagonal-cma", "one-plus-one", "pso", "tbpsa", "random")
SEEDS = (1, 2, 3)
RUNS = len(OPTIMIZERS) * len(SEEDS)
JOBS = 2
BUDGET = "calls=200"
ROWS = [
    (f"{'lovely' if i % 2 else 'awful'} film {i}", "good" if i % 2 else "bad") for i in range(48)
]
TASK = NamedTask(name="films", train=ROWS[:16], validation=ROWS[16:32], test=ROWS[32:])


def silent(note: str) -> None:
    """The budget is small, which each run would note."""


def alone() -> None:
    """The runs, without the lab."""
    for seed in SEEDS:
        for optimizer in OPTIMIZERS:
            with tempfile.TemporaryDirectory() as out:
                tuner = Tuner(
                    ToyBackend(),
                    optimizer,
                    seed=seed,
                    budget=BUDGET,
                    out=out,
                    callbacks=(),
                    on_note=silent,
                )
                tuner.fit(TASK.train, TASK.validation).score(ROWS[32:])


def compared(jobs: int) -> None:
    """The same runs by `compare`."""
    with tempfile.TemporaryDirectory() as out:
        compare(
            "toy",
            TASK,
            optimizers=OPTIMIZERS,
            seeds=SEEDS,
            budget=BUDGET,
            out=out,
            jobs=jobs,
            on_note=silent,
        )


def processor_seconds(work: Callable[[], None]) -> float:
    """Of this process and of the workers that it started."""
    before = sum(os.times()[:4])
    work()
    get_reusable_executor().shutdown(wait=True)  # only then they are counted
    return sum(os.times()[:4]) - before


def main() -> None:
    compared(1)  # imports
    fit, one, several = map(processor_seconds, (alone, lambda: compared(1), lambda: compared(JOBS)))
    print(f"{RUNS} runs: {fit:.1f} s alone, {one:.1f} s compared, {several:.1f} s with {JOBS} jobs")
    print(f"a run of compare costs {one / fit:.2f} of a run alone")
    print(f"the start of a process costs {(several - one) / JOBS / (one / RUNS):.1f} runs")


if __name__ == "__main__":
    main()
