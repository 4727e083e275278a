"""CMA-ES and Gauss-Newton against Adam in the same subspace, as its dimension grows.

The poster's last figure, with a further method.

    python results/adam.py --model M --data DIR --task sst2 --seeds 13,21,42 --out results/adam

All start at the same words, move p = p0 + A z with the same A, and minimise the same training
loss without a head; the lowest validation loss chooses the prompt, and the lowest training loss of
all calls is noted. CMA-ES and Gauss-Newton get as many prompts scored as Adam gets gradients; a
gradient takes the model's weights and about three times the work. All compute in float32.
Gauss-Newton is told the scores of each row, CMA-ES their loss. Each is judged on the rows of the
other splits. Every run is a line of OUT.jsonl, which is for one model and number of calls, so that
the command goes on where it was stopped; the table and OUT.svg are of what there is (``--table``:
and stop).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import torch
from explore import held_out, keep_record, read_records, rows
from matplotlib.ticker import ScalarFormatter

from lmaas_tune import (
    Budget,
    Example,
    Settings,
    Soft,
    SoftPrompt,
    Task,
    TunedPrompt,
    Tuner,
    load_backend,
)
from lmaas_tune.lab.baselines.prompt_tuning import PromptScorer
from lmaas_tune.lab.paper import PAPER_TASKS
from lmaas_tune.prompts import Subspace
from lmaas_tune.prompts.soft import draw
from lmaas_tune.versions import versions

DIMENSIONS = (5, 10, 20, 50, 100, 200, 500)
OPTIMIZERS = {"CMA-ES": "cma", "Gauss-Newton": "gauss-newton"}
METHODS = (*OPTIMIZERS, "Adam")
COLOURS = ("#1f6f8b", "#5b8c3e", "#c8553d")
LEARNING_RATE = 0.1  # of z, a tenth of the first step of CMA-ES


Found: TypeAlias = tuple[SoftPrompt, float]
"""The prompt that the validation loss chose, and the lowest training loss of all prompts."""


def search(backend: Any, task: Task, settings: Settings, seed: int, *parts: Any) -> Found:
    """What a search finds."""
    tuner = Tuner(
        backend,
        settings=settings,
        template=task.template,
        labels=task.verbalizer.words,
        seed=seed,
        callbacks=[],
    )
    result = tuner.fit(*parts)
    prompt = result.prompt.prompt
    assert isinstance(prompt, SoftPrompt)
    losses = [each.loss for step in result.steps for each in step.evaluations]
    return prompt, float(np.nanmin(losses))


def adam(
    backend: Any,
    task: Task,
    settings: Settings,
    seed: int,
    train: Sequence[Example],
    validation: Sequence[Example],
    learning_rate: float,
) -> Found:
    """What gradients find in the same subspace."""
    soft = settings.soft or Soft()
    words = soft.given_words[0]
    space = draw(
        [
            Subspace(
                start="words",
                words=" " + words,
                dim=soft.intrinsic_dim,
                projection=soft.projection,
                alpha=soft.alpha,
                seed=seed,
            )
        ],
        backend,
    )
    start = space.starts[0]
    ends = [prompt.vectors for prompt in space.prompts(np.eye(space.dim))]
    p0 = torch.tensor(start.vectors)
    A = torch.tensor(np.stack(ends)) - p0
    scorers = [PromptScorer(backend, task, part, start) for part in (train, validation)]
    targets = [torch.tensor(task.verbalizer.targets(part)) for part in (train, validation)]
    z = torch.zeros(space.dim, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=learning_rate)
    lowest, best, reached = math.inf, p0, math.inf
    for step in range(settings.budget.calls or 0):
        optimizer.zero_grad()
        vectors = p0 + torch.tensordot(z, A, 1)
        loss: Any = torch.nn.functional.cross_entropy(scorers[0](vectors), targets[0])
        reached = min(reached, float(loss.detach()))
        if step % 10 == 0:
            with torch.no_grad():
                other = float(torch.nn.functional.cross_entropy(scorers[1](vectors), targets[1]))
            if other < lowest:
                lowest, best = other, vectors.detach()
        loss.backward()
        optimizer.step()
    return SoftPrompt(best.numpy()), reached


def run(arguments: argparse.Namespace, backend: Any, method: str, dim: int, seed: int) -> Any:
    wording = PAPER_TASKS[arguments.task].wording("text-first", "causal")
    settings = Settings(
        optimizer=OPTIMIZERS.get(method, "cma"),
        prompt=Soft(prompt_init=wording.words, intrinsic_dim=dim),
        head="none",
        validation_rows="select",
        averaged=1,
        budget=Budget(calls=arguments.calls),
    )
    train, validation = (
        rows(arguments.data, arguments.task, seed, part) for part in ("train", "dev")
    )
    began = time.perf_counter()
    if method == "Adam":
        prompt, reached = adam(
            backend, wording.task, settings, seed, train, validation, arguments.learning_rate
        )
    else:
        prompt, reached = search(backend, wording.task, settings, seed, train, validation)
    seconds = time.perf_counter() - began
    tuned = TunedPrompt.without_head(prompt, wording.task)
    other = tuned.score(backend, held_out(arguments.data, arguments.task, seed))
    return {
        "task": arguments.task,
        "method": method,
        "dim": dim,
        "seed": seed,
        "calls": arguments.calls,
        "learning_rate": arguments.learning_rate if method == "Adam" else None,
        "lowest_train_loss": reached,
        "train_loss": tuned.score(backend, train).loss,
        "accuracy": other.accuracy,
        "loss": other.loss,
        "seconds": round(seconds, 1),
        "backend": backend.identity,
        "versions": versions(),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| task | d | seeds | "
        + " | ".join(f"{method}: lowest | train loss | held out" for method in METHODS)
        + " |",
        "|---" * (3 + 3 * len(METHODS)) + "|",
    ]
    for task in dict.fromkeys(record["task"] for record in records):
        for dim in DIMENSIONS:
            cells = []
            for method in METHODS:
                own = of(records, task, method, dim)
                cells += [
                    spread([r[name] for r in own if name in r])  # older runs lack the lowest
                    for name in ("lowest_train_loss", "train_loss", "accuracy")
                ]
            seeds = sorted({r["seed"] for m in METHODS for r in of(records, task, m, dim)})
            if seeds:
                lines.append(
                    f"| {task} | {dim} | {', '.join(map(str, seeds))} | {' | '.join(cells)} |"
                )
    return "\n".join(lines)


def of(records: Sequence[dict[str, Any]], task: str, method: str, dim: int) -> list[dict[str, Any]]:
    return [r for r in records if (r["task"], r["method"], r["dim"]) == (task, method, dim)]


def spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):.3f}" + (
        f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    )


def draw_band(axis: Any, values: Mapping[int, Sequence[float]], colour: str, label: str) -> None:
    """A line through the means of the values at each place, and one standard deviation."""
    means = np.array([np.mean(own) for own in values.values()])
    stds = np.array([np.std(own, ddof=1) if len(own) > 1 else 0.0 for own in values.values()])
    axis.plot(list(values), means, "o-", color=colour, label=label)
    axis.fill_between(list(values), means - stds, means + stds, color=colour, alpha=0.15)


def draw_figure(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Training loss and held-out accuracy against d: means, and one standard deviation."""
    tasks = list(dict.fromkeys(record["task"] for record in records))
    figure, axes = plt.subplots(len(tasks), 2, figsize=(9, 3.4 * len(tasks)), squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        for axis, (name, label) in zip(
            row,
            (("train_loss", "training loss"), ("accuracy", "accuracy, held out")),
            strict=True,
        ):
            for method, colour in zip(METHODS, COLOURS, strict=True):
                found = [
                    (d, [r[name] for r in of(records, task, method, d) if name in r])
                    for d in DIMENSIONS
                ]
                found = [(d, values) for d, values in found if values]
                draw_band(axis, dict(found), colour, method)
            axis.set(xscale="log", xlabel="dimension of the subspace", ylabel=label, title=task)
            axis.set_xticks(DIMENSIONS)
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.minorticks_off()
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", default="sst2", choices=PAPER_TASKS)
    parser.add_argument("--seeds", default="13,21,42")
    parser.add_argument("--dimensions", default=",".join(map(str, DIMENSIONS)))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--calls", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    arguments = parser.parse_args()
    path = arguments.out.with_suffix(".jsonl")
    records = read_records(path)
    if not arguments.table:
        backend: Any = load_backend("hf")(arguments.model, dtype="float32")
        done = {(r["task"], r["method"], r["dim"], r["seed"]) for r in records}
        for seed in map(int, arguments.seeds.split(",")):
            for dim in map(int, arguments.dimensions.split(",")):
                for method in arguments.methods.split(","):
                    if (arguments.task, method, dim, seed) in done:
                        continue
                    record = run(arguments, backend, method, dim, seed)
                    keep_record(record, records, path)
                    print({k: record[k] for k in ("method", "dim", "seed", "accuracy")}, flush=True)
    print(table(records))
    draw_figure(records, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
