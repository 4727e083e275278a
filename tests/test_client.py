"""A hit is free, every attempt is paid, and a reply that does not fit is refused."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmaas_tune.backend import ScoreReply, ScoreRequest, Usage
from lmaas_tune.calls.cache import ScoreCache
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.cost import CostModel
from lmaas_tune.calls.meter import Budget, Meter, Price, Spent
from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import (
    BudgetExceededError,
    InputError,
    PermanentError,
    StorageError,
    TransientError,
)
from lmaas_tune.prompts import TextPrompt
from lmaas_tune.task import Example, Template
from lmaas_tune.testing.toy import ToyBackend

BATCH = Template("{text} {prompt} It was {label}").batch(
    [Example({"text": text}) for text in ("a fine film", "a dull film", "quite a film")]
)
ROWS = len(BATCH)


def request(text: str = "Overall") -> ScoreRequest:
    return ScoreRequest(TextPrompt(text), BATCH, ("good", "bad"))


Answer = Callable[[list[ScoreReply]], list[ScoreReply]]


class Scripted(ToyBackend):
    """The toy, with an error or a change of the replies for each attempt in turn."""

    def __init__(self, *script: BaseException | Answer) -> None:
        super().__init__()
        self.script = list(script)
        self.seen: list[int] = []

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        self.seen.append(len(requests))
        replies = super().score(requests)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, BaseException):
            raise step
        return step(replies) if step else replies


def with_logprobs(logprobs: Any) -> Answer:
    return lambda replies: [replace(reply, logprobs=logprobs) for reply in replies]


def with_usage(**usage: float) -> Answer:
    return lambda replies: [replace(reply, usage=Usage(**usage)) for reply in replies]  # type: ignore[arg-type]


def paid(spent: Spent) -> Spent:
    return replace(spent, seconds=0.0)


def test_the_answers_are_the_backends_in_order() -> None:
    requests = [request("one"), request("two three"), request("")]
    backend = ToyBackend()
    replies = Client(backend).score(requests)
    for reply, direct in zip(replies, backend.score(requests), strict=True):
        np.testing.assert_array_equal(reply.logprobs, direct.logprobs)
        assert reply.usage == direct.usage


def test_identity_and_capabilities_are_the_backends() -> None:
    backend = ToyBackend(seed=7)
    client = Client(backend)
    assert client.backend is backend
    assert client.identity == backend.identity
    assert client.capabilities is backend.capabilities


def test_nothing_asked_sends_nothing() -> None:
    backend = Scripted()
    client = Client(backend)
    assert client.score([]) == []
    assert backend.seen == []
    assert paid(client.spent) == Spent()


def test_a_generation_goes_out_as_one_list_and_equal_requests_once() -> None:
    backend = Scripted()
    client = Client(backend)
    first, second, twin = client.score([request("one"), request("two"), request("one")])
    assert backend.seen == [2]
    np.testing.assert_array_equal(first.logprobs, twin.logprobs)
    assert (first.logprobs != second.logprobs).any()
    assert first.usage.sequences == ROWS
    assert twin.usage == Usage()
    assert (client.spent.requests, client.spent.hits) == (2, 1)


def test_a_hit_is_free_and_equal_to_the_last_bit(tmp_path: Path) -> None:
    backend = Scripted()
    client = Client(backend, cache=tmp_path / "scores.sqlite")
    meter = Meter()
    requests = [request("one"), request("two")]
    first = client.score(requests, meter=meter)
    before = meter.spent
    again = client.score([*requests, request("three")], meter=meter)
    assert backend.seen == [2, 1]
    assert [reply.usage for reply in again[:2]] == [Usage(), Usage()]
    for old, new in zip(first, again, strict=False):
        assert old.logprobs.tobytes() == new.logprobs.tobytes()
    assert meter.spent.hits == 2
    assert meter.spent.sequences == before.sequences + ROWS


def test_a_second_client_finds_what_the_first_paid_for(tmp_path: Path) -> None:
    Client(ToyBackend(), cache=str(tmp_path / "scores.sqlite")).score([request()])
    backend = Scripted()
    client = Client(backend, cache=ScoreCache(tmp_path / "scores.sqlite"))
    client.score([request()])
    assert backend.seen == []
    assert paid(client.spent) == Spent(hits=1)


def test_another_identity_never_gets_the_first_ones_answers(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "scores.sqlite")
    one = Client(ToyBackend(seed=0), cache=cache).score([request()])[0]
    other = Client(ToyBackend(seed=1), cache=cache).score([request()])[0]
    assert (one.logprobs != other.logprobs).any()


def test_replies_cannot_be_changed_by_who_reads_them(tmp_path: Path) -> None:
    client = Client(ToyBackend(), cache=tmp_path / "scores.sqlite")
    for _ in range(2):
        reply = client.score([request()])[0]
        assert reply.logprobs.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            reply.logprobs[0, 0] = 0


def test_every_attempt_is_booked_on_the_run_and_on_the_client() -> None:
    backend = Scripted(TransientError("busy"), TransientError("busy"))
    waits: list[float] = []
    client = Client(backend, sleep=waits.append, chance=lambda: 0.0)
    meter = Meter(spent=Spent(calls=5))
    reply = client.score([request()], meter=meter)[0]
    assert waits == [0.5, 1.0]
    expected = Spent(requests=3, retries=2, sequences=ROWS, tokens=reply.usage.tokens)
    assert paid(client.spent) == expected
    assert paid(meter.spent) == expected + Spent(calls=5)


def test_attempts_that_all_fail_are_booked_too(tmp_path: Path) -> None:
    backend = Scripted(*(TransientError("busy") for _ in range(9)))
    client = Client(
        backend, cache=tmp_path / "s", retry=Retry(attempts=3), sleep=lambda seconds: None
    )
    with pytest.raises(PermanentError, match="no answer after 3 attempts"):
        client.score([request()])
    assert paid(client.spent) == Spent(requests=3, retries=2)
    backend.script.clear()
    client.score([request()])
    assert backend.seen == [1, 1, 1, 1]  # the failure was not cached


def test_of_calls_that_fail_together_one_is_told() -> None:
    now = [0.0]
    backend = Scripted(*(TransientError(f"busy {n}") for n in range(3)))
    client = Client(backend, sleep=lambda seconds: None, clock=lambda: now[0])
    with pytest.warns(UserWarning) as told:
        for moment, text in ((0.0, "one"), (1.0, "two"), (60.0, "three")):
            now[0] = moment
            backend.script.insert(1, lambda replies: replies)
            client.score([request(text)])
    assert [str(warning.message)[:36] for warning in told] == [
        "attempt 1 of 10 failed: busy 0; tryi",
        "attempt 1 of 10 failed: busy 2; tryi",
    ]


def failing(usage: Usage | None, *, unknown: bool) -> TransientError:
    error = TransientError("of no use")
    error.usage, error.usage_unknown = usage, unknown
    return error


def inspected(client: Client, *, tokens: int) -> CostModel:
    """A cost model of a backend that told beforehand what a request takes."""
    cost = client.new_cost_model()
    cost.inspected(request().batch, Usage(requests=1, sequences=ROWS, tokens=tokens))
    return cost


def test_a_failure_is_booked_as_told_and_as_reserved_where_nothing_was_told() -> None:
    told = Usage(requests=1, sequences=2 * ROWS, tokens=7)
    cases = [
        (failing(None, unknown=False), Spent(requests=1)),
        (failing(told, unknown=False), Spent(requests=1, sequences=ROWS, tokens=7, money=7.0)),
        (
            failing(Usage(requests=1), unknown=True),
            Spent(requests=1, sequences=ROWS, tokens=20, money=20.0),
        ),
        (failing(told, unknown=True), Spent(requests=1, sequences=ROWS, tokens=20, money=20.0)),
    ]
    for error, booked in cases:
        client = Client(Scripted(error), price=Price(input=1e6), retry=Retry(attempts=1))
        with pytest.raises(PermanentError):
            client.score([request()], cost=inspected(client, tokens=20))
        assert paid(client.spent) == booked


def test_what_an_answer_took_before_is_reserved_for_the_next_on_its_rows() -> None:
    client = Client(Scripted(with_usage(requests=1, sequences=ROWS, tokens=50)))
    client.score([request("a")])
    with pytest.raises(BudgetExceededError, match=r"tokens=49: 49 left, the next request needs 50"):
        client.score([request("b")], meter=Meter(Budget(tokens=49)))


def test_an_answer_that_does_not_tell_its_tokens_is_booked_as_reserved() -> None:
    client = Client(Scripted(with_usage(requests=1, sequences=ROWS)), price=Price(input=1e6))
    client.score([request()], cost=inspected(client, tokens=20))
    assert paid(client.spent) == Spent(requests=1, sequences=ROWS, tokens=20, money=20.0)


def test_a_permanent_failure_is_not_tried_again() -> None:
    backend = Scripted(PermanentError("no such model"))
    client = Client(backend)
    with pytest.raises(PermanentError, match=r"^no such model$"):
        client.score([request()])
    assert paid(client.spent) == Spent(requests=1)


def test_a_request_that_the_backend_refuses_costs_nothing() -> None:
    client = Client(ToyBackend(max_tokens=4))
    with pytest.raises(InputError, match="longer than the 4"):
        client.score([request()])
    assert paid(client.spent) == Spent()


def test_a_foreign_exception_becomes_ours_and_names_the_backend() -> None:
    backend = Scripted(ZeroDivisionError("oops"))
    with pytest.raises(PermanentError) as caught:
        Client(backend).score([request()])
    assert str(caught.value) == f"backend {backend.identity!r} failed with ZeroDivisionError: oops"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_ctrl_c_passes_through_and_its_request_is_counted() -> None:
    client = Client(Scripted(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        client.score([request()])
    assert paid(client.spent) == Spent(requests=1)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda replies: replies[:1], "gave 1 replies to 2 requests"),
        (lambda replies: None, "failed with TypeError"),
        (lambda replies: ["good", "bad"], "usage is invalid"),
        (with_logprobs(np.zeros((ROWS, 3))), "reply 1 of 2: scores of shape (3, 3) for (3, 2)"),
        (with_logprobs(np.zeros((2, ROWS))), "reply 1 of 2: scores of shape (2, 3) for (3, 2)"),
        (with_logprobs(np.zeros(ROWS)), "reply 1 of 2: scores of shape (3,)"),
        (with_logprobs([["a", "b"]] * ROWS), "reply 1 of 2: could not convert"),
        (with_logprobs(np.full((ROWS, 2), 0.5)), "a log-probability of 0.5, which is above 0"),
        (with_logprobs(np.full((ROWS, 2), np.inf)), "a log-probability of inf"),
        (with_usage(tokens=-1), "spent tokens=-1"),
        (with_usage(money=math.nan), "spent money=nan"),
    ],
)
def test_a_reply_that_does_not_fit_names_the_backend_and_the_request(
    answer: Answer, sentence: str
) -> None:
    backend = Scripted(answer)
    with pytest.raises(PermanentError) as caught:
        Client(backend).score([request("one"), request("two")])
    assert repr(backend.identity) in str(caught.value)
    assert sentence in str(caught.value)


def test_what_a_useless_reply_took_is_booked_all_the_same() -> None:
    client = Client(Scripted(with_logprobs(np.zeros((1, 1)))))
    with pytest.raises(PermanentError):
        client.score([request()])
    assert (client.spent.requests, client.spent.sequences) == (1, ROWS)


def test_rounding_above_zero_becomes_zero() -> None:
    reply = Client(Scripted(with_logprobs(np.full((ROWS, 2), 1e-7)))).score([request()])[0]
    np.testing.assert_array_equal(reply.logprobs, np.zeros((ROWS, 2)))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_reply_that_is_not_finite_comes_back_but_is_never_kept(
    value: float, tmp_path: Path
) -> None:
    backend = Scripted(with_logprobs(np.full((ROWS, 2), value)))
    client = Client(backend, cache=tmp_path / "scores.sqlite")
    np.testing.assert_array_equal(client.score([request()])[0].logprobs, np.full((ROWS, 2), value))
    assert np.isfinite(client.score([request()])[0].logprobs).all()
    assert backend.seen == [1, 1]


def test_the_price_counts_where_the_backend_names_none() -> None:
    client = Client(ToyBackend(), price=Price(input=1000.0))
    reply = client.score([request()])[0]
    assert reply.usage.money == pytest.approx(reply.usage.tokens / 1000)
    assert client.spent.money == reply.usage.money
    priced = Client(Scripted(with_usage(tokens=50, money=0.25)), price=Price(input=1000.0))
    assert priced.score([request()])[0].usage.money == 0.25


def test_a_price_may_be_any_function() -> None:
    client = Client(ToyBackend(), price=lambda usage: 0.01 * usage.sequences)
    client.score([request()])
    assert client.spent.money == pytest.approx(0.01 * ROWS)


def test_a_price_that_is_no_amount_shows_before_any_call() -> None:
    with pytest.raises(InputError, match="the price gives nan"):
        Client(ToyBackend(), price=lambda usage: math.nan)


def test_a_cache_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"the cache .* no writable file"):
        Client(ToyBackend(), cache=tmp_path / "file" / "scores.sqlite")


def test_a_request_that_would_go_past_the_budget_is_not_sent() -> None:
    backend = Scripted()
    client = Client(backend)
    meter = Meter(Budget(sequences=2 * ROWS + 1))
    client.score([request("one"), request("two")], meter=meter)
    with pytest.raises(BudgetExceededError, match="1 left, the next request needs 3"):
        client.score([request("three")], meter=meter)
    assert backend.seen == [2]
    client.score([request("three")])  # the client itself has no budget


def test_a_hit_needs_no_budget(tmp_path: Path) -> None:
    client = Client(ToyBackend(), cache=tmp_path / "scores.sqlite")
    meter = Meter(Budget(sequences=ROWS))
    client.score([request()], meter=meter)
    client.score([request()], meter=meter)
    assert meter.spent.hits == 1


def test_retries_cannot_run_past_the_budget() -> None:
    backend = Scripted(*(TransientError("busy") for _ in range(9)))
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def clock() -> float:
        return now[0]

    client = Client(backend, sleep=sleep, clock=clock, chance=lambda: 0.0)
    meter = Meter(Budget(seconds=3), clock=clock)
    with pytest.raises(BudgetExceededError) as caught:
        client.score([request()], meter=meter)
    assert str(caught.value) == "budget seconds=3: 1.5 left, the next request needs 2"
    assert now[0] <= 3  # it does not even wait for what it could not send
    assert backend.seen == [1, 1, 1]


@given(
    budget=st.integers(1, 40),
    generations=st.lists(st.integers(1, 5), max_size=8),
    failing=st.lists(st.booleans(), max_size=8),
)
@settings(deadline=None)
def test_whatever_happens_no_more_sequences_are_paid_than_the_budget_holds(
    budget: int, generations: list[int], failing: list[bool]
) -> None:
    backend = Scripted(*(TransientError("busy") if f else (lambda r: r) for f in failing))
    client = Client(backend, sleep=lambda seconds: None)
    meter = Meter(Budget(sequences=budget))
    answered = 0
    for number, size in enumerate(generations):
        try:
            replies = client.score([request(f"{number} {i}") for i in range(size)], meter=meter)
        except (BudgetExceededError, PermanentError):
            continue
        answered += len(replies)
    assert meter.spent.sequences == answered * ROWS <= budget


def test_threads_may_share_a_client(tmp_path: Path) -> None:
    backend = ToyBackend()
    client = Client(backend, cache=tmp_path / "scores.sqlite")
    wrong: list[str] = []

    def work(thread: int) -> None:
        for number in range(10):
            requests = [request(f"{(thread + number) % 7}"), request(f"own {thread} {number}")]
            for reply, direct in zip(client.score(requests), backend.score(requests), strict=True):
                if (reply.logprobs != direct.logprobs).any():
                    wrong.append(f"{thread} {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert client.spent.requests + client.spent.hits == 6 * 10 * 2
    assert client.spent.sequences == client.spent.requests * ROWS


def test_waiting_for_a_turn_takes_nothing_from_the_time_for_trying_again() -> None:
    now, waits = [0.0], []

    class Queue:
        """Every call waits 400 seconds for its turn."""

        def ahead(self, tokens: int) -> float:
            return 0.0

        @contextmanager
        def turn(self, tokens: int, *, stopped: Any) -> Iterator[Any]:
            now[0] += 400.0
            yield lambda tokens, requests: None

    def wait(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    backend = Scripted(TransientError("busy"), TransientError("busy"))
    client = Client(backend, sleep=wait, clock=lambda: now[0])
    client._throttle = Queue()  # type: ignore[assignment]
    client.score([request()])
    assert len(waits) == 2
