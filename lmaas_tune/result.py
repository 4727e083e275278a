"""What a run found, and what it took."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmaas_tune.artifact import Score, TunedPrompt, score_prompts
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Spent
from lmaas_tune.data import Rows, read_examples
from lmaas_tune.prompts import FloatArray
from lmaas_tune.step import COLUMNS, Candidate, Step, step_row

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Comparison:
    """What tuning changed, on the same rows.

    Attributes:
        baseline: The starting prompt alone, as the model answers by itself.
        start: The starting prompt with its calibration: what one call gives.
        tuned: The best prompt with its calibration.
    """

    baseline: Score
    start: Score
    tuned: Score


@dataclass(frozen=True, eq=False)
class TuneResult:
    """What a run found, and what it took.

    Attributes:
        prompt: The best prompt, ready to use and to save.
        start: The prompt the search started from, with its own calibration.
        best: The best candidate, with its losses.
        steps: All of them; `history` has them as a frame.
        spent: All in all.
        stop_reason: Why the run ended, as a sentence.
        finished: False where the user interrupted it.
        optimizer_seconds: Time in the optimizer's ask and tell.
        seed: Of the run.
        client: Made the calls; `predict` goes on with it.
        out: Where the run is kept; None if it is in memory only.
    """

    prompt: TunedPrompt
    start: TunedPrompt = field(repr=False)
    best: Candidate
    steps: Sequence[Step] = field(repr=False)
    spent: Spent
    stop_reason: str
    finished: bool
    optimizer_seconds: float
    seed: int
    client: Client = field(repr=False)
    out: Path | None

    def predict(self, rows: Rows) -> list[str]:
        """The likeliest label of each row, see `TunedPrompt.predict`."""
        return self.prompt.predict(self.client, rows)

    def predict_proba(self, rows: Rows) -> FloatArray:
        """(rows, labels) probabilities, see `TunedPrompt.predict_proba`."""
        return self.prompt.predict_proba(self.client, rows)

    def score(self, rows: Rows) -> Score:
        """Accuracy and loss on labelled rows."""
        return self.prompt.score(self.client, rows)

    def compare(self, rows: Rows) -> Comparison:
        """Before and after on labelled rows that played no part in the search."""
        examples = read_examples(rows)
        targets = self.prompt.task.verbalizer.targets(examples)
        start, tuned = score_prompts([self.start, self.prompt], self.client, examples)
        return Comparison(
            Score.of(start - self.start.bias, targets),
            Score.of(start, targets),
            Score.of(tuned, targets),
        )

    @property
    def bounds(self) -> float:
        """Share of the run's scores that are bounds and not the model's own; 0 if all are exact.

        It is the mean over the steps.
        """
        return sum(step.bounds for step in self.steps) / max(1, len(self.steps))

    @property
    def history(self) -> pd.DataFrame:
        """One row a step, the columns of `lmaas_tune.callbacks.step_row`."""
        import pandas as pd  # comes with nevergrad; slow to import, so only when asked

        rows = [step_row(step) for step in self.steps]
        frame: pd.DataFrame = pd.DataFrame(rows, columns=list(COLUMNS))
        return frame

    def plot(self, ax: Axes | None = None) -> Axes:
        """Losses over calls: each generation's best and mean, validation, and what was kept.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lmaas_tune.plots import plot_history

        return plot_history(self.history, ax)

    def report(self, path: str | os.PathLike[str], *, comparison: Comparison | None = None) -> Path:
        """Write the run as one HTML file that needs no network: curves, settings, versions.

        Args:
            path: The file.
            comparison: What `compare` gave, to be shown in it.

        Raises:
            MissingExtraError: The extra ``compare`` is not installed.
            StorageError: The file cannot be written.
        """
        from lmaas_tune.reports.run_report import RunReport

        report = RunReport(
            identity=self.client.identity,
            seed=self.seed,
            stop_reason=self.stop_reason,
            spent=self.spent,
            prompt=self.prompt,
            generation=self.best.generation,
            history=self.history,
            scores={} if comparison is None else vars(comparison),
        )
        return report.write(Path(path))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Save the best prompt, see `TunedPrompt.save`."""
        return self.prompt.save(folder)
