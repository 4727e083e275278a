"""A dry run tells what the search then takes, for one call."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmaas_tune import Client, Price, Settings, Soft, Text, Tuner, TuneResult
from lmaas_tune.cli import main
from lmaas_tune.plan import Plan
from lmaas_tune.prompts.phrases import BUILT_IN
from lmaas_tune.testing.toy import ToyBackend
from tests.support.small_models import TRAIN, VALIDATION

CASES: dict[str, dict[str, Any]] = {
    "soft prompts": {"settings": Settings(prompt=Soft(intrinsic_dim=8), optimizer="cma")},
    "texts": {"settings": Settings(prompt=Text(), head="bias")},
    "several starts": {"settings": Settings(prompt=Text(prompt_init=("a", "b", BUILT_IN)))},
    "one start": {"settings": Settings(prompt=Text(prompt_init="a"))},
    "no start": {
        "settings": Settings(prompt=Soft(start="vocabulary", prompt_length=4), score_start=False)
    },
    "own validation rows": {
        "settings": Settings(prompt=Text(), validation_rows="select", averaged=1)
    },
}


class Counting(ToyBackend):
    """Keeps its requests."""

    asked: list[Any]

    def score(self, requests: Any, /) -> Any:
        self.asked = [*getattr(self, "asked", []), *requests]
        return super().score(requests)


def both(case: str, budget: str) -> tuple[Plan, TuneResult]:
    """The plan of a case, and what then happens."""

    def tuner(backend: Any) -> Tuner:
        client = Client(backend, price=Price(input=2.0, output=1.0), on_note=lambda note: None)
        return Tuner(client, budget=budget, callbacks=(), **CASES[case])

    backend = Counting()
    plan = tuner(backend).plan(TRAIN, VALIDATION)
    assert len(backend.asked) == 1
    return plan, tuner(ToyBackend()).fit(TRAIN, VALIDATION)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", ["calls=61", "calls=150"])
def test_a_search_takes_no_more_than_the_plan_says(case: str, budget: str) -> None:
    plan, result = both(case, budget)
    assert plan.generations == len(result.steps) - (plan.starts > 0)
    assert plan.total.calls == result.spent.calls
    for name in ("requests", "sequences", "tokens", "money"):
        planned, spent = (getattr(each, name) for each in (plan.total, result.spent))
        assert spent <= planned
        if case == "no start":  # all prompts are of one length, and none is asked for twice
            assert spent == pytest.approx(planned)
    assert plan.reason == result.stop_reason


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", ["tokens=20000", "money=0.04", "sequences=2500"])
def test_other_limits_pay_no_fewer_generations_than_the_plan_says(case: str, budget: str) -> None:
    plan, result = both(case, budget)
    assert plan.generations <= len(result.steps) - (plan.starts > 0)
    assert plan.reason.split(":")[0] == result.stop_reason.split(":")[0]


@pytest.mark.parametrize("rows_per_call", [None, 5, 12])
def test_requests_count_each_part_of_the_rows(rows_per_call: int | None) -> None:
    backend = ToyBackend()
    backend.capabilities = replace(backend.capabilities, rows_per_call=rows_per_call)
    rows = [(f"{word} {n}", word) for word in ("good", "bad") for n in range(16)]
    starts = tuple(f"word {n}" for n in range(16))
    settings = Settings(prompt=Soft(prompt_init=starts, intrinsic_dim=8))
    tuner = Tuner(backend, settings=settings, budget="calls=30", callbacks=())
    assert tuner.plan(rows).total.requests == tuner.fit(rows).spent.requests


def test_a_plan_pays_its_call_even_if_the_cache_has_the_answer(tmp_path: Path) -> None:
    plans = []
    for _ in range(2):
        client = Client(ToyBackend(), cache=tmp_path / "scores.sqlite", price=Price(input=2.0))
        plans.append(Tuner(client, budget="tokens=20000", callbacks=()).plan(TRAIN))
    first, again = (replace(p.total, seconds=0.0) for p in plans)
    assert first == again
    assert plans[1].call.money > 0
    assert plans[1].generations == plans[0].generations


def test_seconds_are_those_of_the_probing_call() -> None:
    class Slow(ToyBackend):
        now = 0.0

        def score(self, requests: Any, /) -> Any:
            Slow.now += 3.0 * len(requests)
            return super().score(requests)

    tuner = Tuner(Slow(), settings=Settings(prompt=Text()), budget="calls=100", callbacks=())
    run = tuner._prepared(TRAIN, None, None)
    run.search._clock = lambda: Slow.now
    plan = run.search.plan()
    assert plan.call.seconds == 3.0
    assert plan.total.seconds == 3.0 * plan.total.calls


def test_a_budget_without_limits_and_a_small_one_are_told() -> None:
    tuner = Tuner(ToyBackend(), settings=Settings(prompt=Text()), budget="patience=3", callbacks=())
    assert "no limit of patience=3 ends it" in tuner.plan(TRAIN).reason
    notes: list[str] = []
    small = Tuner(ToyBackend(), budget="calls=30", callbacks=(), on_note=notes.append)
    assert small.plan(TRAIN).warning in notes
    large = Tuner(ToyBackend(), budget="calls=400", callbacks=(), on_note=notes.append)
    assert large.plan(TRAIN).warning is None


def test_the_command_line_plans_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "label": n}) for t, n in TRAIN))
    command = ["tune", "--backend", "toy", "--train", str(path), "--out", str(tmp_path / "out")]
    command += ["--budget", "calls=200", "--price-in", "3", "--dry-run"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert f"A call scores one prompt on {len(TRAIN)} rows: {len(TRAIN)} rows, " in text
    assert "The search would score 48 starts and 30 generations of 5, at most: " in text
    assert " of money, " in text
    assert "What would end it: budget calls=200: " in text
    assert main([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["total"]["calls"] <= 200
    assert content["warning"] is None
    assert not (tmp_path / "out").exists()
