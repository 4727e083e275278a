"""A run behind our own service that is killed again and again, by SIGKILL, and resumed each time.

How often is in the environment's KILLS: a few by default; ``make test-kills`` takes 200.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
import requests

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from lmaas_tune import Budget, Client, Pace, Settings, Soft, TunedPrompt, Tuner
from lmaas_tune.journal import FILE_NAME
from tests.support.service import command, listening
from tests.support.waiting import until

KILLS = int(os.environ.get("KILLS", "5"))
WORKERS, ROWS_PER_CALL = 4, 4
TRAIN = [(f"{word} film {n}", word) for word in ("great", "awful") for n in range(6)]
CALLS_A_LIFE = 10  # prompts that are scored between two kills, about
IMPORTED = ["cma", "lmaas_tune.service.server", "lmaas_tune_adapters.lmaas", "pytest"]
"""What takes a process long to begin with."""


def tune(url: str, out: str) -> None:
    """A whole run, in a process of its own."""
    from lmaas_tune_adapters.lmaas import LMaaSBackend

    settings = Settings(
        prompt=Soft(prompt_init="so very", intrinsic_dim=6),
        optimizer_options={"population": 10},
        budget=Budget(calls=CALLS_A_LIFE * (KILLS + 2) // 10 * 10),
    )
    tuner = Tuner(
        Client(LMaaSBackend(url), pace=Pace(workers=WORKERS)),
        "cma",
        settings=settings,
        template="{text} {prompt} {label}",
        callbacks=(),
        out=out,
    )
    tuner.fit(TRAIN, resume=(Path(out) / FILE_NAME).exists())


@dataclass(frozen=True)
class Answered:
    """What the service has answered, by its own count."""

    calls: int
    rows: int
    tokens: int

    def __sub__(self, other: Answered) -> Answered:
        return Answered(
            self.calls - other.calls, self.rows - other.rows, self.tokens - other.tokens
        )


def answered(url: str) -> Answered:
    text = requests.get(f"{url}/metrics", timeout=60).text

    def total(pattern: str) -> int:
        return round(sum(map(float, re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))))

    return Answered(
        total(r'lmaas_requests_total\{.*route="/v1/score.*status="200".*\}'),
        total(r"lmaas_sequences_total\{[^}]*\}"),
        total(r"lmaas_tokens_total\{[^}]*\}"),
    )


def live(processes: BaseContext, url: str, out: Path, *, kill_at: int | None) -> bool:
    """Run, and kill when the journal has so many bytes; whether it came to that."""
    journal = out / FILE_NAME
    process: Any = processes.Process(target=tune, args=(url, str(out)))  # type: ignore[attr-defined]
    process.start()
    try:
        until(
            lambda: (
                process.exitcode is not None
                or (kill_at is not None and journal.exists() and journal.stat().st_size >= kill_at)
            ),
            seconds=300,
        )
    finally:
        process.kill()
        process.join()
    return bool(process.exitcode)


def test_a_run_killed_many_times_ends_as_a_whole_one_and_pays_only_what_was_under_way_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(IMPORTED)
    chance, kills = random.Random(7), 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--backend", "toy", "--bounds", f"rows={ROWS_PER_CALL}", "--json", "--port", "0"]
    with command(*flags, log=tmp_path / "service.log") as service:
        url = listening(service)["url"]
        assert not live(processes, url, whole, kill_at=None)
        of_whole = answered(url)
        step = (whole / FILE_NAME).stat().st_size / (KILLS + 2)
        size = 0.0
        for _ in range(KILLS):
            size += step * chance.uniform(0.1, 1.7)
            kills += live(processes, url, killed, kill_at=int(size))
            size = max(size, (killed / FILE_NAME).stat().st_size)
        assert not live(processes, url, killed, kill_at=None)
        twice = answered(url) - of_whole - of_whole
    with capsys.disabled():
        print(f"\n{kills} kills; the whole run: {of_whole}; paid twice: {twice}")
    assert kills == KILLS
    prompts = [TunedPrompt.load(folder).prompt.digest for folder in (whole, killed)]
    assert prompts[0] == prompts[1]
    assert 0 <= twice.calls <= kills * WORKERS
    assert twice.rows <= kills * WORKERS * ROWS_PER_CALL
