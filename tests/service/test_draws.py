"""Drawing subspaces: in turns, within bounds, for who still waits, and in nobody's way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmaas_tune.prompts import FloatArray, projections
from lmaas_tune.testing.toy import ToyBackend
from tests.support.service import (
    ALICE,
    BOB,
    KEYS,
    MONITOR,
    SUBSPACE,
    Site,
    Visitor,
    command,
    connected,
    listening,
    post,
    running,
)
from tests.support.waiting import DEADLINE, until

LARGE = {"dim": 8192, "projection": "hadamard"}


class Slow(ToyBackend):
    """Gives no word embeddings before it is let go.

    Attributes:
        begun: Set while it is asked for some.
        go: To be set by the test.
        asked: How often it was asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go, self.asked = threading.Event(), threading.Event(), 0

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        self.asked += 1
        self.begun.set()
        assert self.go.wait(DEADLINE)
        return super().embed(token_ids)


@pytest.fixture
def backend() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go.set()


def described(seed: int, **changes: object) -> dict[str, object]:
    return {**SUBSPACE, "projection": "vocabulary", "seed": seed, **changes}


def drawing(site: Site) -> float:
    return site.visitor(MONITOR).gauge("lmaas_draws")


def test_a_key_that_draws_much_holds_up_no_other_key(backend: Slow, tmp_path: Path) -> None:
    with running(backend, folder=tmp_path) as site, ThreadPoolExecutor() as threads:
        alice, bob = site.visitor(ALICE), site.visitor(BOB)
        draws = [threads.submit(site.visitor().post, "/v1/subspaces", described(n)) for n in (1, 2)]
        until(lambda: drawing(site) == 2, "two draws of alice")
        assert backend.begun.wait(DEADLINE)
        bob.batch()
        batch = alice.batch()  # nor her own requests of another kind
        assert alice.post(f"/v1/inspect/{batch}", {"kind": "text", "text": ""}).status_code == 200
        backend.go.set()
        assert [draw.result().status_code for draw in draws] == [201, 201]


def test_a_subspace_that_is_kept_waits_for_no_drawing(backend: Slow, tmp_path: Path) -> None:
    with running(backend, folder=tmp_path) as site, ThreadPoolExecutor() as threads:
        backend.go.set()
        known = site.visitor(BOB).subspace(**described(0))
        backend.go.clear()
        draw = threads.submit(site.visitor().post, "/v1/subspaces", described(1))
        until(lambda: drawing(site) == 1, "a draw of alice")
        assert site.visitor(BOB).subspace(**described(0)) == known
        assert site.visitor(ALICE).subspace(**described(0)) == known
        backend.go.set()
        assert draw.result().status_code == 201


def test_so_many_draws_of_one_key_wait_and_no_more(backend: Slow, tmp_path: Path) -> None:
    with running(backend, folder=tmp_path, draws=2) as site, ThreadPoolExecutor() as threads:
        draws = [threads.submit(site.visitor().post, "/v1/subspaces", described(n)) for n in (1, 2)]
        until(lambda: drawing(site) == 2, "two draws of alice")
        refused = site.visitor().post("/v1/subspaces", described(3))
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        assert "2 requests of this kind" in refused.json()["error"]["message"]
        bobs = threads.submit(site.visitor(BOB).post, "/v1/subspaces", described(4))
        until(lambda: drawing(site) == 3, "a draw of bob")
        backend.go.set()
        assert {draw.result().status_code for draw in [*draws, bobs]} == {201}


def test_a_draw_waits_so_long_and_no_longer(backend: Slow, tmp_path: Path) -> None:
    with running(backend, folder=tmp_path, wait_seconds=1) as site, ThreadPoolExecutor() as threads:
        first = threads.submit(site.visitor().post, "/v1/subspaces", described(1))
        assert backend.begun.wait(DEADLINE)
        refused = site.visitor().post("/v1/subspaces", described(2))
        assert refused.status_code == 503
        assert "waited 1 s" in refused.json()["error"]["message"]
        backend.go.set()
        first.result()
        until(lambda: drawing(site) == 0, "the end of all draws")


def test_a_draw_that_nobody_waits_for_ends(
    backend: Slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projections, "_PART", 1)  # a checkpoint a column
    with running(backend, folder=tmp_path) as site:
        with connected(site.url) as running_one, connected(site.url) as waiting:
            running_one.sendall(post("/v1/subspaces", described(1)))
            assert backend.begun.wait(DEADLINE)
            waiting.sendall(post("/v1/subspaces", described(2)))
            until(lambda: drawing(site) == 2, "two draws")
            running_one.close()
        until(lambda: drawing(site) == 1, "the end of the one that waits")
        backend.go.set()
        until(lambda: drawing(site) == 0, "the end of the one at work")
        assert backend.asked == 1  # of nine times

        def codes() -> list[str]:
            return [event["code"] for event in site.logged() if event.get("status") == 499]

        until(lambda: len(codes()) == 2, "two lines of the log")
        assert codes() == ["client_gone"] * 2


def test_a_subspace_too_large_is_refused_before_it_is_drawn(tmp_path: Path) -> None:
    with running(folder=tmp_path, subspace_bytes=1 << 20) as site:
        answer = site.visitor().post("/v1/subspaces", {**SUBSPACE, **LARGE})
        assert answer.status_code == 413 and "subspace_bytes" in answer.json()["error"]["message"]


def test_draws_that_wait_do_not_hold_up_the_end(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    flags = ("--backend", "toy", "--port", "0", "--api-key-file", str(tmp_path / "keys"), "--json")
    with (
        command(*flags, "--bounds", "grace_seconds=5", log=tmp_path / "log") as process,
        ThreadPoolExecutor(16) as threads,
    ):
        url = listening(process)["url"]
        draws = [
            threads.submit(
                Visitor(url, ALICE).post, "/v1/subspaces", {**SUBSPACE, **LARGE, "seed": n}
            )
            for n in range(16)
        ]
        until(lambda: Visitor(url, MONITOR).gauge("lmaas_draws") >= 8, "draws that wait")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        answers = [draw.result() for draw in draws]
    assert {answer.status_code for answer in answers} <= {201, 503}
    stopped = [answer for answer in answers if answer.status_code == 503]
    assert len(stopped) >= 4
    assert all("stops" in answer.json()["error"]["message"] for answer in stopped)
