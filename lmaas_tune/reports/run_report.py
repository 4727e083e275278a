"""`RunReport`: the HTML report of a single run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.calls.meter import Spent
from lmaas_tune.reports.html import (
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
from lmaas_tune.scores import Score

if TYPE_CHECKING:
    import pandas as pd

_CURVES = {
    "train_loss": "training, best of the generation",
    "train_loss_mean": "training, mean",
    "validation_loss": "validation",
    "best_loss": "kept",
}
_PROMPTS = {
    "baseline": "starting prompt, as the model is",
    "start": "starting prompt with its head",
    "tuned": "tuned prompt",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class RunReport:
    """The content of a run's report.

    Attributes:
        identity: Identity of the backend.
        seed: Seed of the run.
        stop_reason: Why the run ended.
        spent: Total spending.
        prompt: The best prompt.
        generation: In which it was found; 0 for the start.
        history: See `lmaas_tune.TuneResult.history`.
        scores: Scores on rows that the search did not use, by the keys of `_PROMPTS`; or empty.
    """

    identity: str
    seed: int
    stop_reason: str
    spent: Spent
    prompt: TunedPrompt
    generation: int
    history: pd.DataFrame
    scores: Mapping[str, Score]

    def write(self, path: Path) -> Path:
        """Write the report.

        Raises:
            MissingExtraError: jinja2 or plotly is not installed.
            StorageError: The file cannot be written.
        """
        prompt, provenance = self.prompt.prompt, self.prompt.provenance
        where = "the start" if self.generation == 0 else f"generation {self.generation}"
        optimizer = provenance["settings"]["optimizer"]
        summary = [
            f"{self.identity}, seed {self.seed}, optimizer {optimizer}.",
            f"The run ended: {self.stop_reason}.",
            f"The best prompt is that of {where}.",
        ]
        if prompt.words is not None:
            summary.append(f"It says: {prompt.words!r}.")
        steps = [_steps(self.history)]
        sections = [
            Section(title="Loss against calls", figures=_figures(self.history), tables=steps),
            Section(title="Settings and versions", tables=self._settings()),
        ]
        if self.scores:
            sections.insert(0, _before_and_after(self.scores))
        return write_page("A run of prompt tuning", summary, sections, path)

    def _settings(self) -> list[Table]:
        task, provenance = self.prompt.task, self.prompt.provenance
        words = ", ".join(f"{label}: {word}" for label, word in task.verbalizer.words.items())
        spent = {name: round(n, 6) for name, n in self.spent.to_json().items() if n}
        return [
            key_values("The task", {"template": task.template.text, "label words": words}),
            key_values("Spent", spent),
            key_values("Settings", provenance["settings"], folded=True),
            key_values("Versions", provenance["versions"], folded=True),
        ]


def _before_and_after(scores: Mapping[str, Score]) -> Section:
    table = Table(
        f"On {scores['tuned'].rows} test rows",
        list(scores.items()),
        [
            Column("Prompt", lambda line: _PROMPTS[line[0]]),
            Column("Accuracy", lambda line: line[1].accuracy, percent),
            Column("from", lambda line: line[1].interval[0], percent),
            Column("to (95%)", lambda line: line[1].interval[1], percent),
            Column("Loss", lambda line: line[1].loss, loss),
            Column("Calibration error", lambda line: line[1].calibration_error, loss),
        ],
    )
    return Section(title="Before and after", tables=[table])


def _figures(history: pd.DataFrame) -> list[Figure]:
    series = []
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


def _steps(history: pd.DataFrame) -> Table:
    return Table(
        "The same in numbers",
        lines_of(history),
        [
            Column("Generation", "generation", whole),
            Column("Calls", "calls", whole),
            *(Column(name, column, loss) for column, name in _CURVES.items()),
        ],
        folded=True,
    )
