"""Turns, shared passes, and what becomes of jobs that are not answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from lmaas_tune.backend import Capabilities, ScoreReply, ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import TextPrompt
from lmaas_tune.service.errors import ApiError
from lmaas_tune.service.scheduler import Job, Scheduler
from lmaas_tune.service.server_limits import ServerLimits
from lmaas_tune.task import Batch, Slot
from lmaas_tune.testing.toy import ToyBackend
from tests.support.service import BATCH, WORDS, Held, expected
from tests.support.waiting import DEADLINE, until

OTHER = Batch((("another row", Slot.PROMPT, Slot.LABEL),))


class Passes(list[int]):
    def passed(self, requests: int, seconds: float, /) -> None:
        self.append(requests)


class Panic(BaseException):
    """As a tokenizer that is written in Rust raises."""


class Picky(Held):
    """Takes no prompt that says no."""

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        replies = super().score(requests)
        for request in requests:
            if request.prompt == TextPrompt("no"):
                raise InputError("it says no")
            if request.prompt == TextPrompt("break"):
                raise ZeroDivisionError
            if request.prompt == TextPrompt("panic"):
                raise Panic
        return replies


@pytest.fixture
def backend() -> Picky:
    return Picky()


@pytest.fixture
def passes() -> Passes:
    return Passes()


def started(backend: Picky, passes: Passes, **bounds: int) -> Scheduler:
    return Scheduler(backend, ServerLimits(**bounds), passes)


@pytest.fixture
def scheduler(backend: Picky, passes: Passes) -> Iterator[Scheduler]:
    scheduler = started(backend, passes, queue=20)
    yield scheduler
    backend.go.set()
    scheduler.close(DEADLINE)


def job(words: str = "so", *, key: str = "alice", batch: Batch = BATCH) -> Job:
    request = ScoreRequest(TextPrompt(words), batch, WORDS)
    return Job(key=key, rows=len(batch), tokens=1, prepare=lambda: request)


def busy(scheduler: Scheduler, backend: Picky) -> Job:
    """A job that is at work until the backend is let go."""
    first = job("first")
    scheduler.submit(first)
    assert backend.begun.wait(DEADLINE)
    return first


def submitted(scheduler: Scheduler, *jobs: Job) -> list[Future[ScoreReply]]:
    for each in jobs:
        scheduler.submit(each)
    return [each.reply for each in jobs]


def asked(backend: Picky) -> list[list[str]]:
    """The words of each call of the model."""
    return [[str(getattr(r.prompt, "text", "")) for r in call] for call in backend.asked]


def test_what_waits_on_one_batch_goes_through_the_model_together(
    scheduler: Scheduler, backend: Picky, passes: Passes
) -> None:
    first = busy(scheduler, backend)
    replies = submitted(
        scheduler, job("a"), job("b", batch=OTHER), job("c", key="bob"), job("d", batch=OTHER)
    )
    backend.go.set()
    for reply, words in zip(replies, "abcd", strict=True):
        batch = OTHER if words in "bd" else BATCH
        np.testing.assert_array_equal(
            reply.result(DEADLINE).logprobs.astype(np.float32),
            expected(backend, TextPrompt(words), batch),
        )
    assert first.reply.done()
    assert sorted(map(sorted, asked(backend)[:3])) == [["a", "c"], ["b", "d"], ["first"]]
    assert sorted(passes) == [1, 2, 2]


def test_a_panic_of_the_model_ends_no_more_than_its_job(
    scheduler: Scheduler, backend: Picky
) -> None:
    backend.go.set()
    (reply,) = submitted(scheduler, job("panic"))
    with pytest.raises(RuntimeError, match="Panic"):
        reply.result(DEADLINE)

    def prepare() -> ScoreRequest:
        raise Panic

    (reply,) = submitted(scheduler, replace(job(), prepare=prepare))
    with pytest.raises(RuntimeError, match="Panic"):
        reply.result(DEADLINE)
    (reply,) = submitted(scheduler, job("a"))
    assert reply.result(DEADLINE).logprobs.shape == (len(BATCH), len(WORDS))


def test_turns_go_to_the_key_that_had_the_fewest_rows(backend: Picky, passes: Passes) -> None:
    scheduler = started(backend, passes, round_rows=1)  # one job a round
    busy(scheduler, backend)
    many = submitted(scheduler, *(job(f"a{i}", key="alice") for i in range(4)))
    few = submitted(scheduler, job("b0", key="bob", batch=OTHER), job("b1", key="bob", batch=OTHER))
    backend.go.set()
    for reply in many + few:
        reply.result(DEADLINE)
    scheduler.close(DEADLINE)
    # alice had three rows with the first; bob, who comes anew, is served before she has more
    assert asked(backend) == [["first"], ["b0"], ["b1"], ["a0"], ["a1"], ["a2"], ["a3"]]


def test_nobody_saves_turns_up(backend: Picky, passes: Passes) -> None:
    scheduler = started(backend, passes, round_rows=1)
    backend.go.set()
    for reply in submitted(scheduler, *(job("past", key="alice") for _ in range(9))):
        reply.result(DEADLINE)
    backend.go.clear()
    backend.begun.clear()
    busy(scheduler, backend)
    backend.asked.clear()
    replies = submitted(
        scheduler,
        *(job(f"b{i}", key="bob") for i in range(3)),
        *(job(f"a{i}", key="alice") for i in range(3)),
    )
    backend.go.set()
    for reply in replies:
        reply.result(DEADLINE)
    scheduler.close(DEADLINE)
    order = [words for (words,) in asked(backend)]
    assert order.index("a0") <= 2  # and not after all of bob's, though she had 27 rows before


def test_a_request_that_fails_fails_alone(
    scheduler: Scheduler, backend: Picky, passes: Passes
) -> None:
    busy(scheduler, backend)
    words = ["a", "no", "b", "break", "c"]
    replies = submitted(scheduler, *map(job, words))
    backend.go.set()
    assert isinstance(replies[1].exception(DEADLINE), InputError)
    assert isinstance(replies[3].exception(DEADLINE), ZeroDivisionError)
    for index in (0, 2, 4):
        np.testing.assert_array_equal(
            replies[index].result(DEADLINE).logprobs.astype(np.float32),
            expected(ToyBackend(), TextPrompt(words[index])),
        )


def test_a_job_that_cannot_be_prepared_fails_alone(scheduler: Scheduler, backend: Picky) -> None:
    def prepare() -> ScoreRequest:
        raise ApiError("unknown_batch", "gone")

    busy(scheduler, backend)
    replies = submitted(scheduler, Job(key="alice", rows=1, tokens=1, prepare=prepare), job("b"))
    backend.go.set()
    assert isinstance(replies[0].exception(DEADLINE), ApiError)
    assert replies[1].result(DEADLINE)


def test_a_reply_of_another_shape_is_a_fault(scheduler: Scheduler, backend: Picky) -> None:
    backend.score = lambda requests: [ScoreReply(np.zeros((1, 9)))] * len(requests)  # type: ignore[method-assign]
    (reply,) = submitted(scheduler, job())
    assert isinstance(reply.exception(DEADLINE), RuntimeError)


def test_a_model_of_one_request_a_call_gets_one(
    scheduler: Scheduler, backend: Picky, passes: Passes
) -> None:
    backend.capabilities = Capabilities(rows_per_call=8)
    busy(scheduler, backend)
    replies = submitted(scheduler, job("a"), job("b"))
    backend.go.set()
    for reply in replies:
        reply.result(DEADLINE)
    assert asked(backend) == [["first"], ["a"], ["b"]]


def test_who_went_away_before_the_turn_is_not_computed(
    scheduler: Scheduler, backend: Picky
) -> None:
    first = busy(scheduler, backend)
    gone, cancelled, stays = job("gone"), job("cancelled"), job("stays")
    submitted(scheduler, gone, cancelled, stays)
    assert scheduler.withdraw(gone)
    assert not scheduler.withdraw(gone)
    assert not scheduler.withdraw(first)  # it is at work
    assert cancelled.reply.cancel()
    backend.go.set()
    stays.reply.result(DEADLINE)
    assert asked(backend) == [["first"], ["stays"]]
    assert scheduler.waiting == 0


def test_a_full_queue_refuses_and_says_when_to_come_again(
    scheduler: Scheduler, backend: Picky
) -> None:
    busy(scheduler, backend)
    waiting = [job() for _ in range(20)]
    submitted(scheduler, *waiting)
    with pytest.raises(ApiError) as caught:
        scheduler.submit(job())
    assert caught.value.status == 503 and caught.value.headers["Retry-After"] == "1"
    scheduler.withdraw(waiting[5])
    scheduler.submit(job())


def test_closing_finishes_what_was_taken_on(backend: Picky, passes: Passes) -> None:
    scheduler = started(backend, passes, round_rows=1)
    first = busy(scheduler, backend)
    second = job("second")
    scheduler.submit(second)
    closing = threading.Thread(target=scheduler.close, args=(DEADLINE,))
    closing.start()

    def refused() -> bool:
        late = job("late")
        try:
            scheduler.submit(late)
        except ApiError as refusal:
            return refusal.status == 503 and "Retry-After" in refusal.headers
        return not scheduler.withdraw(late)

    until(refused, "refusing new jobs")
    backend.go.set()
    closing.join(DEADLINE)
    assert not closing.is_alive()
    assert first.reply.result(0) and second.reply.result(0)


def test_what_still_waits_after_the_grace_is_refused(backend: Picky, passes: Passes) -> None:
    scheduler = started(backend, passes)
    first = busy(scheduler, backend)
    second = job("second")
    scheduler.submit(second)
    closing = threading.Thread(target=scheduler.close, args=(0.0,))
    closing.start()
    assert isinstance(second.reply.exception(DEADLINE), ApiError)
    backend.go.set()
    closing.join(DEADLINE)
    assert first.reply.result(0)  # what runs is always finished
