"""Whatever is sent, nothing breaks: by the service's own description, and by chance."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lmaas_tune.prompts import TextPrompt
from lmaas_tune.testing.toy import ToyBackend
from tests.support.service import (
    KEYS,
    MONITOR,
    ROWS,
    SUBSPACE,
    WORDS,
    Visitor,
    command,
    expected,
    listening,
    text,
)
from tests.support.waiting import DEADLINE


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """A visitor to a service that must be alive and well, and have had no fault, at the end."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "keys").write_text(KEYS)
    log = folder / "log"
    flags = ("--backend", "toy", "--port", "0", "--api-key-file", str(folder / "keys"), "--json")
    with command(*flags, "--bounds", "body_seconds=2", log=log) as process:
        visitor = Visitor(listening(process)["url"], MONITOR)
        yield visitor
        got = visitor.score(f"/v1/score/{visitor.batch()}", text("so"))
        np.testing.assert_array_equal(got, expected(ToyBackend(), TextPrompt("so")))
        process.terminate()
        assert process.wait(DEADLINE) == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e for e in events if e["event"] == "fault" or e.get("status", 0) >= 500] == []


def test_its_openapi_is_true_and_nothing_made_from_it_breaks_it(
    monitor: Visitor, tmp_path: Path
) -> None:
    """Every check of schemathesis but one: what a model takes, no schema can say in full."""
    pytest.importorskip("schemathesis", reason="the extra 'dev' is not installed")
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        f'[parameters]\n"path.batch" = "{monitor.batch()}"\n'
        f'"path.subspace" = "{monitor.subspace(dim=1)}"\n'
        "[checks]\npositive_data_acceptance.enabled = false\n"
    )
    printed = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
            *("run", f"{monitor.url}/openapi.json", "-H", f"Authorization: Bearer {MONITOR}"),
            *("--seed", "1", "-n", "15", "--no-color", "--continue-on-failure"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"NO_PROXY": "127.0.0.1"},
    )
    assert printed.returncode == 0, printed.stdout + printed.stderr
    assert "Tested: 9" in printed.stdout


def test_bodies_that_chance_made_are_answered_with_a_reason(monitor: Visitor) -> None:
    chance = random.Random(1)
    batch, subspace = monitor.batch(), monitor.subspace()
    good = {
        "/v1/batches": {"rows": ROWS, "candidates": WORDS},
        "/v1/subspaces": SUBSPACE,
        f"/v1/inspect/{batch}": {"kind": "point", "subspace": subspace},
        f"/v1/score/{batch}": {"kind": "soft", "vectors": "AAAA" * 16, "length": 1},
        f"/v1/score/{batch}/{subspace}": {},
    }
    statuses = set()
    for _ in range(400):
        path, content = chance.choice(list(good.items()))
        body = spoilt(json.dumps(content).encode(), chance)
        kind = chance.choice(["application/json", "application/octet-stream", "text/plain", ""])
        query = chance.choice(["", "?length=1", "?length=%00", "?length=1e9", "?dtype=bfloat16"])
        answer = monitor._session.post(
            monitor.url + path + query,
            data=body,
            headers={"Content-Type": kind},
            timeout=DEADLINE,
        )
        statuses.add(answer.status_code)
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"code", "message"}
    assert statuses >= {200, 201, 400, 422} and max(statuses) < 500


def test_what_is_no_http_is_no_trouble(monitor: Visitor) -> None:
    chance = random.Random(2)
    head = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {MONITOR}\r\n"
    sent = [
        b"",
        b"\0" * 100,
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        head.encode() + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        head.encode() + b"Content-Length: -1\r\n\r\n",
        head.encode() + b"Content-Length: 99999999999999999999\r\n\r\n",
        head.encode() + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nxyz",
        head.encode() + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFF\r\nabc",
        head.encode() + b"Content-Length: 50\r\n\r\n{",  # and no more
        b"GET /v1/model HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
        *(chance.randbytes(chance.randrange(2000)) for _ in range(30)),
    ]
    port = int(monitor.url.rsplit(":", 1)[1])
    for content in sent:
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as connection:
            connection.sendall(content)
    assert monitor.get("/health").status_code == 200


def spoilt(body: bytes, chance: random.Random) -> bytes:
    """The body, or something that was one, or nothing like it."""
    way = chance.randrange(5)
    if way == 0:
        return body
    if way == 1:
        return body[: chance.randrange(len(body))]
    if way == 2:
        return chance.randbytes(chance.choice([0, 1, 16, 64, 1000]))
    place = chance.randrange(len(body))
    if way == 3:
        return body[:place] + bytes([chance.randrange(256)]) + body[place + 1 :]
    piece = chance.choice([b"NaN", b"1e999", b"-1", b"null", b'"\\ud800"', b"[" * 500, b"9" * 5000])
    for digit in (b"4", b"5", b"7", b"1"):
        if digit in body:
            return body.replace(digit, piece, 1)
    return body[:place] + piece + body[place:]
