"""Our own service from the command line: what is typed, printed, refused, and never paid."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from lmaas_tune_adapters.lmaas import LMaaSBackend, backend

from lmaas_tune.calls.retry import Retry
from lmaas_tune.cli import main
from lmaas_tune.registry import load_backend
from tests.support.faulty_proxy import FaultyProxy, Reply, Request
from tests.support.server import RawServer, reply
from tests.support.service import ALICE, Site, running
from tests.support.small_models import InspectingToy

ROWS = [(f"{word} film {n}", word) for word in ("great", "awful") for n in range(4)]


@dataclass
class Printed:
    code: int
    out: str
    err: str

    @property
    def content(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Printed]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str) -> Printed:
        code = main(list(argv))
        return Printed(code, *capsys.readouterr())

    return call


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for what is not there."""
    monkeypatch.setattr(backend, "_FREE", Retry(attempts=2, first_wait=0.01))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service of the toy model."""
    with running(folder=tmp_path_factory.mktemp("service")) as site:
        yield site


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with rows and a key."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
    Path("train.jsonl").write_text("\n".join(lines))
    Path("key").write_text(ALICE)
    return tmp_path


def at(url: str) -> list[str]:
    return ["--backend", "lmaas", "--url", url, "--api-key-file", "key"]


def tune(url: str, *more: str) -> list[str]:
    search = ["--budget", "calls=30", "--intrinsic-dim", "6", "--prompt-init", "so very"]
    search += ["--optimizer", "cma"]
    return ["tune", *at(url), "--train", "train.jsonl", *search, *more]


def test_a_prompt_is_tuned_used_and_tested_by_a_service(folder: Path, site: Site, run: Run) -> None:
    tuned = run(*tune(site.url, "--test", "train.jsonl", "--out", "run", "--json"))
    assert tuned.code == 0
    spent = tuned.content["spent"]
    assert spent["calls"] == 28  # the start, and three generations of 9
    assert spent["requests"] == spent["calls"]
    assert 0 < spent["bytes_down"] < 500 * spent["calls"]
    assert 0 < spent["bytes_up"] < 500 * spent["calls"]
    tested = run("evaluate", *at(site.url), "--prompt", "run", "--test", "train.jsonl", "--json")
    assert tested.content["accuracy"] == tuned.content["tuned"]["accuracy"]
    used = run("predict", *at(site.url), "--prompt", "run", "--text", "a great film", "--json")
    assert used.content["predictions"][0]["label"] in ("great", "awful")
    assert used.content["identity"].startswith("lmaas toy ")


def test_the_next_command_that_is_shown_works(folder: Path, site: Site, run: Run) -> None:
    printed = run(*tune(site.url, "--out", "run"))
    command = shlex.split(printed.out.strip().splitlines()[-1])
    assert command[4:10] == at(site.url)
    assert run(*command[1:]).code == 0


def test_the_key_may_come_from_the_environment(
    folder: Path, site: Site, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMAAS_API_KEY", ALICE)
    assert run("doctor", "--backend", "lmaas", "--url", site.url).code == 0


def test_what_is_spent_on_a_service_has_a_price(folder: Path, site: Site, run: Run) -> None:
    limits = ["--price-in", "1", "--price-out", "2", "--budget", "money=0.002", "--json"]
    printed = run(*tune(site.url), *limits)
    assert printed.code == 0
    assert 0.001 < printed.content["spent"]["money"] <= 0.002
    assert "money" in printed.content["stop_reason"]


def test_a_service_gives_the_local_models_prompt(folder: Path, site: Site, run: Run) -> None:
    there = run(*tune(site.url, "--seed", "5", "--json")).content
    here = run(*_local(tune(site.url, "--seed", "5", "--json"))).content
    assert there["best"]["train"]["loss"] == pytest.approx(here["best"]["train"]["loss"], abs=1e-5)


def _local(command: list[str]) -> list[str]:
    return ["tune", "--backend", "toy", *command[7:]]


def test_doctor_asks_a_service_a_question(folder: Path, site: Site, run: Run) -> None:
    printed = run("doctor", *at(site.url))
    assert printed.code == 0
    assert "identity     lmaas toy width=16" in printed.out
    assert "soft prompts of width 16 by concat" in printed.out
    content = run("doctor", *at(site.url), "--json").content
    assert content["probe"]["capabilities"]["point_prompts"] is True


def test_it_is_found_by_its_name() -> None:
    assert load_backend("lmaas") is LMaaSBackend
    summary = (LMaaSBackend.__doc__ or "").splitlines()[0]
    assert summary == "A model that `lmaas-tune serve` runs, here or elsewhere."


# -- what cannot work is told in one sentence, and costs nothing ------------------------------


def sentence(printed: Printed) -> str:
    """The error, which is all there is."""
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert ALICE not in printed.err
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backend", "lmaas"], "the backend 'lmaas' needs a URL: give --url"),
        (["--backend", "lmaas", "--url", "127.0.0.1:8000"], "no URL: give one like http://"),
        (["--backend", "lmaas", "--url", "http://u:p@127.0.0.1"], "holds more than an address"),
        (
            ["--backend", "lmaas", "--url", "http://127.0.0.1:1", "--model", "m"],
            "the backend 'lmaas' takes no model: leave out --model",
        ),
        (
            ["--backend", "toy", "--url", "http://127.0.0.1:1"],
            "the backend 'toy' takes no URL: leave out --url",
        ),
        (
            ["--backend", "toy", "--api-key-file", "key"],
            "the backend 'toy' takes no file with a key: leave out --api-key-file",
        ),
        (
            ["--backend", "lmaas", "--url", "http://127.0.0.1:1", "--api-key-file", "gone"],
            "the API key cannot be read from gone",
        ),
        (
            [
                *("--backend", "lmaas", "--url", "http://127.0.0.1:1"),
                "--api-key-file",
                "sk-" + "x" * 20,
            ],
            "the API key cannot be read from the file that was named for it",
        ),
        (
            ["--backend", "lmaas", "--url", "http://127.0.0.1:1", "--backend-options", "tmeout=1"],
            "the backend 'lmaas' has no option 'tmeout'; did you mean 'timeout'?",
        ),
        (
            ["--backend", "lmaas", "--url", "http://127.0.0.1:1", "--backend-options", "timeout=0"],
            "timeout=0: it takes seconds, more than 0",
        ),
    ],
)
def test_flags_that_do_not_fit_are_named(
    folder: Path, run: Run, flags: list[str], words: str
) -> None:
    printed = run("tune", "--train", "train.jsonl", *flags)
    assert printed.code == 2
    assert words in sentence(printed)


def test_flags_of_a_backend_ask_doctor_for_the_backend(run: Run) -> None:
    for flag in ("--url", "--api-key-file", "--model"):
        printed = run("doctor", flag, "x")
        assert printed.code == 2
        assert f"{flag}" in sentence(printed)
        assert "need --backend" in sentence(printed)


def test_a_dead_service_is_told_in_a_sentence(folder: Path, run: Run) -> None:
    with RawServer(reply()) as server:
        pass
    printed = run(*tune(server.url))
    assert printed.code == 1
    assert f"{server.url}/v1/model cannot be reached" in sentence(printed)


def test_another_server_is_told_in_a_sentence(folder: Path, run: Run) -> None:
    with RawServer(reply(b'{"detail":"Not Found"}', status="404 Not Found")) as server:
        printed = run(*tune(server.url))
    assert printed.code == 1
    assert "answered 404: Not Found; check the URL" in sentence(printed)


def test_a_wrong_key_is_told_in_a_sentence(folder: Path, site: Site, run: Run) -> None:
    Path("key").write_text("a-key-that-nobody-was-given")
    printed = run(*tune(site.url))
    assert printed.code == 1
    assert "give one in a file, with --api-key-file" in sentence(printed)
    assert "a-key-that" not in printed.err


@pytest.mark.parametrize(
    ("bounds", "flags", "code", "words"),
    [
        ({"dimensions": 5}, [], 1, "413: dimensions: 6, and this service takes 5"),
        ({"prompt_length": 1}, [], 1, "413: vectors of the prompt: 2, and this service takes 1"),
        ({"candidates": 1}, [], 2, "scores 1 label words a request and these are 2"),
        ({}, ["--insertion", "add"], 2, "insertion 'add'"),
        ({}, ["--template", "{text}" + " word" * 600 + " {prompt} {label}"], 2, "row 1"),
    ],
)
def test_what_a_service_cannot_do_is_told_before_anything_is_paid(
    folder: Path, run: Run, bounds: dict[str, int], flags: list[str], code: int, words: str
) -> None:
    keys = folder / "keys"
    keys.mkdir()
    with running(InspectingToy(), folder=keys, **bounds) as small:
        printed = run(*tune(small.url, *flags))
        scored = [line for line in small.logged() if "score" in str(line.get("route"))]
    assert (printed.code, scored) == (code, [])
    assert words in sentence(printed)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, 1, "give one in a file, with --api-key-file"),
        (403, 1, "this key may not do that"),
        (404, 1, "check the URL"),
        (413, 1, "shorten the prompt or the texts"),
        (422, 2, "row 3: the words are wrong"),
    ],
)
@pytest.mark.parametrize("route", ["/v1/model", "/v1/batches", "/v1/inspect", "/v1/score"])
def test_a_refusal_ends_a_run_at_once(
    folder: Path, site: Site, run: Run, route: str, status: int, code: int, words: str
) -> None:
    refused: list[Request] = []

    def refuse(request: Request) -> Reply | None:
        if route not in request.path:
            return None
        refused.append(request)
        error = {"code": "no", "message": "row 3: the words are wrong"}
        return Reply(status, {}, json.dumps({"error": error}).encode())

    with FaultyProxy(site.url, share=0.0, answers=refuse) as proxy:
        printed = run(*tune(proxy.url))
    assert printed.code == code
    assert words in sentence(printed)
    assert len(refused) == 1
    assert not [name for name in proxy.answered if "/v1/score" in name]
