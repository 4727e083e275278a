"""`Evaluator`: scores prompts on a fixed batch of labelled rows and computes their losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmaas_tune.backend import Inspects, ScoreReply, ScoreRequest, Spread
from lmaas_tune.calibration import Calibration
from lmaas_tune.calls.call import Recorder
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.cost import CostModel
from lmaas_tune.calls.meter import Meter
from lmaas_tune.errors import InputError
from lmaas_tune.objectives import Objective, error_rate
from lmaas_tune.prompts import FloatArray, Prompt
from lmaas_tune.task import Example, Task
from lmaas_tune.typed_json import checked


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Loss and accuracy of one prompt on a batch.

    Attributes:
        loss: Value of the objective; NaN if the scores or the objective were not finite.
        accuracy: Share of rows whose highest score is that of the right label.
        bias: (labels,) bias of the calibration.
        bounds: Share of the scores that are bounds, see `lmaas_tune.backend.ScoreReply`.
    """

    loss: float
    accuracy: float
    bias: FloatArray
    bounds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON has them; NaN as null."""
        loss = self.loss if math.isfinite(self.loss) else None
        content = {"loss": loss, "accuracy": self.accuracy, "bias": [float(b) for b in self.bias]}
        return {**content, "bounds": self.bounds} if self.bounds else content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """Build an evaluation from the output of `to_json`.

        Raises:
            InputError: The content is invalid.
        """
        loss = checked(float | None, content.get("loss"), "loss")
        bias = checked(Sequence[float], content.get("bias"), "bias")
        return cls(
            math.nan if loss is None else loss,
            checked(float, content.get("accuracy"), "accuracy"),
            np.array(bias, dtype=np.float64),
            checked(float, content.get("bounds", 0.0), "bounds"),
        )


class Evaluator:
    """Scores prompts on one fixed batch of labelled rows.

    Args:
        client: Makes the calls.
        task: Template and label words.
        examples: Labelled examples; at least one.
        objective: The function to minimise.
        what: Name of the rows in error messages ("train").
        cost: The cost model of the run; by default a new one.

    Attributes:
        cost: The cost model; it learns from inspections here, and from answers in the client.
        batch: The rows.
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
        *,
        what: str,
        cost: CostModel | None = None,
    ) -> None:
        self._client, self.cost = client, cost or client.new_cost_model()
        self._objective = objective
        self._what = what
        try:
            self.batch = task.template.batch(examples)
            self._targets = task.verbalizer.targets(examples)
            self.digest = task.digest(examples)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        self._candidates = task.verbalizer.candidates
        self._loss(
            np.zeros((len(examples), len(self._candidates)))
        )  # checks that the objective runs

    @property
    def labels(self) -> int:
        """Number of labels."""
        return len(self._candidates)

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

    def calibrate(
        self,
        prompts: Sequence[Prompt],
        calibration: Calibration,
        meter: Meter,
        recorder: Recorder | None = None,
    ) -> list[Evaluation]:
        """Evaluate prompts, each with a bias fitted to its scores on these rows."""
        no_bias = np.zeros(len(self._candidates))
        return [
            self._evaluate(
                reply,
                calibration(reply.logprobs, self._targets)
                if np.isfinite(reply.logprobs).all()
                else no_bias,
            )
            for reply in self._client.score(
                self._requests(prompts), meter=meter, recorder=recorder, cost=self.cost
            )
        ]

    def evaluate(
        self,
        prompts: Sequence[Prompt],
        biases: Sequence[FloatArray],
        meter: Meter,
        recorder: Recorder | None = None,
    ) -> list[Evaluation]:
        """Evaluate prompts, each with a given (labels,) bias."""
        replies = self._client.score(
            self._requests(prompts), meter=meter, recorder=recorder, cost=self.cost
        )
        return [self._evaluate(r, bias) for r, bias in zip(replies, biases, strict=True)]

    def measure(self, prompt: Prompt, meter: Meter) -> Spread:
        """Measure the stds of the inputs of the model's layers, on these rows with a prompt."""
        return self._client.measure(*self._requests([prompt]), meter=meter)

    def _requests(self, prompts: Sequence[Prompt]) -> list[ScoreRequest]:
        return [ScoreRequest(prompt, self.batch, self._candidates) for prompt in prompts]

    def _evaluate(self, reply: ScoreReply, bias: FloatArray) -> Evaluation:
        bounds = reply.bounds / reply.logprobs.size
        if not np.isfinite(reply.logprobs).all():  # argmax of NaN would look like an answer
            return Evaluation(math.nan, 0.0, bias, bounds)
        calibrated = reply.logprobs + bias
        loss = self._loss(calibrated)
        accuracy = 1.0 - error_rate(calibrated, self._targets)
        return Evaluation(loss if math.isfinite(loss) else math.nan, accuracy, bias, bounds)

    def _loss(self, scores: FloatArray) -> float:
        try:
            # copies, because a user's function may work in place
            return float(self._objective(scores.copy(), self._targets.copy()))
        except Exception as error:  # a user's function may raise anything
            raise InputError(
                f"{self._what}: the objective gives no number for {scores.shape} (rows, labels) "
                f"log-probabilities and {self._targets.shape} (rows,) targets "
                f"({type(error).__name__}: {error})"
            ) from error
