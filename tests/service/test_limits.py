"""What a key may use, by a clock of the test's own; bounds; what is kept."""

from __future__ import annotations

import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.service.bounds import Bounds
from lmaas_tune.service.limits import Allowance, Limits
from lmaas_tune.service.refusal import RefusalError
from lmaas_tune.service.shelf import Shelf


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refusal(allowance: Allowance) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        allowance.enter()
    assert caught.value.status == 429
    return caught.value


def test_so_many_requests_a_minute_and_then_one_as_often(clock: Clock) -> None:
    allowance = Allowance(Limits(requests=6), clock=clock)
    for _ in range(6):
        allowance.enter()
    refused = refusal(allowance)
    assert "6 requests a minute" in refused.message
    assert refused.headers["Retry-After"] == "10"
    clock.now += 9
    assert refusal(allowance).headers["Retry-After"] == "1"
    clock.now += 1.01
    allowance.enter()
    refusal(allowance)
    clock.now += 3600  # an hour of silence saves up one minute, and not more
    for _ in range(6):
        allowance.enter()
    refusal(allowance)


def test_tokens_are_booked_when_known_and_the_debt_is_waited_for(clock: Clock) -> None:
    allowance = Allowance(Limits(tokens=60), clock=clock)
    allowance.enter()
    allowance.enter()
    allowance.book(100)
    refused = refusal(allowance)
    assert "60 tokens a minute" in refused.message
    assert refused.headers["Retry-After"] == "41"  # 40 of debt, and one to spend
    clock.now += 41
    allowance.enter()


def test_so_many_requests_at_once(clock: Clock) -> None:
    allowance = Allowance(Limits(concurrent=2), clock=clock)
    allowance.enter()
    allowance.enter()
    assert "2 requests at once" in refusal(allowance).message
    allowance.leave()
    allowance.enter()


def test_a_refused_request_costs_nothing(clock: Clock) -> None:
    allowance = Allowance(Limits(requests=2, concurrent=1), clock=clock)
    allowance.enter()
    for _ in range(5):
        refusal(allowance)
    allowance.leave()
    allowance.enter()


def test_no_limit_is_no_limit(clock: Clock) -> None:
    allowance = Allowance(Limits(concurrent=None), clock=clock)
    for _ in range(1000):
        allowance.enter()
        allowance.book(10**9)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5"])
def test_limits_and_bounds_are_whole_numbers_from_one(value: object) -> None:
    for kind, name in ((Limits, "requests"), (Bounds, "queue")):
        with pytest.raises(InputError, match=name):
            kind.of({name: value})


def test_an_unknown_limit_or_bound_is_refused_with_what_is_meant() -> None:
    with pytest.raises(InputError, match="did you mean 'requests'"):
        Limits.of({"request": 5})
    with pytest.raises(InputError, match="did you mean 'rows'"):
        Bounds.of({"row": 5})


def test_a_shelf_keeps_what_was_used_last() -> None:
    shelf: Shelf[str] = Shelf(count=2, size=100)
    for name in "abc":
        shelf.put(name, name.upper(), 1)
        assert shelf.get("a") == "A"
    assert shelf.get("b") is None
    assert shelf.get("a") == "A" and shelf.get("c") == "C"


def test_a_shelf_holds_so_much_and_no_more() -> None:
    shelf: Shelf[str] = Shelf(count=100, size=10)
    shelf.put("a", "A", 4)
    shelf.put("b", "B", 4)
    shelf.put("a", "A again", 6)  # the same name takes its place once
    assert shelf.taken == 10
    shelf.put("c", "C", 5)
    assert shelf.get("b") is None and shelf.get("a") is None
    assert shelf.taken == 5
