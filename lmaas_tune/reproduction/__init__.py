"""The paper's table of results, on any local model.

::

    from lmaas_tune import load_backend
    from lmaas_tune.reproduction import DataSource, reproduce, table_text

    table = reproduce(
        load_backend("hf")("FacebookAI/roberta-large"),
        tasks=["sst2"],
        methods=["manual", "bbt"],
        seeds=[13, 21, 42],
        source=DataSource(data="hub"),
        out="reproduction",
    )
    print(table_text(table.cells))

Needs the extra ``reproduce``; the rest of the package knows nothing of this part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError
from lmaas_tune.reproduction.deviations import deviations
from lmaas_tune.reproduction.methods import METHODS, family_of
from lmaas_tune.reproduction.paper import PUBLISHED
from lmaas_tune.reproduction.plan import Plan
from lmaas_tune.reproduction.record import Record, check_together, kept_below
from lmaas_tune.reproduction.rows import DataSource
from lmaas_tune.reproduction.run import Reproduction
from lmaas_tune.reproduction.table import table_json, table_text
from lmaas_tune.reproduction.tasks import LAYOUTS, PAPER_TASKS


@dataclass(frozen=True, eq=False)
class Table:
    """What the runs came to.

    Attributes:
        cells: ``cells[task][method]``, see `lmaas_tune.reproduction.table.table_json`.
        records: The runs.
        deviations: In what they differ from the paper's, a sentence each.
    """

    cells: Mapping[str, Mapping[str, Any]]
    records: Sequence[Record]
    deviations: Sequence[str]

    @property
    def failed(self) -> list[Record]:
        """Runs that have no value."""
        return [record for record in self.records if record.failed]


def reproduce(
    backend: Backend | Client,
    *,
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    source: DataSource,
    out: str | os.PathLike[str],
    plan: Plan | None = None,
    pretrained: Mapping[str, str | os.PathLike[str]] | None = None,
    say: Callable[[Record], None] = lambda record: None,
) -> Table:
    """Make every row on every task with every seed, on the same splits.

    The same call goes on with what another one began: a run that is done is not done again, and a
    search that was cut short goes on from its journal.

    Args:
        backend: Of a local model, ``hf``.
        tasks: Columns; `PAPER_TASKS` has them.
        methods: Rows; `METHODS` has them.
        seeds: Each gives one run of each cell.
        source: Of the rows.
        out: The runs' folder.
        plan: How the black-box rows are made; None takes what suits the model's family.
        pretrained: By task, a saved prompt for the rows that start from one.
        say: Told of each run when it ends.

    Raises:
        InputError: Something given cannot work, or the folder has runs that were made otherwise.
        StorageError: The folder cannot be read or written.
    """
    client = backend if isinstance(backend, Client) else Client(backend)
    reproduction = Reproduction(
        client=client,
        tasks=tasks,
        methods=methods,
        seeds=seeds,
        source=source,
        plan=plan or Plan.for_family(family_of(client)),
        pretrained={task: Path(folder) for task, folder in (pretrained or {}).items()},
        out=Path(out),
        say=say,
    )
    return _table(reproduction.run())


def read_table(out: str | os.PathLike[str]) -> Table:
    """The table of all runs in a folder, which may be of several calls of `reproduce`.

    Raises:
        InputError: There is none, or they are of tables that differ.
        StorageError: A run is damaged.
    """
    records = kept_below(Path(out))
    if not records:
        raise InputError(f"{out}: no run of a table is there")
    return _table(records)


def _table(records: Sequence[Record]) -> Table:
    check_together(records)
    return Table(table_json(records), records, deviations(records))


__all__ = [
    "LAYOUTS",
    "METHODS",
    "PAPER_TASKS",
    "PUBLISHED",
    "DataSource",
    "Plan",
    "Record",
    "Table",
    "read_table",
    "reproduce",
    "table_json",
    "table_text",
]
