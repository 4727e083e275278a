"""Only what may pass is tried again, after the right waits, and never for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import BudgetExceededError, InputError, PermanentError, TransientError


class Time:
    """A clock that only its own sleep moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Flaky:
    """Raises the errors it was given, one a call, and then answers."""

    def __init__(self, *errors: BaseException, takes: Callable[[], None] = lambda: None) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.takes = takes

    def __call__(self) -> str:
        self.calls += 1
        self.takes()
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def run(retry: Retry, flaky: Flaky, time: Time, chance: float = 0.0) -> str:
    return retry.run(flaky, sleep=time.sleep, clock=lambda: time.now, chance=lambda: chance)


def busy(count: int, **kwargs: Any) -> list[TransientError]:
    return [TransientError("busy", **kwargs) for _ in range(count)]


def test_an_answer_at_once_waits_for_nothing() -> None:
    time = Time()
    assert run(Retry(), Flaky(), time) == "answer"
    assert time.waits == []


def test_the_wait_doubles_up_to_the_longest() -> None:
    time = Time()
    retry = Retry(attempts=9, first_wait=0.5, longest_wait=10)
    assert run(retry, Flaky(*busy(7)), time) == "answer"
    assert time.waits == [0.5, 1, 2, 4, 8, 10, 10]


def test_chance_takes_off_at_most_the_jitter() -> None:
    time = Time()
    run(Retry(first_wait=8, jitter=0.25), Flaky(*busy(1)), time, chance=1.0)
    assert time.waits == [6.0]


def test_the_provider_can_make_a_wait_longer_but_not_shorter() -> None:
    time = Time()
    flaky = Flaky(TransientError("slow", retry_after=45), TransientError("slow", retry_after=0.1))
    run(Retry(first_wait=2, longest_wait=30), flaky, time)
    assert time.waits == [45, 4]


def test_it_gives_up_after_the_last_attempt_and_says_so() -> None:
    time = Time()
    flaky = Flaky(*busy(9))
    with pytest.raises(PermanentError) as caught:
        run(Retry(attempts=6), flaky, time)
    assert flaky.calls == 6
    assert str(caught.value) == "no answer after 6 attempts in 15.5 s: busy"
    assert isinstance(caught.value.__cause__, TransientError)


def test_one_attempt_is_never_repeated() -> None:
    flaky = Flaky(*busy(1))
    with pytest.raises(PermanentError, match="no answer after 1 attempt in 0 s: busy"):
        run(Retry(attempts=1), flaky, Time())
    assert flaky.calls == 1


def test_it_gives_up_at_once_if_the_provider_asks_for_more_than_the_total_allows() -> None:
    time = Time()
    flaky = Flaky(*busy(9, retry_after=600))
    with pytest.raises(PermanentError) as caught:
        run(Retry(total=300), flaky, time)
    assert (flaky.calls, time.waits) == (1, [])
    assert "the provider asks to wait 600 s" in str(caught.value)
    assert "retries end 300 s after the first attempt" in str(caught.value)


def test_the_total_counts_the_time_that_attempts_take() -> None:
    time = Time()

    def slow() -> None:
        time.now += 100

    flaky = Flaky(*busy(9), takes=slow)
    with pytest.raises(PermanentError, match="no answer after 3 attempts in 30"):
        run(Retry(attempts=9, total=300), flaky, time)
    assert flaky.calls == 3


@pytest.mark.parametrize(
    "error",
    [
        PermanentError("no such model"),
        InputError("too wide"),
        BudgetExceededError("spent"),
        ValueError("not ours"),
        KeyboardInterrupt(),
    ],
)
def test_all_else_passes_through_after_one_attempt(error: BaseException) -> None:
    flaky = Flaky(error)
    with pytest.raises(type(error)) as caught:
        run(Retry(), flaky, Time())
    assert caught.value is error
    assert flaky.calls == 1


@given(
    attempts=st.integers(1, 12),
    first_wait=st.floats(0, 100),
    longest_wait=st.floats(0, 100),
    total=st.floats(0, 1000),
    failures=st.lists(st.none() | st.floats(0, 500), max_size=15),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_no_policy_makes_more_attempts_or_lasts_longer_than_it_says(
    attempts: int,
    first_wait: float,
    longest_wait: float,
    total: float,
    failures: list[float | None],
    chance: float,
) -> None:
    time = Time()
    retry = Retry(attempts=attempts, first_wait=first_wait, longest_wait=longest_wait, total=total)
    flaky = Flaky(*(TransientError("busy", retry_after=seconds) for seconds in failures))
    try:
        run(retry, flaky, time, chance)
    except PermanentError:
        pass
    else:
        assert flaky.calls == len(failures) + 1
    assert flaky.calls <= attempts
    assert time.now <= total
    for wait, asked in zip(time.waits, failures, strict=False):
        assert (asked or 0) <= wait <= max(longest_wait, asked or 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": 2.5},
        {"first_wait": -1},
        {"longest_wait": float("nan")},
        {"total": float("inf")},
        {"jitter": 1.5},
    ],
)
def test_a_policy_that_cannot_work_is_refused_with_its_value(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"retry {next(iter(wrong))}="):
        Retry(**wrong)


def test_the_first_failure_is_told_in_one_line_with_when_it_is_tried_again() -> None:
    time, said = Time(), list[str]()
    with pytest.raises(PermanentError):
        Retry(attempts=5).run(
            Flaky(*busy(9)), on_note=said.append, sleep=time.sleep, chance=lambda: 0.0
        )
    assert said == ["attempt 1 of 5 failed: busy; trying again in 0.5 s"]


def test_a_failure_is_a_warning_where_nobody_else_is_told() -> None:
    with pytest.warns(UserWarning, match="attempt 1 of 2 failed: busy"):
        Retry(attempts=2, first_wait=0.0).run(Flaky(*busy(1)))


def test_a_wait_that_is_not_admitted_is_neither_told_nor_waited_for() -> None:
    time, said = Time(), list[str]()

    def refuse(seconds: float) -> None:
        raise BudgetExceededError(f"no {seconds:g} s left")

    with pytest.raises(BudgetExceededError, match=r"no 0\.5 s left"):
        Retry().run(
            Flaky(*busy(1)),
            admit=refuse,
            on_note=said.append,
            sleep=time.sleep,
            chance=lambda: 0.0,
        )
    assert said == time.waits == []
