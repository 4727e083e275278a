"""The table: means over seeds, next to the numbers that the paper has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeAlias

from lmaas_tune.lab.paper.methods import METHODS
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


_TABLE = """
prompt-tuning   68.23±3.78  61.02±6.65  84.81±0.66   87.75±1.48  51.61±8.67  36.13±1.51  54.69±3.79
prompt-tuning-pretrained  /  /  /  /                 77.48±4.85  64.55±2.43  77.13±0.83
p-tuning-v2     64.33±3.05  92.63±1.39  83.46±1.01   97.05±0.41  68.14±3.89  36.89±0.79  50.78±2.28
model-tuning    85.39±2.84  91.82±0.79  86.36±1.85   97.98±0.14  77.35±5.70  54.64±5.29  58.60±6.21
manual          79.82       89.65       76.96        41.33       67.40       31.11       51.62
icl             79.79±3.06  85.38±3.92  62.21±13.46  34.83±7.59  45.81±6.67  47.11±0.63  60.36±1.56
feature-mlp     64.80±1.78  79.20±2.26  70.77±0.67   87.78±0.61  68.40±0.86  42.01±0.33  53.43±1.57
feature-bilstm  65.95±0.99  74.68±0.10  77.28±2.83   90.37±3.10  71.55±7.10  46.02±0.38  52.17±0.25
bbt             89.56±0.25  91.50±0.16  81.51±0.79   87.80±1.53  61.56±4.34  46.58±1.33  52.59±2.21
bbt-pretrained  /           /           /            /           75.51±5.54  83.83±0.21  77.62±1.30
bbtv2           90.33±1.73  92.86±0.62  85.28±0.49   93.64±0.68  77.01±4.73  57.27±2.27  56.68±3.32
"""
"""RoBERTa-large, 16 rows a class, three splits, in per cent; the paper leaves out the cells ``/``.

Sun et al., "Black-Box Tuning for Language-Model-as-a-Service", ICML 2022, table 3. Accuracy, but
for MRPC the F1 score. The row of BBTv2 is from the follow-up's table (Sun et al., EMNLP 2022).
"""


def _share(per_cent: str) -> float:
    return round(float(per_cent) / 100, 6)


def _published(text: str) -> Mean:
    mean, _, std = text.partition("±")
    return Mean(_share(mean), _share(std) if std else None)


PUBLISHED: Mapping[str, Mapping[str, Mean]] = {
    method: {
        task: _published(text) for task, text in zip(PAPER_TASKS, cells, strict=True) if text != "/"
    }
    for method, *cells in map(str.split, _TABLE.strip().splitlines())
}
"""The published numbers, ``PUBLISHED[method][task]``."""


def table_cells(records: Sequence[Record]) -> Cells:
    """The cells of the table, from its runs."""
    runs: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        runs.setdefault((record.task, record.method), []).append(record)
    cells: dict[str, dict[str, Cell]] = {}
    for (task, name), own in runs.items():
        cells.setdefault(task, {})[name] = _cell(task, name, own)
    return cells


def _cell(task: str, name: str, records: Sequence[Record]) -> Cell:
    values = [record.value for record in records if record.value is not None]
    return Cell(
        mean=mean(values) if values else None,
        std=stdev(values) if len(values) > 1 else None,
        n=len(values),
        metric=paper_task(task).metric,
        parameters=records[0].parameters,
        seconds=mean(record.wall_seconds for record in records),
        paper=PUBLISHED.get(name, {}).get(task),
    )


def table_text(cells: Cells) -> str:
    """Rows and columns in the paper's order, in per cent; the paper's row is below each row."""
    tasks = [task for task in PAPER_TASKS if task in cells]
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
    form = f"{{:<{widths[0]}}}" + "".join(f"  {{:>{width}}}" for width in widths[1:])
    return "\n".join(form.format(*line).rstrip() for line in lines)
