"""Key files, the search for a key, quotas by a clock of the test, limits, and the LRU store."""

from __future__ import annotations

import hashlib
import hmac
import warnings
from pathlib import Path
from typing import Any

import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.service import keys
from lmaas_tune.service.errors import ApiError
from lmaas_tune.service.key_quota import DEFAULT_QUOTA, BodyBuffer, KeyQuota, QuotaMeter
from lmaas_tune.service.keys import Keyring, read_keys
from lmaas_tune.service.lru_cache import LRUStore
from lmaas_tune.service.server_limits import ServerLimits
from tests.support.service import ALICE, BOB


def ring(folder: Path, text: str, quota: KeyQuota = DEFAULT_QUOTA) -> Keyring:
    path = folder / "keys"
    path.write_text(text)
    return read_keys(path, quota=quota)


def test_a_line_is_a_key_or_a_name_a_key_and_what_it_may_use(tmp_path: Path) -> None:
    found = ring(
        tmp_path,
        f"# who may come\n\n{ALICE}\nbob {BOB} requests=600 tokens=2000 metrics=yes\n",
        KeyQuota(concurrent=3),
    ).keys
    assert [key.name for key in found] == ["line-3", "bob"]
    assert found[0].quota == KeyQuota(concurrent=3)
    assert found[1].quota == KeyQuota(requests=600, tokens=2000, concurrent=3)
    assert [key.metrics for key in found] == [False, True]


def test_a_name_that_was_forgotten_makes_no_limit_a_key(tmp_path: Path) -> None:
    short = "q3ZtR8wLx0NcVb7Hs2KfYd"
    with pytest.raises(InputError, match="line 1: a name comes first") as caught:
        ring(tmp_path, f"{short} requests=600\n")
    assert short not in str(caught.value)


def test_a_key_is_found_by_itself_and_by_nothing_else(tmp_path: Path) -> None:
    found = ring(tmp_path, f"alice {ALICE}\nbob {BOB}\n")
    assert [getattr(found.find(key), "name", None) for key in (ALICE, BOB)] == ["alice", "bob"]
    for wrong in ("", ALICE[:-1], ALICE + "x", ALICE.upper(), "é", hashlib.sha256(b"").hexdigest()):
        assert found.find(wrong) is None


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    key = ring(tmp_path, f"\ufeff{ALICE}\n").find(ALICE)
    assert key is not None


def test_a_key_may_stand_as_its_digest(tmp_path: Path) -> None:
    digest = hashlib.sha256(ALICE.encode()).hexdigest()
    found = ring(tmp_path, f"alice sha256:{digest}\n")
    key = found.find(ALICE)
    assert key is not None and key.name == "alice"
    assert found.find(f"sha256:{digest}") is None


def test_every_key_is_compared_whichever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    real = hmac.compare_digest

    def compare(one: Any, other: Any) -> bool:
        compared.append(one)
        return real(one, other)

    found = ring(tmp_path, f"alice {ALICE}\nbob {BOB}\n")
    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    for key in (ALICE, BOB, "neither"):
        found.find(key)
    assert len(compared) == 3 * 2


def test_only_digests_are_kept(tmp_path: Path) -> None:
    found = ring(tmp_path, f"alice {ALICE}\n")
    assert ALICE not in repr(found.keys)
    assert ALICE not in str([vars(key) for key in found.keys])
    assert "digest" not in repr(found.keys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"alice {ALICE} request=5", "requests"),
        (f"alice {ALICE} requests", "did you mean"),
        (f"alice {ALICE} requests=0", "from 1"),
        (f"alice {ALICE} requests=many", "'many'"),
        (f"alice {ALICE} tokens=-5", "'-5'"),
        (f"alice {ALICE} metrics=1", "yes or no"),
        (f"al!ce {ALICE}", "a name"),
        (f"{ALICE}{BOB} alice", "a name"),  # the wrong way round: the key is not taken for a name
        ("alice sha256:12ab", "64 hexadecimal"),
        (f"alice é{ALICE}", "ASCII"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_and_no_key_is_quoted(
    tmp_path: Path, line: str, said: str
) -> None:
    with pytest.raises(InputError, match="line 2") as caught:
        ring(tmp_path, f"bob {BOB}\n{line}\n")
    assert said in str(caught.value)
    assert ALICE not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"alice {ALICE}\nalice {BOB}\n", "same name"),
        (f"alice {ALICE}\nbob {ALICE}\n", "'alice' and 'bob' have the same key"),
        ("# nobody yet\n", "no key"),
    ],
)
def test_a_file_that_leaves_doubt_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ring(tmp_path, text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_keys(tmp_path / "nowhere", quota=DEFAULT_QUOTA)
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="odd"):
        read_keys(tmp_path / "odd", quota=DEFAULT_QUOTA)


def test_a_short_key_is_taken_with_a_word_of_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'alice' has 6 characters"):
        assert ring(tmp_path, "alice secret\n").find("secret") is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ring(tmp_path, f"alice {ALICE}\n")


def test_without_keys_anybody_comes_in_as_one() -> None:
    found = Keyring(None, quota=KeyQuota(requests=5))
    for key in ("", ALICE):
        who = found.find(key)
        assert who is not None and who.metrics and who.quota.requests == 5


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
