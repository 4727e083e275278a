"""The cache gives back every bit or nothing, keeps to its size, and never costs a result."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.calls.cache import ScoreCache, score_key
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt, TextPrompt
from lmaas_tune.task import Batch, Example, Template

finite = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def scores(number: int, rows: int = 16) -> FloatArray:
    """Different for every number."""
    return -np.random.default_rng(number).random((rows, 2))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.sqlite"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoreCache]:
    cache = ScoreCache(tmp_path_factory.mktemp("shared") / "scores.sqlite")
    yield cache
    cache.close()


# What is kept


@given(array=arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=0), elements=finite))
@settings(deadline=None)
def test_every_finite_array_comes_back_to_the_last_bit(
    shared: ScoreCache, array: FloatArray
) -> None:
    shared.put_many({key(1): array})
    back = shared.get_many([key(1)])[key(1)]
    assert back.shape == array.shape
    assert back.dtype == np.float64
    assert back.tobytes() == array.tobytes()


def test_what_was_never_kept_is_not_found(path: Path) -> None:
    cache = ScoreCache(path)
    cache.put_many({key(1): scores(1)})
    assert list(cache.get_many([key(1), key(2)])) == [key(1)]
    assert cache.get_many([]) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_never_kept(path: Path, value: float) -> None:
    cache = ScoreCache(path)
    broken = scores(1)
    broken[3, 1] = value
    cache.put_many({key(1): broken, key(2): scores(2)})
    assert list(cache.get_many([key(1), key(2)])) == [key(2)]


def test_what_is_kept_outlives_the_object(path: Path) -> None:
    first = ScoreCache(path)
    first.put_many({key(n): scores(n) for n in range(5)})
    first.close()
    found = ScoreCache(path).get_many([key(n) for n in range(5)])
    for n in range(5):
        np.testing.assert_array_equal(found[key(n)], scores(n))


def test_a_closed_cache_opens_again_on_use(path: Path) -> None:
    cache = ScoreCache(path)
    cache.close()
    cache.put_many({key(1): scores(1)})
    cache.close()
    assert key(1) in cache.get_many([key(1)])


# What an answer depends on


TEMPLATE = "{text} {prompt} It was {label}"


def batch(template: str = TEMPLATE, *texts: str) -> Batch:
    examples = [Example({"text": text}) for text in texts or ("a fine film", "a dull film")]
    return Template(template).batch(examples)


def soft(**changes: Any) -> SoftPrompt:
    return SoftPrompt(**{"vectors": np.ones((2, 3)), **changes})


BASE = ("toy", soft(), batch(), ("good", "bad"))


def key_of(identity: str, prompt: Prompt, rows: Batch, candidates: tuple[str, ...]) -> bytes:
    return score_key(identity, ScoreRequest(prompt, rows, candidates))


def test_equal_requests_have_equal_keys() -> None:
    again = ("toy", soft(vectors=np.ones((2, 3), np.float64)), batch(), ("good", "bad"))
    assert key_of(*again) == key_of(*BASE)


def test_all_that_changes_an_answer_changes_the_key() -> None:
    nudged = np.ones((2, 3), np.float32)
    nudged[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    others: dict[str, tuple[Any, ...]] = {
        "identity": ("toy 2", *BASE[1:]),
        "last bit of a vector": ("toy", soft(vectors=nudged), *BASE[2:]),
        "shape": ("toy", soft(vectors=np.ones((3, 2))), *BASE[2:]),
        "insertion": ("toy", soft(insertion="prepend"), *BASE[2:]),
        "added": ("toy", soft(insertion="add", anchor=(1, 2)), *BASE[2:]),
        "another anchor": ("toy", soft(insertion="add", anchor=(1, 3)), *BASE[2:]),
        "text": ("toy", TextPrompt("one"), *BASE[2:]),
        "another text": ("toy", TextPrompt("two"), *BASE[2:]),
        "template": (*BASE[:2], batch("{text} {prompt} It is {label}"), BASE[3]),
        "order of slots": (*BASE[:2], batch("{prompt} {text} It was {label}"), BASE[3]),
        "rows": (*BASE[:2], batch(TEMPLATE, "a fine film"), BASE[3]),
        "order of rows": (*BASE[:2], batch(TEMPLATE, "a dull film", "a fine film"), BASE[3]),
        "candidates": (*BASE[:3], ("great", "bad")),
        "order of candidates": (*BASE[:3], ("bad", "good")),
        "more candidates": (*BASE[:3], ("good", "bad", "odd")),
        "a space in a candidate": (*BASE[:3], (" good", "bad")),
    }
    keys = {name: key_of(*other) for name, other in others.items()} | {"base": key_of(*BASE)}
    assert len(set(keys.values())) == len(keys)


few_words = st.lists(st.text("ab", max_size=3), min_size=1, max_size=4).map(tuple)


@given(one=few_words, other=few_words)
def test_no_two_lists_of_candidates_share_a_key(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    assert (key_of(*BASE[:3], one) == key_of(*BASE[:3], other)) == (one == other)


def test_the_end_of_one_word_cannot_become_the_start_of_the_next() -> None:
    assert key_of(*BASE[:3], ("ab", "c")) != key_of(*BASE[:3], ("a", "bc"))


def test_half_of_a_surrogate_pair_has_a_key_too() -> None:
    assert key_of(*BASE[:3], ("good", "\ud83d")) != key_of(*BASE[:3], ("good", "\ud83e"))


# How large it grows


def test_the_file_keeps_to_its_size_and_still_takes_what_is_new(path: Path) -> None:
    limit = 128 * 1024
    cache = ScoreCache(path, max_bytes=limit)
    rng = np.random.default_rng(0)
    for number in range(300):
        cache.put_many({key(number): scores(number, rows=int(rng.integers(1, 600)))})
        cache.get_many([key(int(rng.integers(0, number + 1)))])
        assert key(number) in cache.get_many([key(number)])
    cache.close()  # writes the journal back
    assert path.stat().st_size <= limit
    assert names(path.parent) == [path.name]


def test_a_generation_larger_than_the_cache_keeps_to_its_size_too(path: Path) -> None:
    limit = 64 * 1024
    cache = ScoreCache(path, max_bytes=limit)
    cache.put_many({key(number): scores(number, rows=500) for number in range(40)})
    cache.close()
    assert path.stat().st_size <= limit
    assert cache.get_many([key(number) for number in range(40)])


def test_the_journal_shrinks_again_after_a_large_generation(path: Path) -> None:
    cache = ScoreCache(path)
    cache.put_many({key(n): scores(n, rows=25_000) for n in range(20)})
    journal = Path(f"{path}-wal")
    assert journal.stat().st_size > 2**22
    for n in range(20, 22):
        cache.put_many({key(n): scores(n)})
    assert journal.stat().st_size <= 2**22


def test_one_reply_too_large_for_the_cache_is_left_out(path: Path) -> None:
    cache = ScoreCache(path, max_bytes=64 * 1024)
    cache.put_many({key(1): scores(1)})
    cache.put_many({key(2): scores(2, rows=100_000)})
    assert list(cache.get_many([key(1), key(2)])) == [key(1)]


def test_the_least_recently_used_goes_first(path: Path) -> None:
    cache = ScoreCache(path, max_bytes=256 * 1024)
    for number in range(20):
        cache.put_many({key(number): scores(number, rows=250)})
    kept = [key(0), key(3)]
    for number in range(20, 90):
        assert list(cache.get_many(kept)) == kept  # used again and again
        cache.put_many({key(number): scores(number, rows=250)})
    held = [n for n in range(90) if cache.get_many([key(n)])]
    newest = [n for n in held if n not in (0, 3)]
    assert {0, 3} < set(held)
    assert newest == list(range(newest[0], 90))  # no gap: the oldest went, one by one
    assert newest[0] > 20


def test_a_cache_too_small_to_hold_anything_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="cache max_bytes=1000"):
        ScoreCache(path, max_bytes=1000)


# Several processes


def write_and_read(path: Path, worker: int, done: Any) -> None:
    cache = ScoreCache(path)
    for start in range(0, 60, 6):
        cache.put_many({key(1000 * worker + n): scores(n) for n in range(start, start + 6)})
        found = cache.get_many([key(n) for n in range(0, 4000, 50)])
        for k, value in found.items():
            n = int.from_bytes(k, "big") % 1000
            np.testing.assert_array_equal(value, scores(n))
    cache.close()
    done.put(worker)


def test_several_processes_share_one_file(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    workers = [context.Process(target=write_and_read, args=(path, n, done)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    keys = [key(1000 * worker + n) for worker in range(4) for n in range(60)]
    assert len(ScoreCache(path).get_many(keys)) == 240
    assert not [name for name in names(path.parent) if "corrupt" in name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("closes_first", [False, True])
def test_a_forked_process_neither_uses_nor_closes_what_its_parent_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch, closes_first: bool
) -> None:
    used: list[str] = []

    class Watched(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            used.append("execute")
            return super().execute(*args)

        def close(self) -> None:
            used.append("close")
            super().close()

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **kw: connect(*args, **kw, factory=Watched)
    )
    cache = ScoreCache(path)
    cache.put_many({key(1): scores(1)})
    monkeypatch.setattr(sqlite3, "connect", connect)
    used.clear()
    child = os.fork()
    if child == 0:
        fine = False
        try:
            if closes_first:
                cache.close()
            cache.put_many({key(2): scores(2)})
            fine = len(cache.get_many([key(1), key(2)])) == 2 and used == []
        finally:
            os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.put_many({key(3): scores(3)})
    assert len(cache.get_many([key(1), key(2), key(3)])) == 3


WRITER = """
import itertools, sys
import numpy as np
from lmaas_tune.calls.cache import ScoreCache
cache = ScoreCache(sys.argv[1])
for number in itertools.count():
    key = number.to_bytes(32, "big")
    cache.put_many({key: np.full((400, 2), -float(number))})
    print(number, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_writer_killed_in_the_middle_leaves_all_it_had_finished(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        finished = -1
        for line in writer.stdout:
            finished = int(line)
            if finished == 40:
                writer.kill()
                break
        for line in writer.stdout:
            finished = int(line)
    found = ScoreCache(path).get_many([key(n) for n in range(finished + 1)])
    assert len(found) == finished + 1
    for n in range(finished + 1):
        np.testing.assert_array_equal(found[key(n)], np.full((400, 2), -float(n)))
    assert caplog.records == []


# Trouble


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def filled(path: Path, count: int = 200) -> None:
    cache = ScoreCache(path)
    cache.put_many({key(n): scores(n) for n in range(count)})
    cache.close()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def scribble(path: Path) -> None:
    """Over the whole file but its header: what SQLite itself may not notice."""
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, len(data), dtype=np.uint8).tobytes()
    path.write_bytes(data[:4096] + noise[4096:])


def garble(path: Path) -> None:
    """A name that SQLite quotes in its message, and that is no text."""
    data = path.read_bytes().replace(b"scores_by_use", b"\xff" * 13)
    path.write_bytes(data.replace(b"CREATE INDEX", b"CREATE INDEY"))


def overwrite(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


@pytest.mark.parametrize("damage", [truncate, scribble, garble, overwrite])
def test_a_corrupt_file_is_set_aside_and_a_new_one_begun(
    path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    filled(path)
    damage(path)
    damaged = path.read_bytes()
    cache = ScoreCache(path)
    for n, value in cache.get_many([key(n) for n in range(200)]).items():
        np.testing.assert_array_equal(value, scores(int.from_bytes(n, "big")))
    cache.put_many({key(n): scores(n) for n in range(200)})
    assert len(cache.get_many([key(n) for n in range(200)])) == 200
    assert (path.parent / f"{path.name}.corrupt-1").read_bytes() == damaged
    (warning,) = warnings_of(caplog)
    assert str(path) in warning
    assert f"renamed to {path.name}.corrupt-1" in warning


@pytest.mark.parametrize("text", ["sentence,label\nnot a database,0\n", "été " * 2000])
def test_somebodys_text_is_refused_and_stays_where_it_is(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="holds text: name another path for the cache"):
        ScoreCache(path)
    assert names(path.parent) == [path.name]
    assert path.read_text(encoding="utf-8") == text


def test_a_second_corrupt_file_does_not_replace_the_first(path: Path) -> None:
    for _ in range(2):
        path.write_bytes(b"\xff not a database" * 100)
        ScoreCache(path).close()
    assert names(path.parent) == [path.name, f"{path.name}.corrupt-1", f"{path.name}.corrupt-2"]


def test_of_two_that_notice_a_corrupt_file_only_one_sets_it_aside(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    one, other = ScoreCache(path), ScoreCache(path)
    with path.open("r+b") as file:
        scribbled = b"?" * (path.stat().st_size - 4096)
        file.seek(4096)
        file.write(scribbled)
    assert one.get_many([key(n) for n in range(200)]) == {}
    one.put_many({key(n): scores(n) for n in range(5)})
    assert len(other.get_many([key(n) for n in range(200)])) == 5
    assert [name for name in names(path.parent) if name.endswith("corrupt-2")] == []
    assert len(warnings_of(caplog)) == 1


def test_a_new_file_never_meets_the_journal_of_the_old_one(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    old = ScoreCache(path)  # stays open, as another process may
    old.put_many({key(n): scores(n) for n in range(200, 210)})
    scribble(path)
    new = ScoreCache(path)
    assert new.get_many([key(n) for n in range(200)]) == {}
    new.put_many({key(n): scores(n) for n in range(300, 305)})
    old.put_many({key(n): scores(n) for n in range(210, 220)})
    new.close()
    found = ScoreCache(path).get_many([key(n) for n in range(400)])
    assert set(found) == {key(n) for n in range(300, 305)}
    assert f"{path.name}.corrupt-1-wal" in names(path.parent)
    assert len(warnings_of(caplog)) == 1


@given(seed=st.integers(0, 2**32), spots=st.integers(1, 40))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_damage_gives_a_wrong_score_or_an_exception(
    tmp_path_factory: pytest.TempPathFactory, seed: int, spots: int
) -> None:
    path = tmp_path_factory.mktemp("damage") / "scores.sqlite"
    filled(path, count=60)
    rng = np.random.default_rng(seed)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[rng.integers(100, len(data), spots)] = rng.integers(0, 256, spots)
    path.write_bytes(data.tobytes())
    cache = ScoreCache(path)
    for k, value in cache.get_many([key(n) for n in range(60)]).items():
        np.testing.assert_array_equal(value, scores(int.from_bytes(k, "big")))
    cache.put_many({key(n): scores(n) for n in range(30, 90)})
    for k, value in cache.get_many([key(n) for n in range(90)]).items():
        np.testing.assert_array_equal(value, scores(int.from_bytes(k, "big")))
    cache.close()


def test_a_row_changed_behind_our_back_is_noticed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE scores SET logprobs = zeroblob(256) WHERE key = ?", (key(7),))
    db.close()
    assert ScoreCache(path).get_many([key(7)]) == {}
    assert len(warnings_of(caplog)) == 1


def go_on_without(cache: ScoreCache, caplog: pytest.LogCaptureFixture, cause: str) -> None:
    """Fill the cache until it gives up; then it must be quiet, empty and harmless."""
    for start in range(0, 4000, 100):
        cache.put_many({key(n): scores(n, rows=100) for n in range(start, start + 100)})
    assert cache.get_many([key(0)]) == {}
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"the cache {cache.path} is not used from here on")
    assert cause in warning


def test_a_full_database_is_told_once_and_then_left_out(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def connect_to_little_room(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **kwargs)
        db.execute("PRAGMA max_page_count = 50")
        return db

    monkeypatch.setattr(sqlite3, "connect", connect_to_little_room)
    go_on_without(ScoreCache(path), caplog, "database or disk is full")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_told_once_and_then_left_out(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ScoreCache(tiny_disk / "scores.sqlite")
    go_on_without(cache, caplog, "disk")


def test_a_disk_that_is_full_from_the_start_stops_nothing(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (tiny_disk / "all of it").open("wb") as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(bytes(65536))
            file.flush()
    go_on_without(ScoreCache(tiny_disk / "scores.sqlite"), caplog, "disk")


def test_a_lock_that_nobody_releases_is_told_once_and_then_left_out(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    cache = ScoreCache(path, lock_timeout=0.01)
    go_on_without(cache, caplog, "locked")
    other.execute("ROLLBACK")
    other.close()
    assert len(ScoreCache(path).get_many([key(n) for n in range(200)])) == 200


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    ScoreCache(tmp_path / "a" / "b" / "scores.sqlite").close()
    assert names(tmp_path / "a" / "b") == ["scores.sqlite"]


@pytest.mark.parametrize("name", ["file/scores.sqlite", "folder"])
def test_a_path_that_cannot_be_a_file_gets_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=f"the cache {tmp_path / name} "):
        ScoreCache(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_gets_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be created: Permission denied; name a path"):
        ScoreCache(tmp_path / "scores.sqlite")


def test_a_database_of_something_else_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE holidays (day TEXT)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="is a database of another program"):
        ScoreCache(path)
    assert path.read_bytes() == before


def test_a_cache_of_a_later_format_is_left_alone(path: Path) -> None:
    filled(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(InputError, match="has format 9, and this version reads 1"):
        ScoreCache(path)
