"""The input of a baseline, and the fitted baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.objectives import cross_entropy, log_softmax
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt
from lmaas_tune.task import Example, Task

if TYPE_CHECKING:
    from lmaas_tune_adapters.hf import HFBackend

Score: TypeAlias = Callable[[Sequence[Example]], FloatArray]
"""From examples to (rows, labels) scores, up to a constant a row."""

ScoreWords: TypeAlias = Callable[[Sequence[Example], Sequence[str]], FloatArray]
"""From examples and further words to (rows, label words and words) log-probabilities."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """The input of a baseline, see `fit_baseline`."""

    backend: HFBackend
    task: Task
    train: Sequence[Example]
    validation: Sequence[Example]
    seed: int
    words: str
    start: SoftPrompt | None = None

    def ask(
        self, prompt: Prompt, examples: Sequence[Example], words: Sequence[str] = ()
    ) -> FloatArray:
        """(rows, label words and words) log-probabilities, as in a black-box search."""
        return self.backend.score([self.request(prompt, examples, words)])[0].logprobs

    def request(
        self, prompt: Prompt, examples: Sequence[Example], words: Sequence[str] = ()
    ) -> ScoreRequest:
        """The examples under a prompt, with the label words and further words."""
        batch = self.task.template.batch(examples)
        return ScoreRequest(prompt, batch, (*self.task.verbalizer.candidates, *words))

    def texts(self, examples: Sequence[Example]) -> list[str]:
        """The rows' own text: the template without prompt and label."""
        rows = self.task.template.batch(examples).rows
        return ["".join(part for part in row if isinstance(part, str)).strip() for row in rows]

    def validation_loss(self, score: Score) -> float | None:
        """Cross-entropy on the validation rows; None without any."""
        if not self.validation:
            return None
        return cross_entropy(score(self.validation), self.task.verbalizer.targets(self.validation))


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedBaseline:
    """A fitted baseline.

    Attributes:
        name: As in `BASELINES`; `fit_baseline` sets it.
        parameters: Number of tuned parameters.
        steps: Steps of Adam.
        seconds: Wall time of fitting; `fit_baseline` sets it.
        validation_loss: Cross-entropy over the label words of the epoch that was kept; None
            without validation rows.
        prompt: The text or soft prompt, if the baseline is one.
        notes: For a reader of the table.
        score: Scores examples.
        score_words: Scores further words too, for a head; None if it has a head of its own.
    """

    name: str = ""
    parameters: int = 0
    steps: int = 0
    seconds: float = 0.0
    validation_loss: float | None
    prompt: Prompt | None = None
    notes: tuple[str, ...] = ()
    score: Score
    score_words: ScoreWords | None = None

    def scores(self, examples: Sequence[Example]) -> FloatArray:
        """(rows, labels) log-probabilities over the labels; the highest is the answer.

        Raises:
            InputError: An example lacks a field, or is longer than the model reads.
        """
        return log_softmax(self.score(examples))
