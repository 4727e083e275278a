"""Differences between a table and the paper's, in sentences below the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lmaas_tune.lab.paper.cell import conditions_of
from lmaas_tune.lab.paper.methods import method
from lmaas_tune.lab.paper.tasks import paper_task
from lmaas_tune.lab.record import Record

SHOTS = 16
"""Rows a class in the paper."""

Records: TypeAlias = Sequence[Record]

_OURS = "default"
"""The name of our preset, and of the method that is this library's default."""

_PRESETS = {
    _OURS: "Black-box rows fit a bias a label to the training rows, and the lowest validation "
    "loss chooses the prompt.",
    "paper-icml22": "The paper does not give the first step of CMA-ES; it is 0.5 here, as in the "
    "reference code of that year.",
    "repo-head": "Black-box rows have the settings of the reference code as it stood last, not the "
    "paper's: a normal projection, no bounds, a first step of 1.",
}


def deviations(records: Records) -> list[str]:
    """The differences of these runs, a sentence each."""
    rules = (_model, _search, _gradient, _pretrained, _f1, _shots, _rows, _time, _left_out)
    return [sentence for rule in rules for sentence in rule(records)]


def _model(records: Records) -> list[str]:
    models = dict.fromkeys(record.identity for record in records)
    found = [f"The model is {'; '.join(models)}; the paper's is RoBERTa-large."]
    if "text-first" in _values(records, "layout"):
        found.append(
            "The text stands first, then a short prompt that starts from words, in templates of "
            "our own; the paper puts 50 tokens before the text."
        )
    return found


def _search(records: Records) -> list[str]:
    searched = _searched(records)
    others = [record for record in searched if record.method != _OURS]
    presets = _values(others, "preset")
    found = [sentence for preset, sentence in _PRESETS.items() if preset in presets]
    if len(others) < len(searched):
        found.append(
            "In a call of this library's default, the training and the validation rows are "
            "scored; it has half of the calls."
        )
    calls = sorted(int(record.spent["calls"]) for record in searched if record.spent)
    if calls:
        most = "" if calls[0] == calls[-1] else f" to {calls[-1]}"
        found.append(
            f"A search made {calls[0]}{most} calls; the paper's 8,000, for DBPedia 20,000."
        )
    return found


def _gradient(records: Records) -> list[str]:
    by_gradient = [record for record in records if "learning_rate" in record.settings]
    titles = dict.fromkeys(method(r.method).title.removeprefix("  + ") for r in by_gradient)
    sizes = "learning rates, epochs and sizes are this library's, for few rows on a small model"
    return [f"{', '.join(titles)}: {sizes}; docs/baselines.md has them."] if titles else []


def _pretrained(records: Records) -> list[str]:
    sources = {r.task: s for r in records if (s := conditions_of(r).source_task) is not None}
    found = []
    for source in sorted(set(sources.values())):
        tasks = ", ".join(task for task, own in sources.items() if own == source)
        made = f"was made on {source}, the paper's on MNLI."
        found.append(f"The pre-trained prompt for {tasks} {made}")
    if sources and "paper" in _values(records, "layout"):
        found.append(
            "A pre-trained prompt enters as all prompts of its layout do; in the reference code it "
            "stands before all other tokens, for RoBERTa alone."
        )
    return found


def _f1(records: Records) -> list[str]:
    searched = _searched(records)
    tasks = sorted({r.task for r in searched if paper_task(r.task).metric == "f1"})
    if not tasks or _values(searched, "preset") <= {"default"}:
        return []
    return [
        f"On {', '.join(tasks)} the validation accuracy chooses the prompt, in the reference code "
        "the validation F1."
    ]


def _shots(records: Records) -> list[str]:
    shots = {record.task: conditions_of(record).shots for record in records}
    return [
        f"Rows a class for {', '.join(task for task, own in shots.items() if own == count)}: "
        f"{count}, in the paper {SHOTS}."
        for count in sorted(set(shots.values()) - {SHOTS})
    ]


def _rows(records: Records) -> list[str]:
    return [
        f"Seeds: {_by_task(records, _seeds)}.",
        f"Test rows: {_by_task(records, _test_rows)}.",
    ]


def _time(records: Records) -> list[str]:
    seconds = sorted(record.wall_seconds for record in records)
    return [
        f"Wall time of the {len(seconds)} runs: {sum(seconds) / 3600:.1f} hours, each "
        f"{seconds[0]:.0f} to {seconds[-1]:.0f} seconds."
    ]


def _left_out(records: Records) -> list[str]:
    long = [record for record in records if conditions_of(record).left_out.test]
    counts = _by_task(long, lambda own: str(conditions_of(own[0]).left_out.test))
    text = "Test rows that the model cannot read in one piece, left out"
    return [f"{text}: {counts}."] if long else []


def _searched(records: Records) -> Records:
    return [record for record in records if method(record.method).searches]


def _values(records: Records, name: str) -> set[Any]:
    """The values of a condition."""
    return {getattr(conditions_of(record), name) for record in records}


def _seeds(records: Records) -> str:
    """The largest number of seeds of a method on one task, and the methods with fewer."""
    counts = Counter(record.method for record in records if record.done)
    most = max(counts.values(), default=0)
    fewer = [
        f"{name} {counts[name]}"
        for name in dict.fromkeys(record.method for record in records)
        if method(name).varies and counts[name] < most
    ]
    return f"{most} ({', '.join(fewer)})" if fewer else str(most)


def _test_rows(records: Records) -> str:
    test = records[0].rows.get("test")
    return "0" if test is None else str(test.rows)


def _by_task(records: Records, say: Callable[[Records], str]) -> str:
    tasks = dict.fromkeys(record.task for record in records)
    own = {task: [record for record in records if record.task == task] for task in tasks}
    return ", ".join(f"{task} {say(own[task])}" for task in tasks)
