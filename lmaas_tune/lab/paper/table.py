"""The table: means over seeds, next to the numbers that the paper has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeAlias

from lmaas_tune.lab.paper.methods import METHODS, TEST
from lmaas_tune.lab.paper.tasks import PAPER_TASKS
from lmaas_tune.lab.record import FinalScore, Record

_SHORT = {"sst2": "SST-2", "yelpp": "Yelp P.", "agnews": "AG's News", "dbpedia": "DBPedia"}


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, 0 to 1; None if it is not known. `std` is None for a single run."""

    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Mean:
        """Of the values that are known."""
        known = [value for value in values if value is not None]
        return cls(mean(known) if known else None, stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of the table on a task.

    Attributes:
        accuracy: On the test rows.
        f1: Of the second label, on the tasks for which the paper reports it.
        loss: Mean cross-entropy.
        calibration_error: Expected calibration error.
        n: Number of runs that succeeded.
        parameters: Number of tuned parameters.
        seconds: Mean wall time of a run.
        paper: The published value, if there is one: an accuracy, or where there is `f1`, that.
    """

    accuracy: Mean
    f1: Mean | None
    loss: Mean
    calibration_error: Mean
    n: int
    parameters: int | None
    seconds: float
    paper: Mean | None


Cells: TypeAlias = Mapping[str, Mapping[str, Cell]]
"""``cells[task][row]``; a row is a method, or a variant as ``method/variant``."""


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


def table_rows() -> dict[str, str]:
    """The names of all rows with their titles, in order."""
    rows = {}
    for name, method in METHODS.items():
        rows[name] = method.title
        rows |= {f"{name}/{variant}": title for variant, title in method.variants.items()}
    return rows


def method_of(row: str) -> str:
    """The name of a row's method."""
    return row.partition("/")[0]


def final_of(record: Record, row: str) -> FinalScore | None:
    """The score of a run for a row of its method."""
    return record.final.get(row.partition("/")[2] or TEST)


def table_cells(records: Sequence[Record]) -> Cells:
    """The cells of the table, from its runs."""
    cells: dict[str, dict[str, Cell]] = {}
    for row in table_rows():
        name = method_of(row)
        for task in PAPER_TASKS:
            own = [r for r in records if (r.task, r.method) == (task, name)]
            if own and (row == name or any(final_of(record, row) for record in own)):
                cells.setdefault(task, {})[row] = _cell(task, row, own)
    return cells


def _cell(task: str, row: str, records: Sequence[Record]) -> Cell:
    scores = [score for record in records if (score := final_of(record, row)) is not None]
    f1 = None
    if PAPER_TASKS[task].metric == "f1":
        # older records have it as their value alone
        f1 = Mean.of([s.f1 for s in scores] if "/" in row else [r.value for r in records])
    return Cell(
        accuracy=Mean.of([score.accuracy for score in scores]),
        f1=f1,
        loss=Mean.of([score.loss for score in scores]),
        calibration_error=Mean.of([score.calibration_error for score in scores]),
        n=len(scores),
        parameters=records[0].parameters,
        seconds=mean(record.wall_seconds for record in records),
        paper=PUBLISHED.get(row, {}).get(task),
    )


Read: TypeAlias = Callable[[Cell], Mean | None]


def table_text(cells: Cells) -> str:
    """Accuracies with the paper's below each row, then losses and calibration errors."""
    parts = [
        "Accuracy in per cent, and F1; the average is of accuracies.",
        _accuracies(cells),
        "Loss: mean cross-entropy.",
        _numbers(cells, lambda cell: cell.loss),
    ]
    if any(
        cell.calibration_error.mean is not None for row in cells.values() for cell in row.values()
    ):
        parts += [
            "Expected calibration error.",
            _numbers(cells, lambda cell: cell.calibration_error),
        ]
    return "\n\n".join(parts)


def _accuracies(cells: Cells) -> str:
    columns: list[tuple[str, str, Read, Read]] = []  # task, title, our value, the paper's
    for task in _tasks(cells):
        in_f1 = PAPER_TASKS[task].metric == "f1"
        columns.append((task, short_title(task), _accuracy, _nothing if in_f1 else _paper))
        if in_f1:
            columns.append((task, f"{short_title(task)} F1", lambda c: c.f1, _paper))
    lines = [["", *(title for _, title, _, _ in columns), "average"]]
    for row, title in table_rows().items():
        own = [cells[task].get(row) for task, *_ in columns]
        if not any(own):
            continue
        values = [_read(c, read) for c, (_, _, read, _) in zip(own, columns, strict=True)]
        average = _average([_read(cells[task].get(row), _accuracy) for task in _tasks(cells)])
        lines.append([title, *map(_per_cent, values), average])
        paper = [_read(c, read) for c, (_, _, _, read) in zip(own, columns, strict=True)]
        if any(paper):
            lines.append(["  (paper)", *map(_per_cent, paper), ""])
    return _columns(lines)


def _numbers(cells: Cells, read: Read) -> str:
    tasks = _tasks(cells)
    lines = [["", *map(short_title, tasks), "average"]]
    for row, title in table_rows().items():
        own = [cells[task].get(row) for task in tasks]
        values = [_read(c, read) for c in own]
        if any(value is not None and value.mean is not None for value in values):
            lines.append([title, *map(_number, values), _average(values, scale=1, form=".3f")])
    return _columns(lines)


def _read(cell: Cell | None, read: Read) -> Mean | None:
    return None if cell is None else read(cell)


def _accuracy(cell: Cell) -> Mean | None:
    return cell.accuracy


def _paper(cell: Cell) -> Mean | None:
    return cell.paper


def _nothing(cell: Cell) -> Mean | None:
    return None


def _tasks(cells: Cells) -> list[str]:
    return [task for task in PAPER_TASKS if task in cells]


def short_title(task: str) -> str:
    """The title of a task's column."""
    return _SHORT.get(task, task.upper())


def _per_cent(value: Mean | None) -> str:
    if value is None:
        return "/"
    if value.mean is None:
        return "failed"
    spread = "" if value.std is None else f" ± {100 * value.std:.1f}"
    return f"{100 * value.mean:.1f}{spread}"


def _number(value: Mean | None) -> str:
    return "/" if value is None or value.mean is None else f"{value.mean:.3f}"


def _average(row: Sequence[Mean | None], scale: float = 100, form: str = ".1f") -> str:
    """The average of a complete row; others could not be compared."""
    values = [value.mean for value in row if value is not None and value.mean is not None]
    return f"{scale * mean(values):{form}}" if values and len(values) == len(row) else "/"


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = f"{{:<{widths[0]}}}" + "".join(f"  {{:>{width}}}" for width in widths[1:])
    return "\n".join(form.format(*line).rstrip() for line in lines)
