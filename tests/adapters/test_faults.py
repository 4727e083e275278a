"""Runs through a network that fails, services that are killed, and clients that are."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from lmaas_tune_adapters.lmaas import LMaaSBackend, backend

from lmaas_tune import Budget, Client, Settings, Soft, Tuner, TuneResult
from lmaas_tune.backend import ScoreRequest
from lmaas_tune.calls.pace import Pace
from lmaas_tune.calls.retry import Retry
from lmaas_tune.cli import main
from lmaas_tune.errors import TransientError
from lmaas_tune.prompts import PointPrompt, Subspace
from lmaas_tune.task import Batch, Slot
from tests.support.faulty_proxy import KINDS, TRICKLES, FaultyProxy, Request
from tests.support.service import ALICE, Site, command, listening, running
from tests.support.waiting import until

TRAIN = [(f"{word} film {n}", word) for word in ("great", "awful") for n in range(4)]
VALIDATION = [(f"a {text}", label) for text, label in TRAIN[::2]]
CALLS = 240
SEARCH = Settings(
    prompt=Soft(prompt_init="so very", intrinsic_dim=6, projection="normal", alpha=1.0),
    optimizer="cma",
    optimizer_options={"population": 20},
    head="none",
    validation_rows="select",
    averaged=1,
    selection="lowest-loss",
    score_start=False,
    budget=Budget(calls=CALLS),
)
PATIENT = Retry(attempts=30, first_wait=0.002, longest_wait=0.02, total=60.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def key_file(folder: Path) -> Path:
    file = folder / "alice.key"
    file.write_text(ALICE)
    return file


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    """A service of the toy model."""
    with running(folder=folder) as site:
        yield site


@pytest.fixture(scope="module")
def clean(site: Site, key_file: Path) -> TuneResult:
    """The run that nothing happened to."""
    return search(site.url, key_file)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked before a client counts is asked again at once, and often."""
    monkeypatch.setattr(backend, "_FREE", PATIENT)


def search(
    url: str, key_file: Path, *, timeout: float = 10.0, retry: Retry = PATIENT
) -> TuneResult:
    """A run of `CALLS` calls."""
    remote = LMaaSBackend(url, api_key_file=key_file, timeout=timeout)
    client = Client(remote, retry=retry, pace=Pace(workers=4))
    tuner = Tuner(client, settings=SEARCH, template="{text} {prompt} {label}", callbacks=())
    return tuner.fit(TRAIN, VALIDATION)


def essence(result: TuneResult) -> tuple[Any, ...]:
    """All that may not depend on the network."""
    spent = result.spent
    losses = [[evaluation.loss for evaluation in step.evaluations] for step in result.steps]
    return result.prompt.prompt.digest, losses, spent.calls, spent.validation_calls


# -- a network that fails --------------------------------------------------------------------

WAITS = {"429, to wait seconds": 0.01, "429, to wait milliseconds": 0.01, "503": 0.01} | {
    "429, to wait until a date": 0.0
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_answer_is_the_right_one_or_none(kind: str, site: Site, key_file: Path) -> None:
    space = Subspace(start="zero", length=2, dim=3, projection="uniform", alpha=1.0, seed=0)
    rows = Batch(tuple((text, Slot.PROMPT, " ", Slot.LABEL) for text, _ in TRAIN))
    asked = [
        ScoreRequest(PointPrompt(space, np.full(3, z)), rows, ("bad", "good")) for z in (0.0, 1.0)
    ]
    truth = [reply.logprobs for reply in LMaaSBackend(site.url, api_key_file=key_file).score(asked)]
    with FaultyProxy(site.url, share=0.0, kinds=(kind,)) as proxy:
        is_late = kind == "stalled" or kind in TRICKLES
        timeout = 0.5 if is_late else 10.0
        remote = LMaaSBackend(proxy.url, api_key_file=key_file, timeout=timeout)
        remote.score(asked)
        proxy.share = 1.0
        for request, scores in zip(asked, truth, strict=True):
            if kind == "sent twice":
                assert np.array_equal(remote.score([request])[0].logprobs, scores)
                continue
            with pytest.raises(TransientError) as caught:
                remote.score([request])
            assert caught.value.retry_after == WAITS.get(kind)
            assert caught.value.overloaded == (kind in WAITS or is_late)
    assert proxy.met == {kind: 2}


def test_a_fifth_of_all_answers_spoilt_gives_the_clean_runs_prompt(
    clean: TuneResult, site: Site, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultyProxy(site.url, share=0.2) as proxy:
        faulty = search(proxy.url, key_file, timeout=0.3)
    with capsys.disabled():
        print("\n" + proxy.table())
    assert essence(faulty) == essence(clean)
    assert faulty.spent.calls == CALLS
    assert set(proxy.met) == set(KINDS)
    assert faulty.spent.retries > CALLS / 8
    assert faulty.spent.tokens > clean.spent.tokens  # what was damaged on its way was read
    assert faulty.spent.requests >= clean.spent.requests + faulty.spent.retries


# -- a service that is killed ----------------------------------------------------------------


def scored(log: Path) -> int:
    """How many scoring requests a service has answered, by its log."""
    return log.read_bytes().count(b"/v1/score")


def test_a_service_killed_and_started_again_gives_the_clean_runs_prompt(
    clean: TuneResult, key_file: Path, tmp_path: Path
) -> None:
    log = tmp_path / "service.log"
    waits = Retry(attempts=1000, first_wait=0.01, longest_wait=0.1, total=120.0)
    flags = ["--backend", "toy", "--api-key-file", str(key_file), "--json", "--port"]
    with ExitStack() as stack, ThreadPoolExecutor(1) as threads:
        process = stack.enter_context(command(*flags, "0", log=log))
        url = listening(process)["url"]
        run = threads.submit(search, url, key_file, retry=waits)
        until(lambda: scored(log) > CALLS / 4)
        process.send_signal(signal.SIGKILL)
        process.wait()
        listening(stack.enter_context(command(*flags, str(urlsplit(url).port), log=log)))
        result = run.result(120)
    assert essence(result) == essence(clean)
    # calls that were under way when it came may have been paid, and are booked
    most = 4 * clean.spent.tokens // clean.spent.requests
    assert 0 <= result.spent.tokens - clean.spent.tokens <= most
    assert result.spent.retries >= 1


# -- a client that is killed -----------------------------------------------------------------


class Hold:
    """Lets so many scoring requests pass, and hangs up on the others once it is let go.

    Attributes:
        full: Set when the first is held.
    """

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()
        self._go = threading.Event()
        self.full = threading.Event()

    def __call__(self, request: Request) -> bool:
        with self._lock:
            if request.route == "POST /v1/score":
                self._left -= 1
            if self._left >= 0:
                return True
        self.full.set()
        self._go.wait(60)
        return False

    def let_go(self) -> None:
        self._go.set()


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> str:
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    path.write_text("\n".join(lines))
    return str(path)


def test_a_client_killed_and_resumed_pays_nothing_twice(
    site: Site, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, validation = (
        write_rows(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("train", TRAIN), ("validation", VALIDATION))
    )

    def tune(proxy: FaultyProxy, out: str, *more: str) -> list[str]:
        place = ["--backend", "lmaas", "--url", proxy.url, "--api-key-file", str(key_file)]
        rows = ["--train", train, "--validation", validation]
        limits = ["--budget", "calls=120", "--intrinsic-dim", "6", "--prompt-init", "so very"]
        return ["tune", *place, *rows, *limits, "--out", str(tmp_path / out), "--json", *more]

    def paid(proxy: FaultyProxy) -> dict[str, int]:
        return {name: n for name, n in proxy.answered.items() if name.startswith("POST /v1/score")}

    with FaultyProxy(site.url, share=0.0) as proxy:
        assert main(tune(proxy, "whole")) == 0
        whole, paid_by_whole = json.loads(capsys.readouterr().out), paid(proxy)
    assert set(paid_by_whole.values()) == {1}

    hold = Hold(50)
    journal = tmp_path / "killed" / "journal.jsonl"
    with FaultyProxy(site.url, share=0.0, lets_in=hold) as proxy:
        line = [sys.executable, "-m", "lmaas_tune", *tune(proxy, "killed")]
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
            try:
                assert hold.full.wait(60)
                until(lambda: journal.read_bytes().count(b'"part"') == 50)
            finally:
                client.kill()
        hold.let_go()
        proxy.lets_in = lambda _: True
        assert len(paid(proxy)) == 50
        assert main(tune(proxy, "killed", "--resume")) == 0
        resumed, paid_by_both = json.loads(capsys.readouterr().out), paid(proxy)
    assert paid_by_both == paid_by_whole
    assert resumed["prompt_digest"] == whole["prompt_digest"]
    for name in ("calls", "validation_calls", "sequences", "tokens"):
        assert resumed["spent"][name] == whole["spent"][name]
