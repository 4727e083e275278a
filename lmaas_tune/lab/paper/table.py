"""The table: means over seeds, next to the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeAlias

from lmaas_tune.lab.paper.methods import METHODS
from lmaas_tune.lab.paper.published import PUBLISHED, TASKS
from lmaas_tune.lab.paper.tasks import PAPER_TASKS, Metric, paper_task
from lmaas_tune.lab.record import Record

_SHORT = {"sst2": "SST-2", "yelpp": "Yelp P.", "agnews": "AG's News", "dbpedia": "DBPedia"}


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, 0 to 1; None if no run succeeded. `std` is None for a single run."""

    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Cell(Mean):
    """A method on a task.

    Attributes:
        n: Number of runs that succeeded.
        metric: The task's metric.
        parameters: Number of tuned parameters.
        seconds: Mean wall time of a run.
        paper: The published value, if there is one.
    """

    n: int
    metric: Metric
    parameters: int | None
    seconds: float
    paper: Mean | None


Cells: TypeAlias = Mapping[str, Mapping[str, Cell]]
"""``cells[task][method]``."""


def table_cells(records: Sequence[Record]) -> Cells:
    """The cells of the table, from its runs."""
    runs: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        runs.setdefault(record.task, {}).setdefault(record.method, []).append(record)
    return {
        task: {name: _cell(task, name, own) for name, own in row.items()}
        for task, row in runs.items()
    }


def _cell(task: str, name: str, records: Sequence[Record]) -> Cell:
    values = [record.value for record in records if record.value is not None]
    published = PUBLISHED.get(name, {}).get(task)
    return Cell(
        mean=mean(values) if values else None,
        std=stdev(values) if len(values) > 1 else None,
        n=len(values),
        metric=paper_task(task).metric,
        parameters=records[0].parameters,
        seconds=mean(record.wall_seconds for record in records),
        paper=published and Mean(*map(_share, published)),
    )


def _share(per_cent: float | None) -> float | None:
    return None if per_cent is None else round(per_cent / 100, 6)


def table_text(cells: Cells) -> str:
    """Rows and columns in the paper's order, in per cent; the paper's row is below each row."""
    tasks = [task for task in TASKS if task in cells]
    lines = [["", *map(_title, tasks), "average"]]
    for name in METHODS:
        row = [cells[task].get(name) for task in tasks]
        if any(row):
            lines.append([METHODS[name].title, *map(_text, row), _average(row)])
        paper = [cell and cell.paper for cell in row]
        if any(paper):
            lines.append(["  (paper)", *map(_text, paper), _average(paper)])
    return _columns(lines)


def _title(task: str) -> str:
    title = _SHORT.get(task, task.upper())
    return f"{title} F1" if PAPER_TASKS[task].metric == "f1" else title


def _text(value: Mean | None) -> str:
    if value is None:
        return "/"
    if value.mean is None:
        return "failed"
    spread = "" if value.std is None else f" ± {100 * value.std:.1f}"
    return f"{100 * value.mean:.1f}{spread}"


def _average(row: Sequence[Mean | None]) -> str:
    """The average of a complete row; others could not be compared."""
    values = [value.mean for value in row if value is not None and value.mean is not None]
    return f"{100 * mean(values):.1f}" if values and len(values) == len(row) else "/"


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
