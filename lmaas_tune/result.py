"""`TuneResult`: the tuned prompt of a run, its history and its cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmaas_tune.artifact import TunedPrompt, score_prompts
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Spent
from lmaas_tune.data import Rows, read_examples
from lmaas_tune.prompts import FloatArray
from lmaas_tune.reprs import call_repr
from lmaas_tune.scores import Comparison, Score
from lmaas_tune.step import COLUMNS, Candidate, Step, step_row

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from lmaas_tune.reports.run_report import RunReport


@dataclass(frozen=True, eq=False)
class TuneResult:
    """The result of a run.

    Attributes:
        prompt: The best prompt, ready to use and to save.
        start: The first start, with its own head.
        best_starts: The best of the starts, averaged as the result is; what `prompt` is above them
            is the share of the search.
        best: The best candidate, with its losses.
        steps: All steps; `history` has them as a data frame.
        spent: Total spending.
        stop_reason: Why the run ended, as a sentence.
        finished: False if the user interrupted the run.
        optimizer_seconds: Time in the optimizer's ask and tell.
        seed: Seed of the run.
        client: The client that made the calls; `predict` uses it.
        out: Folder of the run; None if it is in memory only.
    """

    prompt: TunedPrompt
    start: TunedPrompt = field(repr=False)
    best_starts: TunedPrompt = field(repr=False)
    best: Candidate
    steps: Sequence[Step] = field(repr=False)
    spent: Spent
    stop_reason: str
    finished: bool
    optimizer_seconds: float
    seed: int
    client: Client = field(repr=False)
    out: Path | None

    def predict(self, rows: Rows) -> list[Any]:
        """The most probable label of each row, see `TunedPrompt.predict`."""
        return self.prompt.predict(self.client, rows)

    def predict_proba(self, rows: Rows) -> FloatArray:
        """(rows, labels) probabilities, see `TunedPrompt.predict_proba`."""
        return self.prompt.predict_proba(self.client, rows)

    def score(self, rows: Rows) -> Score:
        """Accuracy and loss on labelled rows."""
        return self.prompt.score(self.client, rows)

    def compare(self, rows: Rows) -> Comparison:
        """Scores before and after tuning, on labelled rows that the search did not use."""
        examples = read_examples(rows, on_note=self.client.on_note)
        targets = self.prompt.task.verbalizer.targets(examples)
        start, tuned = score_prompts([self.start, self.prompt], self.client, examples)
        return Comparison(
            Score.of(start[0][:, : len(self.start.head.bias)], targets),
            Score.of(self.start.log_odds(start), targets),
            Score.of(self.prompt.log_odds(tuned), targets),
        )

    @property
    def bounds(self) -> float:
        """Share of the run's scores that are bounds, as a mean over steps; 0 if all are exact."""
        return sum(step.bounds for step in self.steps) / max(1, len(self.steps))

    @property
    def history(self) -> pd.DataFrame:
        """One row a step, the columns of `lmaas_tune.step.step_row`."""
        import pandas as pd  # slow to import, so only when asked

        rows = [step_row(step) for step in self.steps]
        frame: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
        return frame

    def plot(self, ax: Axes | None = None) -> Axes:
        """Losses over calls: each generation's best and mean, validation, and the selected prompt.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lmaas_tune.plots import plot_history

        return plot_history(self.history, ax)

    def report(self, path: str | os.PathLike[str], *, comparison: Comparison | None = None) -> Path:
        """Write the run as one HTML file that needs no network: curves, settings, versions.

        Args:
            path: The file.
            comparison: Result of `compare`, to show in the report.

        Raises:
            MissingExtraError: The extra ``compare`` is not installed.
            StorageError: The file cannot be written.
        """
        scores = {} if comparison is None else vars(comparison)
        return self._report(scores).write(Path(path))

    def _report(self, scores: Mapping[str, Score]) -> RunReport:
        from lmaas_tune.reports.run_report import RunReport

        return RunReport(
            identity=self.client.identity,
            seed=self.seed,
            stop_reason=self.stop_reason,
            spent=self.spent,
            prompt=self.prompt,
            best=self.best,
            history=self.history,
            scores=scores,
        )

    def __repr__(self) -> str:
        best, spent = self.best.evaluation, self.spent
        return call_repr(
            self,
            prompt=self.prompt.prompt,
            **({} if best is None else {"loss": best.loss, "accuracy": best.accuracy}),
            generation=self.best.generation,
            calls=spent.calls,
            seconds=spent.seconds,
            stop_reason=self.stop_reason,
        )

    def _repr_html_(self) -> str:
        return self._report({}).inline()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Save the best prompt, see `TunedPrompt.save`."""
        return self.prompt.save(folder)
