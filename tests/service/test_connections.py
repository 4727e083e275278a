"""Connections that are many, slow or silent, and a process without descriptors."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.service import (
    ALICE,
    BOB,
    KEYS,
    Held,
    Site,
    Visitor,
    command,
    connected,
    listening,
    running,
    text,
)
from tests.support.waiting import DEADLINE, until

SPARE = 16  # connections beside those of `connections`
HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"


def ended(connection: socket.socket) -> bool:
    """Whether the service has ended a connection that nothing was answered on."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def drip(connection: socket.socket) -> None:
    """Send one byte of a header after the other, until the service ends it."""
    connection.settimeout(0.05)
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            connection.sendall(b"x")
            if connection.recv(1) == b"":
                return
        except TimeoutError:
            continue
        except ConnectionError:
            return
    raise AssertionError("a dripped head was never given up")


@contextmanager
def many(url: str, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that send nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(connected(url)) for _ in range(count)]


def reasons(site: Site) -> set[str]:
    return {event["why"] for event in site.logged() if event["event"] == "connection_ended"}


@pytest.mark.parametrize("before", [b"", HEAD + b"\r\n"], ids=["first", "second"])
def test_a_head_that_comes_byte_by_byte_is_given_up(tmp_path: Path, before: bytes) -> None:
    with running(folder=tmp_path, head_seconds=1) as site, connected(site.url) as connection:
        if before:
            connection.sendall(before)
            assert b" 200 " in connection.recv(1000)
        connection.sendall(HEAD + b"X: ")
        drip(connection)
        until(lambda: reasons(site) == {"sent no whole head of a request"}, "the log's line")


def test_a_connection_that_sends_nothing_is_given_up(tmp_path: Path) -> None:
    with running(folder=tmp_path, head_seconds=1) as site, many(site.url, 3) as silent:
        assert all(map(ended, silent))
    events = [event for event in site.logged() if event["event"] == "connection_ended"]
    assert sum(1 + event.get("before", 0) for event in events) >= 3
    assert "before" not in events[0] and len(events) <= 3


def test_who_does_not_read_answers_is_given_up(tmp_path: Path) -> None:
    with running(folder=tmp_path, body_seconds=1) as site, connected(site.url) as connection:
        connection.settimeout(0.2)
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100
        with contextlib.suppress(OSError):
            for _ in range(20):
                connection.sendall(asked)
        until(lambda: "did not read its answer" in reasons(site), "giving up")


def test_a_new_connection_takes_the_place_of_the_one_idle_longest(tmp_path: Path) -> None:
    with (
        running(folder=tmp_path, connections=4) as site,
        many(site.url, 3 * (4 + SPARE)) as silent,
    ):
        assert site.visitor(None).get("/health").status_code == 200
        assert ended(silent[0]) and ended(silent[2 * (4 + SPARE)])
        last = silent[-1]
        last.sendall(HEAD + b"\r\n")
        assert b" 200 " in last.recv(1000)
    full = [event for event in site.logged() if event["event"] == "connections_full"]
    assert 1 <= len(full) < 20


def test_a_request_under_way_keeps_its_connection(tmp_path: Path) -> None:
    backend = Held()
    with (
        running(backend, folder=tmp_path, connections=4) as site,
        ThreadPoolExecutor() as threads,
    ):
        alice = site.visitor()
        batch = alice.batch()
        answer = threads.submit(alice.post, f"/v1/score/{batch}", text("so"))
        assert backend.begun.wait(DEADLINE)
        with many(site.url, 3 * (4 + SPARE)):
            assert site.visitor(None).get("/health").status_code == 200
            backend.go.set()
            assert answer.result().status_code == 200


def test_so_many_requests_are_under_way_and_health_beside_them(tmp_path: Path) -> None:
    backend = Held()
    with (
        running(backend, folder=tmp_path, connections=1) as site,
        ThreadPoolExecutor() as threads,
    ):
        alice = site.visitor()
        answer = threads.submit(alice.post, f"/v1/score/{alice.batch()}", text("so"))
        assert backend.begun.wait(DEADLINE)
        refused = site.visitor(BOB).get("/v1/model")
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        assert site.visitor(None).get("/health").status_code == 200
        backend.go.set()
        assert answer.result().status_code == 200


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_without_descriptors_it_lives_and_says_so_once_a_second(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    log = tmp_path / "log"
    flags = ("--backend", "toy", "--port", "0", "--api-key-file", str(tmp_path / "keys"), "--json")
    with command(*flags, log=log) as process:
        url = listening(process)["url"]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (60, 60))
        began = time.monotonic()
        with many(url, 200):
            until(lambda: "no_descriptors" in log.read_text(), "the line that says so")
            assert Visitor(url).get("/health").status_code == 200
            seconds = time.monotonic() - began
        assert Visitor(url, ALICE).batch()
        process.terminate()
        assert process.wait(DEADLINE) == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]  # no traceback
    said = [event for event in events if event["event"] == "no_descriptors"]
    assert said[0]["error"] == "EMFILE"
    assert len(said) <= seconds + 3
    assert len(events) < 100


def test_as_many_connections_as_descriptors_allow(tmp_path: Path) -> None:
    """Fewer than the bound where the process may open fewer files: it never runs out of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with running(folder=tmp_path) as site:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with many(site.url, 200):
                assert site.visitor(None).get("/health").status_code == 200
        full = [event for event in site.logged() if event["event"] == "connections_full"]
        assert full[0]["most"] == 256 - 128 - 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
