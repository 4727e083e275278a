"""Calls keep to a pace, which falls where the provider is overloaded and rises where it is not."""

from __future__ import annotations

import math
import threading
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmaas_tune import Budget, ScoreRequest, Usage
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Meter
from lmaas_tune.calls.pace import Pace, Stopped, Throttle
from lmaas_tune.errors import BudgetExceededError, InputError, TransientError
from lmaas_tune.prompts import FloatArray, SoftPrompt
from lmaas_tune.task import Batch, Slot
from tests.support.small_models import WIDTH, Bowl


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def never() -> bool:
    return False


def call(throttle: Throttle, *, fails: TransientError | None = None, tokens: int = 0) -> None:
    with suppress(TransientError), throttle.turn(tokens, stopped=never):
        if fails is not None:
            raise fails


OVERLOAD = TransientError("busy", overloaded=True)
ONE_ROW = Batch((("good ", Slot.PROMPT, Slot.LABEL),))


@pytest.mark.parametrize(
    "wish",
    [
        {"workers": 0},
        {"workers": 2.0},
        {"workers": True},
        {"workers": "many"},
        {"most_workers": 0},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -5},
        {"requests_per_minute": 1.5},
    ],
)
def test_a_pace_that_cannot_be_is_refused_by_name_and_value(wish: dict[str, object]) -> None:
    ((name, value),) = wish.items()
    with pytest.raises(InputError, match=f"{name}={value!r}"):
        Pace(**wish)  # type: ignore[arg-type]


def test_no_more_calls_are_under_way_than_there_are_workers() -> None:
    throttle = Throttle(Pace(workers=2))
    with throttle.turn(0, stopped=never), throttle.turn(0, stopped=never):
        assert throttle.delay(0) == math.inf
    assert throttle.delay(0) == 0


def test_a_waiting_call_goes_when_another_ends() -> None:
    throttle = Throttle(Pace(workers=1))
    order = []

    def second() -> None:
        with throttle.turn(0, stopped=never):
            order.append("second")

    with throttle.turn(0, stopped=never):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_a_call_that_is_given_up_stops_waiting() -> None:
    throttle = Throttle(Pace(workers=1))
    stopped = threading.Event()
    ended = []

    def second() -> None:
        with suppress(Stopped), throttle.turn(0, stopped=stopped.is_set):
            ended.append("called")
        ended.append("stopped")

    with throttle.turn(0, stopped=never):
        thread = threading.Thread(target=second)
        thread.start()
        stopped.set()
        throttle.wake()
        thread.join(timeout=10)
    assert ended == ["stopped"]


def test_adaptive_doubles_each_round_until_the_first_overload_then_adds_one_a_round() -> None:
    throttle = Throttle(Pace(workers="adaptive", most_workers=16))
    windows = [throttle.window]
    for _ in range(3):
        for _ in range(throttle.window):
            call(throttle)
        windows.append(throttle.window)
    assert windows == [1, 2, 4, 8]
    call(throttle, fails=OVERLOAD)
    assert throttle.window == 4
    for _ in range(5):
        call(throttle)
    assert throttle.window == 5


def test_overloads_of_one_round_halve_once() -> None:
    throttle = Throttle(Pace(workers="adaptive"))
    for _ in range(15):
        call(throttle)
    assert throttle.window == 16
    with suppress(TransientError), ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(throttle.turn(0, stopped=never))
        raise OVERLOAD
    assert throttle.window == 8


def test_one_worker_is_left_however_often_it_fails() -> None:
    throttle = Throttle(Pace())
    for _ in range(10):
        call(throttle, fails=OVERLOAD)
    assert throttle.window == 1


def test_other_failures_say_nothing_of_the_load() -> None:
    throttle = Throttle(Pace())
    for _ in range(7):
        call(throttle)
    call(throttle, fails=TransientError("reset"))
    assert throttle.window == 8


def test_a_fixed_number_of_workers_stays() -> None:
    throttle = Throttle(Pace(workers=3))
    call(throttle, fails=OVERLOAD)
    call(throttle)
    assert throttle.window == 3


def test_when_the_provider_asks_to_wait_all_wait() -> None:
    clock = Clock()
    throttle = Throttle(Pace(workers=8), clock=clock)
    call(throttle, fails=TransientError("busy", retry_after=7.0, overloaded=True))
    assert throttle.delay(0) == 7.0
    clock.now += 7
    assert throttle.delay(0) == 0


def test_requests_a_minute_hold_in_every_minute() -> None:
    clock = Clock()
    throttle = Throttle(Pace(workers=8, requests_per_minute=3), clock=clock)
    for _ in range(3):
        call(throttle)
        clock.now += 1
    assert throttle.delay(0) == 57.0
    clock.now += 57
    call(throttle)
    assert throttle.delay(0) == 1.0


def test_tokens_a_minute_hold_and_are_corrected_by_what_a_call_took() -> None:
    clock = Clock()
    throttle = Throttle(Pace(workers=8, tokens_per_minute=100), clock=clock)
    with throttle.turn(10, stopped=never) as took:
        took(90, 1)
    assert throttle.delay(10) == 0
    assert throttle.delay(11) == 60.0


def test_requests_of_one_call_count_one_by_one() -> None:
    clock = Clock()
    throttle = Throttle(Pace(workers=8, requests_per_minute=10), clock=clock)
    with throttle.turn(0, stopped=never) as took:
        took(0, 10)
    assert throttle.delay(0) == 60.0


@pytest.mark.parametrize(("asked", "wait"), [(120.0, 120.0), (3600.0, 0.0), (1e300, 0.0)])
def test_a_wait_that_no_call_would_take_holds_up_no_other(asked: float, wait: float) -> None:
    clock = Clock()
    throttle = Throttle(Pace(), clock=clock)
    call(throttle, fails=TransientError("busy", overloaded=True, retry_after=asked))
    assert throttle.ahead(0) == throttle.delay(0) == wait


def test_a_call_larger_than_the_limit_goes_when_nothing_else_does() -> None:
    clock = Clock()
    throttle = Throttle(Pace(workers=8, tokens_per_minute=100), clock=clock)
    assert throttle.delay(500) == 0
    call(throttle, tokens=50)
    assert throttle.delay(500) == 60.0


@given(st.lists(st.tuples(st.integers(0, 80), st.floats(0, 30)), max_size=40))
def test_no_minute_ever_has_more_than_the_limits(calls: list[tuple[int, float]]) -> None:
    clock = Clock()
    throttle = Throttle(Pace(workers=8, requests_per_minute=5, tokens_per_minute=200), clock=clock)
    made: list[tuple[float, int]] = []
    for tokens, pause in calls:
        clock.now += pause
        while (wait := throttle.delay(tokens)) > 0:
            clock.now += wait
        call(throttle, tokens=tokens)
        made.append((clock.now, tokens))
    for when, _ in made:
        minute = [tokens for begun, tokens in made if when <= begun < when + 60]
        assert len(minute) <= 5
        assert sum(minute) <= 200


def test_the_next_call_is_thought_to_make_as_many_requests_as_the_last() -> None:
    clock = Clock()
    throttle = Throttle(Pace(workers=8, requests_per_minute=10), clock=clock)
    with throttle.turn(0, stopped=never) as took:
        took(0, 4)
    with throttle.turn(0, stopped=never):
        assert throttle.delay(0) == 60.0  # 8 are under way or done, and 4 more do not fit
    clock.now += 60
    assert throttle.delay(0) == 0
    with throttle.turn(0, stopped=never) as took:
        took(0, 30)
    clock.now += 60
    assert throttle.delay(0) == 0  # more than the limit allows goes when nothing else has gone


def test_all_requests_of_a_failed_call_count() -> None:
    class Busy(Bowl):
        def logprobs(self, request: ScoreRequest) -> FloatArray:
            error = TransientError("busy")
            error.usage = Usage(requests=4)
            raise error

    client = Client(Busy(), pace=Pace(requests_per_minute=4), sleep=lambda seconds: None)
    request = ScoreRequest(SoftPrompt(np.ones((1, WIDTH))), ONE_ROW, ("good", "bad"))
    with pytest.raises(BudgetExceededError, match="seconds"):  # the next attempt has to wait
        client.score([request], meter=Meter(Budget(calls=9, seconds=10)))
    assert client.spent.requests == 4
