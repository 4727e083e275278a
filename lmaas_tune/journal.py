"""`Journal`: the record of a run, one JSON line for each paid answer, written when it arrives.

A resumed run replays the search with the recorded answers: the optimizer returns to its state and
no answer is paid twice. If an answer consists of several calls, each part has its own line, which
the line of the complete answer supersedes. So have answers with which a run ended before it had
used them. The cost of failed attempts has a line too. Any prefix
of the file is a valid journal; an incomplete last line is dropped. Each line ends with a chained
checksum of itself and the lines before it (the key ``seal``), so that changes are detected.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from lmaas_tune.backend import ScoreReply
from lmaas_tune.calls.meter import Spent
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.files import reading
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.typed_json import checked, parse_object

FORMAT = 3
FILE_NAME = "journal.jsonl"
STARTS = "starts"
"""Key of the number of starts, which costs nothing."""
_BEGINNING = b'{"format": '
_CHECKSUM_FIELD = b', "seal": "%s"}'
_MAY_DIFFER = {"format", "versions"}  # other versions may replay; `get` detects if not

Record: TypeAlias = dict[str, Any]
"""One answer, as JSON has it."""


class Journal:
    """Answers by key, stored in a file or in memory.

    Args:
        path: The file; None keeps the journal in memory.
        header: Settings and data of the run. A run with another header is not resumed.
        resume: Resume the run in the file; without it, a file with answers is an error.
        on_note: Called with a note if there is no run to resume.

    Attributes:
        spent: Total spending by the last recorded answer, plus failed attempts since.

    Raises:
        InputError: The file holds another run, or holds answers and `resume` is not set.
        StorageError: The file cannot be read or written, or another process is writing it.
    """

    def __init__(
        self,
        path: Path | None,
        header: Mapping[str, Any],
        *,
        resume: bool = False,
        on_note: OnNote = warn,
    ) -> None:
        self._path, self._on_note = path, on_note
        self._answers: dict[str, Record] = {}
        self._unasked: set[str] = set()
        self._parts: dict[str, Record] = {}  # not yet superseded by an answer
        self._used: dict[str, ScoreReply] = {}
        self._held: list[tuple[Mapping[bytes, ScoreReply], Spent]] = []
        self._lock = threading.Lock()
        self.spent = Spent()
        self._file: FileIO | None = None
        self._last_checksum = ""  # of the last line
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            _lock(self._file.fileno(), path)
            self._load(self._file, json.loads(json.dumps(header)), resume)
        except OSError as error:
            self.close()
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"{path}: the journal cannot be opened for writing ({error}); nothing was paid yet"
            ) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    @property
    def replaying(self) -> bool:
        """Whether some answers of the file were not replayed yet."""
        return bool(self._unasked)

    def close(self) -> None:
        """Close the file and release its lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, key: str, of: str) -> Record | None:
        """The recorded answer under `key`; None if there is none.

        Args:
            key: Name of the request within the run.
            of: Digest of the request.

        Raises:
            StorageError: The recorded answer belongs to a request with another digest.
        """
        if (record := self._answers.get(key)) is None:
            return None
        if record["of"] != of:
            raise StorageError(
                f"{self._path}: the answer {key!r} was recorded for another request, so the "
                "replay differs from the recorded run; resume with the versions that the "
                "journal's first line names, and with the same calls in the budget if the "
                "optimizer plans by them"
            )
        self._unasked.discard(key)
        return record

    def append(self, key: str, of: str, content: Mapping[str, Any], spent: Spent) -> Record:
        """Record an answer.

        Args:
            key: Name of the request within the run.
            of: Digest of the request.
            content: The answer.
            spent: Total spending of the run by now, with all answers that are held.

        Returns:
            The record.

        Raises:
            StorageError: The file cannot be written.
        """
        record = {"key": key, "of": of, **content, "spent": spent.to_json()}
        with self._lock:
            self._write(record, supersedes=True)
        self._answers[key] = record
        self.spent = spent
        return record

    def has_part(self, key: bytes) -> bool:
        """See `lmaas_tune.calls.call.Recorder`."""
        with self._lock:
            return key.hex() in self._parts or key.hex() in self._used

    def get_part(self, key: bytes) -> tuple[ScoreReply, Spent] | None:
        """See `lmaas_tune.calls.call.Recorder`."""
        name = key.hex()
        with self._lock:
            if name in self._parts:
                spent = Spent.from_json(self._parts[name]["spent"])
                self._use(name)
            elif name in self._used:
                spent = Spent()
            else:
                return None
            return replace(self._used[name], usage=spent.usage), spent

    def append_part(self, key: bytes, reply: ScoreReply, spent: Spent) -> None:
        """See `lmaas_tune.calls.call.Recorder`; of scores that are not finite only the cost is.

        Raises:
            StorageError: It cannot be written.
        """
        if not np.isfinite(reply.logprobs).all():
            self.append_failure(spent)
            return
        part = {"part": key.hex(), "logprobs": reply.logprobs.tolist(), "bounds": reply.bounds}
        with self._lock:
            self._write({**part, "spent": spent.to_json()})
            self._used[key.hex()] = reply

    def hold(self, replies: Mapping[bytes, ScoreReply], spent: Spent) -> None:
        """See `lmaas_tune.calls.call.Recorder`; the next `append` supersedes them."""
        with self._lock:
            self._held.append((replies, spent))

    def append_held(self) -> None:
        """Record the answers that are held, as parts, and the cost of their failed attempts.

        Raises:
            StorageError: They cannot be written.
        """
        held, self._held = self._held, []
        for replies, spent in held:
            costs = {key: Spent.of(reply.usage) for key, reply in replies.items()}
            for key, reply in replies.items():
                self.append_part(key, reply, costs[key])
            if (rest := spent - sum(costs.values(), Spent())) != Spent():
                self.append_failure(rest)

    def take_unasked(self) -> Spent:
        """The cost of recorded parts that were not asked for; returned once, as by `get_part`."""
        with self._lock:
            unasked = [Spent.from_json(part["spent"]) for part in self._parts.values()]
            for name in list(self._parts):
                self._use(name)
        return sum(unasked, Spent())

    def append_failure(self, spent: Spent) -> None:
        """See `lmaas_tune.calls.call.Recorder`.

        Raises:
            StorageError: It cannot be written.
        """
        with self._lock:
            self._write({"lost": True, "spent": spent.to_json()})

    def _use(self, name: str) -> None:
        part = self._parts.pop(name)
        logprobs = np.array(part["logprobs"], dtype=np.float64)
        logprobs.setflags(write=False)
        self._used[name] = ScoreReply(logprobs, bounds=part["bounds"])

    def _load(self, file: FileIO, header: Record, resume: bool) -> None:
        file.seek(0)
        data = file.read()
        if not data.startswith(_BEGINNING[: len(data)]):
            raise StorageError(
                f"{self._path} is not a journal of lmaas-tune: choose another folder"
            )
        whole = data[: data.rfind(b"\n") + 1]
        if whole:
            self._check_format(whole[: whole.find(b"\n")])
        lines = [self._parse(line, n) for n, line in enumerate(whole.splitlines(), start=1)]
        if resume and not data:
            self._on_note(f"{self._path}: there is no run to resume, so a new one starts")
        paid = any(map(_is_paid, lines[1:]))
        if len(lines) < 2 or (not paid and (not resume or _differing(lines[0], header))):
            file.truncate(0)  # any run may start here
            self._last_checksum = ""
            self._write({"format": FORMAT, **header})
            return
        self._check_header(lines[0], header)
        if not resume:
            answers = sum("key" in line for line in lines[1:])
            raise InputError(
                f"{self._path} holds a run already, with {answers} paid answers: resume "
                "it with resume=True (--resume), or choose another folder"
            )
        if len(whole) < len(data):  # a crash cut the last line
            file.truncate(len(whole))
        self._take(lines[1:])

    def _take(self, lines: Sequence[Record]) -> None:
        """Load the records of all lines after the first."""
        for line in lines:
            if "part" in line:
                self._parts[line["part"]] = line
            elif "lost" in line:  # included in the total of later answers
                self.spent += Spent.from_json(line["spent"])
            else:
                self._answers[line["key"]] = line
                self.spent = Spent.from_json(line["spent"])
                for name in list(self._parts):  # their cost is part of the answer's
                    self._use(name)
        self._unasked = set(self._answers)

    def _parse(self, line: bytes, number: int) -> Record:
        remedy = (
            f"cut the file to its first {number - 1} lines to keep what they hold, then resume"
            if number > 1
            else "choose another folder"
        )
        with reading(f"{self._path}, line {number}", "the journal", remedy):
            body, checksum = _split_checksum(line)
            if checksum != _checksum(self._last_checksum, body):
                raise ValueError("its checksum is wrong, so it or a line before it was changed")
            self._last_checksum = checksum
            record = parse_object(body)
            if number > 1:
                _check_line(record)
        return record

    def reading(self, key: str) -> AbstractContextManager[None]:
        """Name the file and the answer in errors about an unreadable answer."""
        return reading(self._path, f"the answer {key!r}", "choose another folder")

    def _check_format(self, line: bytes) -> None:
        try:
            version = parse_object(line).get("format")
        except InputError:
            return  # damaged; reported when the line is parsed
        if version != FORMAT:
            raise StorageError(
                f"{self._path}: journal format {version!r}, and this version reads {FORMAT}"
            )

    def _check_header(self, recorded: Record, wanted: Record) -> None:
        if differs := _differing(recorded, wanted):
            first = differs[0]
            raise InputError(
                f"{self._path} is the journal of another run: {', '.join(differs)} differ "
                f"({first} was {recorded.get(first)!r:.80}, is {wanted.get(first)!r:.80}); give "
                "the same settings, or choose another folder"
            )

    def _write(self, record: Record, *, supersedes: bool = False) -> None:
        """Write a line; if it supersedes the answers that are held, it drops them."""
        held = [] if supersedes else self._held
        if self._file is None:
            self._held = held
            return
        body = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        checksum = _checksum(self._last_checksum, body)
        line = body[:-1] + _CHECKSUM_FIELD % checksum.encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise StorageError(
                f"{self._path}: cannot be written ({error}); all earlier answers are saved: "
                "make room, then resume"
            ) from error
        finally:  # an interrupt leaves the whole line or nothing too, because others may follow
            if self._file.seek(0, os.SEEK_END) == end + len(line):
                self._last_checksum, self._held = checksum, held
            else:
                self._file.truncate(end)


def _differing(recorded: Record, wanted: Record) -> list[str]:
    """The keys of two first lines that differ, and may not."""
    keys = sorted({*recorded, *wanted} - _MAY_DIFFER)
    return [key for key in keys if recorded.get(key) != wanted.get(key)]


def _is_paid(record: Record) -> bool:
    """Whether a line after the first holds an answer, or the cost of a failed attempt."""
    if "lost" not in record:
        return record.get("key") != STARTS
    spent = Spent.from_json(record["spent"])
    return bool(spent.sequences or spent.tokens or spent.money)


def _check_line(record: Record) -> None:
    """Check a line after the first.

    Raises:
        InputError: The record is invalid.
    """
    Spent.from_json(record.get("spent"))
    if "part" in record:
        checked(str, record["part"], "part")
        logprobs = checked(Sequence[Sequence[float]], record.get("logprobs"), "logprobs")
        np.array(logprobs, dtype=np.float64)  # rows of one length
        record["bounds"] = checked(int, record.get("bounds", 0), "bounds")
    elif "lost" not in record:
        for name in ("key", "of"):
            checked(str, record.get(name), name)


def _checksum(before: str, body: bytes) -> str:
    """Checksum of a line, chained to that of the line before."""
    return hashlib.blake2b(before.encode() + body, digest_size=8).hexdigest()


def _split_checksum(line: bytes) -> tuple[bytes, str]:
    """Split a line into its record and its checksum.

    Raises:
        ValueError: The line has no checksum.
    """
    length = len(_CHECKSUM_FIELD % (b"0" * 16))
    body, checksum = line[:-length] + b"}", line[-length:][-18:-2].decode("ascii", "replace")
    if line[-length:] != _CHECKSUM_FIELD % checksum.encode():
        raise ValueError("it has no checksum")
    return body, checksum


def _lock(descriptor: int, path: Path) -> None:
    """Lock the file for this process; the system releases the lock when the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl; there the user must avoid concurrent runs
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(f"{path}: another process is writing this run") from None
