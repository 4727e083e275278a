"""A run that is cut off anywhere goes on as if nothing had happened, and pays nothing twice."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmaas_tune import Client, ScoreReply, ScoreRequest, TunedPrompt, TuneResult, Usage
from lmaas_tune.calls.meter import Spent
from lmaas_tune.errors import InputError, PermanentError, StorageError, TransientError
from lmaas_tune.journal import FILE_NAME, Journal
from lmaas_tune.objectives import Targets, cross_entropy
from lmaas_tune.prepared_run import PreparedRun
from lmaas_tune.prompts import FloatArray
from tests.support.small_models import (
    SMALL,
    TRAIN,
    VALIDATION,
    Bowl,
    WordBowl,
    changed,
    small_tuner,
)

ROOT = Path(__file__).parents[1]
COUNTED = ("calls", "validation_calls", "hits", "retries", "requests", "sequences", "tokens")


def fit(
    folder: Path, backend: Bowl | Client | None = None, *, resume: bool = True, **wish: Any
) -> Any:
    tuner = small_tuner(backend or Bowl(), out=folder, **wish)
    return tuner.fit(TRAIN, VALIDATION, resume=resume)


def counted(result: TuneResult) -> dict[str, float]:
    return {name: getattr(result.spent, name) for name in COUNTED}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, TuneResult, Bowl]:
    """A run that nothing disturbed: its journal, result, and what it asked."""
    folder, backend = tmp_path_factory.mktemp("whole"), Bowl()
    result = fit(folder, backend, resume=False)
    return (folder / FILE_NAME).read_bytes(), result, backend


def check_resumed(folder: Path, prefix: bytes, whole: tuple[bytes, TuneResult, Bowl]) -> None:
    """Resume from `prefix`, and compare with the run that nothing disturbed."""
    data, result, backend = whole
    (folder / FILE_NAME).write_bytes(prefix)
    answers = [json.loads(line) for line in prefix[: prefix.rfind(b"\n") + 1].splitlines()[1:]]
    paid = sum(len(answer["evaluations"]) for answer in answers)
    again = Bowl()
    resumed = fit(folder, again)
    assert again.asked == backend.asked[paid:]  # the rest, in order, and nothing else
    assert resumed.prompt.prompt.digest == result.prompt.prompt.digest
    assert TunedPrompt.load(folder).prompt.digest == result.prompt.prompt.digest
    assert counted(resumed) == counted(result)
    assert resumed.spent.seconds >= (answers[-1]["spent"]["seconds"] if answers else 0)
    assert resumed.stop_reason == result.stop_reason
    assert answers_of(folder) == answers_of(data)


def answers_of(journal: Path | bytes) -> list[Any]:
    """What a journal's lines say beyond how long it took."""
    data = journal if isinstance(journal, bytes) else (journal / FILE_NAME).read_bytes()
    lines = [json.loads(line) for line in data.splitlines()[1:]]
    return [(line["key"], line["of"], line["evaluations"]) for line in lines if "key" in line]


def ends(data: bytes) -> list[int]:
    return [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]


# Any prefix


def test_a_run_cut_at_or_beside_any_line_end_is_resumed(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl]
) -> None:
    data = whole[0]
    assert len(ends(data)) == 13  # header, start and five generations, each with a validation
    for end in ends(data):
        for cut in (end - 1, end, end + 1):
            check_resumed(tmp_path, data[:cut], whole)


@given(share=st.floats(0, 1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_cut_at_any_byte_is_resumed(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl], share: float
) -> None:
    check_resumed(tmp_path, whole[0][: int(share * len(whole[0]))], whole)


def test_a_finished_run_that_is_resumed_asks_nothing(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl]
) -> None:
    check_resumed(tmp_path, whole[0], whole)


def test_a_finished_run_goes_on_where_it_gets_a_larger_budget(tmp_path: Path) -> None:
    at_once, later = Bowl(), Bowl()
    whole = fit(tmp_path / "a", at_once, resume=False, budget="calls=46")
    fit(tmp_path / "b", later, resume=False, budget="calls=21")
    result = fit(tmp_path / "b", later, budget="calls=46")
    assert later.asked == at_once.asked
    assert counted(result) == counted(whole)
    assert result.prompt.prompt.digest == whole.prompt.prompt.digest


def test_a_resumed_run_still_knows_what_a_call_takes(tmp_path: Path) -> None:
    tokens = sum(len(text.split()) + 2 for text, _ in TRAIN)
    budget = f"tokens={tokens * 9}"
    tuner = small_tuner(Bowl(), out=tmp_path, budget=budget)
    whole = tuner.fit(TRAIN)
    assert whole.spent.tokens == 6 * tokens  # the start and one generation; a second needs 5
    resumed = small_tuner(Bowl(), out=tmp_path, budget=budget).fit(TRAIN, resume=True)
    assert resumed.spent.tokens == 6 * tokens


# What ends a run in the middle


@pytest.mark.parametrize("at", [0, 3, 6, 7, 14])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), PermanentError("gone"), RuntimeError("x")])
def test_whatever_ends_a_run_leaves_it_to_be_resumed(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl], at: int, error: BaseException
) -> None:
    class Ends(Bowl):
        def logprobs(self, request: ScoreRequest) -> FloatArray:
            if len(self.asked) > at:
                raise error
            return super().logprobs(request)

    if isinstance(error, KeyboardInterrupt):
        result = fit(tmp_path, Ends(), resume=False)
        assert not result.finished
        assert result.stop_reason == "interrupted by the user"
    else:
        with pytest.raises(PermanentError, match=r"gone|RuntimeError: x"):
            fit(tmp_path, Ends(), resume=False)
    if at:  # the best so far is there to use
        saved = TunedPrompt.load(tmp_path)
        assert saved.prompt.width == 3
        assert saved.provenance["stop_reason"].startswith(("failed", "interrupted"))
    else:  # nothing is worth saving
        assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    again = Bowl()
    resumed = fit(tmp_path, again)
    assert resumed.finished
    assert resumed.spent.requests == whole[1].spent.requests + 1  # the attempt that brought none
    assert resumed.prompt.prompt.digest == whole[1].prompt.prompt.digest
    assert again.asked == whole[2].asked[-len(again.asked) :]
    assert answers_of(tmp_path) == answers_of(whole[0])


class Billed(Bowl):
    """Fails each time before it answers, and bills that."""

    failed = False

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.failed = not self.failed
        if self.failed:
            error = TransientError("busy")
            error.usage = Usage(requests=1, sequences=10, tokens=7)
            raise error
        return super().score(requests)


@pytest.mark.parametrize("at", [4, 9, 15, 17])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x")])
def test_what_was_paid_is_kept_if_judging_it_fails(
    tmp_path: Path, at: int, error: BaseException
) -> None:
    judged = 0

    def objective(scores: FloatArray, targets: Targets) -> float:
        nonlocal judged
        judged += 1
        if judged == at:
            raise error
        return cross_entropy(scores, targets)

    def run(folder: Path, backend: Bowl, *, resume: bool = False) -> TuneResult:
        client = Client(backend, sleep=lambda seconds: None)
        return fit(folder, client, resume=resume, objective=objective)

    first, second, undisturbed = Billed(), Billed(), Billed()
    with contextlib.suppress(InputError):
        assert not run(tmp_path, first).finished
    resumed = run(tmp_path, second, resume=True)
    whole = run(tmp_path / "whole", undisturbed)
    assert first.asked + second.asked == undisturbed.asked
    assert counted(resumed) == counted(whole)
    assert answers_of(tmp_path) == answers_of(tmp_path / "whole")


@pytest.mark.parametrize("at", range(1, 8))
def test_an_interrupt_while_a_line_is_written_leaves_a_run_to_be_resumed(
    tmp_path: Path,
    whole: tuple[bytes, TuneResult, Bowl],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    lines, sync = itertools.count(), os.fsync

    def interrupted(file: int) -> None:
        sync(file)
        if next(lines) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    first, second = Bowl(), Bowl()
    assert not fit(tmp_path, first, resume=False).finished
    assert counted(fit(tmp_path, second)) == counted(whole[1])
    assert first.asked + second.asked == whole[2].asked
    assert answers_of(tmp_path) == answers_of(whole[0])


def test_what_failed_attempts_took_is_remembered_however_often_a_run_is_resumed(
    tmp_path: Path,
) -> None:
    class Down(Bowl):
        """Fails from its third generation on, and tells what that took."""

        def logprobs(self, request: ScoreRequest) -> FloatArray:
            if len(self.asked) > 11:
                error = PermanentError("gone")
                error.usage = Usage(requests=1, sequences=10, tokens=500)
                raise error
            return super().logprobs(request)

    spent = []
    for again in range(3):
        with pytest.raises(PermanentError, match="gone"):
            fit(tmp_path, Down() if not again else Lost(), resume=bool(again))
        spent.append(TunedPrompt.load(tmp_path).provenance["spent"]["tokens"])
    assert np.diff(spent).tolist() == [500, 500]


def test_the_first_error_is_the_one_that_a_run_ends_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **more: Any) -> TuneResult:
        raise ValueError("the head cannot be fitted")

    monkeypatch.setattr(PreparedRun, "result", broken)
    with pytest.raises(PermanentError, match="gone"):
        small_tuner(Lost()).fit(TRAIN, VALIDATION)


class Lost(Bowl):
    """Fails at once, and tells what that took."""

    def logprobs(self, request: ScoreRequest) -> FloatArray:
        error = PermanentError("gone")
        error.usage = Usage(requests=1, sequences=10, tokens=500)
        raise error


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.support.small_models import TRAIN, VALIDATION, Bowl, small_tuner

class Noted(Bowl):
    def score(self, requests):
        with open({asked!r}, "a") as file:
            file.writelines(f"{{r.prompt.digest}} {{r.batch.digest}}\\n" for r in requests)
        return super().score(requests)

{before}
tuner = small_tuner(Noted(), out={folder!r}, budget="calls=401")
tuner.fit(TRAIN, VALIDATION, resume=True)
"""


def child(folder: Path, before: str = "") -> list[str]:
    places = {"root": str(ROOT), "asked": str(folder / "asked"), "folder": str(folder / "run")}
    return [sys.executable, "-c", CHILD.format(before=before, **places)]


def kill_when(process: subprocess.Popen[bytes], due: Callable[[], bool]) -> None:
    """SIGKILL as soon as it is due; an error if that does not come about."""
    deadline = time.monotonic() + 60
    while not due():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.002)
        assert process.returncode is None, "the run ended before it was killed"
        assert time.monotonic() < deadline, "the run made no progress"
    process.kill()
    process.wait()


def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / FILE_NAME
    chance, size = random.Random(5), 0
    for _ in range(2):
        size += chance.randrange(5_000, 30_000)
        process = subprocess.Popen(child(tmp_path))
        kill_when(process, lambda size=size: path.exists() and path.stat().st_size > size)
    subprocess.run(child(tmp_path), check=True, timeout=120)
    undisturbed = Bowl()
    result = fit(tmp_path / "whole", undisturbed, resume=False, budget="calls=401")
    assert answers_of(tmp_path / "run") == answers_of(tmp_path / "whole")
    assert TunedPrompt.load(tmp_path / "run").prompt.digest == result.prompt.prompt.digest
    last = json.loads(path.read_bytes().splitlines()[-1])["spent"]
    assert {name: last[name] for name in COUNTED} == counted(result)
    # what was under way when the kill came was not recorded, and only that is asked again
    asked = Counter((tmp_path / "asked").read_text().splitlines())
    assert set(asked) == {f"{prompt} {batch}" for prompt, batch in undisturbed.asked}
    assert sum(asked.values()) - len(asked) <= 2 * 5


FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits there")
def test_a_full_disk_ends_a_run_with_a_sentence_and_leaves_it_to_be_resumed(tmp_path: Path) -> None:
    done = subprocess.run(child(tmp_path, FULL), capture_output=True, text=True, timeout=120)
    message = done.stderr.splitlines()[-1]
    assert "StorageError" in message
    assert "journal.jsonl: cannot be written" in message
    assert "make room, then resume" in message
    assert (tmp_path / "run" / FILE_NAME).read_bytes()[-1:] == b"\n"  # no half a line
    resumed = fit(tmp_path / "run", budget="calls=101")
    whole = fit(tmp_path / "whole", resume=False, budget="calls=101")
    assert resumed.prompt.prompt.digest == whole.prompt.prompt.digest


# What is refused


def test_a_folder_that_holds_a_run_is_not_written_over(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl]
) -> None:
    (tmp_path / FILE_NAME).write_bytes(whole[0])
    backend = Bowl()
    with pytest.raises(InputError, match="holds a run already, with 12 paid answers: resume it"):
        fit(tmp_path, backend, resume=False)
    assert backend.asked == []
    assert (tmp_path / FILE_NAME).read_bytes() == whole[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 1}, r"another run: seed, space differ \(seed was 0, is 1\)"),
        ({"intrinsic_dim": 5}, "another run: settings, space differ"),
        ({"template": "{text} {prompt} It was {label}"}, "rows, template differ"),
        ({"labels": {"bad": "poor", "good": "fine"}}, "another run: label_words differ"),
        ({"optimizer": "random"}, "another run: settings differ"),
    ],
)
def test_another_run_is_not_resumed(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl], change: Any, sentence: str
) -> None:
    (tmp_path / FILE_NAME).write_bytes(whole[0])
    with pytest.raises(InputError, match=f"(?s){sentence}.*choose another folder"):
        fit(tmp_path, **change)
    with pytest.raises(InputError, match="another run: backend differ"):
        fit(tmp_path, Bowl(identity="another bowl"))
    with pytest.raises(InputError, match="another run: rows differ"):
        small_tuner(Bowl(), out=tmp_path).fit(TRAIN[:-1], VALIDATION, resume=True)
    assert (tmp_path / FILE_NAME).read_bytes() == whole[0]


def test_a_folder_where_nothing_was_paid_is_free_for_any_run(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl]
) -> None:
    (tmp_path / FILE_NAME).write_bytes(whole[0][: ends(whole[0])[0]])
    assert fit(tmp_path, resume=False, seed=7).finished


def test_so_is_one_whose_first_request_was_refused(tmp_path: Path) -> None:
    class Closed(Bowl):
        def logprobs(self, request: ScoreRequest) -> FloatArray:
            raise PermanentError("wrong key")

    with pytest.raises(PermanentError, match="wrong key"):
        fit(tmp_path, Closed(), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]  # nothing worth saving
    assert fit(tmp_path, resume=False, template="{text} {prompt} It was {label}").finished


def test_answers_without_finite_scores_are_paid_all_the_same(tmp_path: Path) -> None:
    class Overflowing(Bowl):
        """Answers nothing finite to every third request, and fails from the tenth on."""

        def logprobs(self, request: ScoreRequest) -> FloatArray:
            if len(self.asked) > 10:
                raise PermanentError("gone")
            scores = super().logprobs(request)
            return scores * np.nan if len(self.asked) % 3 == 0 else scores

    backend = Overflowing(rows_per_call=20)
    with pytest.raises(PermanentError, match="gone"):
        fit(tmp_path, backend, resume=False)
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_bytes().splitlines()[1:]]
    paid = sum(line["spent"]["requests"] for line in lines if "key" not in line)
    assert paid == len(backend.asked)


@pytest.mark.parametrize("line", [0, 1, 5])
@pytest.mark.parametrize("damage", [b"\x00\xff", b"{}", b"[1]", b"3", b'{"key": "train/0"}'])
def test_a_damaged_line_is_named_with_what_can_be_kept(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl], line: int, damage: bytes
) -> None:
    lines = whole[0].splitlines(keepends=True)
    lines[line] = damage + b"\n"
    data = b"".join(lines)
    (tmp_path / FILE_NAME).write_bytes(data)
    backend = Bowl()
    with pytest.raises(StorageError) as caught:
        fit(tmp_path, backend)
    if line:
        assert f"line {line + 1}: the journal is damaged" in str(caught.value)
        assert f"cut the file to its first {line} lines" in str(caught.value)
    else:
        assert "is not a journal of lmaas-tune: choose another folder" in str(caught.value)
    assert backend.asked == []
    assert (tmp_path / FILE_NAME).read_bytes() == data
    if line:  # the remedy works
        check_resumed(tmp_path, b"".join(lines[:line]), whole)


def test_a_line_that_was_changed_or_lost_is_damage_too(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl]
) -> None:
    lines = whole[0].splitlines(keepends=True)
    loss = json.loads(lines[4])["evaluations"][0]["loss"]
    changed = lines[4].replace(str(loss).encode(), str(loss + 1).encode(), 1)
    for at, spoilt in ((5, [*lines[:4], changed, *lines[5:]]), (5, [*lines[:4], *lines[5:]])):
        (tmp_path / FILE_NAME).write_bytes(b"".join(spoilt))
        with pytest.raises(StorageError, match=f"line {at}: .*its checksum is wrong"):
            fit(tmp_path)
        check_resumed(tmp_path, b"".join(spoilt[:4]), whole)


def test_a_saved_prompt_is_not_written_over_by_a_run_that_starts_from_it(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl]
) -> None:
    whole[1].save(tmp_path)
    backend = Bowl()
    with pytest.raises(InputError, match=r"holds a saved prompt and no run.* another folder"):
        fit(tmp_path, backend, resume=False, start=TunedPrompt.load(tmp_path))
    assert backend.asked == []
    assert TunedPrompt.load(tmp_path).prompt.digest == whole[1].prompt.prompt.digest


@pytest.mark.parametrize(
    ("first", "second"),
    [("calls=13", "calls=26,tokens=5000"), ("calls=13,tokens=5000", "calls=26")],
)
def test_a_run_goes_on_under_limits_of_another_kind(
    tmp_path: Path, first: str, second: str
) -> None:
    words = changed(SMALL, start="words", prompt_init=("one", "two", "three"))
    fit(tmp_path, WordBowl(), resume=False, settings=words, budget=first)
    resumed = fit(tmp_path, WordBowl(), settings=words, budget=second)
    assert [len(step.evaluations) for step in resumed.steps] == [3, 5, 5, 5, 5]


def test_a_first_line_that_is_half_ours_is_named_too(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl]
) -> None:
    first, rest = whole[0].split(b"\n", 1)
    (tmp_path / FILE_NAME).write_bytes(first[:-9] + b"\n" + rest)
    with pytest.raises(StorageError, match=r"line 1: the journal is damaged .* another folder"):
        fit(tmp_path)


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("my diary")
    with pytest.raises(StorageError, match="is not a journal of lmaas-tune"):
        fit(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == "my diary"


def test_a_journal_of_another_format_is_refused_by_number(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl]
) -> None:
    later = whole[0].replace(b'"format": 3', b'"format": 4', 1) + b'{"what": "later"}\n'
    (tmp_path / FILE_NAME).write_bytes(later)
    with pytest.raises(StorageError, match="journal format 4, and this version reads 3"):
        fit(tmp_path)


def test_an_answer_to_another_question_is_refused(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Bowl]
) -> None:
    header, *answers = map(json.loads, whole[0].splitlines())
    answers[4]["of"] = "0" * 16
    header = {name: header[name] for name in header.keys() - {"format", "seal"}}
    with Journal(tmp_path / FILE_NAME, header) as journal:
        for answer in answers:
            spent = Spent.from_json(answer.pop("spent"))
            journal.append(answer["key"], answer["of"], answer, spent)
    with pytest.raises(StorageError, match=r"'train/2' was recorded for another request"):
        fit(tmp_path)


def test_a_run_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with (
        Journal(path, {}),
        pytest.raises(StorageError, match="another process is writing this run"),
    ):
        fit(tmp_path)
    assert fit(tmp_path, resume=False).finished  # it let go


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_paid(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    backend = Bowl()
    with pytest.raises(StorageError, match=r"cannot be opened for writing .* nothing was paid yet"):
        fit(tmp_path / "file" / "run", backend, resume=False)
    assert backend.asked == []


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(InputError, match="resume needs the folder of the run"):
        small_tuner(Bowl()).fit(TRAIN, resume=True)


# The journal alone


def test_a_journal_remembers_what_was_appended(tmp_path: Path) -> None:
    for path in (None, tmp_path / FILE_NAME):
        with Journal(path, {"a": 1}) as journal:
            assert "q" not in journal
            assert journal.get("q", "of") is None
            first = journal.append("q", "of", {"value": 7}, Spent(calls=1))
            assert journal.get("q", "of") == first
            assert (first["value"], journal.spent.calls) == (7, 1)
            assert "q" in journal
    with Journal(tmp_path / FILE_NAME, {"a": 1}, resume=True) as again:
        assert (again.get("q", "of") or {})["value"] == 7
        assert again.spent.calls == 1
