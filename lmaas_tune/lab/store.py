"""The results folder: one folder a run, whose ``run.json`` is there whole or not at all.

Under ``TASK/OPTIMIZER/seed-N`` lie the run's journal, its prompt and, once it has ended,
``run.json``. Nothing else is kept, so that two folders become one by copying.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.files import read_object, reading
from lmaas_tune.lab.record import Curve, Key, Record

FILE_NAME = "run.json"

_Scope: TypeAlias = tuple[object, ...]
"""What has to be the same within all runs (), a task (its name), a block (with the seed), or all
runs of a spec (None and its label)."""


def run_folder(out: Path, key: Key) -> Path:
    """Where a run is kept."""
    task, optimizer, seed = key
    return out / _file_name(task) / _file_name(optimizer) / f"seed-{seed}"


def keep(out: Path, record: Record) -> None:
    """Write a run down.

    Raises:
        StorageError: It cannot be written.
    """
    path = run_folder(out, record.key) / FILE_NAME
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            json.dump(record.to_json(), file, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StorageError(f"{path}: the run cannot be written ({error})") from error


def kept(out: Path, key: Key) -> Record | None:
    """The record of a run; None while it has none."""
    path = run_folder(out, key) / FILE_NAME
    return read(path) if path.exists() else None


def forget(out: Path, key: Key) -> None:
    """Drop the record of a run, where there is one; its journal stays.

    Raises:
        StorageError: It cannot be dropped.
    """
    path = run_folder(out, key) / FILE_NAME
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: the run cannot be written ({error})") from error


def rivals(folder: Path) -> list[Curve]:
    """How the finished runs of other optimizers went on the task and seed of a run's folder."""
    paths = folder.parent.parent.glob(f"*/{folder.name}/{FILE_NAME}")
    others = [read(path) for path in paths if path.parent != folder]
    return [record.curve for record in others if record.status == "finished"]


def read_all(folder: Path) -> list[tuple[Path, Record]]:
    """All runs below a folder, each with its file."""
    return [(path, read(path)) for path in sorted(folder.rglob(FILE_NAME))]


def read_folders(folders: Sequence[str | os.PathLike[str]]) -> list[Record]:
    """All runs below some folders, each once.

    Raises:
        InputError: There is none, or they are of comparisons that differ.
        StorageError: A file is damaged.
    """
    found: dict[Key, Record] = {}
    seen: list[tuple[Path, Record]] = []
    for folder in map(Path, folders):
        runs = read_all(folder)
        if not runs:
            raise InputError(f"{folder}: no runs of a comparison are there")
        seen += runs
    check_comparable(seen)
    for _, record in seen:
        if record.key not in found or not found[record.key].done:
            found[record.key] = record
    return list(found.values())


def check_comparable(seen: Iterable[tuple[Path, Record]]) -> None:
    """See that runs differ in nothing but task, optimizer and seed.

    Raises:
        InputError: Two do; it says where and in what.
    """
    firsts: dict[_Scope, tuple[Path, Record]] = {}
    for path, record in seen:
        key = record.task, record.seed
        for scope in ((), key[:1], key, (None, record.optimizer)):
            first_path, first = firsts.setdefault(scope, (path, record))
            for name, was, is_ in _differences(first, record, scope):
                raise InputError(
                    f"{first_path} and {path} are not of one comparison: {name} is {was!r:.80} "
                    f"there and {is_!r:.80} here; report them apart, or write to another folder"
                )


def _differences(
    first: Record, other: Record, scope: _Scope
) -> Iterable[tuple[str, object, object]]:
    """What should be the same and is not: its name, and the two values."""
    if not scope:
        same: dict[str, tuple[Any, Any]] = {"the backend": (first.identity, other.identity)}
        for name in sorted({*first.conditions, *other.conditions}):
            same[name] = first.conditions.get(name), other.conditions.get(name)
    elif scope[0] is None:
        same = {
            f"the {name} of {other.optimizer!r}": (first.settings[name], other.settings[name])
            for name in ("optimizer", "optimizer_options")
        }
    elif len(scope) == 1:
        same = {
            f"the template of {other.task!r}": (first.template, other.template),
            f"the label words of {other.task!r}": (first.label_words, other.label_words),
        }
    else:
        what = f"of {other.task!r} with seed {other.seed}"
        same = {
            f"the {part} rows {what}": (first.rows.get(part), other.rows.get(part))
            for part in ("train", "validation", "test")
        }
    return [(name, *values) for name, values in same.items() if values[0] != values[1]]


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        StorageError: It is damaged, or of a later format.
    """
    remedy = "delete the file, and the same comparison makes it again from the journal beside it"
    with reading(path, "the run", remedy):
        return Record.from_json(read_object(path))


def _file_name(name: str) -> str:
    """The name where it can name a file, else what of it can, and a digest."""
    clean = re.sub(r"[^\w.=-]+", "-", name, flags=re.ASCII).strip(".-")[:60]
    if clean == name:
        return name
    return f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("-")
