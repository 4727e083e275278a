"""What a key may use, by a clock of the test's own; bounds; what is kept."""

from __future__ import annotations

import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.service.bounds import Bounds
from lmaas_tune.service.limits import Allowance, Limits, Room
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


def test_tokens_are_reserved_before_the_work_and_settled_after_it(clock: Clock) -> None:
    allowance = Allowance(Limits(tokens=60), clock=clock)
    allowance.reserve(40)
    with pytest.raises(RefusalError) as caught:
        allowance.reserve(30)
    assert "60 tokens a minute" in caught.value.message
    assert caught.value.headers["Retry-After"] == "10"
    allowance.settle(reserved=40, used=10)
    allowance.reserve(30)
    allowance.settle(reserved=30, used=120)  # more than was thought: the debt is waited for
    assert refusal(allowance).headers["Retry-After"] == "71"  # 70 of debt, and one to spend
    clock.now += 71
    allowance.enter()


def test_a_request_of_more_tokens_than_a_minute_has_waits_for_a_whole_minute(clock: Clock) -> None:
    allowance = Allowance(Limits(tokens=60), clock=clock)
    allowance.reserve(1000)
    allowance.settle(reserved=1000, used=30)
    with pytest.raises(RefusalError) as caught:
        allowance.reserve(1000)
    assert caught.value.headers["Retry-After"] == "30"
    clock.now += 30
    allowance.reserve(1000)


def test_a_key_fills_what_it_leaves_free_for_others() -> None:
    room = Room(100)
    room.take("alice", 50)
    with pytest.raises(RefusalError, match="queue_bytes") as caught:
        room.take("alice", 1)
    assert caught.value.status == 503 and caught.value.headers["Retry-After"] == "1"
    room.take("bob", 25)
    with pytest.raises(RefusalError):
        room.take("bob", 1)
    room.leave("alice", 50)
    room.take("bob", 25)


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
        allowance.reserve(10**9)
        allowance.settle(reserved=10**9, used=10**9)


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
