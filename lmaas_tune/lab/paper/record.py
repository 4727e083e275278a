"""One cell of the table for one seed, as it is kept: one file, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.files import read_object, reading, write_whole
from lmaas_tune.objectives import Targets, error_rate, negative_f1
from lmaas_tune.plain import checked
from lmaas_tune.prompts import FloatArray

FORMAT = 1
FILE_NAME = "cell.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run came to.

    Attributes:
        task: Column.
        method: Row.
        seed: Of rows and run.
        conditions: All that has to be the same in a table: model, layout, settings, rows.
        value: The paper's metric for the task, 0 to 1; None where the run failed.
        accuracy: On the test rows.
        loss: Cross-entropy on them.
        reason: Why the run failed; empty where it did not.
        parameters: How many numbers were tuned.
        seconds: Wall time, the test included.
        details: What else the row has to say.
        versions: What was installed.
    """

    task: str
    method: str
    seed: int
    conditions: Mapping[str, Any]
    value: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    reason: str = ""
    parameters: int | None = None
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the run is called in a sentence."""
        return f"{self.task}, {self.method}, seed {self.seed}"

    @property
    def failed(self) -> bool:
        """Whether there is no value."""
        return self.value is None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"format": FORMAT, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class _LeftOut:
    """How many rows the model cannot read."""

    test: int


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    """What of a run's conditions is read again."""

    model: str
    layout: str
    preset: str
    shots: int
    test_rows: int
    left_out: _LeftOut
    rows: Mapping[str, str]
    settings: Mapping[str, Any]
    source_task: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Spent:
    """What of a search's cost is read again."""

    calls: int


def metric_of(metric: str, scores: FloatArray, targets: Targets) -> float:
    """What the paper reports, of (rows, labels) scores."""
    return -negative_f1(scores, targets) if metric == "f1" else 1 - error_rate(scores, targets)


def run_folder(out: Path, task: str, method: str, seed: int) -> Path:
    """Where a run is kept."""
    return out / task / method / f"seed-{seed}"


def keep(out: Path, record: Record) -> None:
    """Write a run down.

    Raises:
        StorageError: It cannot be written.
    """
    path = run_folder(out, record.task, record.method, record.seed) / FILE_NAME
    text = json.dumps(record.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode() + b"\n")
    except OSError as error:
        raise StorageError(f"{path}: the run cannot be written ({error})") from error


def kept(folder: Path) -> Record | None:
    """The run in a folder; None while there is none.

    Raises:
        StorageError: It is damaged, or of a later format.
    """
    path = folder / FILE_NAME
    try:
        with reading(path, "the run", "delete the file, and the same command makes it again"):
            content = read_object(path)
            if checked(int, content.get("format"), "format") > FORMAT:
                raise StorageError("it was written by a later version of lmaas-tune")
            record: Record = checked(Record, content, "the run")
            checked(_Conditions, record.conditions, "conditions")
            if "spent" in record.details:
                checked(_Spent, record.details["spent"], "details.spent")
            return record
    except FileNotFoundError:
        return None


def kept_below(out: Path) -> list[Record]:
    """All runs of a folder, in the order of their names.

    Raises:
        StorageError: One is damaged.
    """
    found = [kept(path.parent) for path in sorted(out.glob(f"*/*/seed-*/{FILE_NAME}"))]
    return [record for record in found if record is not None]


def check_together(records: Sequence[Record]) -> None:
    """See that runs are of one table: of one model, a task's on the same test rows, a seed's on the
    same rows for all methods, and a method's made alike for all seeds.

    Raises:
        InputError: Two are not.
    """
    firsts: dict[tuple[object, ...], tuple[Record, object]] = {}
    for record in records:
        own, rows = dict(record.conditions), dict(record.conditions.get("rows", {}))
        test, left_out = rows.pop("test", None), own.pop("left_out", None)
        own.pop("rows", None)
        for scope, what, made_with in (
            ((), "model", own.get("model")),
            ((record.task,), "test rows", test),
            ((record.task,), "rows a class", own.get("shots")),
            ((record.task, record.seed), "rows", (rows, left_out)),
            ((record.task, record.method), "settings", own),
        ):
            first, theirs = firsts.setdefault((what, *scope), (record, made_with))
            if theirs != made_with:
                raise InputError(
                    f"{first.name} and {record.name} are not of one table: they were made with "
                    f"other {what}; keep them in folders of their own"
                )


def check_same(path: Path, record: Record, conditions: Mapping[str, Any]) -> None:
    """See that a run that is kept is one that is asked for.

    Raises:
        InputError: It was made otherwise.
    """
    for name, wanted in conditions.items():
        if (was := record.conditions.get(name)) != wanted:
            raise InputError(
                f"{path}: this run was made with {name} {was!r:.80}, and {wanted!r:.80} is asked "
                "for: write to another folder, or delete it"
            )
