"""What more calls buy: CMA-ES with up to the paper's 8,000, beside the parts of the default.

    python results/budget.py --model M --data DIR --task sst2 --seeds 13,21,42 --out results/budget

CMA-ES is as in the paper's table: it starts at the task's first wording, is told the loss of the
training rows with one bias a label, and the validation rows choose. One run grows, and is judged
whenever it has made so many calls. The default is judged after its first call (the first wording
with the words head), after its wordings, and at its end; its calls score training and validation
rows together, so each is counted as two. All are judged on the same 500 test rows, which choose
nothing. Every result is a line of OUT.jsonl, and the journals are in OUT/, so that the command
goes on where it was stopped; the table and OUT.svg are of what there is (``--table``: and stop).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from adam import draw_band, spread
from explore import SETTINGS, keep_record, read_records

from lmaas_tune import Budget, Settings, TunedPrompt, Tuner, TuneResult, load_backend
from lmaas_tune.journal import FILE_NAME
from lmaas_tune.lab.paper import PAPER_TASKS, DataSource
from lmaas_tune.prompts.phrases import BUILT_IN
from lmaas_tune.settings import with_fields
from lmaas_tune.versions import versions

CALLS = (30, 100, 300, 1000, 3000, 8000)
CMA, DEFAULT = "CMA-ES", "default"
DEFAULT_CALLS = 150


class Runs:
    """The searches on one split of a task."""

    def __init__(self, backend: Any, data: str, task: str, seed: int, folder: Path) -> None:
        self._backend, self._seed, self._folder = backend, seed, folder
        paper_task = PAPER_TASKS[task]
        self.wording = paper_task.wording("text-first", "causal")
        self.rows = DataSource(data=data, test_rows=500).few_shot(paper_task, seed)

    def search(self, name: str, settings: Settings, calls: int) -> TuneResult:
        """A search with so many calls, which goes on from one with fewer."""
        out, task = self._folder / name, self.wording.task
        tuner = Tuner(
            self._backend,
            settings=replace(settings, budget=Budget(calls=calls)),
            template=task.template,
            labels=task.verbalizer.words,
            seed=self._seed,
            out=out,
            callbacks=[],
        )
        resume = (out / FILE_NAME).exists()
        return tuner.fit(self.rows.train, self.rows.validation, resume=resume)

    def results(self, done: set[tuple[str, int]]) -> Iterator[tuple[str, int, TunedPrompt]]:
        """Method, calls and prompt of each result that is not among those done."""
        if not any(method == DEFAULT for method, _ in done):
            settings = with_fields(Settings(), {"prompt_init": (self.wording.words, BUILT_IN)})
            result = self.search(DEFAULT, settings, DEFAULT_CALLS)
            yield DEFAULT, 2, result.start
            yield DEFAULT, 2 * result.steps[0].spent.calls, result.best_starts
            yield DEFAULT, 2 * result.spent.calls, result.prompt
        settings = with_fields(SETTINGS, {"prompt_init": self.wording.words})
        for calls in CALLS:
            if (CMA, calls) not in done:
                yield CMA, calls, self.search(CMA, settings, calls).prompt


def run(
    arguments: argparse.Namespace, backend: Any, seed: int, records: list[dict[str, Any]]
) -> None:
    """Make and keep the results on one split that are not kept yet."""
    task, path = arguments.task, arguments.out.with_suffix(".jsonl")
    runs = Runs(backend, str(arguments.data), task, seed, arguments.out / task / f"seed-{seed}")
    done = {(r["method"], r["calls"]) for r in records if (r["task"], r["seed"]) == (task, seed)}
    for method, calls, prompt in runs.results(done):
        score = prompt.score(backend, runs.rows.test)
        record = {
            "task": task,
            "method": method,
            "calls": calls,
            "seed": seed,
            "accuracy": score.accuracy,
            "loss": score.loss,
            "backend": backend.identity,
            "versions": versions(),
        }
        keep_record(record, records, path)
        print({k: record[k] for k in ("method", "calls", "seed", "accuracy", "loss")}, flush=True)


def of(
    records: Sequence[dict[str, Any]], task: str, method: str
) -> dict[int, list[dict[str, Any]]]:
    """The results of a method, by their calls."""
    own = [r for r in records if (r["task"], r["method"]) == (task, method)]
    return {
        calls: [r for r in own if r["calls"] == calls]
        for calls in sorted({r["calls"] for r in own})
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    lines = ["| task | method | calls | seeds | accuracy | loss |", "|---" * 6 + "|"]
    for task in dict.fromkeys(r["task"] for r in records):
        for method in (CMA, DEFAULT):
            for calls, own in of(records, task, method).items():
                seeds = ", ".join(map(str, sorted(r["seed"] for r in own)))
                scores = " | ".join(spread([r[name] for r in own]) for name in ("accuracy", "loss"))
                lines.append(f"| {task} | {method} | {calls} | {seeds} | {scores} |")
    return "\n".join(lines)


def draw_figure(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy and loss on the test rows against the calls: means, and one standard deviation."""
    tasks = list(dict.fromkeys(r["task"] for r in records))
    figure, axes = plt.subplots(len(tasks), 2, figsize=(9, 3.4 * len(tasks)), squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        for axis, name in zip(row, ("accuracy", "loss"), strict=True):
            for method, colour in ((CMA, "#1f6f8b"), (DEFAULT, "#c8553d")):
                found = of(records, task, method)
                values = {calls: [r[name] for r in own] for calls, own in found.items()}
                draw_band(axis, values, colour, method)
            axis.set(xscale="log", xlabel="calls", ylabel=f"{name}, test rows", title=task)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", default="sst2", choices=PAPER_TASKS)
    parser.add_argument("--seeds", default="13,21,42")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    arguments = parser.parse_args()
    records = read_records(arguments.out.with_suffix(".jsonl"))
    if not arguments.table:
        backend = load_backend("hf")(arguments.model, dtype=arguments.dtype)
        for seed in map(int, arguments.seeds.split(",")):
            run(arguments, backend, seed, records)
    print(table(records))
    draw_figure(records, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
