"""Time of a call by the size of the search: dimension, prompt length, rows, population.

    python benchmarks/cost.py                                # random weights, SmolLM2-135M's shape
    python benchmarks/cost.py --model FOLDER --out cost.svg  # a model of your own, and the figure

A call is one prompt scored on all training rows; its time is that of a generation, with what the
optimizer and the projection take, over its population, the median of `--generations`. One thing
grows at a time from the same middle, once with the text before the prompt and once with the prompt
first. The last column is the slope between the two ends on logarithmic axes: 0 where the cost does
not grow, 1 where it grows in proportion.
"""

from __future__ import annotations

import argparse
import math
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from backend_speed import LENGTHS, WORDS, causal_model
from lmaas_tune_adapters.hf import HFBackend

from lmaas_tune import Budget, Callback, Settings, Soft, Tuner
from lmaas_tune.step import Step

MIDDLE = {"dimension": 50, "prompt length": 10, "rows": 16, "population": 10}
GROWING: Mapping[str, tuple[int, ...]] = {
    "dimension": (10, 30, 100, 300, 1000),
    "prompt length": (2, 5, 10, 25, 50),
    "rows": (4, 8, 16, 32, 64),
    "population": (4, 8, 16, 32, 64),
}
TEMPLATES = {
    "text first": "Review: {text}\n {prompt} {label}",
    "prompt first": "{prompt} Review: {text}\n It was {label}",
}
LABELS = {"no": "bad", "yes": "great"}


class Clock(Callback):
    """Seconds of each generation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_step(self, step: Step) -> None:
        """The first step is the start, which is no generation."""
        now = time.perf_counter()
        if step.generation > 0:
            self.seconds.append(now - self._last)
        self._last = now


def seconds_a_call(
    backend: HFBackend, template: str, at: Mapping[str, int], generations: int
) -> float:
    """Of a search on made-up rows; its first generation, which reads the texts, is left out."""
    population = at["population"]
    length, dim = at["prompt length"], at["dimension"]
    settings = Settings(
        prompt=Soft(start="vocabulary", prompt_length=length, intrinsic_dim=dim),
        optimizer="cma",
        optimizer_options={"population": population},
        budget=Budget(calls=1 + population * (1 + generations)),
    )
    clock = Clock()
    tuner = Tuner(backend, settings=settings, template=template, labels=LABELS, callbacks=[clock])
    tuner.fit([_row(number) for number in range(at["rows"])])
    return median(clock.seconds[1:]) / population


def _row(number: int) -> tuple[str, str]:
    count = LENGTHS[(number * 7) % len(LENGTHS)]
    words = [WORDS[(number * 3 + place) % len(WORDS)] for place in range(count)]
    return " ".join(words), sorted(LABELS)[number % 2]


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Between the ends, on logarithmic axes."""
    return math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])


def draw(measured: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Seconds a call against each of the four."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(GROWING), figsize=(12, 3.2), sharey=True)
    for axis, (name, sizes) in zip(axes, GROWING.items(), strict=True):
        for (layout, seconds), colour in zip(
            measured[name].items(), ("#1f6f8b", "#c8553d"), strict=True
        ):
            axis.loglog(sizes, seconds, "o-", color=colour, label=layout)
        axis.set(xlabel=name, title=f"elsewhere {MIDDLE[name]}")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("seconds a call")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a causal model")
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="draw the figure there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, threads {arguments.threads}\n")
    print("| growing | layout | " + " | ".join(["smallest", "", "", "", "largest"]) + " | slope |")
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as folder:
        backend = HFBackend(arguments.model or causal_model(Path(folder)), device="cpu")
        measured: dict[str, dict[str, list[float]]] = {}
        for name, sizes in GROWING.items():
            for layout, template in TEMPLATES.items():
                seconds = [
                    seconds_a_call(backend, template, {**MIDDLE, name: size}, arguments.generations)
                    for size in sizes
                ]
                measured.setdefault(name, {})[layout] = seconds
                cells = [f"{size}: {s:.3f} s" for size, s in zip(sizes, seconds, strict=True)]
                row = [name, layout, *cells, f"{slope(sizes, seconds):.2f}"]
                print("| " + " | ".join(row) + " |", flush=True)
    if arguments.out is not None:
        draw(measured, arguments.out)


if __name__ == "__main__":
    main()
