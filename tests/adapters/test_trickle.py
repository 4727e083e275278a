"""Servers that send an answer slowly and never finish: a call ends at its deadline."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lmaas_tune_adapters.http import Endpoint
from lmaas_tune_adapters.openai import OpenAIBackend

from lmaas_tune import Budget, Client, Pace, Settings, Text, Tuner, TuneResult
from lmaas_tune.backend import Backend, ScoreRequest
from lmaas_tune.calls import client
from lmaas_tune.calls.deadline import Deadline
from lmaas_tune.errors import TransientError
from lmaas_tune.prompts import TextPrompt
from lmaas_tune.task import Batch, Slot
from tests.support.faulty_proxy import TRICKLES, FaultyProxy
from tests.support.openai_server import OpenAIServer, speaker
from tests.support.server import RawServer, Say
from tests.support.waiting import until

BATCH = Batch((("a good film", Slot.PROMPT, " ", Slot.LABEL),))
REQUEST = ScoreRequest(TextPrompt("It was"), BATCH, ("bad", "good"))
TRAIN = [(f"{word} film {n}", word) for word in ("good", "bad") for n in range(4)]
TIMEOUT = 1.5
SOON = 15.0
"""Seconds: far more than the deadlines here, on a busy machine too, and far less than for ever."""


def trickling(trick: str) -> Say:
    first, then = TRICKLES[trick]
    return Say(first, "trickle", then)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def is_late(endpoint: Endpoint, seconds: float, body: bytes = b"{}") -> TransientError:
    """How a request to it ends, which must be by its deadline."""
    with within(SOON), pytest.raises(TransientError) as caught:
        endpoint.post("/v1/x", body=body)
    error = caught.value
    assert str(error) == f"{endpoint.url}/v1/x did not answer within {seconds:g} s"
    assert error.overloaded
    return error


# -- one request -----------------------------------------------------------------------------


@pytest.mark.parametrize("trick", TRICKLES)
def test_a_request_ends_at_its_timeout_whatever_trickles_in(trick: str) -> None:
    with RawServer(trickling(trick)) as server:
        error = is_late(Endpoint(server.url, timeout=0.3), 0.3)
    assert error.usage_unknown  # it was sent, and may have been paid


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, signed by itself; its key is in the file too."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    about = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    places = ["-keyout", f"{file}.key", "-out", str(file)]
    subprocess.run([*made, *about, *places], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.key").read_text())
    return file


@pytest.fixture
def tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of TLS that requests trusts."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("trick", TRICKLES)
def test_an_encrypted_request_ends_at_its_timeout_too(trick: str, tls: ssl.SSLContext) -> None:
    with RawServer(trickling(trick), tls=tls) as server:
        is_late(Endpoint(server.url, timeout=0.6), 0.6)


@pytest.mark.parametrize("trick", TRICKLES)
def test_a_request_through_a_proxy_ends_at_its_timeout_too(
    trick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(trickling(trick)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        is_late(Endpoint("http://provider.invalid", timeout=0.3), 0.3)


@pytest.mark.parametrize("trick", [name for name in TRICKLES if "line" in name or "head" in name])
def test_a_proxy_that_never_ends_its_answer_to_connect_is_late(
    trick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(trickling(trick)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with within(SOON), pytest.raises(TransientError, match=r"within 0\.3 s"):
            Endpoint("https://provider.invalid", timeout=0.3).get("/")


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_server_that_takes_a_body_drop_by_drop_is_late(
    encrypted: bool, request: pytest.FixtureRequest
) -> None:
    context = request.getfixturevalue("tls") if encrypted else None
    with RawServer(b"", unhurried=0.5, tls=context) as server:
        is_late(Endpoint(server.url, timeout=1.0), 1.0, body=bytes(64 * 2**20))


def test_an_answer_in_time_is_whole_though_it_comes_in_drops(tls: ssl.SSLContext) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n"
    for context in (None, tls):
        with RawServer(Say(head, "trickle"), tls=context) as server:
            assert Endpoint(server.url, timeout=30.0).get("/").content == b"." * 30


def test_a_deadline_that_is_brought_forward_ends_the_wait_for_an_answer() -> None:
    asked = threading.Event()

    def silent(_: bytes) -> Say:
        asked.set()
        return Say(b"", "silence")

    deadline = Deadline(3600.0)
    with RawServer(silent) as server, ThreadPoolExecutor(1) as threads:

        def ask() -> None:
            with deadline.applied():
                Endpoint(server.url, timeout=3600.0).get("/")

        with within(SOON):
            asking = threads.submit(ask)
            assert asked.wait(SOON)
            deadline.shorten(0.1)
            with pytest.raises(TransientError, match="did not answer"):
                asking.result()


# -- each backend ----------------------------------------------------------------------------


def openai_backend(stack: ExitStack, tmp_path: Path) -> tuple[FaultyProxy, Callable[[], Backend]]:
    server = stack.enter_context(OpenAIServer(speaker(lambda _: "good")))
    proxy = stack.enter_context(FaultyProxy(server.url.removesuffix("/v1"), share=0.0))
    return proxy, lambda: OpenAIBackend(
        "tiny", url=proxy.url, endpoint="chat", scores="text", timeout=TIMEOUT
    )


def lmaas_backend(stack: ExitStack, tmp_path: Path) -> tuple[FaultyProxy, Callable[[], Backend]]:
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    from lmaas_tune_adapters.lmaas import LMaaSBackend

    from tests.support.service import ALICE, running

    key = tmp_path / "alice.key"
    key.write_text(ALICE)
    site = stack.enter_context(running(folder=tmp_path))
    proxy = stack.enter_context(FaultyProxy(site.url, share=0.0))
    return proxy, lambda: LMaaSBackend(proxy.url, api_key_file=key, timeout=TIMEOUT)


def vllm_backend(stack: ExitStack, tmp_path: Path) -> tuple[FaultyProxy, Callable[[], Backend]]:
    pytest.importorskip("torch", reason="the extra 'vllm' is not installed")
    from lmaas_tune_adapters.vllm import VLLMBackend

    from tests.support import models
    from tests.support.vllm_server import StandIn

    server = stack.enter_context(StandIn(models.build("llama", tmp_path / "llama")))
    proxy = stack.enter_context(FaultyProxy(server.url, share=0.0))
    return proxy, lambda: VLLMBackend(proxy.url, server.folder, timeout=TIMEOUT)


@pytest.mark.parametrize("made", [lmaas_backend, openai_backend, vllm_backend])
def test_every_backend_ends_a_call_at_its_timeout(made: Any, tmp_path: Path) -> None:
    with ExitStack() as stack:
        proxy, make = made(stack, tmp_path)
        backend = make()
        backend.score([REQUEST])
        proxy.share, proxy.kinds = 1.0, tuple(TRICKLES)

        def is_late(number: int) -> None:
            with pytest.raises(TransientError, match=r"did not answer within 1.5 s"):
                backend.score([replace(REQUEST, prompt=TextPrompt(f"It was {number}"))])

        with within(TIMEOUT + SOON), ThreadPoolExecutor(30) as threads:
            list(threads.map(is_late, range(30)))
    assert set(proxy.met) == set(TRICKLES)


# -- a run -----------------------------------------------------------------------------------


@pytest.fixture
def turncoat() -> Iterator[FaultyProxy]:
    """Before a server whose answers a test may spoil from some moment on."""
    with (
        OpenAIServer(speaker(lambda text: "good" if "good" in text else "bad")) as server,
        FaultyProxy(server.url.removesuffix("/v1"), share=0.0, kinds=tuple(TRICKLES)) as proxy,
    ):
        yield proxy


def fit(proxy: FaultyProxy, budget: Budget) -> TuneResult:
    """A run whose calls may take an hour each."""
    backend = OpenAIBackend("tiny", url=proxy.url, endpoint="chat", scores="text", timeout=3600.0)
    tuner = Tuner(
        Client(backend, pace=Pace(workers=4)),
        "random",
        settings=Settings(prompt=Text(prompt_init=("it was",)), budget=budget),
        template="{text} {prompt} {label}",
        callbacks=(),
    )
    return tuner.fit(TRAIN)


def spoil_after(proxy: FaultyProxy, count: int, then: Callable[[], None] = lambda: None) -> None:
    """Let so many questions pass, and spoil the others."""
    left = [count]

    def lets_in(_: object) -> bool:
        left[0] -= 1
        if left[0] == 0:
            proxy.share = 1.0
        elif left[0] == -3:
            then()
        return True

    proxy.lets_in = lets_in


def test_a_run_ends_by_its_seconds_though_answers_begin_to_trickle(turncoat: FaultyProxy) -> None:
    seconds = 2 * TIMEOUT  # a loaded machine still answers twenty questions within
    spoil_after(turncoat, 20)
    with within(seconds + SOON):
        result = fit(turncoat, Budget(seconds=seconds))
    assert result.stop_reason.startswith(f"budget seconds={seconds:g}: ")
    assert result.spent.seconds < seconds + SOON / 3
    until(lambda: sum(turncoat.met.values()) >= 4, "the end of the trickling answers")


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals there")
def test_ctrl_c_ends_a_run_whose_answers_trickle(
    turncoat: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_GRACE_PERIOD", 0.2)
    spoil_after(turncoat, 100, then=lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with within(SOON), pytest.warns(UserWarning, match="interrupt again to drop them"):
            result = fit(turncoat, Budget(calls=10_000))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupt" in result.stop_reason


# -- a proxy that is not there ---------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_proxy_is_named_without_its_password(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    monkeypatch.setenv(f"{scheme}_proxy", f"http://me:hunter2@127.0.0.1:{port}")
    with pytest.raises(TransientError) as caught:
        Endpoint(f"{scheme}://provider.invalid").get("/v1/x")
    said = str(caught.value)
    assert said.startswith(f"the proxy http://127.0.0.1:{port} gives no connection to {scheme}://")
    assert "refused" in said
    assert "hunter2" not in said
    assert not caught.value.usage_unknown  # nothing was sent
