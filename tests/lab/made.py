"""Records as runs leave them, made up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmaas_tune.lab.record import Curve, FinalScore, Record, RowSet
from lmaas_tune.lab.report import ComparisonResult

PLAIN = Record(
    task="films",
    method="cma",
    seed=1,
    status="finished",
    reason="budget calls=40: 0 left",
    identity="toy width=16",
    conditions={"budget": "calls=40", "intrinsic_dim": 6, "early_stop": None},
    template="{text} {prompt} {label}",
    label_words={"good": "good", "bad": "bad"},
    rows={
        "train": RowSet(rows=8, digest="a"),
        "validation": RowSet(rows=6, digest="b"),
        "test": RowSet(rows=12, digest="c"),
    },
    settings={"optimizer": "cma", "optimizer_options": {}},
    versions={"python": "3.11.7", "lmaas-tune": "0.1.0"},
)


def run(
    optimizer: str = "cma",
    seed: int = 1,
    *,
    loss: float | None = 0.5,
    task: str = "films",
    losses: Sequence[float | None] = (0.9, 0.7, 0.6),
    calls: Sequence[int] = (1, 20, 40),
    **more: Any,
) -> Record:
    """A run with this final loss, and this curve of the lowest training loss."""
    score = None if loss is None else FinalScore(loss=loss, accuracy=1 - loss)
    curve = Curve(
        calls=calls,
        generation_loss=losses,
        lowest_loss=losses,
        validation_loss=losses,
        kept_loss=losses,
        kept_accuracy=[None if loss is None else 1 - loss for loss in losses],
    )
    given = {
        "final": {"train": score, "validation": score, "test": score},
        "spent": {"calls": calls[-1] if calls else 0, "seconds": 2.0},
        "optimizer_seconds": 0.5,
        "wall_seconds": 3.0,
        "curve": curve,
        **more,
    }
    return replace(PLAIN, task=task, method=optimizer, seed=seed, **given)


def table(losses: Mapping[str, Iterable[float]], task: str = "films") -> list[Record]:
    """Runs with these final losses: those of an optimizer, seed after seed."""
    return [
        run(optimizer, seed, loss=float(loss), task=task)
        for optimizer, own in losses.items()
        for seed, loss in enumerate(own, start=1)
    ]


def a_comparison(optimizers: int = 5, seeds: int = 5, tasks: int = 2) -> ComparisonResult:
    """One with curves, a failed run and one that was stopped early."""
    names = ["cma", "random", "nevergrad:PSO", "de", "one-plus-one", "tbpsa", "pso", "a", "b", "c"]
    records = []
    for task in ["films", "news & <b>more</b>"][:tasks]:
        for rank, name in enumerate(names[:optimizers]):
            for seed in range(1, seeds + 1):
                calls = list(range(1, 202, 10))
                pace = (rank + 1) * (1 + 0.05 * seed)
                losses = [0.3 + 0.4 / (1 + call / 20 / pace) for call in calls]
                records.append(
                    run(name, seed, loss=losses[-1], task=task, losses=losses, calls=calls)
                )
    records[-1] = replace(
        records[-1], status="stopped early", reason="after 101 calls it was behind"
    )
    records[-seeds - 1] = replace(
        records[-seeds - 1], status="failed", reason="the server <is> gone", final={}
    )
    return ComparisonResult(records)
