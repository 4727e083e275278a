"""Storage of an experiment's runs as lines of JSON.

While an experiment runs, each run has a folder ``TASK/METHOD/seed-N`` (within ``BACKEND`` where
there are several) with its journal, its prompt and, after its end, its record: ``run.jsonl``, a
file of one line that is written whole or not at all. So processes on a shared disk need no lock.
Stores are merged by copying folders together, or by concatenating their lines into one file, which
is a store to read from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.files import read_limited, reading, write_atomically
from lmaas_tune.lab.record import FORMAT, Key, Record
from lmaas_tune.typed_json import checked, parse_object

FILE_NAME = "run.jsonl"

Fact: TypeAlias = tuple[tuple[object, ...], str, object]
"""A scope, a name and a value: all runs of the scope must have the same value."""

Found: TypeAlias = tuple[str, Record]
"""A record, and its file and line."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of experiment.

    Attributes:
        name: In messages, as ``comparison``.
        conditions: A dataclass with those of `Record.conditions` that are read again.
        settings: The same for `Record.settings`.
        facts: Values that runs must share.
        old_name: Name of the files that format 1 had.
        from_old: Converts the content of such a file.
    """

    name: str
    conditions: type[Any]
    settings: type[Any]
    facts: Callable[[Record], Iterable[Fact]]
    old_name: str
    from_old: Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Store:
    """The runs of one experiment.

    Attributes:
        place: A folder, or one file of records that is only read.
        kind: The kind of experiment.
    """

    place: Path
    kind: Kind

    def folder(self, key: Key) -> Path:
        """The folder of a run."""
        *names, seed = key
        return self.place.joinpath(*(_file_name(str(name)) for name in names), f"seed-{seed}")

    def get(self, key: Key) -> Record | None:
        """The record of a run; None if it has none.

        Raises:
            StorageError: It is damaged, or of a later format.
        """
        found = self._in_folder(self.folder(key))
        return found[-1][1] if found else None

    def put(self, record: Record) -> None:
        """Store the record of a run.

        Raises:
            StorageError: It cannot be written.
        """
        path = self.folder(record.key) / FILE_NAME
        content = {"experiment": self.kind.name, **record.to_json()}
        line = json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, line.encode())
        except OSError as error:
            raise StorageError(f"{path}: the run cannot be written ({error})") from error

    def delete(self, key: Key) -> None:
        """Delete the record of a run, if it has one; its journal stays.

        Raises:
            StorageError: It cannot be deleted.
        """
        for name in (FILE_NAME, self.kind.old_name):
            path = self.folder(key) / name
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"{path}: the run cannot be written ({error})") from error

    def found(self) -> list[Found]:
        """All records, in the order of their files.

        Raises:
            StorageError: One is damaged, or of a later format.
        """
        if self.place.is_file():
            return self._in_file(self.place)
        paths = [*self.place.rglob(FILE_NAME), *self.place.rglob(self.kind.old_name)]
        folders = sorted({path.parent for path in paths})
        return [found for folder in folders for found in self._in_folder(folder)]

    def finished_rivals(self, key: Key) -> list[Record]:
        """Finished runs of other methods with the same backend, task and seed."""
        own = self.folder(key)
        folders = own.parent.parent.glob(f"*/{own.name}")
        found = [record for folder in folders for _, record in self._in_folder(folder)]
        return [one for one in found if one.status == "finished" and one.method != key[-2]]

    def check_alike(self, planned: Iterable[Record]) -> list[Found]:
        """Check that the stored runs and those that are planned belong to one experiment.

        Returns:
            The stored runs.

        Raises:
            InputError: Two differ in what they must share.
        """
        found = self.found()
        check_alike(self.kind, [*found, *((str(self.folder(r.key)), r) for r in planned)])
        return found

    def _in_folder(self, folder: Path) -> list[Found]:
        new, old = folder / FILE_NAME, folder / self.kind.old_name
        return self._in_file(new if new.exists() else old) if new.exists() or old.exists() else []

    def _in_file(self, path: Path) -> list[Found]:
        with reading(path, "the file of runs"):
            data = read_limited(path)
        if path.name == self.kind.old_name:
            return [self._read(path, data, str(path))]
        lines = enumerate(data.splitlines(), start=1)
        return [self._read(path, line, f"{path}, line {n}") for n, line in lines if line.strip()]

    def _read(self, path: Path, line: bytes, place: str) -> Found:
        remedy = f"delete it from {path.name}, and the same command makes the run again"
        with reading(place, "the run", remedy):
            content = parse_object(line)
            version = checked(int, content.get("format"), "format")
            if version > FORMAT:
                raise StorageError(
                    f"format {version} of a run, and this version reads up to {FORMAT}: "
                    "install a later lmaas-tune"
                )
            if version == 1:
                content = self._from_old(content)
            if content.get("experiment") != self.kind.name:
                raise StorageError(
                    f"the run belongs to a {content.get('experiment')!r:.40}, "
                    f"and here a {self.kind.name} is read"
                )
            record = Record.from_json(content)
            checked(self.kind.conditions, record.conditions, "conditions")
            checked(self.kind.settings, record.settings, "settings")
        return place, record

    def _from_old(self, content: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**self.kind.from_old(content), "experiment": self.kind.name}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not as format 1: {type(error).__name__} {error}") from error


def read_stores(stores: Sequence[Store]) -> list[Record]:
    """All runs of some stores of one kind, each once: a run that succeeded replaces a failed one.

    Raises:
        InputError: A store is empty, or they are of different experiments.
        StorageError: A record is damaged.
    """
    found: list[Found] = []
    for store in stores:
        own = store.found()
        if not own:
            raise InputError(f"{store.place}: no runs of a {store.kind.name} are there")
        check_alike(store.kind, own)
        found += own
    check_alike(stores[0].kind, found)
    records: dict[Key, Record] = {}
    for _, record in found:
        if record.key not in records or not records[record.key].done:
            records[record.key] = record
    return list(records.values())


def check_alike(kind: Kind, found: Iterable[Found]) -> None:
    """Check that runs belong to one experiment.

    Raises:
        InputError: Two differ in a fact; it names both, and both values.
    """
    firsts: dict[tuple[object, ...], tuple[str, object]] = {}
    for place, record in found:
        for scope, name, value in kind.facts(record):
            first, was = firsts.setdefault((scope, name), (place, value))
            if was != value:
                raise InputError(
                    f"{first} and {place} are not of one {kind.name}: {name} is {was!r:.80} "
                    f"there and {value!r:.80} here; report them apart, or write to another folder"
                )


def _file_name(name: str) -> str:
    """The name itself if it can name a file, else its legal characters and a digest."""
    clean = re.sub(r"[^\w.=-]+", "-", name, flags=re.ASCII).strip(".-")[:60]
    if clean == name:
        return name
    return f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("-")
