"""Key files, and how a key is found."""

from __future__ import annotations

import hashlib
import hmac
import warnings
from pathlib import Path
from typing import Any

import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.service import keys
from lmaas_tune.service.key_quota import DEFAULT_QUOTA, KeyQuota
from lmaas_tune.service.keys import Keyring, read_keys
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
