"""The tasks of a comparison, given in Python or in a file."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lmaas_tune.data import Rows, few_shot_split, read_examples
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.extras import need
from lmaas_tune.lab.record import RowSet
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.task import Example
from lmaas_tune.typed_json import parse_json

SEED = "{seed}"
"""Is replaced by the seed of the run in a path."""


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one run.

    Attributes:
        train: Scored by every call.
        validation: They select the prompt; None leaves that to the training rows.
        test: They measure the final prompt, and select nothing.
    """

    train: Sequence[Example]
    validation: Sequence[Example] | None
    test: Sequence[Example] | None

    @property
    def row_sets(self) -> dict[str, RowSet | None]:
        """Number and digest of the rows of each part; None for a part that is missing."""
        return {
            name: None if rows is None else RowSet(rows=len(rows), digest=_digest(rows))
            for name, rows in vars(self).items()
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedTask:
    """One task of a comparison.

    Attributes:
        name: Its name in the results.
        train: Labelled rows in any form that `lmaas_tune.read_examples` takes. In a path,
            ``{seed}`` is replaced by the seed of the run.
        validation: Rows of the same form that select the prompt.
        test: Rows of the same form that measure the final prompt.
        template: The template; None takes the default, see `lmaas_tune.Tuner`.
        labels: A word for each label; None takes the labels themselves.
        label_field: The column with the label.
        shots: Number of rows of each class that are drawn from `train` for training, and for
            validation, with each seed (the paper's protocol, `lmaas_tune.few_shot_split`).

    Raises:
        InputError: The name is empty, or both `shots` and `validation` are given.
    """

    name: str
    train: Rows
    validation: Rows | None = None
    test: Rows | None = None
    template: str | None = None
    labels: Mapping[str, str] | None = None
    label_field: str = "label"
    shots: int | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("a task has no name: give it one, which the results are sorted by")
        if self.shots is not None and self.validation is not None:
            raise InputError(
                f"task {self.name!r}: shots draws the validation rows from train, so leave "
                "validation out"
            )

    def split(self, seed: int, *, on_note: OnNote = warn) -> Split:
        """The rows for a seed; `on_note` is that of `lmaas_tune.read_examples`.

        Raises:
            InputError: They cannot be read, or do not suffice for the shots.
        """
        train, validation, test = (
            self._read(part, seed, on_note) for part in ("train", "validation", "test")
        )
        if train is None:
            raise InputError(f"task {self.name!r} has no training rows: give train")
        if self.shots is not None:
            train, validation = few_shot_split(train, shots=self.shots, seed=seed)
        return Split(train, validation, test)

    def _read(self, part: str, seed: int, on_note: OnNote) -> list[Example] | None:
        rows = getattr(self, part)
        if rows is None:
            return None
        if isinstance(rows, str | os.PathLike):
            rows = os.fspath(rows).replace(SEED, str(seed))
        what = f"task {self.name!r}, {part}"
        return read_examples(rows, label_field=self.label_field, what=what, on_note=on_note)


def named_tasks(given: NamedTask | Sequence[NamedTask]) -> tuple[NamedTask, ...]:
    """One task or several.

    Raises:
        InputError: There is none, two have one name, or one is something else.
    """
    tasks = (given,) if isinstance(given, NamedTask) else tuple(given)
    if not tasks:
        raise InputError("there is no task: give at least one NamedTask")
    for task in tasks:
        if not isinstance(task, NamedTask):
            raise InputError(f"{task!r:.60} is no task: give NamedTask(name=..., train=...)")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two tasks have the name {name!r}: give each its own")
    return tasks


_KINDS: Mapping[str, str] = {
    **{field.name: "text" for field in fields(NamedTask) if field.name != "name"},
    "labels": "table of words",
    "shots": "whole number",
}
_PATHS = ("train", "validation", "test")


def read_tasks(path: str | os.PathLike[str]) -> tuple[NamedTask, ...]:
    """Read a file of tasks.

    Each is a TOML table, or a JSON object, under its name::

        [sst2]
        train = "sst2/seed-{seed}/train.jsonl"
        validation = "sst2/seed-{seed}/dev.jsonl"
        test = "sst2/test.jsonl"
        template = "{sentence} {prompt} It was {label}."
        labels = {0 = "terrible", 1 = "great"}

    The keys are the attributes of `NamedTask`; paths are relative to the file.

    Raises:
        InputError: The file cannot be read, or an entry is wrong.
    """
    file = Path(path)
    tables = read_tables(file, "tasks")
    return named_tasks([_task(file, name, entry) for name, entry in tables.items()])


def read_tables(file: Path, what: str) -> dict[str, Any]:
    """Read a file of named tables, in TOML or JSON; `what` they are is for messages.

    Raises:
        InputError: The file cannot be read, or has none.
    """
    content = _parse(file, what)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}: it has no {what}; each is a table under its name")
    return content


_TYPES: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "number": (int, float),
    "whole number": (int,),
    "whole number or text": (int, str),
    "table": (dict,),
    "table of words": (dict,),
}


def checked_entry(
    where: str, entry: object, kinds: Mapping[str, str], *, needs: tuple[str, str]
) -> dict[str, Any]:
    """A table of a file, if each of its keys is known and has a value of its kind.

    Args:
        where: File and name of the table, for messages.
        entry: The table.
        kinds: The kind of each key's value, one of `_TYPES`.
        needs: The key that must be there, and what it is.

    Raises:
        InputError: The table is wrong.
    """
    if not isinstance(entry, dict) or needs[0] not in entry:
        raise InputError(f"{where}: give at least {', '.join(needs)}")
    for key, value in entry.items():
        if key not in kinds:
            raise InputError(f"{where}: unknown key {key!r}; {did_you_mean(key, kinds)}")
        if isinstance(value, bool) or not isinstance(value, _TYPES[kinds[key]]):
            raise InputError(f"{where}: {key} = {value!r} is no {kinds[key]}")
    return dict(entry)


def _parse(file: Path, what: str) -> Any:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    if file.suffix.lower() not in (".toml", ".json"):
        raise InputError(f"{file}: a file of {what} ends in .toml or .json")
    try:
        return parse_json(text) if file.suffix.lower() == ".json" else _toml(text)
    except RecursionError:
        raise InputError(f"{file}: not {file.suffix[1:].upper()} (nested too deeply)") from None
    except ValueError as error:
        raise InputError(f"{file}: not {file.suffix[1:].upper()} ({error})") from error


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        need("a file in TOML", "tomli")
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    return tomllib.loads(text)


def _task(file: Path, name: str, entry: object) -> NamedTask:
    where = f"{file}, task {name!r}"
    given = checked_entry(where, entry, _KINDS, needs=("train", "the file with its training rows"))
    paths = {key: str(file.parent / given[key]) for key in _PATHS if key in given}
    return NamedTask(name=name, **{**given, **paths})


def _digest(rows: Sequence[Example]) -> str:
    content = [[dict(row.fields), row.label] for row in rows]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
