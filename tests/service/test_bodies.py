"""What bodies cost: to read, to refuse, and to keep."""

from __future__ import annotations

import json
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from lmaas_tune.service import bodies
from lmaas_tune.service.errors import ApiError
from lmaas_tune.service.keys import Key
from lmaas_tune.service.model import ServedModel
from lmaas_tune.service.server_limits import MIB, ServerLimits
from lmaas_tune.testing.toy import ToyBackend
from tests.support.service import (
    ALICE,
    MONITOR,
    ROWS,
    WORDS,
    Held,
    Site,
    running,
    text,
)
from tests.support.waiting import DEADLINE, until

LABEL = {"slot": "label"}
KEY = Key(name="alice", digest=b"")


def send(site: Site, body: bytes) -> requests.Response:
    """A batch as these bytes."""
    headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"}
    return requests.post(site.url + "/v1/batches", data=body, headers=headers, timeout=DEADLINE)


@pytest.mark.parametrize(
    "row",
    [
        [*["a"] * 50, LABEL],
        ["a", {"slot": "prompt"}, "b", LABEL, "c"],
        ["x" * 2000, LABEL],
        ["é电🎬" * 100, LABEL],
    ],
    ids=["parts", "slots", "long", "wide"],
)
def test_a_batch_is_accounted_at_what_it_holds(row: list[Any]) -> None:
    rows = [[*row[:-1], LABEL, str(n)] if row[-1] is LABEL else row for n in range(1000)]
    content = json.dumps({"rows": rows, "candidates": list(WORDS)}, ensure_ascii=False).encode()
    model = ServedModel(ToyBackend(), ServerLimits(), ["alice"])
    model.add_batch(KEY, content.replace(b'"bad"', b'"sad"'))  # what is made once, is made
    before = model.registered_bytes
    tracemalloc.start()
    try:
        model.add_batch(KEY, content)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        model.close()
    assert 0.75 * held < model.registered_bytes - before < 1.2 * held + 4096


def test_neighbouring_texts_are_one(tmp_path: Path) -> None:
    with running(folder=tmp_path) as site:
        alice = site.visitor()
        apart = alice.batch([["a ", "gripping ", "film", {"slot": "prompt"}, " It", " was", LABEL]])
        assert apart == alice.batch([["a gripping film", {"slot": "prompt"}, " It was", LABEL]])


@pytest.mark.parametrize(
    "piece", [b'"",', b"1,", b"[],", b"[[],[]],", b'{"slot":"label"},', b'"\\"\\\\",']
)
def test_a_body_of_too_many_values_costs_no_more_than_its_bytes(
    tmp_path: Path, piece: bytes
) -> None:
    body = b'{"candidates":["a"],"rows":[[' + piece * (4 * MIB // len(piece)) + b'"",{}]]}'
    with running(folder=tmp_path) as site:
        send(site, b"{}")
        tracemalloc.start()
        try:
            answer = send(site, body)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert answer.status_code == 413, answer.text
        assert "rows and candidates" in answer.json()["error"]["message"]
    assert most < 6 * len(body)  # sent, received, and a copy or two


def test_punctuation_inside_texts_is_no_value() -> None:
    texts = ["a, b: [c] {d} \\", '"quoted", \\" and \\\\', ",,,," * 100]
    rows = [[words, LABEL] for words in texts]
    content = json.dumps({"rows": rows, "candidates": ["a"]}).encode()
    body = bodies.read(bodies.BATCH, content, values=30)
    assert [row[0] for row in body.rows] == texts
    with pytest.raises(ApiError) as caught:
        bodies.read(bodies.BATCH, content, values=10)
    assert caught.value.code == "too_large"


def test_a_batch_larger_than_all_may_be_is_refused(tmp_path: Path) -> None:
    with running(folder=tmp_path, batch_bytes=10_000) as site:
        alice = site.visitor()
        alice.batch()
        large = {"rows": [["x" * 10_000, LABEL]], "candidates": WORDS}
        answer = alice.post("/v1/batches", large)
        assert answer.status_code == 413 and "batch_bytes" in answer.json()["error"]["message"]
        assert site.visitor(MONITOR).gauge("lmaas_registered_bytes") < 10_000


def test_bodies_are_read_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def read(*given: Any, **more: Any) -> Any:
        names.append(threading.current_thread().name)
        return actual(*given, **more)

    actual = bodies.read
    monkeypatch.setattr(bodies, "read", read)
    with running(folder=tmp_path) as site:
        alice = site.visitor()
        batch = alice.batch()
        alice.subspace()
        alice.post(f"/v1/inspect/{batch}", text("so"))
        alice.post(f"/v1/score/{batch}", text("so " * 40_000))
    assert len(names) == 4 and "http" not in names


def test_bodies_inside_are_bounded_and_leave_room_for_other_keys(tmp_path: Path) -> None:
    backend = Held()
    with (
        running(backend, folder=tmp_path, queue_bytes=4000, prompt_characters=4000) as site,
        ThreadPoolExecutor() as threads,
    ):
        alice, bob = site.visitor(), site.visitor(MONITOR)
        batches = alice.batch(ROWS[:1]), bob.batch(ROWS[:1])
        first = threads.submit(site.visitor().post, f"/v1/score/{batches[0]}", text("x" * 1500))
        until(lambda: backend.begun.is_set(), "a request at work")
        refused = alice.post(f"/v1/score/{batches[0]}", text("y" * 1500))
        assert refused.status_code == 503
        assert "queue_bytes" in refused.json()["error"]["message"]
        second = threads.submit(bob.post, f"/v1/score/{batches[1]}", text("z" * 1000))
        until(lambda: site.visitor(MONITOR).gauge("lmaas_queue") == 1, "bob's request waiting")
        backend.go.set()
        assert first.result().status_code == second.result().status_code == 200
        assert alice.post(f"/v1/score/{batches[0]}", text("y" * 1500)).status_code == 200
