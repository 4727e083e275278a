"""What a key may use, by a clock of the test's own; bounds; what is kept."""

from __future__ import annotations

import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.service.errors import ApiError
from lmaas_tune.service.key_quota import BodyBuffer, KeyQuota, QuotaMeter
from lmaas_tune.service.lru_cache import LRUStore
from lmaas_tune.service.server_limits import ServerLimits


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refusal(quota: QuotaMeter) -> ApiError:
    with pytest.raises(ApiError) as caught:
        quota.enter()
    assert caught.value.status == 429
    return caught.value


def test_so_many_requests_a_minute_and_then_one_as_often(clock: Clock) -> None:
    quota = QuotaMeter(KeyQuota(requests=6), clock=clock)
    for _ in range(6):
        quota.enter()
    refused = refusal(quota)
    assert "6 requests a minute" in refused.message
    assert refused.headers["Retry-After"] == "10"
    clock.now += 9
    assert refusal(quota).headers["Retry-After"] == "1"
    clock.now += 1.01
    quota.enter()
    refusal(quota)
    clock.now += 3600  # an hour of silence saves up one minute, and not more
    for _ in range(6):
        quota.enter()
    refusal(quota)


def test_tokens_are_reserved_before_the_work_and_settled_after_it(clock: Clock) -> None:
    quota = QuotaMeter(KeyQuota(tokens=60), clock=clock)
    quota.reserve(40)
    with pytest.raises(ApiError) as caught:
        quota.reserve(30)
    assert "60 tokens a minute" in caught.value.message
    assert caught.value.headers["Retry-After"] == "10"
    quota.settle(reserved=40, used=10)
    quota.reserve(30)
    quota.settle(reserved=30, used=120)  # more than was thought: the debt is waited for
    assert refusal(quota).headers["Retry-After"] == "71"  # 70 of debt, and one to spend
    clock.now += 71
    quota.enter()


def test_a_request_of_more_tokens_than_a_minute_has_waits_for_a_whole_minute(clock: Clock) -> None:
    quota = QuotaMeter(KeyQuota(tokens=60), clock=clock)
    quota.reserve(1000)
    quota.settle(reserved=1000, used=30)
    with pytest.raises(ApiError) as caught:
        quota.reserve(1000)
    assert caught.value.headers["Retry-After"] == "30"
    clock.now += 30
    quota.reserve(1000)


def test_a_key_fills_what_it_leaves_free_for_others() -> None:
    buffer = BodyBuffer(100)
    buffer.take("alice", 50)
    with pytest.raises(ApiError, match="queue_bytes") as caught:
        buffer.take("alice", 1)
    assert caught.value.status == 503 and caught.value.headers["Retry-After"] == "1"
    buffer.take("bob", 25)
    with pytest.raises(ApiError):
        buffer.take("bob", 1)
    buffer.leave("alice", 50)
    buffer.take("bob", 25)


def test_so_many_requests_at_once(clock: Clock) -> None:
    quota = QuotaMeter(KeyQuota(concurrent=2), clock=clock)
    quota.enter()
    quota.enter()
    assert "2 requests at once" in refusal(quota).message
    quota.leave()
    quota.enter()


def test_a_refused_request_costs_nothing(clock: Clock) -> None:
    quota = QuotaMeter(KeyQuota(requests=2, concurrent=1), clock=clock)
    quota.enter()
    for _ in range(5):
        refusal(quota)
    quota.leave()
    quota.enter()


def test_no_limit_is_no_limit(clock: Clock) -> None:
    quota = QuotaMeter(KeyQuota(concurrent=None), clock=clock)
    for _ in range(1000):
        quota.enter()
        quota.reserve(10**9)
        quota.settle(reserved=10**9, used=10**9)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5"])
def test_limits_and_bounds_are_whole_numbers_from_one(value: object) -> None:
    for kind, name in ((KeyQuota, "requests"), (ServerLimits, "queue")):
        with pytest.raises(InputError, match=name):
            kind.of({name: value})


def test_an_unknown_limit_or_bound_is_refused_with_what_is_meant() -> None:
    with pytest.raises(InputError, match="did you mean 'requests'"):
        KeyQuota.of({"request": 5})
    with pytest.raises(InputError, match="did you mean 'rows'"):
        ServerLimits.of({"row": 5})


def test_a_store_keeps_what_was_used_last() -> None:
    store: LRUStore[str] = LRUStore(count=2, size=100)
    for name in "abc":
        store.put(name, name.upper(), 1)
        assert store.get("a") == "A"
    assert store.get("b") is None
    assert store.get("a") == "A" and store.get("c") == "C"


def test_a_store_holds_so_much_and_no_more() -> None:
    store: LRUStore[str] = LRUStore(count=100, size=10)
    store.put("a", "A", 4)
    store.put("b", "B", 4)
    store.put("a", "A again", 6)  # the same name takes its place once
    assert store.taken == 10
    store.put("c", "C", 5)
    assert store.get("b") is None and store.get("a") is None
    assert store.taken == 5
