"""Calls that are made one by one: by several threads, each answer kept when it arrives."""

from __future__ import annotations

import contextlib
import json
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmaas_tune import (
    Budget,
    BudgetExceededError,
    Client,
    InputError,
    Pace,
    PermanentError,
    Retry,
    ScoreCache,
    ScoreReply,
    ScoreRequest,
    Template,
    TextPrompt,
    TransientError,
    TuneResult,
    Usage,
)
from lmaas_tune.calls.cost import CostModel
from lmaas_tune.calls.meter import Meter, Spent
from lmaas_tune.data import read_examples
from lmaas_tune.journal import FILE_NAME, Journal
from lmaas_tune.task import Batch, Slot
from tests.support.small_models import TRAIN, VALIDATION, Bowl, small_tuner

ROWS_PER_CALL = 4  # of 10 training rows and 5 validation rows: 3 calls and 2
COUNTED = ("calls", "validation_calls", "requests", "sequences", "tokens")


class Remote(Bowl):
    """One that takes a few rows of one request a call.

    Attributes:
        calls: Rows of every call, in the order of arrival.
    """

    def __init__(self, **can: Any) -> None:
        super().__init__(rows_per_call=ROWS_PER_CALL, **can)
        self.calls: list[int] = []
        self._lock = threading.Lock()

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        with self._lock:
            (request,) = requests
            self.calls.append(len(request.batch))
            return super().score(requests)


def batch(rows: int) -> Batch:
    return Template("{text} {prompt} {label}").batch(
        read_examples([{"text": f"good {n}"} for n in range(rows)], labelled=False)
    )


def request(rows: int, text: str = "Overall") -> ScoreRequest:
    return ScoreRequest(TextPrompt(text), batch(rows), ("good", "bad"))


def client(backend: Any, **wish: Any) -> Client:
    wish = {"sleep": lambda seconds: None, "retry": Retry(attempts=20), **wish}
    return Client(backend, **wish)


def fit(folder: Path, backend: Bowl, *, resume: bool = False, **wish: Any) -> TuneResult:
    pace = wish.pop("pace", Pace())
    tuner = small_tuner(client(backend, pace=pace), out=folder, **wish)
    return tuner.fit(TRAIN, VALIDATION, resume=resume)


def counted(result: TuneResult) -> dict[str, float]:
    return {name: getattr(result.spent, name) for name in COUNTED}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, TuneResult, Remote]:
    """A run that nothing disturbed, its calls one after the other."""
    folder, backend = tmp_path_factory.mktemp("whole"), Remote()
    result = fit(folder, backend, pace=Pace(workers=1))
    return (folder / FILE_NAME).read_bytes(), result, backend


# Cutting


@given(rows=st.integers(1, 30), per_call=st.integers(1, 12))
def test_a_cut_batch_has_all_rows_in_order_and_the_same_parts_each_time(
    rows: int, per_call: int
) -> None:
    whole = batch(rows)
    parts = whole.cut(per_call)
    assert tuple(row for part in parts for row in part.rows) == whole.rows
    assert max(map(len, parts)) <= per_call
    assert len(parts) == -(-rows // per_call)
    assert all(one is other for one, other in zip(parts, whole.cut(per_call), strict=True))


@pytest.mark.parametrize("workers", [1, 7, "adaptive"])
def test_the_answers_are_those_of_a_backend_that_takes_all_at_once(workers: Any) -> None:
    requests = [request(rows, text) for rows, text in ((10, "one"), (3, "two"), (5, "three"))]
    backend = Remote()
    replies = client(backend, pace=Pace(workers=workers)).score(requests)
    for reply, direct in zip(replies, Bowl().score(requests), strict=True):
        np.testing.assert_array_equal(reply.logprobs, direct.logprobs)
        assert reply.usage == replace(direct.usage, requests=reply.usage.requests)
    assert sorted(backend.calls) == sorted([4, 4, 2, 3, 4, 1])
    assert [reply.usage.requests for reply in replies] == [3, 1, 2]


def test_a_backend_that_takes_all_at_once_gets_all_at_once() -> None:
    seen = []

    class Local(Bowl):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            seen.append(len(requests))
            return super().score(requests)

    client(Local()).score([request(10, "one"), request(10, "two")])
    assert seen == [2]


def test_several_calls_are_under_way_at_once() -> None:
    together = threading.Barrier(3, timeout=10)

    class Meets(Bowl):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            together.wait()  # breaks unless three are here
            return super().score(requests)

    client(Meets(rows_per_call=4), pace=Pace(workers=3)).score([request(12)])


# Failures


def test_each_call_is_tried_again_by_itself() -> None:
    class Flaky(Remote):
        failed = Counter[str]()  # noqa: RUF012

        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            with self._lock:
                digest = requests[0].batch.digest
                self.failed[digest] += 1
                if self.failed[digest] <= 2:
                    raise TransientError("busy", overloaded=True)
            return super().score(requests)

    backend = Flaky()
    clean = Bowl().score([request(10)])
    user = client(backend)
    (reply,) = user.score([request(10)])
    np.testing.assert_array_equal(reply.logprobs, clean[0].logprobs)
    assert sorted(backend.calls) == [2, 4, 4]  # each answered once
    assert (user.spent.retries, user.spent.requests) == (6, 9)


def test_when_one_call_fails_for_good_the_answers_of_the_others_are_kept(tmp_path: Path) -> None:
    class Refuses(Remote):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            if len(requests[0].batch) == 2:  # the last
                raise PermanentError("no")
            return super().score(requests)

    cache = ScoreCache(tmp_path / "scores.sqlite")
    with pytest.raises(PermanentError, match="no"):
        client(Refuses(), cache=cache, pace=Pace(workers=1)).score([request(10)])
    backend = Remote()
    client(backend, cache=cache).score([request(10)])
    assert backend.calls == [2]


def test_a_failure_ends_the_waiting_of_the_others_at_once() -> None:
    waiting = threading.Event()

    class Mixed(Bowl):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            if len(requests[0].batch) == 4:
                waiting.set()
                raise TransientError("busy", retry_after=1e6)
            waiting.wait(10)
            raise PermanentError("no")

    retry = Retry(total=1e7)
    with pytest.raises(PermanentError, match="no"):
        Client(Mixed(rows_per_call=4), retry=retry, pace=Pace(workers=2)).score([request(6)])


def test_a_request_that_does_not_fit_is_told_as_such() -> None:
    class Narrow(Remote):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            raise InputError("row 3 is too long")

    user = client(Narrow())
    with pytest.raises(InputError, match="row 3"):
        user.score([request(10)])
    assert user.spent.requests == 0


# Budgets


@given(budget=st.integers(1, 60), workers=st.integers(1, 12), failing=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_row_is_paid_beyond_the_budget_however_many_work_at_once(
    budget: int, workers: int, failing: int
) -> None:
    class Flaky(Remote):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            with self._lock:
                if len(self.calls) < failing:
                    self.calls.append(0)
                    raise TransientError("busy")
            return super().score(requests)

    backend = Flaky()
    meter = Meter(Budget(sequences=budget))
    try:
        client(backend, pace=Pace(workers=workers)).score(
            [request(10, f"{n}") for n in range(5)], meter=meter
        )
        assert budget >= 50
    except BudgetExceededError:
        assert budget < 50
    assert sum(backend.calls) == meter.spent.sequences <= budget
    if workers == 1 and budget < 50:
        assert sum(backend.calls) > budget - 4  # and none is left that would have paid a call


def inspected(asked: ScoreRequest, *, tokens: int) -> CostModel:
    """A cost model of a backend that told beforehand what a request takes."""
    cost = CostModel()
    cost.inspected(asked.batch, Usage(requests=1, sequences=len(asked.batch), tokens=tokens))
    return cost


def test_what_a_call_is_thought_to_take_is_set_aside_before_it_is_made() -> None:
    together = threading.Barrier(2, timeout=10)

    class Dear(Bowl):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            together.wait()
            return [
                replace(reply, usage=Usage(requests=1, sequences=4, tokens=40))
                for reply in super().score(requests)
            ]

    meter = Meter(Budget(tokens=95))
    with pytest.raises(BudgetExceededError, match="tokens=95"):
        asked = request(12)
        client(Dear(rows_per_call=4), pace=Pace(workers=3)).score(
            [asked], meter=meter, cost=inspected(asked, tokens=120)
        )
    assert meter.spent.tokens == 80


# Resuming


def lines_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()[1:]]


def test_every_call_is_written_down(whole: tuple[bytes, TuneResult, Remote]) -> None:
    data, _, backend = whole
    parts = [line for line in lines_of(data) if "part" in line]
    assert [len(part["logprobs"]) for part in parts] == backend.calls


def test_a_run_with_many_workers_is_the_run_with_one(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Remote]
) -> None:
    result = fit(tmp_path, Remote(), pace=Pace(workers=8))
    assert result.prompt.prompt.digest == whole[1].prompt.prompt.digest
    assert counted(result) == counted(whole[1])


@given(share=st.floats(0, 1))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_cut_at_any_byte_is_resumed_and_pays_nothing_twice(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Remote], share: float
) -> None:
    data, result, backend = whole
    prefix = data[: int(share * len(data))]
    (tmp_path / FILE_NAME).write_bytes(prefix)
    parts = sum("part" in line for line in lines_of(prefix[: prefix.rfind(b"\n") + 1]))
    again = Remote()
    resumed = fit(tmp_path, again, resume=True, pace=Pace(workers=1))
    assert again.asked == backend.asked[parts:]
    assert resumed.prompt.prompt.digest == result.prompt.prompt.digest
    assert counted(resumed) == counted(result)
    assert resumed.stop_reason == result.stop_reason


@pytest.mark.parametrize("limit", ["sequences=160", "calls=26"])
@pytest.mark.parametrize("at", [5, 13, 20])
def test_a_budget_ends_a_resumed_run_where_it_ends_the_whole_one(
    tmp_path: Path, limit: str, at: int
) -> None:
    whole = fit(tmp_path / "whole", Remote(), budget=limit)

    class Ends(Remote):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            with self._lock:
                if len(self.calls) >= at:
                    raise PermanentError("gone")
            return super().score(requests)

    with pytest.raises(PermanentError, match="gone"):
        fit(tmp_path / "cut", Ends(), budget=limit)
    again = Remote()
    resumed = fit(tmp_path / "cut", again, resume=True, budget=limit)
    failed = resumed.spent.requests - whole.spent.requests  # each thread's, as far as it came
    assert 1 <= failed <= Pace().threads
    assert counted(resumed) == counted(whole) | {"requests": whole.spent.requests + failed}
    assert len(again.calls) == len(lines_of((tmp_path / "whole" / FILE_NAME).read_bytes())) - at - (
        sum("part" not in line for line in lines_of((tmp_path / "whole" / FILE_NAME).read_bytes()))
    )


@pytest.mark.parametrize("change", [{"budget": "calls=7"}, {"rows_per_call": 3}])
def test_parts_that_a_resumed_run_does_not_ask_for_are_counted(
    tmp_path: Path, whole: tuple[bytes, TuneResult, Remote], change: dict[str, Any]
) -> None:
    lines = whole[0].splitlines(keepends=True)
    kept = lines[: next(n for n, line in enumerate(lines) if b'"train/2"' in line)]
    (tmp_path / FILE_NAME).write_bytes(b"".join(kept))
    paid = sum("part" in line for line in lines_of(b"".join(kept)))
    rows = sum(whole[2].calls[:paid])
    for _ in range(2):
        backend = Remote()
        backend.capabilities = replace(
            backend.capabilities, rows_per_call=change.get("rows_per_call", ROWS_PER_CALL)
        )
        resumed = fit(tmp_path, backend, resume=True, budget=change.get("budget", "calls=26"))
        rows += sum(backend.calls)
        assert resumed.spent.sequences == rows


def test_ctrl_c_keeps_the_calls_under_way(tmp_path: Path) -> None:
    class Interrupted(Remote):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            with self._lock:
                if len(self.calls) == 11:
                    self.calls.append(0)
                    raise KeyboardInterrupt
            return super().score(requests)

    result = fit(tmp_path, Interrupted())
    assert (result.finished, result.stop_reason) == (False, "interrupted by the user")
    paid = sum("part" in line for line in lines_of((tmp_path / FILE_NAME).read_bytes()))
    assert paid >= 11
    whole, again = Remote(), Remote()
    fit(tmp_path / "whole", whole)
    fit(tmp_path, again, resume=True)
    assert len(again.calls) == len(whole.calls) - paid


def reply(*rows: list[float]) -> ScoreReply:
    return ScoreReply(np.array(rows))


def test_what_is_not_finite_is_not_written_down_by_itself(tmp_path: Path) -> None:
    with Journal(tmp_path / FILE_NAME, {"run": 1}) as journal:
        journal.append_part(b"one", reply([np.nan, -1.0]), Spent(sequences=1))
        journal.append_part(b"two", reply([-2.0, -1.0]), Spent(sequences=1))
        journal.append_part(b"old", reply([-2.0, -1.0]), Spent(sequences=1))
        journal.append("train/0", "x", {"evaluations": []}, Spent(sequences=2))
        journal.append_part(b"two", reply([-2.0, -1.0]), Spent(sequences=1))
    with Journal(tmp_path / FILE_NAME, {"run": 1}, resume=True) as journal:
        assert journal.get_part(b"one") is None
        for spent in (Spent(sequences=1), Spent()):  # a part is booked when it is used, and once
            found, took = journal.get_part(b"two") or (reply([]), None)
            np.testing.assert_array_equal(found.logprobs, [[-2.0, -1.0]])
            assert took == spent
        _, took = journal.get_part(b"old") or (None, None)
        assert took == Spent()  # the whole answer has booked it
        assert journal.spent == Spent(sequences=2)


def test_what_was_asked_before_is_not_paid_again_in_later_generations(tmp_path: Path) -> None:
    """As text prompts come again and again."""
    meter = Meter()
    backend = Remote()
    user = client(backend)
    with Journal(tmp_path / FILE_NAME, {"run": 1}) as journal:
        for _ in range(2):
            user.score([request(10)], meter=meter, recorder=journal)
            journal.append(f"{len(backend.calls)}", "x", {}, meter.spent)
            user.score([request(10)], meter=meter, recorder=journal)
    with Journal(tmp_path / FILE_NAME, {"run": 1}, resume=True) as journal:
        user.score([request(10)], meter=meter, recorder=journal)
    assert len(backend.calls) == 3
    assert (meter.spent.sequences, meter.spent.hits) == (10, 4)


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    with Journal(tmp_path / FILE_NAME, {"run": 1}) as journal:

        def write(thread: int) -> None:
            for n in range(20):
                journal.append_part(f"{thread} {n}".encode(), reply(*[[-1.5, -1.5]] * 5), Spent())

        threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = lines_of((tmp_path / FILE_NAME).read_bytes())
    assert len({line["part"] for line in lines}) == 120


def test_predicting_cuts_and_caches_its_rows_too(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "scores.sqlite")
    result = fit(tmp_path / "run", Remote())
    backend = Remote()
    user = client(backend, cache=cache)
    first = result.prompt.predict_proba(user, [text for text, _ in TRAIN])
    assert sorted(backend.calls) == [2, 4, 4]
    again = result.prompt.predict_proba(user, [text for text, _ in TRAIN])
    np.testing.assert_array_equal(first, again)
    assert len(backend.calls) == 3


@pytest.mark.parametrize("limit", range(1000, 9000, 500))
def test_rows_of_uneven_length_do_not_pass_a_limit_on_tokens(limit: int) -> None:
    class Uneven(Bowl):
        """Takes a token a character."""

        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            (reply,) = super().score(requests)
            usage = Usage(requests=1, sequences=1, tokens=requests[0].characters)
            return [replace(reply, usage=usage)]

    rows = Batch(
        tuple(
            ("x" * (600 if row % 8 == 0 else 10) + str(row), Slot.PROMPT, Slot.LABEL)
            for row in range(32)
        )
    )
    asked = ScoreRequest(TextPrompt("so"), rows, ("good", "bad"))
    meter = Meter(Budget(tokens=limit))
    cost = inspected(asked, tokens=asked.characters)
    with contextlib.suppress(BudgetExceededError):
        client(Uneven(rows_per_call=1), pace=Pace(workers=32)).score(
            [asked], meter=meter, cost=cost
        )
    assert meter.spent.tokens <= limit


def test_an_interrupt_says_that_calls_under_way_are_waited_for() -> None:
    begun, told, said = threading.Event(), threading.Event(), list[str]()

    class Interrupted(Bowl):
        def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
            if len(requests[0].batch) == 4:
                begun.wait(10)
                raise KeyboardInterrupt
            begun.set()
            told.wait(10)
            return super().score(requests)

    def show(message: Warning | str, *_: Any) -> None:
        said.append(str(message))
        told.set()

    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("always")
        warnings.showwarning = show
        client(Interrupted(rows_per_call=4), pace=Pace(workers=2)).score([request(6)])
    (sentence,) = said
    assert sentence == (
        "waiting at most 10 s to keep the answers of active calls: 1; interrupt again to drop them"
    )


class Numpy(Remote):
    """One that counts with numpy, as `mask.sum()` does."""

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        return [
            replace(
                reply,
                usage=replace(reply.usage, tokens=np.int64(7), money=np.float32(0.5)),
                bounds=np.int64(0),
            )
            for reply in super().score(requests)
        ]


def test_counts_of_numpy_are_kept_as_plain_ones(tmp_path: Path) -> None:
    backend = Numpy()
    first = fit(tmp_path, backend)
    paid = len(backend.calls)
    assert counted(fit(tmp_path, backend, resume=True)) == counted(first)
    assert len(backend.calls) == paid


def test_what_was_paid_before_a_kill_is_booked_before_anything_new(tmp_path: Path) -> None:
    backend, rows = Remote(), 2 * ROWS_PER_CALL + 2
    *_, last = request(rows).cut(ROWS_PER_CALL)
    with Journal(tmp_path / FILE_NAME, {}) as journal:
        client(backend).score([last], recorder=journal)
    meter = Meter(Budget(sequences=ROWS_PER_CALL + 1))
    with Journal(tmp_path / FILE_NAME, {}, resume=True) as journal:
        asked = client(backend, pace=Pace(workers=1))
        with pytest.raises(BudgetExceededError):
            asked.score([request(rows)], meter=meter, recorder=journal)
    assert meter.spent.sequences == 2
    assert backend.calls == [2]
