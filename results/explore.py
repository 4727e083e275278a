"""One setting changed at a time: which defaults win, by rows that no run trained or selected on.

    python results/explore.py --model M --data DIR --task sst2 --seeds 87,100 --out results/explore

For each seed the search has the 16+16 rows a class of that split; a variant is judged on the
training and validation rows of the other splits (the public training set; test rows are not
read). Every run is one JSON line in OUT.jsonl, which is for one model and dtype, so that the
command goes on where it was stopped; the table is printed at the end, and with ``--table`` alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lmaas_tune import (
    Backend,
    Budget,
    Example,
    Settings,
    Soft,
    Tuner,
    load_backend,
    read_examples,
)
from lmaas_tune.settings import with_fields
from lmaas_tune.versions import versions

SPLITS = (13, 21, 42, 87, 100)
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {
        "template": "Review: {sentence}\n {prompt} {label}",
        "words": "The sentiment is",
        "labels": {"0": "negative", "1": "positive"},
    },
    "agnews": {
        "template": "Text: {text}\n {prompt} {label}",
        "words": "The topic is",
        "labels": {"0": "World", "1": "Sports", "2": "Business", "3": "Technology"},
    },
    # a stranger's first try: a bare layout with the default's own starting words
    "sst2-bare": {
        "template": "{sentence} {prompt} It was {label}",
        "words": Soft().prompt_init,
        "labels": {"0": "terrible", "1": "great"},
        "prompt_length": 5,
        "intrinsic_dim": 100,
    },
}
# as the paper: one number a label, and the validation rows select
SETTINGS = Settings(optimizer="cma", head="bias", validation_rows="select", averaged=1)

# name of the variant: what it changes, of the settings or of the task
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "calibration none": {"head": "none"},
    "alpha 1": {"alpha": 1.0},
    "projection normal": {"projection": "normal"},
    "calibration none + projection normal + alpha 1": {
        "head": "none",
        "alpha": 1.0,
        "projection": "normal",
    },
    "the default's starting words": {"words": Soft().prompt_init},
    "projection normal + alpha 1": {"projection": "normal", "alpha": 1.0},
    "start from Overall": {"words": "Overall, the movie is"},
    "random": {"optimizer": "random"},
    "diagonal-cma": {"optimizer": "diagonal-cma"},
    "step rule tpa": {"optimizer_options": {"step_rule": "tpa"}},
    "alpha 0.1": {"alpha": 0.1},
    "alpha 0.5": {"alpha": 0.5},
    "d 200": {"intrinsic_dim": 200},
    "d 10": {"intrinsic_dim": 10},
    "d 20": {"intrinsic_dim": 20},
    "d 20 + projection normal": {"intrinsic_dim": 20, "projection": "normal"},
    "calibration none + d 20": {"head": "none", "intrinsic_dim": 20},
    "calibration none + projection normal": {"head": "none", "projection": "normal"},
    "calibration none + projection hadamard": {"head": "none", "projection": "hadamard"},
    "projection hadamard": {"projection": "hadamard"},
    "one-plus-one": {"optimizer": "one-plus-one"},
    "one token": {"prompt_length": 1},
    "five tokens": {"prompt_length": 5},
    "ten tokens": {"prompt_length": 10},
    "twenty tokens": {"prompt_length": 20},
    "projection uniform": {"projection": "uniform", "alpha": 1.0},
    "population 6": {"optimizer_options": {"population": 6}},
    "population 40": {"optimizer_options": {"population": 40}},
    "error rate": {"objective": "error_rate"},
    "prompt first": {"prompt_first": True},
    "hinge": {"objective": "hinge"},
}


def rows(data: Path, task: str, seed: int, part: str) -> list[Example]:
    return read_examples(data / task.partition("-")[0] / f"seed-{seed}" / f"{part}.jsonl")


def held_out(data: Path, task: str, seed: int) -> list[Example]:
    """The other splits' rows, without those that this split has."""
    own = [*rows(data, task, seed, "train"), *rows(data, task, seed, "dev")]
    seen = {tuple(row.fields.values()) for row in own}
    pool: dict[tuple[str, ...], Example] = {}
    for other in SPLITS:
        for part in ("train", "dev"):
            for row in rows(data, task, other, part):
                pool.setdefault(tuple(row.fields.values()), row)
    return [row for key, row in pool.items() if key not in seen]


def run(backend: Backend, data: Path, task: str, variant: str, seed: int) -> dict[str, Any]:
    setup = dict(TASKS[task])
    setup |= VARIANTS[variant]
    words, template, labels = (setup.pop(name) for name in ("words", "template", "labels"))
    if setup.pop("prompt_first", False):
        first, label = template.split("\n {prompt}")
        template = "{prompt} " + first + "\n" + label
    settings = with_fields(SETTINGS, {"prompt_init": words, **setup})
    start = time.perf_counter()
    tuner = Tuner(
        backend,
        settings=settings,
        template=template,
        labels=labels,
        budget=Budget(calls=300),
        seed=seed,
        callbacks=[],
    )
    result = tuner.fit(rows(data, task, seed, "train"), rows(data, task, seed, "dev"))
    seconds = time.perf_counter() - start
    comparison = asdict(result.compare(held_out(data, task, seed)))
    return {
        "task": task,
        "variant": variant,
        "seed": seed,
        **comparison,
        "train_loss": None if result.best.train is None else result.best.train.loss,
        "calls": result.spent.calls,
        "seconds": round(seconds, 1),
        "backend": backend.identity,
        "versions": versions(),
    }


def read_records(path: Path) -> list[dict[str, Any]]:
    """The runs that are done."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep_record(record: dict[str, Any], records: list[dict[str, Any]], path: Path) -> None:
    """Add a run to them, in the file too."""
    records.append(record)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def table(records: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in the order of the variants."""
    lines = [
        "| task | variant | seeds | words alone | + calibration | tuned | train loss | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for variant in VARIANTS:
            own = [r for r in records if (r["task"], r["variant"]) == (task, variant)]
            if own:
                cells = [_mean(own, kind) for kind in ("baseline", "start", "tuned")]
                loss = np.mean([r["train_loss"] for r in own])
                seconds = np.mean([r["seconds"] for r in own])
                seeds = ", ".join(str(r["seed"]) for r in sorted(own, key=lambda r: r["seed"]))
                lines.append(
                    f"| {task} | {variant} | {seeds} | {' | '.join(cells)} "
                    f"| {loss:.3f} | {seconds:.0f} |"
                )
    return "\n".join(lines)


def _mean(records: Sequence[Mapping[str, Any]], kind: str) -> str:
    values = [record[kind]["accuracy"] for record in records]
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", default="sst2", choices=TASKS)
    parser.add_argument("--seeds", default="87,100")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".jsonl")
    records = read_records(path)
    if not arguments.table:
        backend = load_backend("hf")(arguments.model, dtype=arguments.dtype)
        done = {(r["task"], r["variant"], r["seed"]) for r in records}
        for variant in arguments.variants.split(","):
            for seed in map(int, arguments.seeds.split(",")):
                if (arguments.task, variant, seed) not in done:
                    record = run(backend, arguments.data, arguments.task, variant, seed)
                    keep_record(record, records, path)
                    print(f"{variant}, seed {seed}: {record['tuned']}", flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
