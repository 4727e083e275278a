"""Which learning rate a row with a gradient gets, by rows that no run trained or selected on.

    python results/rates.py --model M --data DIR --methods model-tuning --out results/rates
    python results/rates.py --model M --data DIR --methods prompt-tuning --task sst2-bare \
        --words "Overall, the movie is" --out results/rates

Each run has the 16+16 rows a class of a split, in a layout of `explore.py`, and chooses
its epoch by the validation loss; it is judged on the other splits' training and validation rows.
Every run is a line of OUT.jsonl, which is for one model, so that the command goes on where it was
stopped; the table is printed at the end, and with ``--table`` alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from explore import TASKS, held_out, keep_record, read_records, rows

from lmaas_tune import Task, Template, Verbalizer, load_backend
from lmaas_tune.lab.baselines import BASELINES, fit_baseline
from lmaas_tune.objectives import cross_entropy, error_rate
from lmaas_tune.versions import versions

RATES = {
    "model-tuning": (1e-5, 2e-5, 5e-5, 1e-4),
    "p-tuning-v2": (3e-3, 1e-2, 3e-2),
    "lora": (3e-4, 1e-3, 3e-3),
    "prompt-tuning": (3e-3, 1e-2, 3e-2),
}


def run(
    backend: Any, data: Path, task: str, words: str, method: str, rate: float, seed: int
) -> dict[str, Any]:
    layout = Task(Template(TASKS[task]["template"]), Verbalizer(TASKS[task]["labels"]))
    train, validation = (rows(data, task, seed, part) for part in ("train", "dev"))
    fitted = fit_baseline(
        method,
        backend,
        layout,
        train,
        validation,
        seed=seed,
        words=words,
        settings=replace(BASELINES[method].settings(), learning_rate=rate),
    )
    others = held_out(data, task, seed)
    scores, targets = fitted.scores(others), layout.verbalizer.targets(others)
    return {
        "task": task,
        "words": words,
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
        "| layout | words | method | rate | splits | accuracy | loss | validation loss | steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys(_key(record)[:-1] for record in records):
        own = [record for record in records if _key(record)[:-1] == key]
        splits = ", ".join(str(seed) for seed in sorted(record["seed"] for record in own))
        means = (
            f"{np.mean([record[name] for record in own]):.3f}"
            for name in ("accuracy", "loss", "validation_loss")
        )
        steps = np.mean([record["steps"] for record in own])
        named = " | ".join(map(str, key))
        lines.append(f"| {named} | {splits} | {' | '.join(means)} | {steps:.0f} |")
    return "\n".join(lines)


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("task", "words", "method", "learning_rate", "seed"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--methods", default=",".join(RATES))
    parser.add_argument("--task", default="sst2", choices=TASKS)
    parser.add_argument("--words", default="The sentiment is")
    parser.add_argument("--seeds", default="87,100")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".jsonl")
    records = read_records(path)
    if not arguments.table:
        backend = load_backend("hf")(arguments.model, dtype="float32")
        done = {_key(record) for record in records}
        for seed in map(int, arguments.seeds.split(",")):
            for method in arguments.methods.split(","):
                for rate in RATES[method]:
                    key = arguments.task, arguments.words, method, rate, seed
                    if key not in done:
                        record = run(backend, arguments.data, *key)
                        keep_record(record, records, path)
                        print(table(records), flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
