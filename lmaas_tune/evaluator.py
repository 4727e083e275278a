"""What calls mean: prompts on a fixed batch of labelled rows, to losses."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmaas_tune.backend import Inspects, ScoreRequest, Spread, Usage
from lmaas_tune.calibration import Calibration
from lmaas_tune.client import Client, Ledger
from lmaas_tune.errors import InputError
from lmaas_tune.middleware.meter import Meter
from lmaas_tune.objectives import Objective, error_rate
from lmaas_tune.prompts import FloatArray, Prompt
from lmaas_tune.task import Example, Task


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one prompt is worth on a batch.

    Attributes:
        loss: The objective; NaN where the scores or the objective were not finite.
        accuracy: Share of rows whose highest score is the right label's.
        bias: (labels,) the calibration used.
    """

    loss: float
    accuracy: float
    bias: FloatArray

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN as null."""
        loss = self.loss if math.isfinite(self.loss) else None
        return {"loss": loss, "accuracy": self.accuracy, "bias": [float(b) for b in self.bias]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """Read what `to_json` gave."""
        loss = math.nan if content["loss"] is None else content["loss"]
        return cls(loss, content["accuracy"], np.array(content["bias"], dtype=np.float64))


class Evaluator:
    """Scores prompts on one fixed batch, which the backend sees again and again.

    Args:
        client: Makes the calls.
        task: Turns examples into rows.
        examples: Labelled; at least one.
        objective: What is minimised.
        what: What the rows are called in an error ("train").

    Attributes:
        batch: The rows.
        usage: What scoring one prompt takes, as far as it is known: by inspection, else by the
            dearest answer so far.
        seconds: Wall time that one prompt took last; 0 before the first answer.

    Raises:
        InputError: A row lacks a field or has an unknown label.
    """

    def __init__(
        self,
        client: Client,
        task: Task,
        examples: Sequence[Example],
        objective: Objective,
        *,
        what: str,
    ) -> None:
        self._client = client
        self._objective = objective
        self._what = what
        try:
            self.batch = task.template.batch(examples)
            self._targets = task.verbalizer.targets(examples)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        self._candidates = task.verbalizer.candidates
        self.usage = Usage(requests=1, sequences=len(self.batch))
        self.seconds = 0.0

    @property
    def digest(self) -> str:
        """SHA-256 of the rows and their targets."""
        targets = self._targets.astype("<i8").tobytes()
        return hashlib.sha256(self.batch.digest.encode() + targets).hexdigest()

    def inspect(self, prompt: Prompt) -> tuple[str, ...]:
        """What the backend has to say about these rows before any of them is paid.

        Raises:
            InputError: It cannot score them.
        """
        backend = self._client.backend
        if not isinstance(backend, Inspects):
            return ()
        try:
            inspection = backend.inspect(self._request(prompt))
        except InputError as error:
            raise InputError(f"{self._what}: {error}") from error
        usage = self._client.priced(inspection.usage)
        if usage.tokens > self.usage.tokens:
            self.usage = usage
        return inspection.notes

    def learn(self, usage: Usage, seconds: float) -> None:
        """Take note of what one prompt took."""
        if usage.tokens > self.usage.tokens or usage.money > self.usage.money:
            self.usage = replace(usage, requests=1)
        self.seconds = seconds

    def calibrate(
        self,
        prompts: Sequence[Prompt],
        calibration: Calibration,
        meter: Meter,
        ledger: Ledger | None = None,
    ) -> list[Evaluation]:
        """Each prompt's worth, with a bias fitted to its scores on these very rows."""
        no_bias = np.zeros(len(self._candidates))
        return [
            self._evaluate(
                scores,
                calibration(scores, self._targets) if np.isfinite(scores).all() else no_bias,
            )
            for scores in self._scores(prompts, meter, ledger)
        ]

    def evaluate(
        self,
        prompts: Sequence[Prompt],
        biases: Sequence[FloatArray],
        meter: Meter,
        ledger: Ledger | None = None,
    ) -> list[Evaluation]:
        """Each prompt's worth, with the (labels,) bias that other rows gave it."""
        scores = self._scores(prompts, meter, ledger)
        return [self._evaluate(s, bias) for s, bias in zip(scores, biases, strict=True)]

    def measure(self, prompt: Prompt, meter: Meter) -> Spread:
        """How widely spread what enters the model's layers is, on these rows under a prompt."""
        return self._client.measure(self._request(prompt), meter=meter)

    def _request(self, prompt: Prompt) -> ScoreRequest:
        return ScoreRequest(prompt, self.batch, self._candidates)

    def _scores(
        self, prompts: Sequence[Prompt], meter: Meter, ledger: Ledger | None
    ) -> list[FloatArray]:
        requests = [self._request(prompt) for prompt in prompts]
        replies = self._client.score(requests, meter=meter, ledger=ledger, expected=self.usage)
        for reply in replies:
            self.learn(reply.usage, self.seconds)
        return [reply.logprobs for reply in replies]

    def _evaluate(self, scores: FloatArray, bias: FloatArray) -> Evaluation:
        if not np.isfinite(scores).all():  # the highest of NaN would look like an answer
            return Evaluation(math.nan, 0.0, bias)
        calibrated = scores + bias
        loss = float(self._objective(calibrated, self._targets))
        accuracy = 1.0 - error_rate(calibrated, self._targets)
        return Evaluation(loss if math.isfinite(loss) else math.nan, accuracy, bias)
