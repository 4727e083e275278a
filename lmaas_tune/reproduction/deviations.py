"""In what a table differs from the paper's, in sentences that stand below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lmaas_tune.reproduction.methods import method
from lmaas_tune.reproduction.record import Record

SHOTS = 16
"""Rows a class in the paper."""


def deviations(records: Sequence[Record]) -> list[str]:
    """Of these runs."""
    return list(_deviations(records))


def _deviations(records: Sequence[Record]) -> Iterator[str]:
    models = dict.fromkeys(record.conditions["model"] for record in records)
    yield f"The model is {'; '.join(models)}; the paper's is RoBERTa-large."
    if any(record.conditions["layout"] == "text-first" for record in records):
        yield (
            "The text stands first, then a short prompt that starts from words, in templates of "
            "our own; the paper puts 50 tokens before the text."
        )
    searched = [record for record in records if method(record.method).searches]
    if any(record.conditions["preset"] == "default" for record in searched):
        yield (
            "Black-box rows have this library's defaults: label scores are calibrated on the "
            "training rows, and the lowest validation loss chooses the prompt."
        )
    calls = sorted(record.details["spent"]["calls"] for record in searched if not record.failed)
    if calls:
        most = "" if calls[0] == calls[-1] else f" to {calls[-1]}"
        yield f"They made {calls[0]}{most} calls a run; the paper's 8,000, for DBPedia 20,000."
    few = {record.task: record.conditions["shots"] for record in records}
    for count in sorted({shots for shots in few.values() if shots != SHOTS}):
        tasks = ", ".join(task for task, shots in few.items() if shots == count)
        yield f"Rows a class for {tasks}: {count}, in the paper {SHOTS}."
    yield f"Seeds: {_by_task(records, lambda own: str(len({record.seed for record in own})))}."
    yield f"Test rows: {_by_task(records, lambda own: str(own[0].conditions['test_rows']))}."


def _by_task(records: Sequence[Record], say: Callable[[list[Record]], str]) -> str:
    tasks = dict.fromkeys(record.task for record in records)
    own = {task: [record for record in records if record.task == task] for task in tasks}
    return ", ".join(f"{task} {say(rows)}" for task, rows in own.items())
