"""Differences between a table and the paper's, in sentences below the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lmaas_tune.lab.paper.cell import conditions_of
from lmaas_tune.lab.paper.methods import method
from lmaas_tune.lab.paper.tasks import paper_task
from lmaas_tune.lab.record import Record

SHOTS = 16
"""Rows a class in the paper."""


def deviations(records: Sequence[Record]) -> list[str]:
    """The differences of these runs, a sentence each."""
    return list(_deviations(records))


def _deviations(records: Sequence[Record]) -> Iterator[str]:
    models = dict.fromkeys(record.identity for record in records)
    yield f"The model is {'; '.join(models)}; the paper's is RoBERTa-large."
    if any(conditions_of(record).layout == "text-first" for record in records):
        yield (
            "The text stands first, then a short prompt that starts from words, in templates of "
            "our own; the paper puts 50 tokens before the text."
        )
    searched = [record for record in records if method(record.method).searches]
    if any(conditions_of(record).preset == "default" for record in searched):
        yield (
            "Black-box rows have this library's defaults: label scores are calibrated on the "
            "training rows, and the lowest validation loss chooses the prompt."
        )
    if any(conditions_of(record).preset == "paper-icml22" for record in searched):
        yield (
            "The paper does not give the first step of CMA-ES; it is 0.5 here, as in the reference "
            "code of that year."
        )
    if any(conditions_of(record).preset == "repo-head" for record in searched):
        yield (
            "Black-box rows have the settings of the reference code as it stood last, not the "
            "paper's: a normal projection, no bounds, a first step of 1."
        )
    calls = sorted(int(r.spent["calls"]) for r in searched if r.spent)
    if calls:
        most = "" if calls[0] == calls[-1] else f" to {calls[-1]}"
        yield f"They made {calls[0]}{most} calls a run; the paper's 8,000, for DBPedia 20,000."
    by_gradient = dict.fromkeys(
        method(record.method).title.removeprefix("  + ")
        for record in records
        if "learning_rate" in record.settings
    )
    if by_gradient:
        yield (
            f"{', '.join(by_gradient)}: learning rates, epochs and sizes are this library's, for "
            "few rows on a small model; docs/baselines.md has them."
        )
    sources = {
        record.task: source
        for record in records
        if (source := conditions_of(record).source_task) is not None
    }
    for source in sorted(set(sources.values())):
        tasks = ", ".join(task for task, own in sources.items() if own == source)
        yield f"The pre-trained prompt for {tasks} was made on {source}, the paper's on MNLI."
    if sources and any(conditions_of(record).layout == "paper" for record in records):
        yield (
            "A pre-trained prompt enters as all prompts of its layout do; in the reference code it "
            "stands before all other tokens, for RoBERTa alone."
        )
    by_f1 = {record.task for record in searched if paper_task(record.task).metric == "f1"}
    if by_f1 and any(conditions_of(record).preset != "default" for record in searched):
        yield (
            f"On {', '.join(sorted(by_f1))} the validation accuracy chooses the prompt, in the "
            "reference code the validation F1."
        )
    few = {record.task: conditions_of(record).shots for record in records}
    for count in sorted({shots for shots in few.values() if shots != SHOTS}):
        tasks = ", ".join(task for task, shots in few.items() if shots == count)
        yield f"Rows a class for {tasks}: {count}, in the paper {SHOTS}."
    yield f"Seeds: {_by_task(records, _seeds)}."
    yield f"Test rows: {_by_task(records, _test_rows)}."
    seconds = sorted(record.wall_seconds for record in records)
    yield (
        f"Wall time of the {len(seconds)} runs: {sum(seconds) / 3600:.1f} hours, each "
        f"{seconds[0]:.0f} to {seconds[-1]:.0f} seconds."
    )
    long = {task: own for task, own in _of_tasks(records).items() if _left_out(own)}
    if long:
        counts = ", ".join(f"{task} {_left_out(own)}" for task, own in long.items())
        yield f"Test rows that the model cannot read in one piece, left out: {counts}."


def _seeds(records: Sequence[Record]) -> str:
    """The largest number of seeds of a method on one task, and the methods with fewer."""
    counts = Counter(record.method for record in records if record.done)
    most = max(counts.values(), default=0)
    fewer = [
        f"{name} {counts[name]}"
        for name in dict.fromkeys(record.method for record in records)
        if method(name).varies and counts[name] < most
    ]
    return f"{most} ({', '.join(fewer)})" if fewer else str(most)


def _by_task(records: Sequence[Record], say: Callable[[list[Record]], str]) -> str:
    return ", ".join(f"{task} {say(own)}" for task, own in _of_tasks(records).items())


def _of_tasks(records: Sequence[Record]) -> dict[str, list[Record]]:
    tasks = dict.fromkeys(record.task for record in records)
    return {task: [record for record in records if record.task == task] for task in tasks}


def _test_rows(records: Sequence[Record]) -> str:
    test = records[0].rows.get("test")
    return "0" if test is None else str(test.rows)


def _left_out(records: Sequence[Record]) -> int:
    return conditions_of(records[0]).left_out.test
