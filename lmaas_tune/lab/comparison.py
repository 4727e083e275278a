"""The comparison as a kind of experiment: facts that its runs share, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmaas_tune.lab.record import Record
from lmaas_tune.lab.store import Fact, Kind

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    """The conditions that a report reads."""

    budget: str
    objective: str = ""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The settings that a report reads."""

    optimizer: str
    optimizer_options: Mapping[str, Any]


def _facts(record: Record) -> Iterator[Fact]:
    """Runs differ in task, optimizer and seed only."""
    task, method, seed = record.key
    yield (), "the backend", record.identity
    yield (), "the list of conditions", sorted(record.conditions)
    for name in sorted(record.conditions):
        yield (), name, record.conditions[name]
    yield (task,), f"the template of {task!r}", record.template
    yield (task,), f"the label words of {task!r}", record.label_words
    for part in PARTS:
        name = f"the set of {part} rows of {task!r} with seed {seed}"
        yield (task, seed), name, record.rows.get(part)
    for name in ("optimizer", "optimizer_options"):
        yield (None, method), f"the {name} of {method!r}", record.settings.get(name)


def _from_old(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "method": content.get("optimizer")}


COMPARISON = Kind(
    name="comparison",
    conditions=_Conditions,
    settings=_Settings,
    facts=_facts,
    old_name="run.json",
    from_old=_from_old,
)
