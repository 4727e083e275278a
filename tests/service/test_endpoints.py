"""Every endpoint, asked over a real connection: what it answers, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from lmaas_tune_adapters.http import Endpoint, Key

from lmaas_tune.backend import Capabilities, ScoreRequest
from lmaas_tune.errors import TransientError
from lmaas_tune.prompts import Subspace, TextPrompt
from lmaas_tune.prompts.soft import draw
from lmaas_tune.service.server_limits import ServerLimits
from lmaas_tune.settings import Settings
from lmaas_tune.testing.toy import ToyBackend
from tests.support.service import (
    ALICE,
    BATCH,
    BOB,
    MONITOR,
    ROWS,
    SUBSPACE,
    WORDS,
    Held,
    Site,
    Visitor,
    connected,
    expected,
    raw,
    running,
    scores,
    soft,
    text,
)
from tests.support.waiting import DEADLINE, until

BINARY = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(folder=tmp_path_factory.mktemp("keys")) as site:
        yield site


@pytest.fixture(scope="module")
def alice(site: Site) -> Visitor:
    return site.visitor(ALICE)


@pytest.fixture(scope="module")
def batch(alice: Visitor) -> str:
    return alice.batch()


@pytest.fixture(scope="module")
def subspace(alice: Visitor) -> str:
    return alice.subspace()


def error(answer: requests.Response, status: int, code: str) -> str:
    """The message of a refusal, which has the protocol's shape."""
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert set(content) == {"error"} and set(content["error"]) == {"code", "message"}
    assert content["error"]["code"] == code
    if status in (429, 503):
        assert int(answer.headers["Retry-After"]) >= 1
    return str(content["error"]["message"])


# -- what it answers


def test_health_needs_no_key(site: Site) -> None:
    answer = site.visitor(None).get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_the_model_tells_who_it_is_what_it_can_do_and_within_which_limits(alice: Visitor) -> None:
    content = alice.get("/v1/model").json()
    assert content["protocol"] == 1
    assert content["identity"] == ToyBackend().identity
    assert content["capabilities"] == {
        "soft_prompt_width": 16,
        "insertions": ["concat"],
        "text_prompts": True,
        "point_prompts": True,
        "label_anywhere": True,
        "deterministic": True,
        "max_tokens": 512,
        "words_per_request": 0,
    }
    limits = content["limits"]
    assert limits["rows"] == ServerLimits().rows
    assert limits["dimensions"] == ServerLimits().dimensions
    assert limits["requests"] is None and limits["concurrent"] == 64


def test_registering_again_gives_the_same_id(alice: Visitor) -> None:
    assert alice.batch() == alice.batch()
    assert alice.subspace() == alice.subspace()
    assert len(alice.batch()) == len(alice.subspace()) == 16
    different = [
        alice.batch(),
        alice.batch(ROWS[:2]),
        alice.batch(candidates=WORDS[::-1]),
        alice.batch(candidates=["bad", "good!"]),
        alice.batch(candidates=["bad!", "good"]),
        alice.batch(candidates=["badgood", "!"]),
        alice.subspace(),
        alice.subspace(seed=8),
        alice.subspace(dim=5),
    ]
    assert len(set(different)) == len(different)


def test_a_text_prompt_is_scored_as_the_model_does(alice: Visitor, batch: str) -> None:
    for words in ("so very", "", "naïve café — 電影 🎬"):
        got = alice.score(f"/v1/score/{batch}", text(words))
        np.testing.assert_array_equal(got, expected(ToyBackend(), TextPrompt(words)))


def test_a_soft_prompt_is_scored_as_the_model_does_however_it_comes(
    alice: Visitor, batch: str
) -> None:
    prompt = soft()
    content = {"kind": "soft", "vectors": base64.b64encode(raw(prompt)).decode(), "length": 5}
    wanted = expected(ToyBackend(), prompt)
    np.testing.assert_array_equal(alice.score(f"/v1/score/{batch}", content), wanted)
    np.testing.assert_array_equal(alice.score(f"/v1/score/{batch}?length=5", raw(prompt)), wanted)
    halves = (prompt.vectors.view(np.uint32) >> 16).astype("<u2").tobytes()
    near = alice.score(f"/v1/score/{batch}?length=5&dtype=bfloat16", halves)
    np.testing.assert_allclose(near, wanted, atol=0.02)
    packed = content | {"vectors": base64.b64encode(halves).decode(), "dtype": "bfloat16"}
    np.testing.assert_array_equal(alice.score(f"/v1/score/{batch}", packed), near)


@pytest.mark.parametrize("projection", ["normal", "uniform", "hadamard", "vocabulary"])
@pytest.mark.parametrize("start", ["zero", "words", "vocabulary"])
def test_a_point_is_scored_as_the_soft_prompt_it_stands_for(
    alice: Visitor, batch: str, projection: str, start: str
) -> None:
    content = SUBSPACE | {"projection": projection, "start": start, "words": " it was all"}
    place = np.random.default_rng(5).standard_normal(4).astype(np.float32)
    (prompt,) = draw([Subspace(**content)], ToyBackend()).prompts(place[None])
    there = alice.subspace(**content)
    got = alice.score(f"/v1/score/{batch}/{there}", place.astype("<f4").tobytes())
    np.testing.assert_array_equal(got, expected(ToyBackend(), prompt))
    np.testing.assert_array_equal(got, alice.score(f"/v1/score/{batch}?length=5", raw(prompt)))


def test_a_subspace_around_a_prompt_of_ones_own(alice: Visitor, batch: str) -> None:
    own = Subspace(start=soft(), dim=4, projection="uniform", alpha=1.0, seed=3)
    answer = alice.post("/v1/subspaces", own.to_json())
    assert answer.json() | {"id": ""} == {"id": "", "length": 5, "width": 16}
    path = f"/v1/score/{batch}/{answer.json()['id']}"
    np.testing.assert_array_equal(alice.score(path, bytes(16)), expected(ToyBackend(), soft()))


def test_an_answer_carries_its_digest_and_its_tokens(alice: Visitor, batch: str) -> None:
    answer = alice.post(f"/v1/score/{batch}", text("so very"))
    digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
    assert answer.headers["Content-Digest"] == f"sha-256=:{digest}:"
    (reply,) = ToyBackend().score([ScoreRequest(TextPrompt("so very"), BATCH, WORDS)])
    assert int(answer.headers["Tokens"]) == reply.usage.tokens
    assert answer.headers["Content-Type"] == "application/octet-stream"


def test_an_answer_to_a_key_states_the_model_that_gave_it(
    alice: Visitor, batch: str, site: Site
) -> None:
    digest = hashlib.sha256(ToyBackend().identity.encode()).hexdigest()[:16]
    for answer in (
        alice.get("/v1/words"),
        alice.post("/v1/batches", {"rows": ROWS, "candidates": WORDS}),
        alice.post("/v1/subspaces", SUBSPACE),
        alice.post(f"/v1/inspect/{batch}", text("so")),
        alice.post(f"/v1/score/{batch}", text("so")),
    ):
        assert answer.headers["Model-Digest"] == digest
    assert "Model-Digest" not in site.visitor(None).get("/health").headers


def test_an_answer_keeps_the_nan_of_a_prompt_that_overflowed(tmp_path: Path) -> None:
    class Overflows(ToyBackend):
        def score(self, requests: Any, /) -> Any:
            replies = super().score(requests)
            replies[0].logprobs[1, 0] = np.nan
            return replies

    with running(Overflows(), folder=tmp_path) as site:
        alice = site.visitor()
        got = alice.score(f"/v1/score/{alice.batch()}", text("so"))
    assert np.isnan(got[1, 0]) and np.isfinite(np.delete(got.ravel(), 2)).all()


def test_inspecting_asks_the_model_where_it_can_tell(
    alice: Visitor, batch: str, subspace: str
) -> None:
    for content in (
        text("so very"),
        {"kind": "soft", "vectors": base64.b64encode(raw(soft())).decode(), "length": 5},
        {"kind": "point", "subspace": subspace},
    ):
        answer = alice.post(f"/v1/inspect/{batch}", content)
        assert answer.json() == {"notes": [], "tokens": 0, "sequences": 3}  # the toy cannot tell


def test_a_query_by_its_point_is_small(alice: Visitor, site: Site) -> None:
    batch = alice.batch([["a film of 2 hours", {"slot": "prompt"}, {"slot": "label"}]] * 32)
    there = alice.subspace(dim=500, length=50)
    answer = Endpoint(site.url, key=Key(ALICE)).post(
        f"/v1/score/{batch}/{there}", body=bytes(2000), headers=BINARY
    )
    assert len(answer.content) == 32 * 2 * 4
    assert answer.usage.bytes_up <= 2500
    assert answer.usage.bytes_down <= 500


def test_metrics_count_by_name_of_the_key(alice: Visitor, batch: str, site: Site) -> None:
    monitor = site.visitor(MONITOR)

    def counted() -> dict[str, float]:
        lines = monitor.get("/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def ask() -> tuple[str, str]:
        alice.score(f"/v1/score/{batch}", text("so"))
        error(alice.post("/v1/score/none", text("so")), 404, "unknown_batch")
        route = 'route="/v1/score/{batch}"'
        return (
            f'lmaas_requests_total{{key="alice",{route},status="200"}}',
            f'lmaas_requests_total{{key="alice",{route},status="404"}}',
        )

    names = ask()
    before = counted()
    ask()
    after = counted()
    for name in (*names, "lmaas_pass_requests_count"):
        assert after[name] == before[name] + 1
    sequences = 'lmaas_sequences_total{key="alice"}'
    assert after[sequences] == before[sequences] + 3
    tokens = 'lmaas_tokens_total{key="alice"}'
    (reply,) = ToyBackend().score([ScoreRequest(TextPrompt("so"), BATCH, WORDS)])
    assert after[tokens] == before[tokens] + reply.usage.tokens
    assert after["lmaas_queue"] == 0
    assert after["lmaas_drawn_subspace_bytes"] > 0
    seconds = 'lmaas_request_seconds_count{route="/v1/score/{batch}"}'
    assert after[seconds] == before[seconds] + 2


def test_an_answer_names_the_request_that_it_answers(alice: Visitor, site: Site) -> None:
    def named(path: str, name: bytes, key: str = ALICE) -> str | None:
        headers = {"Request-Id": name, "Authorization": f"Bearer {key}"}
        return requests.get(site.url + path, headers=headers, timeout=DEADLINE).headers.get(
            "Request-Id"
        )

    for path in ("/health", "/v1/model", "/nowhere", "/metrics"):
        assert named(path, b"a-Name-0") == "a-Name-0"
    assert named("/v1/model", b"x" * 64, key="wrong") == "x" * 64
    for odd in (b"", b"x" * 65, b"two words", b"\xff", b"a:b"):
        assert named("/v1/model", odd) is None
    assert "Request-Id" not in alice.get("/v1/model").headers


def test_there_is_no_endpoint_that_gives_more_than_scores(site: Site) -> None:
    paths = site.visitor(None).get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/health",
        "/metrics",
        "/v1/model",
        "/v1/words",
        "/v1/batches",
        "/v1/subspaces",
        "/v1/inspect/{batch}",
        "/v1/score/{batch}",
        "/v1/score/{batch}/{subspace}",
    }


# -- what it refuses


def test_nobody_without_a_key_gets_in(site: Site) -> None:
    for key in (None, "wrong", ALICE + "x"):
        visitor = site.visitor(key)
        for answer in (
            visitor.get("/v1/model"),
            visitor.get("/metrics"),
            visitor.post("/v1/batches", {"rows": ROWS, "candidates": WORDS}),
            visitor.post("/nowhere", b"x" * 100_000),
        ):
            assert "Authorization: Bearer" in error(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    basic = requests.get(site.url + "/v1/model", auth=("alice", ALICE), timeout=DEADLINE)
    error(basic, 401, "unauthorized")


def test_metrics_are_for_those_who_may_read_them(site: Site) -> None:
    assert "metrics=yes" in error(site.visitor(ALICE).get("/metrics"), 403, "forbidden")
    assert site.visitor(MONITOR).get("/metrics").status_code == 200


def test_what_one_key_registered_no_other_has(
    site: Site, alice: Visitor, batch: str, subspace: str
) -> None:
    bob = site.visitor(BOB)
    error(bob.post(f"/v1/score/{batch}/{subspace}", bytes(16)), 404, "unknown_batch")
    error(bob.post(f"/v1/score/{batch}", text("so")), 404, "unknown_batch")
    error(bob.post(f"/v1/inspect/{batch}", text("so")), 404, "unknown_batch")
    own = bob.batch()
    error(bob.post(f"/v1/score/{own}/{subspace}", bytes(16)), 404, "unknown_subspace")
    point = {"kind": "point", "subspace": subspace}
    error(bob.post(f"/v1/inspect/{own}", point), 404, "unknown_subspace")
    bob.subspace()
    assert bob.score(f"/v1/score/{own}/{subspace}", bytes(16)).shape == (3, 2)


def test_paths_and_methods_that_are_not_there(alice: Visitor) -> None:
    error(alice.get("/v1/embeddings"), 404, "not_found")
    error(alice.get("/docs"), 404, "not_found")
    refused = alice.get("/v1/batches")
    error(refused, 405, "method_not_allowed")
    assert refused.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "content",
    [
        b'{"rows": [["a", {"slot": "label"}]], "candidates": ["x"]}',  # as bytes: no JSON
        {},
        [],
        "rows",
        {"rows": ROWS},
        {"rows": [], "candidates": WORDS},
        {"rows": ROWS, "candidates": []},
        {"rows": ROWS, "candidates": [1]},
        {"rows": ROWS, "candidates": WORDS, "label": 1},
        {"rows": [["a", {"slot": "other"}]], "candidates": WORDS},
        {"rows": [["a", {"slot": "label", "x": 1}]], "candidates": WORDS},
        {"rows": [["\ud800", {"slot": "label"}]], "candidates": WORDS},
        {"rows": ROWS, "candidates": WORDS, "\ud800": 1},
    ],
)
def test_what_is_no_batch_is_refused(alice: Visitor, content: Any) -> None:
    assert "openapi.json" in error(alice.post("/v1/batches", content), 400, "bad_request")


@pytest.mark.parametrize(
    "content",
    [
        b'{"rows": [[' + b"1," * 100_000 + b'1]], "candidates": ["a"]}',
        b'{"rows": [' + b"[1]," * 100_000 + b'1], "candidates": ["a"]}',
        b'{"candidates": [' + b"1," * 100_000 + b'1], "rows": [["a"]]}',
        b"{" + b",".join(b'"%d":1' % n for n in range(50_000)) + b"}",
    ],
    ids=["parts", "rows", "words", "names"],
)
def test_of_many_mistakes_one_is_told(site: Site, content: bytes) -> None:
    tracemalloc.start()
    try:
        answer = requests.post(
            site.url + "/v1/batches",
            data=content,
            headers={"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"},
            timeout=DEADLINE,
        )
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(error(answer, 400, "bad_request")) < 1000
    assert most < 50 * len(content)  # what JSON comes to, but no list of all that is wrong


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b'{"rows": NaN}', b"\x80\x04\x95."],
)
def test_what_is_no_json_is_refused(alice: Visitor, body: bytes, site: Site) -> None:
    for path in ("/v1/batches", "/v1/subspaces", "/v1/inspect/x", "/v1/score/x"):
        answer = requests.post(
            site.url + path,
            data=body,
            headers={"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"},
            timeout=DEADLINE,
        )
        error(answer, 400, "bad_request")


@pytest.mark.parametrize(
    "row",
    [["no label"], [{"slot": "label"}, {"slot": "label"}], [{"slot": "prompt"}] * 2, []],
)
def test_a_row_has_one_label_and_one_prompt_at_most(alice: Visitor, row: Any) -> None:
    rows = [*ROWS, row]
    answer = alice.post("/v1/batches", {"rows": rows, "candidates": WORDS})
    assert "row 4" in error(answer, 422, "unprocessable")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"dim": 0}, 400),
        ({"dim": 2.5}, 400),
        ({"alpha": 0}, 400),
        ({"alpha": float("nan")}, 400),
        ({"seed": -1}, 400),
        ({"start": "nowhere"}, 400),
        ({"projection": "identity"}, 400),
        ({"start": {"vectors": "AAA", "length": 1, "insertion": "concat"}}, 400),
        ({"more": 1}, 400),
        ({"start": {"vectors": "AAAAAA==", "length": 1, "insertion": "concat"}}, 422),  # width 1
        ({"start": {"vectors": "AADAfw==", "length": 1, "insertion": "concat"}}, 422),  # NaN
        ({"length": None}, 422),
        ({"start": "words", "words": " "}, 422),
        ({"insertion": "prepend"}, 422),
        ({"insertion": "add"}, 422),
        ({"alpha": 1e300}, 422),
    ],
)
def test_what_is_no_subspace_is_refused(alice: Visitor, changes: Any, status: int) -> None:
    code = {400: "bad_request", 422: "unprocessable"}[status]
    content = json.dumps(SUBSPACE | changes).encode()
    answer = alice._session.post(
        alice.url + "/v1/subspaces",
        data=content,
        headers={"Content-Type": "application/json"},
        timeout=DEADLINE,
    )
    error(answer, status, code)


def test_a_point_is_d_finite_numbers(alice: Visitor, batch: str, subspace: str) -> None:
    path = f"/v1/score/{batch}/{subspace}"
    for content in (b"", bytes(12), bytes(20), bytes(15), np.full(4, np.nan, "<f4").tobytes()):
        error(alice.post(path, content), 400, "bad_request")
    far = np.full(4, 3e38, "<f4").tobytes()
    assert "finite" in error(alice.post(path, far), 422, "unprocessable")
    error(alice.post(path, {"z": [0, 0, 0, 0]}), 400, "bad_request")


def test_raw_vectors_need_their_number_and_all_of_them(alice: Visitor, batch: str) -> None:
    path = f"/v1/score/{batch}"
    assert "?length=" in error(alice.post(path, bytes(64)), 400, "bad_request")
    for query in ("length=0", "length=x", "length=3", "length=1&dtype=float64"):
        error(alice.post(f"{path}?{query}", bytes(64)), 400, "bad_request")
    error(alice.post(f"{path}?length=1", bytes(63)), 400, "bad_request")
    error(alice.post(f"{path}?length=1&insertion=below", bytes(64)), 400, "bad_request")
    # well-formed, but nothing for this model
    error(alice.post(f"{path}?length=1", bytes(60)), 422, "unprocessable")
    error(alice.post(f"{path}?length=1&insertion=prepend", bytes(64)), 422, "unprocessable")
    error(alice.post(f"{path}?length=1&insertion=add", bytes(64)), 422, "unprocessable")


def test_a_row_too_long_for_the_model_is_its_own_senders_trouble(tmp_path: Path) -> None:
    backend = ToyBackend(max_tokens=12)
    with running(backend, folder=tmp_path) as site:
        alice = site.visitor()
        batch = alice.batch()
        with ThreadPoolExecutor(8) as threads:
            long = [threads.submit(ask(site.visitor(), batch, "so " * 9)) for _ in range(4)]
            short = [threads.submit(ask(site.visitor(), batch, "")) for _ in range(4)]
        for answer in long:
            assert "longer" in error(answer.result(), 422, "unprocessable")
        for answer in short:
            np.testing.assert_array_equal(
                scores(answer.result()), expected(backend, TextPrompt(""))
            )


def test_bounds_are_named_where_they_are_passed(tmp_path: Path) -> None:
    with running(
        folder=tmp_path,
        rows=3,
        candidates=2,
        prompt_length=5,
        prompt_characters=10,
        dimensions=6,
        body_bytes=2000,
        subspace_bytes=5000,
    ) as site:
        alice = site.visitor()
        batch = alice.batch()
        path = f"/v1/score/{batch}"
        long = {"start": "words", "words": " a b c d e f", "length": None}
        for answer, name in (
            (alice.post("/v1/batches", {"rows": ROWS * 2, "candidates": WORDS}), "rows"),
            (alice.post("/v1/batches", {"rows": ROWS, "candidates": list("abc")}), "candidates"),
            (alice.post(f"{path}?length=6", bytes(6 * 64)), "prompt_length"),
            (alice.post(path, text("x" * 11)), "prompt_characters"),
            (alice.post("/v1/subspaces", SUBSPACE | {"dim": 7}), "dimensions"),
            (alice.post("/v1/subspaces", SUBSPACE | {"length": 6}), "prompt_length"),
            (alice.post("/v1/subspaces", SUBSPACE | long), "prompt_characters"),
            (alice.post("/v1/subspaces", SUBSPACE | long | {"words": "a b c d e"}), "none"),
            (alice.post(path, b"x" * 2001), "body_bytes"),
        ):
            if name == "none":
                assert answer.status_code == 201
            else:
                assert name in error(answer, 413, "too_large")
        alice.subspace(dim=6)
    with running(folder=tmp_path, subspace_bytes=1000) as site:
        alice = site.visitor()
        answer = alice.post("/v1/subspaces", SUBSPACE)  # 5 x 16 x 4 numbers
        assert "subspace_bytes" in error(answer, 413, "too_large")


def test_a_body_too_large_is_refused_however_it_comes(site: Site, alice: Visitor) -> None:
    large = ServerLimits().body_bytes + 1
    said = error(alice.post("/v1/score/x?length=1", bytes(large)), 413, "too_large")
    assert str(ServerLimits().body_bytes) in said

    def chunks() -> Iterator[bytes]:
        for _ in range(large // 65536 + 1):
            yield bytes(65536)

    answer = alice._session.post(
        alice.url + "/v1/score/x?length=1", data=chunks(), headers=BINARY, timeout=DEADLINE
    )
    error(answer, 413, "too_large")
    assert alice.get("/v1/model").status_code == 200


def test_a_body_that_does_not_arrive_is_not_waited_for(tmp_path: Path) -> None:
    with running(folder=tmp_path, body_seconds=1) as site:
        port = int(site.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as connection:
            connection.sendall(head("POST", "/v1/batches", length=100) + b"{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_model_without_soft_prompts_has_no_subspaces(tmp_path: Path) -> None:
    backend = ToyBackend()
    backend.capabilities = Capabilities(soft_prompt_width=None)
    with running(backend, folder=tmp_path) as site:
        alice = site.visitor()
        answer = alice.post("/v1/subspaces", SUBSPACE)
        assert "no soft prompts" in error(answer, 422, "unprocessable")
        assert alice.get("/v1/model").json()["capabilities"]["point_prompts"] is False


# -- limits and load


def test_a_key_past_its_limit_is_told_when_to_come_again(tmp_path: Path) -> None:
    keys = f"alice {ALICE} requests=3\nbob {BOB} tokens=10\n"
    with running(folder=tmp_path, keys=keys) as site:
        alice, bob = site.visitor(ALICE), site.visitor(BOB)
        batch = alice.batch()
        for _ in range(2):
            alice.score(f"/v1/score/{batch}", text("so"))
        refused = alice.post(f"/v1/score/{batch}", text("so"))
        assert "3 requests a minute" in error(refused, 429, "rate_limited")
        assert 1 <= int(refused.headers["Retry-After"]) <= 20
        bob.score(f"/v1/score/{bob.batch()}", text("so"))
        refused = bob.get("/v1/model")
        assert "10 tokens a minute" in error(refused, 429, "rate_limited")
        assert int(refused.headers["Retry-After"]) > 6  # one token is there again after 6 s
        assert alice.get("/health").status_code == 200


def test_tokens_are_reserved_before_the_work(tmp_path: Path) -> None:
    backend = Held()
    keys = f"alice {ALICE} tokens=600\nmonitor {MONITOR} metrics=yes\n"
    with running(backend, folder=tmp_path, keys=keys) as site, ThreadPoolExecutor(64) as threads:
        batch, monitor = site.visitor().batch(), site.visitor(MONITOR)
        burst = [threads.submit(ask(site.visitor(), batch)) for _ in range(64)]

        def all_are_in_or_refused() -> bool:
            others = monitor.gauge("lmaas_inside") - 1  # than the one that asks this
            return others + sum(answer.done() for answer in burst) == len(burst)

        until(all_are_in_or_refused, "a burst of which the quota lets some in")
        backend.go.set()
        answers = [answer.result() for answer in burst]
    taken = [answer for answer in answers if answer.status_code == 200]
    for answer in answers:
        if answer not in taken:
            assert "600 tokens a minute" in error(answer, 429, "rate_limited")
    assert taken
    assert sum(int(answer.headers["Tokens"]) for answer in taken) <= 600


def test_so_many_words_are_scored_and_the_model_tells_how_many(alice: Visitor) -> None:
    words = [f"word{n}" for n in range(1001)]
    assert alice.get("/v1/model").json()["limits"]["candidates"] == 1000
    assert Settings().head_words < 900  # beside the label words
    assert alice.score(f"/v1/score/{alice.batch(candidates=words[:1000])}", text(""), 1000).size
    answer = alice.post("/v1/batches", {"rows": ROWS, "candidates": words})
    assert "candidates" in error(answer, 413, "too_large")


def ask(visitor: Visitor, batch: str, words: str = "so") -> Callable[[], requests.Response]:
    return lambda: visitor.post(f"/v1/score/{batch}", text(words))


def test_so_many_requests_at_once_of_one_key(tmp_path: Path) -> None:
    backend = Held()
    keys = f"alice {ALICE} concurrent=1\nbob {BOB}\n"
    with running(backend, folder=tmp_path, keys=keys) as site, ThreadPoolExecutor() as threads:
        alice, bob = site.visitor(ALICE), site.visitor(BOB)
        batches = alice.batch(), bob.batch()
        first = threads.submit(ask(alice, batches[0]))
        assert backend.begun.wait(DEADLINE)
        refused = ask(site.visitor(ALICE), batches[0])()
        assert "1 requests at once" in error(refused, 429, "rate_limited")
        other = threads.submit(ask(bob, batches[1]))
        backend.go.set()
        assert first.result().status_code == other.result().status_code == 200


def test_a_full_queue_is_said_with_503(tmp_path: Path) -> None:
    backend = Held()
    with running(backend, folder=tmp_path, queue=1) as site, ThreadPoolExecutor() as threads:
        alice = site.visitor(ALICE)
        batch = alice.batch()
        first = threads.submit(ask(site.visitor(), batch))
        assert backend.begun.wait(DEADLINE)
        waiting = threads.submit(ask(site.visitor(), batch))
        until(lambda: queue(site) == 1, "waiting")
        error(ask(alice, batch)(), 503, "overloaded")
        backend.go.set()
        assert first.result().status_code == waiting.result().status_code == 200


def test_who_waits_too_long_is_sent_away(tmp_path: Path) -> None:
    backend = Held()
    with running(backend, folder=tmp_path, wait_seconds=1) as site, ThreadPoolExecutor() as threads:
        alice = site.visitor(ALICE)
        batch = alice.batch()
        first = threads.submit(ask(site.visitor(), batch))
        assert backend.begun.wait(DEADLINE)
        began = time.monotonic()
        assert "waited 1 s" in error(ask(alice, batch, "late")(), 503, "overloaded")
        assert time.monotonic() - began < 5
        backend.go.set()
        assert first.result().status_code == 200  # what had its turn is answered, however late
        assert prompts(backend) == ["so"]


def test_who_went_away_is_not_computed(tmp_path: Path) -> None:
    backend = Held()
    with running(backend, folder=tmp_path) as site, ThreadPoolExecutor() as threads:
        alice = site.visitor(ALICE)
        batch = alice.batch()
        first = threads.submit(ask(site.visitor(), batch))
        assert backend.begun.wait(DEADLINE)
        port = int(site.url.rsplit(":", 1)[1])
        body = json.dumps(text("gone")).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as connection:
            connection.sendall(
                head("POST", f"/v1/score/{batch}", length=len(body), kind="application/json") + body
            )
            until(lambda: queue(site) == 1, "waiting")
        until(lambda: queue(site) == 0, "leaving the queue")
        until(lambda: [e for e in site.logged() if e.get("status") == 499], "the log's line")
        backend.go.set()
        assert first.result().status_code == 200
        assert prompts(backend) == ["so"]


def test_requests_of_several_keys_share_a_pass(tmp_path: Path) -> None:
    backend = Held()
    with running(backend, folder=tmp_path) as site, ThreadPoolExecutor(16) as threads:
        alice, bob = site.visitor(ALICE), site.visitor(BOB)
        batches = {alice: alice.batch(), bob: bob.batch()}
        first = threads.submit(ask(alice, batches[alice]))
        assert backend.begun.wait(DEADLINE)
        answers = [
            threads.submit(ask(site.visitor(who.key), batches[who], f"words {i}"))
            for i, who in enumerate([alice, bob] * 4)
        ]
        until(lambda: queue(site) == 8, "all waiting")
        backend.go.set()
        for i, answer in enumerate(answers):
            np.testing.assert_array_equal(
                scores(answer.result()), expected(ToyBackend(), TextPrompt(f"words {i}"))
            )
        assert first.result().status_code == 200
        assert [len(call) for call in backend.asked] == [1, 8]


def test_what_was_dropped_is_unknown_and_can_be_registered_again(tmp_path: Path) -> None:
    with running(folder=tmp_path, batches=2, drawn_bytes=3500) as site:
        alice, bob = site.visitor(ALICE), site.visitor(BOB)
        batch, other = alice.batch(), bob.batch()
        alice.batch(ROWS[:1])
        alice.batch(ROWS[:2])
        error(ask(alice, batch)(), 404, "unknown_batch")
        batch = alice.batch()
        assert ask(alice, batch)().status_code == ask(bob, other)().status_code == 200
        # two drawings of 1,600 bytes fit, whoever's they are; a third one drops the first
        first = alice.subspace()
        bob.subspace(seed=1)
        assert alice.score(f"/v1/score/{batch}/{first}", bytes(16)).shape == (3, 2)
        bob.subspace(seed=2)
        bob.subspace(seed=3)
        error(alice.post(f"/v1/score/{batch}/{first}", bytes(16)), 404, "unknown_subspace")
        assert alice.subspace() == first
        assert alice.score(f"/v1/score/{batch}/{first}", bytes(16)).shape == (3, 2)


def test_a_fault_of_the_model_is_told_without_its_words(tmp_path: Path) -> None:
    class Broken(ToyBackend):
        def score(self, requests: Any, /) -> Any:
            raise ZeroDivisionError("the secret text of a row")

    with running(Broken(), folder=tmp_path) as site:
        alice = site.visitor()
        answer = ask(alice, alice.batch())()
        assert "log" in error(answer, 500, "internal")
        assert alice.get("/v1/model").status_code == 200
    (fault,) = (event for event in site.logged() if event["event"] == "fault")
    assert fault["error"] == "ZeroDivisionError" and "score" in fault["at"][-1]
    assert "secret" not in site.log.getvalue()


def test_a_model_that_is_busy_itself_makes_the_service_busy(tmp_path: Path) -> None:
    class Busy(ToyBackend):
        def score(self, requests: Any, /) -> Any:
            raise TransientError("come again", retry_after=7)

    with running(Busy(), folder=tmp_path) as site:
        alice = site.visitor()
        answer = ask(alice, alice.batch())()
        error(answer, 503, "overloaded")
        assert answer.headers["Retry-After"] == "7"


# -- the end, and the log


def test_the_end_refuses_the_new_and_finishes_the_old(tmp_path: Path) -> None:
    backend = Held()
    with running(backend, folder=tmp_path) as site, ThreadPoolExecutor() as threads:
        alice, late = site.visitor(ALICE), site.visitor(BOB)
        batch = alice.batch()
        late.get("/health")  # its connection is open already
        first = threads.submit(ask(site.visitor(), batch))
        assert backend.begun.wait(DEADLINE)
        second = threads.submit(ask(site.visitor(), batch, "waiting"))
        until(lambda: queue(site) == 1, "waiting")
        end = threading.Thread(target=site.service.close)
        end.start()
        until(lambda: late.get("/health").status_code == 503, "refusing")
        assert "stops" in error(late.get("/v1/model"), 503, "overloaded")
        backend.go.set()
        for answer, words in ((first, "so"), (second, "waiting")):
            np.testing.assert_array_equal(
                scores(answer.result()), expected(ToyBackend(), TextPrompt(words))
            )
        end.join(DEADLINE)
        assert not end.is_alive()
        with pytest.raises(requests.ConnectionError):
            site.visitor().get("/health")


def test_a_body_that_never_ends_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with running(folder=tmp_path, grace_seconds=1) as site, connected(site.url) as connection:
        connection.sendall(head("POST", "/v1/batches", length=100) + b"{")
        until(lambda: site.visitor(MONITOR).gauge("lmaas_inside") == 2, "its body being read")
        began = time.monotonic()
        site.service.close()
        assert time.monotonic() - began < 8
        with pytest.raises(requests.ConnectionError):
            site.visitor().get("/health")


def test_after_the_end_nothing_goes_on(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with running(folder=tmp_path) as site:
        alice = site.visitor()
        alice.score(f"/v1/score/{alice.batch()}", text("so"))
    # anyio tells its workers to stop and does not wait for them
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(DEADLINE)
    assert not [thread for thread in left if thread.is_alive()]


def test_who_has_no_key_has_no_body_read(tmp_path: Path) -> None:
    with running(folder=tmp_path) as site:
        address = ("127.0.0.1", int(site.url.rsplit(":", 1)[1]))
        with socket.create_connection(address, timeout=DEADLINE) as connection:
            head = "POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n"
            connection.sendall(head.encode())  # and nothing of the body
            assert b"HTTP/1.1 405" in connection.recv(100)


def test_the_log_holds_no_prompt_no_text_and_no_key(tmp_path: Path) -> None:
    secrets = ["gripping", "marmalade", "bergamot", "quince", ALICE, BOB]
    with running(folder=tmp_path) as site:
        alice = site.visitor(ALICE)
        batch = alice.batch(candidates=["bad", "quince"])
        alice.score(f"/v1/score/{batch}", text("marmalade"))
        alice.get(f"/marmalade?{ALICE}")
        alice.post("/v1/batches", {"rows": [["marmalade"]], "candidates": ["quince"]})
        alice.post("/v1/subspaces", {"marmalade": "quince"})
        alice.post(f"/v1/score/{batch}", text("bergamot " * 600))
        alice.subspace(start="words", words=" bergamot")
        site.visitor(BOB + "quince").get("/v1/model")
        alice._session.request("MARMALADE", site.url + "/v1/model", timeout=DEADLINE)
        with socket.create_connection(("127.0.0.1", int(site.url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(b"marmalade\r\n\r\n")
            assert b" 400 " in connection.recv(100)
    logged = site.log.getvalue()
    assert [secret for secret in secrets if secret.lower() in logged.lower()] == []
    events = site.logged()
    assert {event["event"] for event in events} >= {"listening", "request", "stopping", "stopped"}
    scored = next(e for e in events if e.get("route") == "/v1/score/{batch}")
    assert scored["key"] == "alice" and scored["status"] == 200 and scored["sequences"] == 3


def test_a_log_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    class Stuck(io.StringIO):
        go = threading.Event()

        def write(self, text: str) -> int:
            assert self.go.wait(DEADLINE)
            return super().write(text)

    stuck = Stuck()
    with running(folder=tmp_path, log=stuck) as site:
        visitor = site.visitor()
        for _ in range(50):
            assert visitor.get("/health").status_code == 200
        stuck.go.set()
    assert stuck.getvalue().count("/health") >= 49


# -- small things


def head(method: str, path: str, *, length: int, kind: str = "application/octet-stream") -> bytes:
    """The head of a request by hand."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {ALICE}",
        f"Content-Type: {kind}",
        f"Content-Length: {length}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def queue(site: Site) -> float:
    """How many wait for the model."""
    return site.visitor(MONITOR).gauge("lmaas_queue")


def prompts(backend: Held) -> list[str]:
    """The words that the model was asked about."""
    return [getattr(r.prompt, "text", "") for call in backend.asked for r in call]
