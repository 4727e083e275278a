"""What calls mean: prompts on a fixed batch of labelled rows, to losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmaas_tune.backend import Inspects, ScoreReply, ScoreRequest, Spread, Usage
from lmaas_tune.calibration import Calibration
from lmaas_tune.client import Client, Ledger
from lmaas_tune.errors import InputError
from lmaas_tune.middleware.meter import Meter
from lmaas_tune.objectives import Objective, error_rate
from lmaas_tune.plain import checked
from lmaas_tune.prompts import FloatArray, Prompt
from lmaas_tune.task import Example, Task


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one prompt is worth on a batch.

    Attributes:
        loss: The objective; NaN where the scores or the objective were not finite.
        accuracy: Share of rows whose highest score is the right label's.
        bias: (labels,) the calibration used.
        bounds: Share of the scores that are bounds, see `lmaas_tune.backend.ScoreReply`.
    """

    loss: float
    accuracy: float
    bias: FloatArray
    bounds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN as null."""
        loss = self.loss if math.isfinite(self.loss) else None
        content = {"loss": loss, "accuracy": self.accuracy, "bias": [float(b) for b in self.bias]}
        return {**content, "bounds": self.bounds} if self.bounds else content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """Read what `to_json` gave.

        Raises:
            InputError: It did not give this.
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
    """Scores prompts on one fixed batch, which the backend sees again and again.

    Args:
        client: Makes the calls.
        task: Turns examples into rows.
        examples: Labelled; at least one.
        objective: What is minimised.
        what: What the rows are called in an error ("train").
        like: Of other rows of the task: where nothing else shows what a prompt takes here, it is
            thought to take as much for each character that is read as it takes there.

    Attributes:
        batch: The rows.
        digest: SHA-256 of the rows and their targets.
        usage: What scoring one prompt takes, as far as it is known: by inspection, else by the
            dearest answer so far.
        read: Characters that the answer was of which showed it; 0 where none did.
        seconds: Wall time that one prompt took last; 0 before the first answer.

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
        like: Evaluator | None = None,
    ) -> None:
        self._client, self._like = client, like
        self._objective = objective
        self._what = what
        try:
            self.batch = task.template.batch(examples)
            self._targets = task.verbalizer.targets(examples)
            self.digest = task.digest(examples)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        self._candidates = task.verbalizer.candidates
        self._loss(np.zeros((len(examples), len(self._candidates))))  # of scores that are no news
        self.usage = Usage(requests=1, sequences=len(self.batch))
        self.read = 0
        self.seconds = 0.0
        self._inspected = False

    @property
    def labels(self) -> int:
        """How many labels there are."""
        return len(self._candidates)

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
            self.usage, self._inspected = usage, True
        return inspection.notes

    def learn(self, usage: Usage, read: int, seconds: float) -> None:
        """Take note of what one prompt took."""
        if usage.tokens > self.usage.tokens or usage.money > self.usage.money:
            self.usage, self.read = replace(usage, requests=1), read
        elif usage.requests and not self.read:
            self.read = read  # the backend told nothing of what it took, and will not
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
                reply,
                calibration(reply.logprobs, self._targets)
                if np.isfinite(reply.logprobs).all()
                else no_bias,
            )
            for reply in self._replies(prompts, meter, ledger)
        ]

    def evaluate(
        self,
        prompts: Sequence[Prompt],
        biases: Sequence[FloatArray],
        meter: Meter,
        ledger: Ledger | None = None,
    ) -> list[Evaluation]:
        """Each prompt's worth, with the (labels,) bias that other rows gave it."""
        replies = self._replies(prompts, meter, ledger)
        return [self._evaluate(r, bias) for r, bias in zip(replies, biases, strict=True)]

    def measure(self, prompt: Prompt, meter: Meter) -> Spread:
        """How widely spread what enters the model's layers is, on these rows under a prompt."""
        return self._client.measure(self._request(prompt), meter=meter)

    def _request(self, prompt: Prompt) -> ScoreRequest:
        return ScoreRequest(prompt, self.batch, self._candidates)

    def _replies(
        self, prompts: Sequence[Prompt], meter: Meter, ledger: Ledger | None
    ) -> list[ScoreReply]:
        rest, found = list(prompts), list[ScoreReply]()
        while rest:
            alone = meter.budget.limits_usage and not self._shown
            asked, rest = (rest[:1], rest[1:]) if alone else (rest, [])
            replies = self._client.score(
                [self._request(prompt) for prompt in asked],
                meter=meter,
                ledger=ledger,
                expected=self._expected(asked),
            )
            for prompt, reply in zip(asked, replies, strict=True):
                if not 0 < reply.usage.sequences < len(self.batch):  # the cache knew some rows
                    self.learn(reply.usage, self._request(prompt).characters, self.seconds)
            found += replies
        return found

    @property
    def _shown(self) -> bool:
        """Whether anything has shown what a prompt takes: on these rows, or on others."""
        own = self._inspected or self.read > 0
        return own or (self._like is not None and self._like.read > 0)

    def _expected(self, prompts: Sequence[Prompt]) -> Usage:
        """What the longest of the prompts is thought to take."""
        known = self if self.read or self._like is None else self._like
        if self._inspected or not known.read:
            return self.usage
        share = max(self._request(prompt).characters for prompt in prompts) / known.read
        if known is self and share <= 1:
            return self.usage
        tokens, money = math.ceil(known.usage.tokens * share), known.usage.money * share
        return replace(self.usage, tokens=tokens, money=money)

    def _evaluate(self, reply: ScoreReply, bias: FloatArray) -> Evaluation:
        bounds = reply.bounds / reply.logprobs.size
        if not np.isfinite(reply.logprobs).all():  # the highest of NaN would look like an answer
            return Evaluation(math.nan, 0.0, bias, bounds)
        calibrated = reply.logprobs + bias
        loss = self._loss(calibrated)
        accuracy = 1.0 - error_rate(calibrated, self._targets)
        return Evaluation(loss if math.isfinite(loss) else math.nan, accuracy, bias, bounds)

    def _loss(self, scores: FloatArray) -> float:
        try:
            # copies: a function of one's own may work in place
            return float(self._objective(scores.copy(), self._targets.copy()))
        except Exception as error:  # whatever a user's own function raises
            raise InputError(
                f"{self._what}: the objective gives no number for {scores.shape} (rows, labels) "
                f"log-probabilities and {self._targets.shape} (rows,) targets "
                f"({type(error).__name__}: {error})"
            ) from error
