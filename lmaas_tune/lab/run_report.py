"""The report of a single run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmaas_tune.lab.html import (
    Figure,
    Page,
    Section,
    Series,
    Table,
    key_values,
    loss,
    percent,
    write_page,
)
from lmaas_tune.prompts import TextPrompt
from lmaas_tune.result import Comparison, TuneResult

_CURVES = (
    ("train_loss", "training, best of the generation"),
    ("train_loss_mean", "training, mean"),
    ("validation_loss", "validation"),
    ("best_loss", "kept"),
)


def write_run(result: TuneResult, comparison: Comparison | None, path: Path) -> Path:
    """Write the report of a run, see `TuneResult.report`."""
    best = result.best
    where = "the start" if best.generation == 0 else f"generation {best.generation}"
    prompt, provenance = result.prompt.prompt, result.prompt.provenance
    summary = [
        f"{result.client.identity}, seed {result.seed}, optimizer "
        f"{provenance['settings']['optimizer']}.",
        f"The run ended: {result.stop_reason}.",
        f"The best prompt is that of {where}.",
    ]
    if isinstance(prompt, TextPrompt):
        summary.append(f"It says: {prompt.text!r}.")
    sections = [
        *([] if comparison is None else [_before_and_after(comparison)]),
        Section(title="Loss against calls", figures=_figures(result), tables=[_steps(result)]),
        _settings(result, provenance),
    ]
    return write_page(
        Page(title="A run of prompt tuning", summary=summary, sections=sections), path
    )


def _before_and_after(comparison: Comparison) -> Section:
    names = {
        "baseline": "starting prompt, as the model is",
        "start": "starting prompt, calibrated",
        "tuned": "tuned prompt",
    }
    rows = [
        (names[name], percent(score.accuracy), loss(score.loss))
        for name, score in vars(comparison).items()
    ]
    table = Table(
        caption=f"On {comparison.tuned.rows} test rows",
        columns=("Prompt", "Accuracy", "Loss"),
        rows=rows,
        numbers=frozenset({1, 2}),
    )
    return Section(title="Before and after", tables=[table])


def _figures(result: TuneResult) -> list[Figure]:
    history = result.history
    series = []
    for column, name in _CURVES:
        known = history[history[column].notna()]
        if len(known):
            series.append(
                Series(
                    name=name,
                    x=known["calls"].tolist(),
                    y=known[column].astype(float).tolist(),
                    dots=column == "validation_loss",
                    stepped=column == "best_loss",
                )
            )
    if not series:
        return []
    return [
        Figure(
            anchor="history",
            caption="Each generation's losses, and that of the prompt that was kept",
            x="calls (one prompt on all training rows)",
            y="loss",
            series=series,
        )
    ]


def _steps(result: TuneResult) -> Table:
    columns = [column for column, _ in _CURVES]
    rows = [
        (str(row["generation"]), str(row["calls"]), *(loss(row[column]) for column in columns))
        for row in result.history.to_dict(orient="records")
    ]
    return Table(
        caption="The same in numbers",
        columns=("Generation", "Calls", *(name for _, name in _CURVES)),
        rows=rows,
        numbers=frozenset(range(len(columns) + 2)),
        folded=True,
    )


def _settings(result: TuneResult, provenance: Any) -> Section:
    task, spent = result.prompt.task, result.spent.to_json()
    words = ", ".join(f"{label}: {word}" for label, word in task.verbalizer.words.items())
    return Section(
        title="Settings and versions",
        tables=[
            key_values("The task", {"template": task.template.text, "label words": words}),
            key_values("Spent", {name: round(n, 6) for name, n in spent.items() if n}),
            key_values("Settings", provenance["settings"], folded=True),
            key_values("Versions", provenance["versions"], folded=True),
        ],
    )
