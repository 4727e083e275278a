"""The tables of a comparison as files: CSV for programs, LaTeX (booktabs) for papers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lmaas_tune.errors import StorageError
from lmaas_tune.extras import need
from lmaas_tune.files import write_atomically
from lmaas_tune.reports.html import NONE, count, loss, number, percent, span

if TYPE_CHECKING:
    from lmaas_tune.lab.analysis import Analysis

_HEAD = (
    "% Needs \\usepackage{booktabs}. 95% intervals in brackets, by Student's t over the seeds.\n"
)


def write_tables(result: Analysis, folder: Path) -> list[Path]:
    """Write the ranking, the table by task and, for several backends, that of the costs.

    Each is ``NAME.csv`` with all columns and digits, and ``NAME.tex``, a LaTeX table in which the
    names of users are escaped. An empty cell of a CSV file is a number that does not exist.

    Raises:
        MissingExtraError: jinja2 is not installed.
        StorageError: A file cannot be written.
    """
    need("tables in LaTeX", "jinja2")
    tables = {"ranking": result.ranking, "by_task": result.by_task}
    if result.backends:
        tables["costs"] = result.costs
    else:
        tables["by_task"] = tables["by_task"].drop(columns="backend")
    files = {}
    for name, table in tables.items():
        files[folder / f"{name}.csv"] = table.to_csv(index=False)
        files[folder / f"{name}.tex"] = _latex(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            write_atomically(path, text.encode())
    except OSError as error:
        raise StorageError(f"{folder}: the tables cannot be written ({error})") from error
    return list(files)


_COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "backend": ("Backend", str),
    "task": ("Task", str),
    "optimizer": ("Optimizer", str),
    "mean_rank": ("Rank", lambda value: NONE if pd.isna(value) else f"{value:.2f}"),
    "loss_mean": ("Loss", loss),
    "loss": ("Loss", loss),
    "accuracy_mean": ("Accuracy", percent),
    "accuracy": ("Accuracy", percent),
    "money": ("Money", number),
    "tokens": ("Tokens", count),
    "calls": ("Calls", count),
    "runs": ("Runs", str),
}
"""Head and format of the columns of a LaTeX table."""


def _latex(table: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            head: _with_interval(table, name, show)
            for name, (head, show) in _COLUMNS.items()
            if name in table
        }
    )
    texts = sum(name in ("Backend", "Task", "Optimizer") for name in shown)
    form = "l" * texts + "r" * (len(shown.columns) - texts)
    text: str = shown.to_latex(index=False, escape=True, column_format=form)
    # a [ or * after the end of a row would be an argument of that
    return _HEAD + re.sub(r"\n(?=[\[*])", r"\n{}", text)


def _with_interval(table: pd.DataFrame, name: str, show: Callable[[Any], str]) -> list[str]:
    """The cells of a column, with the interval in brackets where there is one."""
    cells = [show(value) for value in table[name]]
    what = {"mean_rank": "rank"}.get(name, name.removesuffix("_mean"))
    if f"{what}_low" not in table:
        return cells
    bounds = zip(table[f"{what}_low"], table[f"{what}_high"], strict=True)
    spans = [span(show)(each) for each in bounds]
    return [
        cell if own == NONE else f"{cell} [{own}]" for cell, own in zip(cells, spans, strict=True)
    ]
