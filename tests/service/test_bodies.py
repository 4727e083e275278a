"""Bodies: their numbers and JSON, and the cost of reading, refusing and storing them."""

from __future__ import annotations

import base64
import json
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import SoftPrompt, Subspace, TextPrompt
from lmaas_tune.prompts.projections import PROJECTIONS
from lmaas_tune.service import bodies, wire
from lmaas_tune.service.errors import ApiError
from lmaas_tune.service.keys import Key
from lmaas_tune.service.model import ServedModel
from lmaas_tune.service.server_limits import MIB, ServerLimits
from lmaas_tune.testing.toy import ToyBackend
from tests.support.service import (
    ALICE,
    MONITOR,
    ROWS,
    SUBSPACE,
    WORDS,
    Held,
    Site,
    raw,
    running,
    soft,
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


arrays = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32))


@given(arrays)
def test_float32_comes_out_as_it_went_in(numbers: np.ndarray) -> None:
    got = wire.floats(numbers.astype("<f4").tobytes(), "float32")
    np.testing.assert_array_equal(got, numbers)


@given(hnp.arrays(np.uint16, 20))
def test_bfloat16_is_the_upper_half_of_a_float32(halves: np.ndarray) -> None:
    got = wire.floats(halves.astype("<u2").tobytes(), "bfloat16")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), halves.astype(np.uint32) << 16)


def test_bfloat16_means_what_torch_means_by_it() -> None:
    torch = pytest.importorskip("torch")
    numbers = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = wire.floats(numbers.view(torch.int16).numpy().astype("<i2").tobytes(), "bfloat16")
    np.testing.assert_array_equal(got, numbers.float().numpy())


def test_base64_and_raw_vectors_are_the_same_prompt() -> None:
    prompt = soft()
    content = {
        "kind": "soft",
        "vectors": base64.b64encode(raw(prompt)).decode(),
        "length": 5,
    }
    read = bodies.read(bodies.PROMPT, json.dumps(content).encode(), values=100).prompt()
    assert read.digest == prompt.digest
    direct = wire.soft_prompt(raw(prompt), "float32", length=5, insertion="concat")
    assert direct.digest == prompt.digest


def test_a_text_prompt_keeps_every_character() -> None:
    text = ' naïve\n电影 "🎬"\0'
    content = json.dumps({"kind": "text", "text": text}).encode()
    assert bodies.read(bodies.PROMPT, content, values=100).prompt() == TextPrompt(text)


@pytest.mark.parametrize(
    "subspace",
    [
        Subspace(start="words", words=" it was", dim=3, projection="normal", alpha=0.5, seed=1),
        Subspace(
            start=SoftPrompt(np.ones((2, 3)), "add", (4, 5)),
            insertion="add",
            dim=3,
            projection="uniform",
            alpha=1.0,
            seed=2**63,
        ),
    ],
)
def test_a_subspace_is_the_same_on_both_sides(subspace: Subspace) -> None:
    content = json.dumps(subspace.to_json()).encode()
    read = bodies.read(bodies.SUBSPACE, content, values=100)
    assert asdict(read) == subspace.to_json()
    assert read.subspace().digest == subspace.digest


def test_every_projection_of_the_core_can_be_asked_for() -> None:
    for name in PROJECTIONS:
        content = json.dumps(SUBSPACE | {"projection": name}).encode()
        assert bodies.read(bodies.SUBSPACE, content, values=100).projection == name


def test_scores_leave_as_little_endian_float32_row_by_row() -> None:
    content = wire.float_bytes(np.array([[-1.0, -2.0], [np.nan, -4.0]]))
    assert content == np.array([-1, -2, np.nan, -4], "<f4").tobytes()
    assert wire.content_digest(b"") == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'{"kind": "text"}',
        b'{"kind": "text", "text": 5}',
        b'{"kind": "text", "text": "a", "more": 1}',
        b'{"kind": "text", "text": "\\ud800"}',
        b'{"kind": "other", "text": "a"}',
        b'{"kind": "soft", "vectors": "AAAA", "length": 1}',  # 3 bytes
        b'{"kind": "soft", "vectors": "AAAAAA==", "length": 0}',
        b'{"kind": "soft", "vectors": "AAAAAA==", "length": 2}',
        b'{"kind": "soft", "vectors": "AAAAAA==", "length": "1"}',
        b'{"kind": "soft", "vectors": "AAAAAA==", "length": 1, "dtype": "float64"}',
        b'{"kind": "soft", "vectors": "A!AAAA==", "length": 1}',
        b'{"kind": "soft", "vectors": "\xc3\xa9", "length": 1}',
        b'{"kind": "soft", "vectors": "", "length": 1}',
        b"\x80\x04\x95",  # a pickle
    ],
)
def test_what_is_no_prompt_is_refused(content: bytes) -> None:
    with pytest.raises((ApiError, wire.MalformedError)) as caught:  # each is answered by 400
        bodies.read(bodies.PROMPT, content, values=100).prompt()
    assert getattr(caught.value, "status", 400) == 400


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_vectors_and_points_are_finite(wrong: float) -> None:
    content = np.array([1, wrong], "<f4").tobytes()
    with pytest.raises(wire.MalformedError, match="finite"):
        wire.point(content, 2)
    with pytest.raises(InputError, match="finite"):
        wire.soft_prompt(content, "float32", length=1, insertion="concat")
