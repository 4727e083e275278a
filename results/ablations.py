"""One figure of the variants that explore.py has run: length, loss, population and projection.

    python results/ablations.py results/explore.jsonl results/ablations.svg

A dot is a run, judged on rows that it neither trained nor selected on; a bar is the mean. Only the
seeds that all variants have are shown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

# what is changed, and the variants of explore.py by what they set it to
ABLATIONS = {
    "tokens of the prompt": {
        "1": "one token",
        "3": "default",
        "5": "five tokens",
        "10": "ten tokens",
        "20": "twenty tokens",
    },
    "loss": {"cross entropy": "default", "hinge": "hinge", "error rate": "error rate"},
    "population": {"6": "population 6", "15": "default", "40": "population 40"},
    "projection": {
        "vocabulary": "default",
        "normal": "projection normal",
        "uniform": "projection uniform",
        "hadamard": "projection hadamard",
    },
}
JUDGED = {"loss": "cross entropy, held out", "accuracy": "accuracy, held out"}


def draw(axis: Any, found: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    for place, values in enumerate(found):
        axis.plot([place] * len(values), values, "o", color="#1f6f8b", alpha=0.6)
        if values:
            mean = float(np.mean(values))
            axis.plot([place - 0.25, place + 0.25], [mean, mean], color="#c8553d", linewidth=2)
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, len(names) - 0.5)


def main(source: Path, target: Path) -> None:
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    names = {name for variants in ABLATIONS.values() for name in variants.values()}
    runs = [r for r in records if r["task"] == "sst2" and r["variant"] in names]
    seeds = [{run["seed"] for run in runs if run["variant"] == name} for name in names]
    runs = [run for run in runs if run["seed"] in set.intersection(*seeds)]
    figure, axes = plt.subplots(
        len(JUDGED),
        len(ABLATIONS),
        figsize=(13, 5.6),
        sharey="row",
        sharex="col",
        gridspec_kw={"width_ratios": [len(variants) for variants in ABLATIONS.values()]},
    )
    for row, (measure, label) in zip(axes, JUDGED.items(), strict=True):
        row[0].set_ylabel(label)
        for axis, variants in zip(row, ABLATIONS.values(), strict=True):
            found = [
                [run["tuned"][measure] for run in runs if run["variant"] == variant]
                for variant in variants.values()
            ]
            draw(axis, found, list(variants))
    for axis, what in zip(axes[-1], ABLATIONS, strict=True):
        axis.set_xlabel(what)
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
