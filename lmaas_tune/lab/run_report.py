"""The report of a single run."""

from __future__ import annotations

from pathlib import Path

from lmaas_tune.lab.html import (
    Column,
    Figure,
    Section,
    Series,
    Table,
    key_values,
    lines_of,
    loss,
    percent,
    whole,
    write_page,
)
from lmaas_tune.result import Comparison, TuneResult

_CURVES = {
    "train_loss": "training, best of the generation",
    "train_loss_mean": "training, mean",
    "validation_loss": "validation",
    "best_loss": "kept",
}
_PROMPTS = {
    "baseline": "starting prompt, as the model is",
    "start": "starting prompt, calibrated",
    "tuned": "tuned prompt",
}


def write_run(result: TuneResult, comparison: Comparison | None, path: Path) -> Path:
    """Write the report of a run, see `TuneResult.report`."""
    best, prompt = result.best, result.prompt.prompt
    where = "the start" if best.generation == 0 else f"generation {best.generation}"
    summary = [
        f"{result.client.identity}, seed {result.seed}, optimizer "
        f"{result.prompt.provenance['settings']['optimizer']}.",
        f"The run ended: {result.stop_reason}.",
        f"The best prompt is that of {where}.",
    ]
    if prompt.words is not None:
        summary.append(f"It says: {prompt.words!r}.")
    sections = [
        *([] if comparison is None else [_before_and_after(comparison)]),
        Section(title="Loss against calls", figures=_figures(result), tables=[_steps(result)]),
        _settings(result),
    ]
    return write_page("A run of prompt tuning", summary, sections, path)


def _before_and_after(comparison: Comparison) -> Section:
    table = Table(
        f"On {comparison.tuned.rows} test rows",
        [(name, getattr(comparison, key)) for key, name in _PROMPTS.items()],
        [
            Column("Prompt", lambda line: line[0]),
            Column("Accuracy", lambda line: line[1].accuracy, percent),
            Column("Loss", lambda line: line[1].loss, loss),
        ],
    )
    return Section(title="Before and after", tables=[table])


def _figures(result: TuneResult) -> list[Figure]:
    history, series = result.history, []
    for column, name in _CURVES.items():
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
    figure = Figure(
        anchor="history",
        caption="Each generation's losses, and that of the prompt that was kept",
        x="calls (one prompt on all training rows)",
        y="loss",
        series=series,
    )
    return [figure] if series else []


def _steps(result: TuneResult) -> Table:
    return Table(
        "The same in numbers",
        lines_of(result.history),
        [
            Column("Generation", "generation", whole),
            Column("Calls", "calls", whole),
            *(Column(name, column, loss) for column, name in _CURVES.items()),
        ],
        folded=True,
    )


def _settings(result: TuneResult) -> Section:
    task, spent = result.prompt.task, result.spent.to_json()
    provenance = result.prompt.provenance
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
