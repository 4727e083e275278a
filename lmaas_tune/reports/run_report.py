"""`RunReport`: the HTML report of a single run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.calls.meter import Spent
from lmaas_tune.reports.before_after import before_and_after
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
from lmaas_tune.reports.inline import inline
from lmaas_tune.scores import Score
from lmaas_tune.step import Candidate

if TYPE_CHECKING:
    import pandas as pd

_TITLE = "A run of prompt tuning"
_CURVES = {
    "train_loss": "training, best of the generation",
    "train_loss_mean": "training, mean",
    "validation_loss": "validation",
    "best_loss": "kept",
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
        best: The best candidate, with its losses.
        history: See `lmaas_tune.TuneResult.history`.
        scores: Those of a `lmaas_tune.Comparison` by their names; or empty.
    """

    identity: str
    seed: int
    stop_reason: str
    spent: Spent
    prompt: TunedPrompt
    best: Candidate
    history: pd.DataFrame
    scores: Mapping[str, Score]

    def write(self, path: Path) -> Path:
        """Write the report.

        Raises:
            MissingExtraError: jinja2 or plotly is not installed.
            StorageError: The file cannot be written.
        """
        steps = [_steps(self.history)]
        sections = [
            Section(title="Loss against calls", figures=_figures(self.history), tables=steps),
            Section(title="Settings and versions", tables=self._settings()),
        ]
        if self.scores:
            sections.insert(0, before_and_after(self.scores))
        return write_page(_TITLE, self._summary(), sections, path)

    def inline(self) -> str:
        """The most of it as HTML for a notebook's cell."""
        curves = Section(title="Loss against calls", figures=_figures(self.history))
        tables = [_losses(self.best), self._spent()]
        return inline([Section(title=_TITLE, text=self._summary(), tables=tables), curves])

    def _summary(self) -> list[str]:
        prompt, settings = self.prompt.prompt, self.prompt.provenance["settings"]
        number = self.best.generation
        where = f"generation {number}" if number else "the start"
        summary = [
            f"{self.identity}, seed {self.seed}, optimizer {settings['optimizer']}.",
            f"The run ended: {self.stop_reason}.",
            f"The best prompt is that of {where}.",
        ]
        if prompt.words is not None:
            summary.append(f"It says: {prompt.words!r}.")
        return summary

    def _spent(self) -> Table:
        spent = {name: round(n, 6) for name, n in self.spent.to_json().items() if n}
        return key_values("Spent", spent)

    def _settings(self) -> list[Table]:
        task, provenance = self.prompt.task, self.prompt.provenance
        words = ", ".join(f"{label}: {word}" for label, word in task.verbalizer.words.items())
        return [
            key_values("The task", {"template": task.template.text, "label words": words}),
            self._spent(),
            key_values("Settings", provenance["settings"], folded=True),
            key_values("Versions", provenance["versions"], folded=True),
        ]


def _losses(best: Candidate) -> Table:
    scored = {"training rows": best.train, "validation rows": best.validation}
    return Table(
        "The best prompt",
        [(name, evaluation) for name, evaluation in scored.items() if evaluation is not None],
        [
            Column("On", lambda line: line[0]),
            Column("Loss", lambda line: line[1].loss, loss),
            Column("Accuracy", lambda line: line[1].accuracy, percent),
        ],
    )


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
