"""The score cache: an SQLite file of answers, so that no answer is paid twice."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import itertools
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from lmaas_tune.backend import ScoreReply, ScoreRequest
from lmaas_tune.calls.call import Call, Caller, Reply
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.prompts import FloatArray

_APPLICATION = 0x4C4D6153  # "LMaS", in the file's header: the database is ours
_FORMAT = 1
_SMALLEST = 64 * 1024  # bytes; an empty database takes 16 KiB
_JOURNAL = 4 * 2**20  # bytes; a larger write-ahead log is truncated to this size
_RESERVE = 16 * 1024  # bytes that an entry may add to its scores, including split pages

_SCHEMA = (
    # used: counter of the last use, the smallest is evicted first; logprobs: little-endian
    # float64, row by row; seal: checksum of the entry
    "CREATE TABLE scores (key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, "
    "rows INTEGER NOT NULL, candidates INTEGER NOT NULL, logprobs BLOB NOT NULL, "
    "seal BLOB NOT NULL)",
    "CREATE INDEX scores_by_use ON scores (used)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_FORMAT}",
)

_EVICT = "DELETE FROM scores WHERE rowid IN (SELECT rowid FROM scores ORDER BY used LIMIT 8)"

# Errors that a damaged file can cause; a message of SQLite may quote bytes that are no text.
_FILE_ERRORS = (sqlite3.Error, UnicodeDecodeError, OverflowError)
# Messages of errors outside the file itself; Python 3.10 gives no codes.
_OUTSIDE = ("locked", "locking", "full", "readonly", "disk I/O", "unable to open", "out of memory")

_log = logging.getLogger(__name__)


def score_key(identity: str, request: ScoreRequest) -> bytes:
    """Cache key: SHA-256 of everything that can change the answer to a request.

    Args:
        identity: Identity of the backend: model, revision, settings.
        request: Its prompt's digest covers vectors, insertion and anchor; its batch's digest
            covers the rendered rows.
    """
    sha = hashlib.sha256(b"scores 1")
    for part in (identity, request.prompt.digest, request.batch.digest, *request.candidates):
        data = part.encode("utf-8", "surrogatepass")
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.digest()


class ScoreCache:
    """A file of scores by key, safe for concurrent processes and threads.

    A full cache evicts the least recently used entries. A corrupt file is renamed, with a
    warning, and a new one created. After any other error (full disk, lock timeout) the cache
    issues one warning and turns itself off. No failure of the cache loses a result.

    Args:
        path: The file; created with its folders if it does not exist. SQLite keeps two more
            files beside it while it is open.
        max_bytes: Largest size of the file, 64 KiB or more.
        lock_timeout: Seconds to wait for the lock of another process.

    Raises:
        InputError: `max_bytes` is too small, or the file is text or a foreign database.
        StorageError: The file cannot be created or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 256 * 2**20,
        lock_timeout: float = 10.0,
    ) -> None:
        if max_bytes < _SMALLEST:
            raise InputError(f"cache max_bytes={max_bytes}: it takes {_SMALLEST} or more")
        self.path = Path(path)
        self._max_bytes, self._lock_timeout = max_bytes, lock_timeout
        self._lock = threading.RLock()
        self._off = False
        self._db: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._inherited: list[sqlite3.Connection | None] = []
        self._inode: int | None = None
        _make_file(self.path)
        _refuse_foreign(self.path)
        self._transact(lambda db: None)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, FloatArray]:
        """Read-only (rows, candidates) float64 log-probabilities of the keys in the cache."""
        found: dict[bytes, FloatArray] = {}

        def read(db: sqlite3.Connection) -> None:
            for key in keys:
                scores = _read(db, key)
                if scores is not None:
                    found[key] = scores
            if found:
                _touch(db, found)

        keys = list(keys)
        self._transact(read)
        return found

    def put_many(self, scores: Mapping[bytes, FloatArray]) -> None:
        """Store (rows, candidates) log-probabilities; arrays with non-finite values are skipped."""

        def write(db: sqlite3.Connection) -> None:
            for key, logprobs in good.items():
                self._make_room(db, logprobs.nbytes + _RESERVE)
                _write(db, key, logprobs)

        good = {key: array for key, array in scores.items() if self._accepts(array)}
        if good:
            self._transact(write)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            self._drop_after_fork()
            if self._db is not None:
                self._db.close()
                self._db = None

    def _accepts(self, logprobs: FloatArray) -> bool:
        return bool(np.isfinite(logprobs).all()) and logprobs.nbytes < self._max_bytes // 4

    def _make_room(self, db: sqlite3.Connection, size: int) -> None:
        while _size(db) + size > self._max_bytes:
            if not db.execute(_EVICT).rowcount:
                return  # empty

    def _transact(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run `work` in one transaction; errors are logged and not raised."""
        with self._lock:
            for _ in range(2):  # a second time with a new file if the old one was corrupt
                if self._off:
                    return
                try:
                    db = self._connection()
                    with db:
                        db.execute("BEGIN IMMEDIATE")
                        work(db)
                    return
                except _FILE_ERRORS as error:
                    if any(sign in str(error) for sign in _OUTSIDE):
                        self._switch_off(error)
                    else:
                        self._set_aside(error)

    def _connection(self) -> sqlite3.Connection:
        self._drop_after_fork()
        if self._db is None:
            self._inode = _inode(self.path)
            self._db = _open(self.path, self._lock_timeout)
        return self._db

    def _drop_after_fork(self) -> None:
        """Forget a connection of the parent process: SQLite forbids a child to use or close it."""
        if self._process != os.getpid():
            self._inherited.append(self._db)
            self._db, self._process = None, os.getpid()

    def _switch_off(self, error: Exception) -> None:
        self._off = True
        self.close()
        _log.warning("the cache %s is not used from here on: %s", self.path, error)

    def _set_aside(self, error: Exception) -> None:
        self.close()
        if _inode(self.path) != self._inode:
            return  # another process has created a new file already
        try:
            aside = _rename(self.path)
        except OSError as problem:
            self._switch_off(problem)
        else:
            _log.warning(
                "the cache %s is corrupt (%s): it is renamed to %s, and a new one created",
                self.path, error, aside.name,
            )  # fmt: skip


def _make_file(path: Path) -> None:
    """Create the file, or check that it can be written, without opening an existing one.

    Closing a second handle of an SQLite file would release this process's locks on it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
    except FileExistsError:
        if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
            raise StorageError(f"the cache {path} is no writable file: name another path") from None
    except OSError as error:
        raise StorageError(
            f"the cache {path} cannot be created: {error.strerror}; name a path in a folder that "
            "can be written"
        ) from error


def _refuse_foreign(path: Path) -> None:
    db = sqlite3.connect(path)
    try:
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        kind = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
    except _FILE_ERRORS:
        if _is_text(path):
            raise InputError(f"{path} holds text: name another path for the cache") from None
        return  # corrupt or locked: the first transaction handles it
    finally:
        db.close()
    if tables and kind != _APPLICATION:
        raise InputError(
            f"{path} is a database of another program: name another path for the cache"
        )
    if tables and version != _FORMAT:
        raise InputError(
            f"the cache {path} has format {version}, and this version reads {_FORMAT}: "
            "name another path"
        )


def _is_text(path: Path) -> bool:
    """Whether a file that SQLite cannot read is a text file, and not a corrupt cache."""
    with path.open("rb") as file:
        head = file.read(4096)
    if b"\0" in head:  # every database has one in its header
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _open(path: Path, lock_timeout: float) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=lock_timeout, isolation_level=None, check_same_thread=False)
    try:
        with contextlib.suppress(sqlite3.OperationalError):
            db.execute("PRAGMA journal_mode = WAL")  # locked: another process is setting it
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last entries
        db.execute(f"PRAGMA journal_size_limit = {_JOURNAL}")
        with db:
            db.execute("BEGIN IMMEDIATE")
            if db.execute("PRAGMA user_version").fetchone()[0] != _FORMAT:
                for statement in _SCHEMA:
                    db.execute(statement)
    except BaseException:
        db.close()
        raise
    return db


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _rename(path: Path) -> Path:
    """Rename a database and its log."""
    names = (path.with_name(f"{path.name}.corrupt-{n}") for n in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    for suffix in ("-wal", "-shm", ""):  # in this order, so that no new file finds an old log
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return aside


def _read(db: sqlite3.Connection, key: bytes) -> FloatArray | None:
    row = db.execute(
        "SELECT CAST(rows AS INTEGER), CAST(candidates AS INTEGER), "
        "CAST(logprobs AS BLOB), CAST(seal AS BLOB) FROM scores WHERE key = ?",
        (key,),
    ).fetchone()
    if row is None:
        return None
    rows, candidates, data, checksum = row
    if checksum != _checksum(key, rows, candidates, data):
        raise sqlite3.DatabaseError("the checksum of an entry is wrong")
    logprobs = np.frombuffer(data, dtype="<f8").astype(np.float64).reshape(rows, candidates)
    logprobs.setflags(write=False)
    return logprobs


def _touch(db: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    now = _now(db)
    db.executemany("UPDATE scores SET used = ? WHERE key = ?", [(now, key) for key in keys])


def _write(db: sqlite3.Connection, key: bytes, logprobs: FloatArray) -> None:
    rows, candidates = logprobs.shape
    data = logprobs.astype("<f8").tobytes()
    db.execute(
        "INSERT OR REPLACE INTO scores (key, used, rows, candidates, logprobs, seal) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (key, _now(db), rows, candidates, data, _checksum(key, rows, candidates, data)),
    )


def _checksum(key: bytes, rows: int, candidates: int, data: bytes | None) -> bytes:
    head = f"{rows} {candidates} ".encode()
    return hashlib.blake2b(head + key + (data or b""), digest_size=16).digest()


def _now(db: sqlite3.Connection) -> int:
    """One more than the last use of any entry: a logical clock for all processes."""
    return int(db.execute("SELECT coalesce(max(used), 0) + 1 FROM scores").fetchone()[0])


def _size(db: sqlite3.Connection) -> int:
    """Used bytes of the file."""
    return int(
        db.execute(
            "SELECT (pages.page_count - free.freelist_count) * size.page_size "
            "FROM pragma_page_count pages, pragma_freelist_count free, pragma_page_size size"
        ).fetchone()[0]
    )


class Cached:
    """Answers cached requests, with replies without usage, and stores new answers.

    Args:
        next_caller: Answers the requests that are not cached.
        cache: None caches nothing.
    """

    def __init__(self, next_caller: Caller, cache: ScoreCache | None) -> None:
        self._next, self._cache = next_caller, cache

    def __call__(self, call: Call, /) -> list[Reply]:
        """One reply a request, in order."""
        if self._cache is None or not call.keys:
            return self._next(call)
        asked = dict(zip(call.keys, call.requests, strict=True))
        found = {} if call.run.fresh else self._cache.get_many(asked)
        replies: dict[bytes, Reply] = {
            key: from_array(array, rows=len(asked[key].batch)) for key, array in found.items()
        }
        if missing := [key for key in asked if key not in found]:
            call.keys, call.requests = missing, [asked[key] for key in missing]
            paid = dict(zip(missing, self._next(call), strict=True))
            scores = {k: to_array(r) for k, r in paid.items() if isinstance(r, ScoreReply)}
            self._cache.put_many(scores)
            replies |= paid
        return [replies[key] for key in asked]


def to_array(reply: ScoreReply) -> FloatArray:
    """The log-probabilities as stored; if some are bounds, an extra last row holds their number."""
    if not reply.bounds:
        return reply.logprobs
    last = np.zeros((1, reply.logprobs.shape[1]))
    last[0, 0] = reply.bounds
    return np.concatenate([reply.logprobs, last])


def from_array(array: FloatArray, *, rows: int) -> ScoreReply:
    """The reply for `rows` rows that `to_array` stored, without usage."""
    logprobs = array[:rows]
    logprobs.setflags(write=False)
    return ScoreReply(logprobs, bounds=int(array[rows:].sum()))
