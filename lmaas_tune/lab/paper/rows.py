"""The labelled rows of a task: few-shot splits in a folder, or drawn from a whole training set."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmaas_tune.data import few_shot_split, read_examples
from lmaas_tune.errors import InputError, MissingExtraError
from lmaas_tune.lab.paper.tasks import PaperTask, paper_task
from lmaas_tune.task import Example

_PARTS = ("train", "dev")

HUB = "hub"
"""Replaces the data folder and means the public data sets."""


@dataclass(frozen=True, eq=False)
class FewShot:
    """The rows of one task and seed.

    Attributes:
        train: The training rows.
        validation: The same number of other rows.
        test: The same for every seed.
        left_out: Number of rows of each part that the model cannot read.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Sequence[Example]]:
        """The rows by part."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def readable(self, check: Callable[[Sequence[Example]], None]) -> FewShot:
        """The rows that the model can read; the others are counted.

        Args:
            check: Raises `InputError` if one of the given rows cannot be read.

        Raises:
            InputError: No row of a part can be read.
        """
        kept = {name: _readable(rows, check) for name, rows in self.parts.items()}
        left_out = {name: len(rows) - len(kept[name]) for name, rows in self.parts.items()}
        return FewShot(**kept, left_out=left_out)


def _readable(
    rows: Sequence[Example], check: Callable[[Sequence[Example]], None]
) -> Sequence[Example]:
    try:
        check(rows)
    except InputError:
        kept = []
        for row in rows:
            with contextlib.suppress(InputError):
                check([row])
                kept.append(row)
        if not kept:
            raise
        return kept
    return rows


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A source of labelled rows.

    A folder has ``TASK/test.jsonl`` and either ``TASK/seed-N/train.jsonl`` and ``dev.jsonl`` for
    each seed, or ``TASK/train.jsonl``, from which the splits are drawn by the paper's protocol.

    Attributes:
        data: A folder, or ``hub``.
        shots: Rows a class for training, and the same number for validation.
        other_shots: The same for some tasks.
        test_rows: Maximum number of test rows, drawn once for all seeds; None takes all.
    """

    data: str
    shots: int = 16
    other_shots: Mapping[str, int] = field(default_factory=dict)
    test_rows: int | None = None

    def __post_init__(self) -> None:
        for name in self.other_shots:
            paper_task(name)
        for shots in (self.shots, *self.other_shots.values()):
            if shots < 1:
                raise InputError(f"shots={shots}: at least 1 row a class")
        if self.test_rows is not None and self.test_rows < 1:
            raise InputError(f"test_rows={self.test_rows}: at least 1")

    def shots_of(self, task: PaperTask) -> int:
        """Rows a class of a task."""
        return self.other_shots.get(task.name, self.shots)

    def few_shot(self, task: PaperTask, seed: int) -> FewShot:
        """The rows for one seed.

        Raises:
            InputError: They cannot be read, or are too few.
        """
        train, validation = self._split(task, seed)
        return FewShot(train, validation, self.test(task))

    def test(self, task: PaperTask) -> list[Example]:
        """The test rows, in their order."""
        if self.data == HUB:
            rows = _from_hub(task, task.source.test)
        else:
            rows = self._read(task, self._folder(task) / "test.jsonl", "test")
        if self.test_rows is None or len(rows) <= self.test_rows:
            return rows
        kept = sorted(random.Random(0).sample(range(len(rows)), self.test_rows))
        return [rows[number] for number in kept]

    def all_training_rows(self, task: PaperTask) -> list[Example]:
        """All rows that are not for testing, each once; a prompt is pre-trained on them."""
        if self.data == HUB:
            return _from_hub(task, "train")
        folder = self._folder(task)
        files = sorted(folder.glob("train.jsonl")) or [
            file for part in _PARTS for file in sorted(folder.glob(f"seed-*/{part}.jsonl"))
        ]
        if not files:
            raise InputError(f"{folder}: no train.jsonl and no seed-N folders are there")
        rows: dict[tuple[str, ...], Example] = {}
        for file in files:
            for row in self._read(task, file, file.stem):
                rows.setdefault(tuple(row.fields.values()), row)
        return list(rows.values())

    def _split(self, task: PaperTask, seed: int) -> tuple[list[Example], list[Example]]:
        if self.data != HUB:
            folder = self._folder(task)
            if (own := folder / f"seed-{seed}").is_dir():
                train, dev = (self._first(task, own / f"{part}.jsonl") for part in _PARTS)
                return train, dev
            if not (folder / "train.jsonl").exists():
                raise InputError(
                    f"{folder}: neither seed-{seed}/ nor train.jsonl, to draw rows from, is there"
                )
        try:
            return few_shot_split(
                self.all_training_rows(task), shots=self.shots_of(task), seed=seed
            )
        except InputError as error:
            raise InputError(f"task {task.name!r}: {error}") from error

    def _first(self, task: PaperTask, file: Path) -> list[Example]:
        """The first rows of each class, up to the number of shots."""
        shots = self.shots_of(task)
        taken: Counter[str | None] = Counter()
        kept = []
        for row in self._read(task, file, file.stem):
            taken[row.label] += 1
            if taken[row.label] <= shots:
                kept.append(row)
        for label in task.labels:
            if (count := taken[label]) < shots:
                raise InputError(
                    f"{file}: label {label!r} has {count} rows, which is no {shots} shots"
                )
        return kept

    def _folder(self, task: PaperTask) -> Path:
        folder = Path(self.data) / task.name
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; --data takes a folder with one for each task, or 'hub'"
            )
        return folder

    def _read(self, task: PaperTask, file: Path, part: str) -> list[Example]:
        rows = read_examples(file, what=f"task {task.name!r}, {part}")
        return [
            Example({name: _field(row, name, file) for name in task.fields}, row.label)
            for row in rows
        ]


def _field(row: Example, name: str, file: Path) -> str:
    try:
        return row.fields[name]
    except KeyError:
        has = ", ".join(row.fields)
        raise InputError(f"{file}: a row has no field {name!r}; it has {has}") from None


def _from_hub(task: PaperTask, split: str) -> list[Example]:
    """A split of the public data set, its rows without a label left out."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "data from the hub", package="datasets", extra="reproduce"
        ) from error
    source = task.source
    try:
        rows: Any = datasets.load_dataset(source.path, source.name, split=split)
    except Exception as error:  # anything that fails on the way
        raise InputError(
            f"task {task.name!r}: {source.path} cannot be had from the hub "
            f"({type(error).__name__}: {error}); give a folder with --data"
        ) from error
    return [
        Example({name: str(row[name]).strip() for name in task.fields}, str(row["label"]))
        for row in rows
        if row["label"] >= 0
    ]
