"""The paper's table of results, on any local model.

::

    from lmaas_tune import load_backend
    from lmaas_tune.lab.paper import DataSource, reproduce, table_text

    table = reproduce(
        load_backend("hf")("FacebookAI/roberta-large"),
        tasks=["sst2"],
        methods=["manual", "bbt"],
        seeds=[13, 21, 42],
        source=DataSource(data="hub"),
        out="reproduction",
    )
    print(table_text(table.cells))

Needs the extra ``reproduce``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError
from lmaas_tune.lab.paper.cell import TABLE
from lmaas_tune.lab.paper.contrasts import Difference, differences, differences_text
from lmaas_tune.lab.paper.deviations import deviations
from lmaas_tune.lab.paper.methods import METHODS, family_of
from lmaas_tune.lab.paper.rows import DataSource
from lmaas_tune.lab.paper.run import Reproduction
from lmaas_tune.lab.paper.setup import Setup
from lmaas_tune.lab.paper.table import PUBLISHED, Cells, table_cells, table_text
from lmaas_tune.lab.paper.tasks import LAYOUTS, PAPER_TASKS
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.store import Store, read_stores


@dataclass(frozen=True, eq=False)
class Table:
    """A finished table.

    Attributes:
        cells: ``cells[task][method]``, see `lmaas_tune.lab.paper.table.Cell`.
        records: The runs.
        differences: What the parts of the default add, and how it compares with other rows.
        deviations: Differences from the paper's runs, a sentence each.
    """

    cells: Cells
    records: Sequence[Record]
    differences: Sequence[Difference]
    deviations: Sequence[str]

    @property
    def failed(self) -> list[Record]:
        """The runs that failed."""
        return [record for record in self.records if not record.done]


def reproduce(
    backend: Backend | Client,
    *,
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    source: DataSource,
    out: str | os.PathLike[str],
    setup: Setup | None = None,
    pretrained: Mapping[str, str | os.PathLike[str]] | None = None,
    say: Callable[[Record], None] = lambda record: None,
) -> Table:
    """Run every method on every task with every seed, on the same splits.

    The same call resumes an earlier one: a run that is done is not repeated, and an interrupted
    search is resumed from its journal.

    Args:
        backend: Of a local model, ``hf``.
        tasks: Names in `PAPER_TASKS`, the columns.
        methods: Names in `METHODS`, the rows.
        seeds: Each gives one run of each cell.
        source: Of the labelled rows.
        out: The folder of the runs.
        setup: Of the methods; None takes that of the model's family.
        pretrained: By task, a saved prompt for the methods that start from one.
        say: Called with the record of each run when it ends.

    Raises:
        InputError: An argument is wrong, or the folder holds runs of another table.
        StorageError: The folder cannot be read or written.
    """
    client = Client.of(backend)
    reproduction = Reproduction(
        client=client,
        tasks=tasks,
        methods=methods,
        seeds=seeds,
        source=source,
        setup=setup or Setup.for_family(family_of(client)),
        pretrained={task: Path(folder) for task, folder in (pretrained or {}).items()},
        store=Store(Path(out), TABLE),
        say=say,
    )
    return _table(reproduction.run())


def read_table(
    out: str | os.PathLike[str],
    *,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Table:
    """The table of stored runs, which may be those of several calls of `reproduce`.

    Args:
        out: Their folder, or a file of records.
        tasks: Columns; None for all.
        methods: Rows; None for all.
        seeds: None for all.

    Raises:
        InputError: There is none, or they are of tables that differ.
        StorageError: A run is damaged.
    """
    records = [
        record
        for record in read_stores([Store(Path(out), TABLE)])
        if (tasks is None or record.task in tasks)
        and (methods is None or record.method in methods)
        and (seeds is None or record.seed in seeds)
    ]
    if not records:
        raise InputError(f"{out}: no run is of these tasks, methods and seeds")
    return _table(records)


def _table(records: Sequence[Record]) -> Table:
    return Table(table_cells(records), records, differences(records), deviations(records))


__all__ = [
    "LAYOUTS",
    "METHODS",
    "PAPER_TASKS",
    "PUBLISHED",
    "TABLE",
    "DataSource",
    "Difference",
    "Record",
    "Setup",
    "Table",
    "differences_text",
    "read_table",
    "reproduce",
    "table_cells",
    "table_text",
]
