"""`Step` and `Candidate`: the results of one generation, and a scored prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmaas_tune.calls.meter import Budget, Spent
from lmaas_tune.evaluator import Evaluation
from lmaas_tune.prompts import FloatArray, Prompt
from lmaas_tune.reprs import short_repr


@dataclass(frozen=True, eq=False)
class Candidate:
    """A prompt that was scored.

    Attributes:
        generation: 0 for the start, then counted from 1.
        prompt: The prompt.
        train: Evaluation on the training rows; None if it was not scored on them.
        validation: Evaluation on the validation rows, with the bias of the training rows; None
            without validation rows, or if it was not nominated.
    """

    generation: int
    prompt: Prompt
    train: Evaluation | None
    validation: Evaluation | None = None

    __repr__ = short_repr

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation that the selection compares: validation if there is one, else training."""
        return self.validation or self.train


@dataclass(frozen=True, eq=False)
class Step:
    """One generation of the search.

    Attributes:
        generation: Counted from 1; 0 is the start alone.
        points: (population, dim) points of the optimizer.
        evaluations: One for each point, on the training rows.
        validated: Evaluations on the validation rows in this step.
        best: The best candidate of the run so far, by the run's selection.
        improved: Whether this step found it.
        spent: Total spending of the run by the end of this step.
        budget: Budget of the run.
    """

    generation: int
    points: FloatArray = field(repr=False)
    evaluations: Sequence[Evaluation] = field(repr=False)
    validated: Sequence[Evaluation] = field(repr=False)
    best: Candidate
    improved: bool
    spent: Spent
    budget: Budget

    __repr__ = short_repr

    @property
    def loss(self) -> float:
        """Lowest training loss of this generation."""
        return min((e.loss for e in self.evaluations if e.loss == e.loss), default=float("nan"))

    @property
    def bounds(self) -> float:
        """Share of this generation's scores that are bounds."""
        scored = [*self.evaluations, *self.validated]
        return sum(evaluation.bounds for evaluation in scored) / len(scored)


COLUMNS = (
    "generation",
    "train_loss",
    "train_loss_mean",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "best_loss",
    "best_accuracy",
    "improved",
    *Spent().to_json(),
)
"""Columns of `step_row`, also for a run without steps."""


def step_row(step: Step) -> dict[str, float | int | None]:
    """A step as one flat row of numbers; a row of `TuneResult.history`."""
    finite = [e.loss for e in step.evaluations if e.loss == e.loss]
    best = step.best.evaluation
    return {
        "generation": step.generation,
        "train_loss": min(finite, default=None),
        "train_loss_mean": sum(finite) / len(finite) if finite else None,
        "train_accuracy": max((e.accuracy for e in step.evaluations), default=None),
        "validation_loss": min((e.loss for e in step.validated), default=None),
        "validation_accuracy": max((e.accuracy for e in step.validated), default=None),
        "best_loss": None if best is None else best.loss,
        "best_accuracy": None if best is None else best.accuracy,
        "improved": int(step.improved),
        **step.spent.to_json(),
    }
