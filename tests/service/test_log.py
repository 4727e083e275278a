"""The log of a service: its lines, and those that are counted in place of being written."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Any

import pytest

from lmaas_tune.service import log
from tests.support.waiting import DEADLINE


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
    monkeypatch.setattr(log, "_LINES", 2)
    stream = Stream()
    written = log.Log(stream)
    written.write("first")
    assert stream.begun.wait(DEADLINE)  # it is out of the queue
    for number in range(5):
        written.write("event", number=number, nothing=None)
    stream.go.set()
    written.close(DEADLINE)
    assert [line.get("number") for line in stream.lines()] == [None, 0, 1]

    stream = Stream()
    stream.go.set()
    again = log.Log(stream)
    monkeypatch.setattr(log, "_LINES", 0)
    again.write("lost")
    monkeypatch.setattr(log, "_LINES", 2)
    again.write("next")
    again.close(DEADLINE)
    assert [(line["event"], line["dropped"]) for line in stream.lines()] == [("next", 1)]


def test_a_flood_of_one_event_is_a_line_a_second_and_a_count() -> None:
    stream = Stream()
    stream.go.set()
    written = log.Log(stream)
    for _ in range(10):
        written.rarely("flood")
    written.rarely("other")
    written.close(DEADLINE)
    counted = [(line["event"], line.get("before")) for line in stream.lines()]
    assert counted == [("flood", None), ("other", None), ("flood", 9)]


def test_records_of_other_loggers_are_passed_on_without_their_arguments() -> None:
    stream = Stream()
    stream.go.set()
    written = log.Log(stream)
    logger = logging.Logger("foreign")
    logger.addHandler(log.Relay(written))
    try:
        raise ValueError("a secret text")
    except ValueError:
        logger.exception("failed on %s", "a secret text")
    written.close(DEADLINE)
    assert "secret" not in stream.getvalue()
    (line,) = stream.lines()
    assert (line["event"], line["error"]) == ("failed on %s", "ValueError")
