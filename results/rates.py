"""Which learning rate a row with a gradient gets, by rows that no run trained or selected on.

    python results/rates.py --model M --data DIR --methods model-tuning --out results/rates

Each run has the 16+16 rows a class of a split of SST-2 and chooses its epoch by the validation
loss; it is judged on the other splits' training and validation rows. Every run is a line of
OUT.jsonl, so that the command goes on where it was stopped; the table is printed at the end, and
with ``--table`` alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from explore import held_out, keep_record, read_records, rows

from lmaas_tune import load_backend
from lmaas_tune.baselines import BASELINES, fit_baseline
from lmaas_tune.objectives import cross_entropy, error_rate
from lmaas_tune.reproduction import PAPER_TASKS
from lmaas_tune.versions import versions

RATES = {
    "model-tuning": (1e-5, 2e-5, 5e-5, 1e-4),
    "p-tuning-v2": (3e-3, 1e-2, 3e-2),
    "prompt-tuning": (3e-3, 1e-2, 3e-2),
}


def run(backend: Any, data: Path, method: str, rate: float, seed: int) -> dict[str, Any]:
    wording = PAPER_TASKS["sst2"].wording("text-first", "causal")
    train, validation = (rows(data, "sst2", seed, part) for part in ("train", "dev"))
    fitted = fit_baseline(
        method,
        backend,
        wording.task,
        train,
        validation,
        seed=seed,
        words=wording.words,
        settings=replace(BASELINES[method].settings(), learning_rate=rate),
    )
    others = held_out(data, "sst2", seed)
    scores, targets = fitted.scores(others), wording.task.verbalizer.targets(others)
    return {
        "method": method,
        "learning_rate": rate,
        "seed": seed,
        "accuracy": 1 - error_rate(scores, targets),
        "loss": cross_entropy(scores, targets),
        "validation_loss": fitted.validation_loss,
        "steps": fitted.steps,
        "seconds": round(fitted.seconds, 1),
        "backend": backend.identity,
        "versions": versions(),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Mean over the splits."""
    lines = [
        "| method | learning rate | splits | accuracy | loss | validation loss | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, rates in RATES.items():
        for rate in rates:
            own = [r for r in records if (r["method"], r["learning_rate"]) == (method, rate)]
            if own:
                splits = ", ".join(str(seed) for seed in sorted(r["seed"] for r in own))
                means = (
                    f"{np.mean([record[name] for record in own]):.3f}"
                    for name in ("accuracy", "loss", "validation_loss")
                )
                steps = np.mean([record["steps"] for record in own])
                lines.append(
                    f"| {method} | {rate:g} | {splits} | {' | '.join(means)} | {steps:.0f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--methods", default=",".join(RATES))
    parser.add_argument("--seeds", default="87,100")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".jsonl")
    records = read_records(path)
    if not arguments.table:
        backend = load_backend("hf")(arguments.model, dtype="bfloat16")
        done = {(r["method"], r["learning_rate"], r["seed"]) for r in records}
        for seed in map(int, arguments.seeds.split(",")):
            for method in arguments.methods.split(","):
                for rate in RATES[method]:
                    if (method, rate, seed) not in done:
                        record = run(backend, arguments.data, method, rate, seed)
                        keep_record(record, records, path)
                        print(table(records), flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
