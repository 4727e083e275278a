"""Many runs: which optimizer to trust on a task.

::

    from lmaas_tune import compare
    from lmaas_tune.comparison import NamedTask

    standings = compare(
        "hf",
        NamedTask(name="sst2", train="train.jsonl", test="test.jsonl"),
        backend_options={"model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        optimizers=["cma", "random", "nevergrad:PSO"],
        seeds=[13, 21, 42],
        budget="calls=200",
        out="comparison",
    )
    standings.report("report.html")

Needs the extra ``compare``; the rest of the package knows nothing of this part.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmaas_tune.calls.meter import Budget
from lmaas_tune.comparison.contender import Contender, contenders
from lmaas_tune.comparison.early import EarlyStop
from lmaas_tune.comparison.extra import need
from lmaas_tune.comparison.folder import check_comparable, kept, read_all, run_folder
from lmaas_tune.comparison.plan import BackendChoice, Cell, MakeBackend, Plan
from lmaas_tune.comparison.record import Curve, Record
from lmaas_tune.comparison.tasks import NamedTask, named_tasks, read_tasks
from lmaas_tune.errors import InputError
from lmaas_tune.settings import Settings, preset

if TYPE_CHECKING:
    from lmaas_tune.comparison.standings import Standings


def compare(
    backend: str | MakeBackend,
    tasks: NamedTask | Sequence[NamedTask],
    *,
    optimizers: Sequence[str | Contender],
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    backend_options: Mapping[str, object] | None = None,
    settings: Settings | str = "default",
    budget: Budget | str | None = None,
    jobs: int | None = None,
    early_stop: EarlyStop | None = None,
    target: float | None = None,
) -> Standings:
    """Run every optimizer on every task with every seed, at equal budgets.

    The same call goes on with what another one began: a run that is done is not done again, one
    that was cut short goes on from its journal, and one that failed is tried again. More
    optimizers, tasks or seeds may be added to a folder; anything else that differs is refused.

    Runs go through joblib: ``jobs`` processes on this machine, or, inside a
    ``joblib.parallel_config(backend="dask")`` (or ``"ray"``), wherever that leads.

    Args:
        backend: The name of a backend, which each worker builds for itself, or a function without
            arguments that builds one (or a `lmaas_tune.Client` around one).
        tasks: What is tuned for.
        optimizers: Names, or a `Contender` where one has options or a label of its own.
        seeds: Each gives one run for each task and optimizer.
        out: The results folder: plain files, which may be copied together.
        backend_options: Arguments of a backend given by name.
        settings: How to search, or the name of a preset; the optimizer is each contender's.
        budget: What ends each run; instead of the settings' own.
        jobs: Processes; None takes what joblib's context says, else this process alone.
        early_stop: End runs that have fallen behind; None lets all of them go on.
        target: Training loss for the table of calls to a target; None takes, for each task, the
            one that half of its runs reached.

    Raises:
        InputError: Something given cannot work, the folder holds another comparison, or not one
            run succeeded.
        PermanentError: Workers die again and again before they begin.
        StorageError: The folder cannot be read or written.
    """
    need("a comparison", "joblib", "scipy", "statsmodels")
    from lmaas_tune.comparison.pool import run_all
    from lmaas_tune.comparison.standings import Standings, check_target

    check_target(target)
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs={jobs}: give 1 or more processes")
    settings = preset(settings) if isinstance(settings, str) else settings
    if budget is not None:
        budget = Budget.parse(budget) if isinstance(budget, str) else budget
        settings = replace(settings, budget=budget)
    plan = Plan(
        backend=BackendChoice(make=backend, options=dict(backend_options or {})),
        tasks=named_tasks(tasks),
        contenders=contenders(optimizers),
        seeds=tuple(seeds),
        settings=settings,
        early_stop=early_stop,
    )
    cells, folder = plan.cells(), Path(out).absolute()
    run_all(cells, folder, identity=_identity_of(cells, folder), jobs=jobs)
    records = [record for cell in cells if (record := kept(folder, cell.key)) is not None]
    for note in dict.fromkeys(note for record in records for note in record.notes):
        warnings.warn(note, stacklevel=2)
    return Standings(records, target)


def _identity_of(cells: Sequence[Cell], out: Path) -> str | None:
    """The backend that the folder's runs were made with; None where there are none.

    Raises:
        InputError: They are runs of another comparison.
    """
    seen = read_all(out)
    if not seen:
        return None
    identity = seen[0][1].identity
    planned = [(run_folder(out, cell.key), cell.record(identity)) for cell in cells]
    check_comparable([*seen, *planned])
    return identity


__all__ = [
    "Contender",
    "Curve",
    "EarlyStop",
    "NamedTask",
    "Record",
    "compare",
    "read_tasks",
]
