"""What one run came to, as its file keeps it."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from lmaas_tune.artifact import Score
from lmaas_tune.callbacks import step_row
from lmaas_tune.calls.meter import Spent
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.evaluator import Evaluation
from lmaas_tune.plain import checked
from lmaas_tune.step import Step

FORMAT = 1

Status: TypeAlias = Literal["finished", "stopped early", "failed"]

Key: TypeAlias = tuple[str, str, int]
"""Task, optimizer and seed: what a run is called."""

Number: TypeAlias = float | None
"""None where there was none, or it was not finite."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a run went: one entry a step in each list.

    Attributes:
        calls: Spent by then.
        generation_loss: Lowest training loss of the step.
        lowest_loss: Lowest training loss so far.
        validation_loss: Lowest loss of the step on the validation rows, where it looked.
        kept_loss: Loss of the prompt that is kept, on the rows that choose.
        kept_accuracy: Its accuracy there.
    """

    calls: Sequence[int] = ()
    generation_loss: Sequence[Number] = ()
    lowest_loss: Sequence[Number] = ()
    validation_loss: Sequence[Number] = ()
    kept_loss: Sequence[Number] = ()
    kept_accuracy: Sequence[Number] = ()

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Curve:
        """Of a run's steps."""
        rows = [step_row(step) for step in steps]
        losses = [_finite(row["train_loss"]) for row in rows]
        lowest = itertools.accumulate(losses, _lower)
        return cls(
            calls=[step.spent.calls for step in steps],
            generation_loss=losses,
            lowest_loss=list(lowest),
            validation_loss=[_finite(row["validation_loss"]) for row in rows],
            kept_loss=[_finite(row["best_loss"]) for row in rows],
            kept_accuracy=[_finite(row["best_accuracy"]) for row in rows],
        )

    def lowest_after(self, calls: int) -> float:
        """Lowest training loss by so many calls; infinite before the first."""
        count = bisect_right(self.calls, calls)
        lowest = self.lowest_loss[count - 1] if count else None
        return math.inf if lowest is None else lowest

    def calls_to(self, target: float) -> int | None:
        """Calls until the lowest training loss was at the target; None if it never was."""
        for calls, loss in zip(self.calls, self.lowest_loss, strict=True):
            if loss is not None and loss <= target:
                return calls
        return None


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run came to.

    Attributes:
        task: Its name.
        optimizer: The contender's label.
        seed: Of the run.
        status: How it ended.
        reason: Why it ended, or failed, as a sentence.
        identity: The backend's.
        conditions: What has to be the same in all runs that are compared.
        template: With `label_words`, how the task was put to the model.
        label_words: The word for each label.
        rows: Numbers and digests of the rows, see `lmaas_tune.comparison.tasks.Split`.
        settings: All of the run's, with the optimizer and its options.
        versions: What was installed.
        final: Loss and accuracy of the final prompt on the rows of `train`, `validation` and
            `test`; None where there were no such rows, or it was not scored on them.
        spent: By the search, see `lmaas_tune.Spent`.
        optimizer_seconds: In ask and tell.
        wall_seconds: All in all, with the test; of the last attempt, where there were several.
        curve: How it went.
        notes: What it said to the user.
        prompt_text: The final prompt, where it is a text.
    """

    task: str
    optimizer: str
    seed: int
    status: Status
    reason: str
    identity: str
    conditions: Mapping[str, Any]
    template: str
    label_words: Mapping[str, str]
    rows: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    final: Mapping[str, Mapping[str, Number] | None] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    optimizer_seconds: float = 0.0
    wall_seconds: float = 0.0
    curve: Curve = field(default_factory=Curve)
    notes: Sequence[str] = ()
    prompt_text: str | None = None

    @property
    def key(self) -> Key:
        """What the run is called."""
        return self.task, self.optimizer, self.seed

    @property
    def done(self) -> bool:
        """Whether it ended as it should, and need not be taken up again."""
        return self.status != "failed"

    def loss(self, rows: str) -> float:
        """Of the final prompt on the rows of that name; NaN where there is none."""
        return self._final(rows, "loss")

    def accuracy(self, rows: str) -> float:
        """Of the final prompt on the rows of that name; NaN where there is none."""
        return self._final(rows, "accuracy")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Record:
        """Read what `to_json` gave; unknown keys are left alone.

        Raises:
            StorageError: It is of a later format.
            InputError: It is something else.
        """
        version = checked(int, content.get("format"), "format")
        if version > FORMAT:
            raise StorageError(
                f"format {version} of a run, and this version reads up to {FORMAT}: "
                "install a later lmaas-tune"
            )
        record: Record = checked(cls, content, "the run")
        for name, kind in _INNER.items():
            checked(kind, getattr(record, name), name)
        if len({len(entries) for entries in vars(record.curve).values()}) > 1:
            raise InputError("the lists of the curve are not of one length: one entry a step")
        if record.done and "calls" not in record.spent:
            raise InputError("spent.calls is missing in the run")
        Spent.from_json(record.spent)
        return record

    def _final(self, rows: str, what: str) -> float:
        value = (self.final.get(rows) or {}).get(what)
        return math.nan if value is None else float(value)


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    """What of a run's conditions a report reads."""

    budget: str
    objective: str = ""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What of a run's settings a report reads."""

    optimizer: str
    optimizer_options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Of one part of a split."""

    rows: int
    digest: str


_INNER = {"conditions": _Conditions, "settings": _Settings, "rows": Mapping[str, _Rows | None]}


def final_json(score: Score | Evaluation | None) -> dict[str, Any] | None:
    """Loss and accuracy as plain values."""
    if score is None:
        return None
    return {"loss": _finite(score.loss), "accuracy": score.accuracy}


def _finite(value: float | None) -> Number:
    return value if value is not None and math.isfinite(value) else None


def _lower(a: Number, b: Number) -> Number:
    known = [value for value in (a, b) if value is not None]
    return min(known, default=None)
