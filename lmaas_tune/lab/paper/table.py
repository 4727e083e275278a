"""The table: means over seeds, beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from lmaas_tune.lab.paper.methods import METHODS
from lmaas_tune.lab.paper.published import PUBLISHED, TASKS
from lmaas_tune.lab.paper.tasks import PAPER_TASKS, paper_task
from lmaas_tune.lab.record import Record

_SHORT = {"sst2": "SST-2", "yelpp": "Yelp P.", "agnews": "AG's News", "dbpedia": "DBPedia"}


def table_json(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """``table[task][method]``: mean and std of the task's metric (0 to 1) over n runs, beside the
    paper's; std is None of a single run, and what has no run that succeeded has mean None."""
    table: dict[str, dict[str, Any]] = {}
    for record in records:
        cell = table.setdefault(record.task, {}).setdefault(record.method, [])
        cell.append(record)
    return {
        task: {name: _cell(task, name, cell) for name, cell in row.items()}
        for task, row in table.items()
    }


def _cell(task: str, name: str, records: Sequence[Record]) -> dict[str, Any]:
    values = [record.value for record in records if record.value is not None]
    published = PUBLISHED.get(name, {}).get(task)
    return {
        "mean": mean(values) if values else None,
        "std": stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "metric": paper_task(task).metric,
        "parameters": records[0].parameters,
        "seconds": mean(record.wall_seconds for record in records),
        "paper": None
        if published is None
        else {"mean": _share(published[0]), "std": _share(published[1])},
    }


def _share(per_cent: float | None) -> float | None:
    return None if per_cent is None else round(per_cent / 100, 6)


def table_text(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows and columns in the paper's order, per cent; below each row the paper's."""
    tasks = [task for task in TASKS if task in table]
    names = [name for name in METHODS if any(name in table[task] for task in tasks)]
    head = ["", *(_title(task) for task in tasks), "average"]
    lines = [head]
    for name in names:
        cells = [table[task].get(name) for task in tasks]
        lines.append([METHODS[name].title, *map(_ours, cells), _average(cells, "mean")])
        if any(cell and cell["paper"] for cell in cells):
            theirs = [cell and cell["paper"] for cell in cells]
            lines.append(["  (paper)", *map(_ours, theirs), _average(theirs, "mean")])
    return _columns(lines)


def _title(task: str) -> str:
    title = _SHORT.get(task, task.upper())
    return f"{title} F1" if PAPER_TASKS[task].metric == "f1" else title


def _ours(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "/"
    if cell["mean"] is None:
        return "failed"
    spread = "" if cell["std"] is None else f" ± {100 * cell['std']:.1f}"
    return f"{100 * cell['mean']:.1f}{spread}"


def _average(cells: Sequence[Mapping[str, Any] | None], name: str) -> str:
    """Of a row that is whole; an average over other tasks would compare with nothing."""
    values = [cell[name] for cell in cells if cell is not None and cell[name] is not None]
    return f"{100 * mean(values):.1f}" if values and len(values) == len(cells) else "/"


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
