"""`Evaluator`: scores prompts on a fixed batch of labelled rows and computes their losses."""

from __future__ import annotations

import base64
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from lmaas_tune.backend import Inspects, ScoreReply, ScoreRequest, Spread
from lmaas_tune.blas import one_thread
from lmaas_tune.calls.call import Recorder
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.cost import CostModel
from lmaas_tune.calls.meter import Meter
from lmaas_tune.errors import InputError
from lmaas_tune.heads import Fit, FittedHead, Head
from lmaas_tune.objectives import Objective, Targets, error_rate, log_softmax
from lmaas_tune.prompts import FloatArray, Prompt
from lmaas_tune.reprs import short_repr
from lmaas_tune.task import Batch, Example, Task
from lmaas_tune.typed_json import checked

_FOLDS = 8
"""The parts of the rows whose heads are fitted to the other parts, in `Evaluator.linearised`."""

IntArray: TypeAlias = "np.typing.NDArray[np.integer]"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Loss and accuracy of one prompt on a batch.

    Attributes:
        loss: Value of the objective; NaN if the scores or the objective were not finite.
        accuracy: Share of rows whose highest log-odds are those of the right label.
        scores: (rows, words) float32 log-probabilities, the label words first; None where they
            are no longer needed.
        bounds: Share of the scores that are bounds, see `lmaas_tune.backend.ScoreReply`.
    """

    loss: float
    accuracy: float
    scores: FloatArray | None = field(repr=False)
    bounds: float = 0.0

    __repr__ = short_repr

    @property
    def summary(self) -> dict[str, Any]:
        """The fields but the scores, as JSON has them; NaN as null."""
        loss = self.loss if math.isfinite(self.loss) else None
        content = {"loss": loss, "accuracy": self.accuracy}
        return {**content, "bounds": self.bounds} if self.bounds else content

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON has them; the scores, if there are any, as base64."""
        if self.scores is None:
            return self.summary
        scores = base64.b64encode(self.scores.astype("<f4").tobytes()).decode()
        return {**self.summary, "scores": scores}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], shape: tuple[int, int]) -> Evaluation:
        """Build an evaluation from the output of `to_json`.

        Args:
            content: The output.
            shape: (rows, words) of the scores.

        Raises:
            InputError: The content is invalid.
            ValueError: The scores are invalid, or do not have this shape.
        """
        loss = checked(float | None, content.get("loss"), "loss")
        text = checked(str | None, content.get("scores"), "scores")
        data = None if text is None else base64.b64decode(text, validate=True)
        return cls(
            math.nan if loss is None else loss,
            checked(float, content.get("accuracy"), "accuracy"),
            None if data is None else np.frombuffer(data, "<f4").reshape(shape),
            checked(float, content.get("bounds", 0.0), "bounds"),
        )


def known_scores(evaluation: Evaluation) -> FloatArray:
    """The scores of an evaluation.

    Raises:
        ValueError: It has none.
    """
    if evaluation.scores is None:
        raise ValueError("the scores of this evaluation were not kept")
    return evaluation.scores


class Evaluator:
    """Scores prompts on one fixed batch of labelled rows.

    Args:
        client: Makes the calls.
        task: Template and label words.
        examples: Labelled examples; at least one.
        objective: The function to minimise.
        head: Fitted to the scores of each prompt.
        words: Words beside the label words that the head reads.
        what: Name of the rows in error messages ("train").
        cost: The cost model of the run; by default a new one.

    Attributes:
        cost: The cost model; it learns from inspections here, and from answers in the client.
        batch: The rows.
        targets: (rows,) the columns of their label words.
        digest: SHA-256 of the rows and their targets.

    Raises:
        InputError: A row lacks a field or has an unknown label, or the objective fails.
    """

    def __init__(
        self,
        client: Client,
        task: Task,
        examples: Sequence[Example],
        objective: Objective,
        head: Head,
        *,
        words: Sequence[str] = (),
        what: str,
        cost: CostModel | None = None,
    ) -> None:
        self._client, self.cost = client, cost or client.new_cost_model()
        self._objective, self._head = objective, head
        self._what = what
        try:
            self.batch = task.template.batch(examples)
            self.targets = task.verbalizer.targets(examples)
            self.digest = task.digest(examples)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        self._labels = len(task.verbalizer.candidates)
        self._candidates = (*task.verbalizer.candidates, *words)
        # checks that the objective runs
        self._loss(np.zeros((len(examples), self._labels)), self.targets)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, words) of the scores of a prompt."""
        return len(self.batch), len(self._candidates)

    def inspect(self, prompt: Prompt) -> tuple[str, ...]:
        """Notes of the backend on these rows, before the first paid call.

        Raises:
            InputError: The backend cannot score the rows.
        """
        backend = self._client.backend
        if not isinstance(backend, Inspects):
            return ()
        try:
            inspection = backend.inspect(*self._requests([prompt]))
        except InputError as error:
            raise InputError(f"{self._what}: {error}") from error
        self.cost.inspected(self.batch, inspection.usage)
        return inspection.notes

    def probe(self, prompt: Prompt, meter: Meter) -> None:
        """Pay for the scores of a prompt, so that the cost model learns; no cache is asked."""
        self._client.score(self._requests([prompt]), meter=meter, cost=self.cost, fresh=True)

    def evaluate(
        self,
        prompts: Sequence[Prompt],
        meter: Meter,
        recorder: Recorder | None = None,
        *,
        heads: Sequence[FittedHead] | None = None,
        rows: IntArray | None = None,
    ) -> list[Evaluation]:
        """Evaluate prompts.

        Args:
            prompts: One or more.
            meter: Meter of the run.
            recorder: Recorder of the run.
            heads: The head of each prompt; by default one is fitted to its scores, and each row
                is judged by a head that was fitted to the other rows.
            rows: Indices of the rows that the loss and accuracy are of; by default all.
        """
        replies = self._client.score(
            self._requests(prompts), meter=meter, recorder=recorder, cost=self.cost
        )
        if heads is None:
            return [self._evaluate(reply, rows=rows) for reply in replies]
        return [self._evaluate(reply, head) for reply, head in zip(replies, heads, strict=True)]

    def subset(self, rows: IntArray) -> Evaluator:
        """An evaluator of some rows, by their indices."""
        part = copy.copy(self)
        part.batch = Batch(tuple(self.batch.rows[row] for row in rows))
        part.targets = self.targets[rows]
        return part

    def row_losses(self, evaluation: Evaluation) -> FloatArray:
        """(rows,) cross-entropy of an evaluated prompt, each by a head fitted to other rows."""
        odds = self.left_out(evaluation)
        losses: FloatArray = -odds[np.arange(len(odds)), self.targets]
        return losses

    def left_out(self, evaluation: Evaluation) -> FloatArray:
        """(rows, labels) log-probabilities, each row's by a head fitted to other rows."""
        return log_softmax(self._fit(known_scores(evaluation), self.targets).held_out)

    def linearised(
        self, scores: FloatArray, /
    ) -> tuple[Callable[[FloatArray], FloatArray], Targets]:
        """See `lmaas_tune.optimizers.base.ScoreLoss.linearised`; the rows are in eight parts."""
        order = self.targets.argsort(
            kind="stable"
        )  # each part has about the same share of each label
        folds = min(_FOLDS, len(order))
        parts = [order[number::folds] for number in range(folds)]
        heads = [
            self._fit(np.delete(scores, rows, axis=0), np.delete(self.targets, rows)).head
            for rows in parts
        ]

        def odds(other: FloatArray) -> FloatArray:
            found = np.empty((len(self.targets), self._labels))
            for rows, head in zip(parts, heads, strict=True):
                found[rows] = head(other[rows].astype(np.float64))
            return found

        return odds, self.targets

    def fit_head(self, evaluation: Evaluation) -> FittedHead:
        """The head of an evaluated prompt, fitted to all rows."""
        scores = known_scores(evaluation)
        if not np.isfinite(scores).all():
            return FittedHead.none(self._labels)
        return self._fit(scores, self.targets).head

    def measure(self, prompt: Prompt, meter: Meter, recorder: Recorder | None = None) -> Spread:
        """Measure the stds of the inputs of the model's layers, on these rows with a prompt."""
        return self._client.measure(
            *self._requests([prompt]), meter=meter, recorder=recorder, cost=self.cost
        )

    def _requests(self, prompts: Sequence[Prompt]) -> list[ScoreRequest]:
        return [ScoreRequest(prompt, self.batch, self._candidates) for prompt in prompts]

    def _fit(self, scores: FloatArray, targets: Targets) -> Fit:
        with one_thread():
            return self._head.fit(scores.astype(np.float64), targets, self._labels)

    def _evaluate(
        self, reply: ScoreReply, head: FittedHead | None = None, *, rows: IntArray | None = None
    ) -> Evaluation:
        # float32 as in the journal, so that a resumed run computes the same
        scores = reply.logprobs.astype(np.float32)
        return self.judge(scores, reply.bounds / scores.size, head, rows=rows)

    def judge(
        self,
        scores: FloatArray,
        bounds: float = 0.0,
        head: FittedHead | None = None,
        *,
        rows: IntArray | None = None,
    ) -> Evaluation:
        """The evaluation of (rows, words) scores, see `evaluate`."""
        if not np.isfinite(scores).all():  # argmax of NaN would look like an answer
            return Evaluation(math.nan, 0.0, scores, bounds)
        odds = (
            self._fit(scores, self.targets).held_out
            if head is None
            else head(scores.astype(np.float64))
        )
        targets = self.targets
        if rows is not None:
            odds, targets = odds[rows], targets[rows]
        loss = self._loss(odds, targets)
        accuracy = 1.0 - error_rate(odds, targets)
        return Evaluation(loss if math.isfinite(loss) else math.nan, accuracy, scores, bounds)

    def _loss(self, scores: FloatArray, targets: Targets) -> float:
        try:
            # copies, because a user's function may work in place
            return float(self._objective(scores.copy(), targets.copy()))
        except Exception as error:  # a user's function may raise anything
            raise InputError(
                f"{self._what}: the objective gives no number for {scores.shape} (rows, labels) "
                f"log-probabilities and {targets.shape} (rows,) targets "
                f"({type(error).__name__}: {error})"
            ) from error
