"""``lmaas-tune serve`` as a process: its start, refusals, end, and log."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from lmaas_tune.cli import main
from lmaas_tune.prompts import TextPrompt
from lmaas_tune.service import log as service_log
from lmaas_tune.testing.toy import ToyBackend
from tests.support.process import free_port
from tests.support.service import (
    ALICE,
    KEYS,
    MONITOR,
    Visitor,
    command,
    expected,
    listening,
    running,
    text,
)
from tests.support.waiting import DEADLINE, until

TOY = ("--backend", "toy")


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    path.write_text(KEYS)
    return str(path)


def test_it_says_where_it_listens_and_stops_cleanly(tmp_path: Path, keys: str) -> None:
    log = tmp_path / "log"
    for stop in (signal.SIGTERM, signal.SIGINT):
        with command(*TOY, "--port", "0", "--api-key-file", keys, log=log) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith("listening on http://127.0.0.1:")
            alice = Visitor(said.split()[-1], ALICE)
            got = alice.score(f"/v1/score/{alice.batch()}", text("so"))
            np.testing.assert_array_equal(got, expected(ToyBackend(), TextPrompt("so")))
            process.send_signal(stop)
            assert process.wait(DEADLINE) == 0
            assert process.stdout.read() == "stopped\n"
    events = [json.loads(line) for line in log.read_text().splitlines()]  # JSON, all of it
    assert [event["event"] for event in events].count("stopped") == 2


def test_with_json_a_script_reads_one_object(tmp_path: Path, keys: str) -> None:
    port = free_port()
    flags = (*TOY, "--port", str(port), "--api-key-file", keys, "--json")
    with command(*flags, log=tmp_path / "log") as process:
        content = listening(process)
        assert content == {
            "url": f"http://127.0.0.1:{port}",
            "identity": ToyBackend().identity,
            "keys": ["alice", "bob", "monitor"],
        }
        process.terminate()
        assert process.wait(DEADLINE) == 0
        assert process.stdout is not None and process.stdout.read() == ""


def test_limits_bounds_and_options_reach_the_service(tmp_path: Path, keys: str) -> None:
    flags = (
        *(*TOY, "--backend-options", "width=8"),
        *("--limits", "requests=5,concurrent=2", "--bounds", "rows=7"),
        *("--port", "0", "--api-key-file", keys, "--json"),
    )
    with command(*flags, log=tmp_path / "log") as process:
        content = Visitor(listening(process)["url"], ALICE).get("/v1/model").json()
    assert content["capabilities"]["soft_prompt_width"] == 8
    assert content["limits"]["rows"] == 7
    assert (content["limits"]["requests"], content["limits"]["concurrent"]) == (5, 2)


def test_without_keys_it_serves_this_machine_and_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with command(*TOY, "--port", "0", "--json", log=log) as process:
        content = listening(process)
        assert content["keys"] is None
        anybody = Visitor(content["url"])
        assert anybody.get("/v1/model").status_code == 200
        assert anybody.get("/metrics").status_code == 200
    assert "everybody on this machine may use" in log.read_text()


def test_killed_and_started_again_it_knows_nothing_of_before(tmp_path: Path, keys: str) -> None:
    flags = (*TOY, "--port", str(free_port()), "--api-key-file", keys, "--json")
    log = tmp_path / "log"
    with command(*flags, log=log) as process:
        alice = Visitor(listening(process)["url"], ALICE)
        batch, subspace = alice.batch(), alice.subspace()
        paths = (f"/v1/score/{batch}/{subspace}", bytes(16)), (f"/v1/score/{batch}", text("so"))
        before = [alice.score(*path) for path in paths]
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
        with pytest.raises(requests.ConnectionError):
            alice.get("/health")
    with command(*flags, log=log) as process:
        listening(process)
        for path in paths:
            answer = alice.post(*path)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "unknown_batch"
        assert alice.batch() == batch
        answer = alice.post(*paths[0])
        assert answer.json()["error"]["code"] == "unknown_subspace"
        assert alice.subspace() == subspace
        for path, scores in zip(paths, before, strict=True):
            np.testing.assert_array_equal(alice.score(*path), scores)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--host", "0.0.0.0"), "--api-key-file"),
        (("--host", "no.such.host.invalid", "--api-key-file", "KEYS"), "cannot listen on"),
        (("--port", "70000"), "cannot listen on"),
        (("--bounds", "row=1"), "did you mean 'rows'"),
        (("--bounds", "rows=0"), "from 1"),
        (("--limits", "requests=x"), "from 1"),
        (("--api-key-file", "nowhere"), "nowhere"),
        (("--model", "x"), "takes no model"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(
    capsys: pytest.CaptureFixture[str], keys: str, flags: tuple[str, ...], said: str
) -> None:
    given = [keys if flag == "KEYS" else flag for flag in flags]
    assert main(["serve", *TOY, "--port", "0", *given]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ") and said in errors[-1]


def test_a_port_that_is_taken_shows_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with command(*TOY, "--port", "0", "--json", log=tmp_path / "log") as process:
        port = listening(process)["url"].rsplit(":", 1)[1]
        assert main(["serve", "--model", "nowhere", "--port", port]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "lmaas_tune.service.server", raising=False)
    assert main(["serve", *TOY]) == 2
    assert "pip install 'lmaas-tune[serve]'" in capsys.readouterr().err


def test_the_core_does_not_know_the_service() -> None:
    code = (
        "import sys, lmaas_tune.cli, lmaas_tune_adapters.http;"
        "print([m for m in sys.modules if m.split('.')[0] in ('fastapi', 'uvicorn', "
        "'prometheus_client', 'pydantic', 'cachetools') or m.startswith('lmaas_tune.service')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout == "[]\n"


def test_the_client_needs_nothing_of_the_extra() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(['cachetools', 'fastapi', 'prometheus_client', "
        "'pydantic', 'starlette', 'uvicorn']);"
        "import lmaas_tune_adapters.lmaas; print('imported')"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout == "imported\n", printed.stderr


def test_stopping_waits_for_what_runs(tmp_path: Path, keys: str) -> None:
    """What was taken on when the signal comes is answered in full, and what waits hears of it."""
    log = tmp_path / "log"
    flags = (*TOY, "--port", "0", "--api-key-file", keys, "--json")
    rows = [["word " * 200, {"slot": "prompt"}, {"slot": "label"}]] * 1000  # long enough to be seen
    with command(*flags, log=log) as process:
        url = listening(process)["url"]
        path = f"/v1/score/{Visitor(url, ALICE).batch(rows)}"
        answers: list[requests.Response] = []

        def ask() -> None:
            answers.append(Visitor(url, ALICE).post(path, text("so")))

        asking = [threading.Thread(target=ask) for _ in range(12)]
        for thread in asking:
            thread.start()
        monitor = Visitor(url, MONITOR)

        def all_are_in_and_some_wait() -> bool:
            metrics = monitor.get("/metrics").text

            def number(name: str) -> float:
                return sum(map(float, re.findall(rf"^{name} (.+)$", metrics, re.M)))

            answered = number(r"lmaas_requests_total\{.*score.*\}")
            others = number("lmaas_inside") - 1  # than the one that asks this
            return others + answered == len(asking) and number("lmaas_queue") > 0

        until(all_are_in_and_some_wait, "a queue of all that ask")
        process.terminate()
        assert process.wait(DEADLINE) == 0
        for thread in asking:
            thread.join(DEADLINE)
    codes = [answer.status_code for answer in answers]
    assert len(codes) == len(asking)
    assert set(codes) <= {200, 503}
    assert codes.count(200) >= 2


def test_a_signal_does_not_make_it_forget_that_it_runs(tmp_path: Path) -> None:
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever ran before in this process
    with running(folder=tmp_path) as site:
        signal_comes = threading.Timer(0.05, signal.pthread_kill, (main_thread, signal.SIGINT))
        signal_comes.start()
        with pytest.raises(KeyboardInterrupt):
            site.service.wait()
    assert "http" not in {thread.name for thread in threading.enumerate()}


class Stream(io.StringIO):
    """Takes no line before it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.begun.set()
        assert self.go.wait(DEADLINE)
        return super().write(text)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


def test_lines_without_room_are_counted_in_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_log, "_LINES", 2)
    stream = Stream()
    written = service_log.Log(stream)
    written.write("first")
    assert stream.begun.wait(DEADLINE)  # it is out of the queue
    for number in range(5):
        written.write("event", number=number, nothing=None)
    stream.go.set()
    written.close(DEADLINE)
    assert [line.get("number") for line in stream.lines()] == [None, 0, 1]

    stream = Stream()
    stream.go.set()
    again = service_log.Log(stream)
    monkeypatch.setattr(service_log, "_LINES", 0)
    again.write("lost")
    monkeypatch.setattr(service_log, "_LINES", 2)
    again.write("next")
    again.close(DEADLINE)
    assert [(line["event"], line["dropped"]) for line in stream.lines()] == [("next", 1)]


def test_a_flood_of_one_event_is_a_line_a_second_and_a_count() -> None:
    stream = Stream()
    stream.go.set()
    written = service_log.Log(stream)
    for _ in range(10):
        written.rarely("flood")
    written.rarely("other")
    written.close(DEADLINE)
    counted = [(line["event"], line.get("before")) for line in stream.lines()]
    assert counted == [("flood", None), ("other", None), ("flood", 9)]


def test_records_of_other_loggers_are_passed_on_without_their_arguments() -> None:
    stream = Stream()
    stream.go.set()
    written = service_log.Log(stream)
    logger = logging.Logger("foreign")
    logger.addHandler(service_log.Relay(written))
    try:
        raise ValueError("a secret text")
    except ValueError:
        logger.exception("failed on %s", "a secret text")
    written.close(DEADLINE)
    assert "secret" not in stream.getvalue()
    (line,) = stream.lines()
    assert (line["event"], line["error"]) == ("failed on %s", "ValueError")
