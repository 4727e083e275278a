"""The paper's table as a kind of experiment: facts that its runs share, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmaas_tune.lab.record import Record
from lmaas_tune.lab.store import Fact, Kind
from lmaas_tune.typed_json import checked


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Number of rows that the model cannot read."""

    train: int = 0
    validation: int = 0
    test: int


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How a run was set up, beside the settings of its method.

    Attributes:
        preset: Settings of the black-box rows.
        shots: Rows a class for training.
        budget: Of each search; None for the preset's.
        words: Stand at ``{prompt}``.
        pretrained: Digest of the prompt that the method starts from.
        source_task: The task of that prompt.
    """

    layout: str
    preset: str
    shots: int
    left_out: LeftOut
    budget: str | None = None
    words: str = ""
    pretrained: str | None = None
    source_task: str | None = None


def conditions_of(record: Record) -> Conditions:
    """The conditions of a run, with their types."""
    found: Conditions = checked(Conditions, record.conditions, "conditions")
    return found


def _facts(record: Record) -> Iterator[Fact]:
    """All runs share the model.

    Runs of a task share test rows and shots; of a task and seed, all rows; of a task and method,
    conditions and settings.
    """
    task, method, seed = record.task, record.method, record.seed
    conditions = dict(record.conditions)
    yield (), "the model", record.identity
    yield (task,), f"the set of test rows of {task!r}", record.rows.get("test")
    yield (task,), f"the number of rows a class of {task!r}", conditions["shots"]
    of_seed = f"of {task!r} with seed {seed}"
    for part in ("train", "validation"):
        yield (task, seed), f"the set of {part} rows {of_seed}", record.rows.get(part)
    yield (task, seed), f"the number of rows left out {of_seed}", conditions.pop("left_out")
    of_method = f"of {method!r} on {task!r}"
    same = {**conditions, "template": record.template, "label words": record.label_words}
    for name in sorted(same):
        yield (task, method), f"the {name} {of_method}", same[name]
    yield (task, method), f"the settings {of_method}", record.settings


def _from_old(content: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a file ``cell.json``."""
    conditions, details = dict(content["conditions"]), dict(content.get("details", {}))
    words, left_out = conditions.pop("label_words", ()), conditions["left_out"]
    drawn = conditions["shots"] * len(words)
    counts = {part: drawn - left_out.get(part, 0) for part in ("train", "validation")}
    counts["test"] = conditions.pop("test_rows")
    score = {"loss": content.get("loss"), "accuracy": content.get("accuracy")}
    failed = content.get("value") is None
    return {
        **content,
        "status": "failed" if failed else "finished",
        "reason": content.get("reason") or details.pop("stop_reason", ""),
        "identity": conditions.pop("model"),
        "template": conditions.pop("template", ""),
        "label_words": {str(number): word for number, word in enumerate(words)},
        "rows": {
            part: {"rows": counts[part], "digest": digest}
            for part, digest in conditions.pop("rows").items()
        },
        "settings": conditions.pop("settings"),
        "conditions": conditions,
        "final": {} if failed else {"test": score},
        "spent": details.pop("spent", {}),
        "wall_seconds": content.get("seconds", 0.0),
        "notes": details.pop("notes", ()),
        "details": details,
    }


TABLE = Kind(
    name="table",
    conditions=Conditions,
    settings=Mapping[str, Any],
    facts=_facts,
    old_name="cell.json",
    from_old=_from_old,
)
