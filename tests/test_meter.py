"""Budgets are read strictly, what is spent adds up, and no budget is gone past."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmaas_tune.backend import Usage
from lmaas_tune.calls.meter import Budget, Meter, Price, Spent
from lmaas_tune.errors import BudgetExceededError, InputError

COUNTED = ("calls", "sequences", "tokens", "patience")
limits: dict[str, st.SearchStrategy[Any]] = {name: st.integers(1, 10**15) for name in COUNTED}
limits |= {name: st.floats(1e-300, 1e300) for name in ("seconds", "money")}
limits["target"] = st.floats(allow_nan=False, allow_infinity=False)
budgets = st.fixed_dictionaries({}, optional=limits).map(lambda given: Budget(**given))

amounts: dict[str, st.SearchStrategy[Any]] = {f.name: st.integers(0, 10**9) for f in fields(Spent)}
amounts |= {name: st.integers(0, 2**40).map(float) for name in ("money", "seconds")}
spents = st.builds(Spent, **amounts)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(budgets)
def test_a_budget_reads_back_from_its_own_text(budget: Budget) -> None:
    assert Budget.parse(str(budget)) == budget


def test_a_budget_writes_itself_as_the_command_line_takes_it() -> None:
    assert str(Budget(calls=200, seconds=60)) == "calls=200,seconds=60"
    assert Budget.parse(" calls = 200 , seconds=60") == Budget(calls=200, seconds=60.0)
    assert str(Budget()) == "none"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is no limit; write for example calls=200"),
        ("200", "'200' is no limit; write for example calls=200"),
        ("calls=200,", "'' is no limit"),
        ("call=200", "unknown limit 'call'; did you mean 'calls'"),
        ("calls=1,calls=2", "calls is given twice"),
        ("calls=many", "calls='many': it takes a whole number"),
        ("calls=1.5", "calls='1.5': it takes a whole number"),
        ("seconds=1m", "seconds='1m': it takes a number"),
        ("calls=0", "calls=0: it must be above 0; leave it out"),
        ("money=-1", "money=-1.0: it must be above 0"),
        ("seconds=inf", "seconds=inf: it takes a finite number"),
        ("target=nan", "target=nan: it takes a finite number"),
    ],
)
def test_a_budget_that_cannot_be_meant_gets_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        Budget.parse(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"calls": 2.5}, {"calls": True}, {"tokens": "9"}, {"money": "1"}]
)
def test_a_budget_checks_the_types_of_its_limits(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Budget(**wrong)


def test_a_target_may_be_zero_or_below_as_a_loss_may() -> None:
    assert Budget(target=0).target == 0.0
    assert Budget.parse("target=-1.5").target == -1.5


@given(spents, spents, spents)
def test_spent_adds_like_numbers(a: Spent, b: Spent, c: Spent) -> None:
    assert a + Spent() == a
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    for f in fields(Spent):
        assert getattr(a + b, f.name) == getattr(a, f.name) + getattr(b, f.name)


@given(spents)
def test_spent_survives_json(spent: Spent) -> None:
    assert Spent.from_json(json.loads(json.dumps(spent.to_json()))) == spent


def test_spent_from_numpy_numbers_can_still_be_written_as_json() -> None:
    usage = Usage(tokens=np.int64(3), money=np.float32(0.5))  # type: ignore[arg-type]
    assert json.loads(json.dumps(Spent.of(usage).to_json()))["tokens"] == 3


def test_spent_reads_over_unknown_keys_and_absent_ones() -> None:
    assert Spent.from_json({"calls": 3, "of a later version": 1}) == Spent(calls=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"calls": -1},
        {"calls": 1.5},
        {"money": math.nan},
        {"money": math.inf},
        {"seconds": "x"},
        {"seconds": "5"},
        {"seconds": 10**400},
        {"calls": True},
        {"hits": None},
    ],
)
def test_spent_refuses_what_cannot_be_an_amount(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"spent {next(iter(wrong))}="):
        Spent.from_json(wrong)


def test_a_price_counts_input_tokens_and_one_output_token_a_row() -> None:
    usage = Usage(tokens=2_000_000, sequences=500_000)
    assert Price(input=3.0)(usage) == pytest.approx(6.0)
    assert Price(input=3.0, output=8.0)(usage) == pytest.approx(10.0)
    with pytest.raises(InputError, match="price input=-1"):
        Price(input=-1)


def test_seconds_run_on_from_what_was_carried() -> None:
    clock = Clock()
    meter = Meter(spent=Spent(calls=40, seconds=12.5), clock=clock)
    clock.now += 2
    assert meter.spent == Spent(calls=40, seconds=14.5)
    meter.book(Spent(calls=20))
    clock.now += 1
    assert meter.spent == Spent(calls=60, seconds=15.5)


def test_a_refusal_names_the_limit_and_what_is_left_and_what_was_needed() -> None:
    meter = Meter(Budget(calls=300, tokens=1000), spent=Spent(calls=281), clock=Clock())
    assert meter.exceeded_limit(Spent(calls=19)) is None
    assert (
        meter.exceeded_limit(Spent(calls=20))
        == "budget calls=300: 19 left, the next generation needs 20"
    )
    assert "tokens=1000" in str(meter.exceeded_limit(Spent(tokens=1001)))


def test_a_refusal_after_the_end_says_that_all_is_used() -> None:
    clock = Clock()
    meter = Meter(Budget(seconds=60), clock=clock)
    clock.now += 61.25
    assert meter.exceeded_limit(Spent(calls=20)) == "budget seconds=60: all used, 61.25 spent"


def test_ten_times_a_tenth_fits_into_one() -> None:
    meter = Meter(Budget(money=0.3), clock=Clock())
    for _ in range(3):
        assert meter.exceeded_limit(Spent(money=0.1)) is None
        meter.book(Spent(money=0.1))
    assert meter.exceeded_limit(Spent(money=0.1)) is not None


@pytest.mark.parametrize("name", ["sequences", "tokens", "money", "seconds"])
def test_no_attempt_is_admitted_once_a_paid_limit_is_reached(name: str) -> None:
    meter = Meter(Budget(**{name: 10}), clock=Clock())
    meter.admit()
    meter.book(Spent(**{name: 10}))
    with pytest.raises(BudgetExceededError, match=f"budget {name}=10: all used, 10 spent"):
        meter.admit()


def test_the_last_call_leaves_validation_possible() -> None:
    meter = Meter(Budget(calls=20), spent=Spent(calls=20), clock=Clock())
    meter.admit(Spent(sequences=32))
    assert meter.exceeded_limit(Spent(validation_calls=1, sequences=32)) is None
    assert meter.exceeded_limit(Spent(calls=1)) is not None


def test_an_attempt_that_would_go_past_is_not_admitted() -> None:
    meter = Meter(Budget(sequences=100), spent=Spent(sequences=90), clock=Clock())
    meter.admit(Spent(sequences=10))
    with pytest.raises(BudgetExceededError) as caught:
        meter.admit(Spent(sequences=11))
    assert str(caught.value) == "budget sequences=100: 10 left, the next request needs 11"


@given(budgets, st.lists(spents, max_size=20))
def test_what_is_booked_after_asking_never_goes_past_the_budget(
    budget: Budget, generations: list[Spent]
) -> None:
    meter = Meter(budget, clock=Clock())
    for planned in generations:
        if meter.exceeded_limit(planned) is None:
            meter.book(planned)
    for name, limit in budget.limits.items():
        if name in ("calls", "sequences", "tokens"):
            assert getattr(meter.spent, name) <= limit
        elif name in ("money", "seconds"):
            assert getattr(meter.spent, name) <= limit * (1 + 1e-9)


def test_threads_that_book_at_once_lose_nothing() -> None:
    meter = Meter(clock=Clock())

    def book() -> None:
        for _ in range(500):
            meter.book(Spent(calls=1, money=0.5))

    threads = [threading.Thread(target=book) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replace(meter.spent, seconds=0) == Spent(calls=4000, money=2000.0)
