"""The result of one run of an experiment, and the line of JSON that stores it."""

from __future__ import annotations

import base64
import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from lmaas_tune.calls.meter import Spent
from lmaas_tune.errors import InputError, LMaaSError
from lmaas_tune.evaluator import Evaluation
from lmaas_tune.objectives import Targets, log_softmax, negative_f1
from lmaas_tune.prompts import FloatArray
from lmaas_tune.reprs import short_repr
from lmaas_tune.scores import Score, expected_calibration_error
from lmaas_tune.step import Step, step_row
from lmaas_tune.typed_json import checked

FORMAT = 2
"""Format 1 are the files ``run.json`` and ``cell.json``, which are read still."""

Status: TypeAlias = Literal["finished", "stopped early", "failed"]

Key: TypeAlias = tuple[str | int, ...]
"""Task, method and seed, which identify a run within an experiment; the label of the backend comes
first where an experiment has several."""

Number: TypeAlias = float | None
"""None stands for a missing value and for one that is not finite."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The course of a run: one entry a step in each list.

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

    __repr__ = short_repr

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Curve:
        """Of a run's steps."""
        rows = [step_row(step) for step in steps]
        names = ("train_loss", "validation_loss", "best_loss", "best_accuracy")
        losses, *others = ([_finite(row[name]) for row in rows] for name in names)
        return cls(
            calls=[step.spent.calls for step in steps],
            generation_loss=losses,
            lowest_loss=list(itertools.accumulate(losses, _lower)),
            **dict(zip(("validation_loss", "kept_loss", "kept_accuracy"), others, strict=True)),
        )

    def lowest_after(self, calls: int) -> float:
        """Lowest training loss after a number of calls; infinite before the first loss."""
        count = bisect_right(self.calls, calls)
        lowest = self.lowest_loss[count - 1] if count else None
        return math.inf if lowest is None else lowest

    def calls_to(self, target: float) -> int | None:
        """Calls until the lowest training loss reached the target; None if it never did."""
        for calls, loss in zip(self.calls, self.lowest_loss, strict=True):
            if loss is not None and loss <= target:
                return calls
        return None


@dataclass(frozen=True, kw_only=True)
class FinalScore:
    """The score of the final prompt on some rows.

    Attributes:
        loss: Mean cross-entropy, or the objective of the search.
        accuracy: Share of rows answered right.
        f1: Of the second label, where there are two labels.
        calibration_error: See `expected_calibration_error`.
        row_losses: The loss of each row as float16 in base64, negative where the answer is wrong.
    """

    loss: Number = None
    accuracy: Number = None
    f1: Number = None
    calibration_error: Number = None
    row_losses: str | None = None

    __repr__ = short_repr

    @classmethod
    def of(cls, score: Score | Evaluation | None) -> FinalScore | None:
        """Of a score of the core; a loss that is not finite is left out."""
        return None if score is None else cls(loss=_finite(score.loss), accuracy=score.accuracy)

    @classmethod
    def of_log_odds(cls, odds: FloatArray, targets: Targets) -> FinalScore:
        """Of (rows, labels) log-odds, given (rows,) right columns."""
        losses = np.abs(log_softmax(odds)[np.arange(len(targets)), targets])  # and no -0.0
        wrong = odds.argmax(axis=1) != targets
        signed = np.where(wrong, -losses, losses).clip(-_MOST_LOSS, _MOST_LOSS)
        return cls(
            loss=float(losses.mean()),
            accuracy=1 - float(wrong.mean()),
            f1=-negative_f1(odds, targets) if odds.shape[1] == 2 else None,
            calibration_error=expected_calibration_error(odds, targets),
            row_losses=base64.b64encode(signed.astype("<f2").tobytes()).decode(),
        )

    @property
    def by_row(self) -> tuple[FloatArray, FloatArray] | None:
        """(rows,) losses, and (rows,) 1 where the answer is right, else 0; None if not kept.

        Raises:
            InputError: The text is damaged.
        """
        if self.row_losses is None:
            return None
        try:
            signed = np.frombuffer(base64.b64decode(self.row_losses, validate=True), "<f2")
        except ValueError as error:
            raise InputError(f"row_losses: {error}") from error
        return np.abs(signed).astype(np.float64), (~np.signbit(signed)).astype(np.float64)


_MOST_LOSS = 60000.0  # that float16 holds


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """Number and digest of the training, validation or test rows."""

    rows: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one run.

    Attributes:
        task: Name of the task.
        method: Label of the optimizer, or name of the row in the paper's table.
        seed: Seed of the run.
        status: How the run ended.
        reason: Why it ended or failed, as a sentence.
        identity: Identity of the backend.
        backend: Label of the backend in a comparison of several; else empty.
        conditions: The other settings that runs must share to be compared, as plain values.
        template: The task's template.
        label_words: The word for each label.
        rows: The rows of ``train``, ``validation`` and ``test``; None for a missing part.
        settings: Settings of the method, as plain values.
        versions: Installed packages.
        final: Scores of the final prompt by part.
        value: The metric of the paper's table on test rows, 0 to 1; None in a comparison.
        parameters: Number of tuned parameters, where it is known.
        spent: By the search, see `lmaas_tune.Spent`; empty for a method without a search.
        optimizer_seconds: Time in ask and tell.
        wall_seconds: Time of the last attempt, the test included.
        curve: Losses by calls.
        notes: Warnings for the user.
        prompt_text: The final prompt, if it is a text.
        details: Other plain values that the method reports.
        command: The command line that repeats the experiment; empty if there is none.
    """

    task: str
    method: str
    seed: int
    status: Status = "failed"
    reason: str = "not made yet"
    identity: str
    backend: str = ""
    conditions: Mapping[str, Any]
    template: str
    label_words: Mapping[str, str]
    rows: Mapping[str, RowSet | None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    final: Mapping[str, FinalScore | None] = field(default_factory=dict)
    value: Number = None
    parameters: int | None = None
    spent: Mapping[str, float] = field(default_factory=dict)
    optimizer_seconds: float = 0.0
    wall_seconds: float = 0.0
    curve: Curve = field(default_factory=Curve)
    notes: Sequence[str] = ()
    prompt_text: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    __repr__ = short_repr

    @property
    def key(self) -> Key:
        """Identifies the run within its experiment."""
        return run_key(self.backend, self.task, self.method, self.seed)

    @property
    def name(self) -> str:
        """The run in a sentence."""
        *names, seed = self.key
        return ", ".join([*map(str, names), f"seed {seed}"])

    @property
    def done(self) -> bool:
        """Whether the run succeeded, and need not be made again."""
        return self.status != "failed"

    def loss(self, part: str) -> float:
        """Final loss on a part of the rows; NaN if there is none."""
        return self._final(part, "loss")

    def accuracy(self, part: str) -> float:
        """Final accuracy on a part of the rows; NaN if there is none."""
        return self._final(part, "accuracy")

    def _final(self, part: str, what: str) -> float:
        value: Number = getattr(self.final.get(part), what, None)
        return math.nan if value is None else value

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Record:
        """Read the output of `to_json`; unknown keys are ignored.

        Raises:
            InputError: A value is missing or has another type.
        """
        record: Record = checked(cls, content, "the run")
        if len({len(entries) for entries in vars(record.curve).values()}) > 1:
            raise InputError("the lists of the curve differ in length: one entry a step")
        if record.spent and "calls" not in record.spent:
            raise InputError("spent.calls is missing in the run")
        Spent.from_json(record.spent)
        return record


def run_key(backend: str, task: str, method: str, seed: int) -> Key:
    """The key of a run; `backend` is its label, or empty."""
    key = (task, method, seed)
    return (backend, *key) if backend else key


def notes_of(records: Sequence[Record]) -> list[str]:
    """The notes of runs, each once; one that some runs lack names a run that has it."""
    names: dict[str, list[str]] = {}
    for record in records:
        for note in dict.fromkeys(record.notes):
            names.setdefault(note, []).append(record.name)
    return [
        note
        if len(runs) == len(records)
        else f"{len(runs)} of {len(records)} runs, as {runs[0]}: {note}"
        for note, runs in names.items()
    ]


def failure(error: Exception) -> str:
    """The reason of a failed run, in one line: our own errors explain themselves."""
    text = str(error) if isinstance(error, LMaaSError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _finite(value: float | None) -> Number:
    return value if value is not None and math.isfinite(value) else None


def _lower(a: Number, b: Number) -> Number:
    known = [value for value in (a, b) if value is not None]
    return min(known, default=None)
