"""Comparison of optimizers: every one on every task with every seed, at equal budgets.

::

    from lmaas_tune import compare
    from lmaas_tune.lab.optimizers import NamedTask

    result = compare(
        "hf",
        NamedTask(name="sst2", train="train.jsonl", test="test.jsonl"),
        backend_options={"model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        optimizers=["cma", "random", "nevergrad:PSO"],
        seeds=[13, 21, 42],
        budget="calls=200",
        out="comparison",
    )
    result.report("report.html")

Needs the extra ``compare``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from lmaas_tune.calls.meter import Budget
from lmaas_tune.dataset import task_for
from lmaas_tune.errors import InputError
from lmaas_tune.extras import need
from lmaas_tune.lab.comparison import (
    COMPARISON,
    BackendSpec,
    GivenBackend,
    OptimizerSpec,
    backend_specs,
    optimizer_specs,
)
from lmaas_tune.lab.early_stopping import EarlyStop
from lmaas_tune.lab.pool import check_listed, run_in_workers
from lmaas_tune.lab.record import Curve, Record, notes_of
from lmaas_tune.lab.search_run import SearchRun, close_backend
from lmaas_tune.lab.store import Store
from lmaas_tune.lab.tasks import NamedTask, Split, named_tasks, read_tasks
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.optimizers import make_optimizer
from lmaas_tune.prompts import Soft
from lmaas_tune.settings import Settings, preset
from lmaas_tune.task import Task, Template, Verbalizer

if TYPE_CHECKING:
    from lmaas_tune.lab.report import ComparisonResult

_LIMITS = frozenset({"calls", "sequences", "tokens", "seconds", "money"})


def compare(
    backend: GivenBackend | Sequence[GivenBackend],
    tasks: NamedTask | Sequence[NamedTask],
    *,
    optimizers: Sequence[str | OptimizerSpec],
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    backend_options: Mapping[str, object] | None = None,
    settings: Settings | str = "default",
    budget: Budget | str | None = None,
    jobs: int | None = None,
    early_stop: EarlyStop | None = None,
    target: float | None = None,
    command: str = "",
    on_note: OnNote = warn,
) -> ComparisonResult:
    """Run every optimizer on every task with every seed, at equal budgets.

    The same call resumes an earlier one: a run that is done is not repeated, an interrupted one
    is resumed from its journal, and a failed one is tried again. More optimizers, tasks, seeds or
    labelled backends may be added to a folder; any other difference is refused.

    Runs go through joblib: ``jobs`` processes on this machine, or, inside a
    ``joblib.parallel_config(backend="dask")`` (or ``"ray"``), the workers of that cluster.

    Args:
        backend: The name of a backend, which each worker builds for itself, or a function without
            arguments that builds one (or a `lmaas_tune.Client` around one); a `BackendSpec` for
            one with a price. A list of them compares price and accuracy too: every backend tunes
            its own prompts, and each has a label in the results.
        tasks: The tasks.
        optimizers: Names, or an `OptimizerSpec` for one with options or with a label.
        seeds: Each gives one run for each task and optimizer.
        out: The folder of the runs: plain files, which may be copied together.
        backend_options: Arguments of a backend given by name.
        settings: Settings of the search, or the name of a preset, without the optimizer.
        budget: The budget of each run; it replaces that of the settings.
        jobs: Number of processes; None takes that of joblib's context, else this process alone.
        early_stop: The rule that ends runs early; None for no rule.
        target: Training loss for the table of calls to a target; None takes, for each task, the
            loss that half of its runs reached.
        command: The command line that repeats the comparison, for its report.
        on_note: Called with each note for the user, those of the runs when all have ended.

    Raises:
        InputError: An argument is wrong, the folder holds another comparison, or no run succeeded.
        PermanentError: Workers die again and again before they begin.
        StorageError: The folder cannot be read or written.
    """
    need("a comparison", "joblib", "scipy", "statsmodels")
    from lmaas_tune.lab.analysis import check_target
    from lmaas_tune.lab.report import ComparisonResult

    check_target(target)
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs={jobs}: give 1 or more processes")
    settings = preset(settings) if isinstance(settings, str) else settings
    if budget is not None:
        budget = Budget.parse(budget) if isinstance(budget, str) else budget
        settings = replace(settings, budget=budget)
    plan = _Plan(
        backends=backend_specs(backend, backend_options),
        tasks=named_tasks(tasks),
        specs=optimizer_specs(optimizers),
        seeds=tuple(seeds),
        settings=settings,
        early_stop=early_stop,
        command=command,
        on_note=on_note,
    )
    runs, store = list(plan.runs()), Store(Path(out).absolute(), COMPARISON)
    runs = _with_identities(runs, store)
    try:
        run_in_workers(runs, store, jobs, on_note)
    finally:
        close_backend()
    records = [record for run in runs if (record := store.get(run.key)) is not None]
    for note in notes_of(records):
        on_note(note)
    return ComparisonResult(records, target)


def _with_identities(runs: Sequence[SearchRun], store: Store) -> list[SearchRun]:
    """The runs with the identities of the backends of those that are stored.

    Raises:
        InputError: The stored ones belong to another comparison.
    """
    known = {record.backend: record.identity for _, record in store.found()}
    runs = [replace(run, identity=known.get(run.backend.label)) for run in runs]
    if known:
        store.check_alike(run.record(run.identity or "") for run in runs)
    return runs


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """The arguments of `compare`, checked.

    Raises:
        InputError: One is wrong.
    """

    backends: Sequence[BackendSpec]
    tasks: Sequence[NamedTask]
    specs: Sequence[OptimizerSpec]
    seeds: Sequence[int]
    settings: Settings
    early_stop: EarlyStop | None
    command: str
    on_note: OnNote

    def __post_init__(self) -> None:
        check_listed("seeds", self.seeds)
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                raise InputError(f"seed {seed!r}: it must be a whole number from 0 on")
        self._check_budget()
        for spec in self.specs:
            make_optimizer(
                spec.optimizer,
                (self.settings.soft or Soft()).intrinsic_dim,
                seed=self.seeds[0],
                calls=self.settings.budget.calls,
                options=self._settings_of(spec).optimizer_options,
            )

    def _check_budget(self) -> None:
        budget, rule = self.settings.budget, self.early_stop
        if not _LIMITS & budget.limits.keys():
            raise InputError(
                f"budget={budget}: runs are compared at equal budgets; give one, as calls=200"
            )
        if rule is not None and budget.calls is None:
            raise InputError(
                f"budget={budget}: runs are ended early by their calls, so limit these: calls=200"
            )
        if rule is not None and len(self.specs) <= rule.rivals:
            self.on_note(
                f"a run is ended early by {rule.rivals} finished runs of other optimizers, and "
                f"{len(self.specs)} take part here: none is ended, unless the folder has more"
            )

    def runs(self) -> Iterator[SearchRun]:
        """All runs; those of one task and seed are neighbours, so that they can soon be compared.

        Those of one backend follow each other, because a process holds one model only.

        Raises:
            InputError: The rows of a task cannot be read, or do not fit its template.
        """
        prepared = [
            (seed, named.name, split, self._task(named, split))
            for seed in self.seeds
            for named in self.tasks
            for split in [named.split(seed, on_note=self.on_note)]
        ]
        for backend, (seed, name, split, task), spec in product(
            self.backends, prepared, self.specs
        ):
            yield SearchRun(
                task=name,
                spec=spec,
                seed=seed,
                template=task.template.text,
                label_words=dict(task.verbalizer.words),
                split=split,
                settings=self._settings_of(spec),
                early_stop=self.early_stop,
                backend=backend,
                command=self.command,
            )

    def _settings_of(self, spec: OptimizerSpec) -> Settings:
        """The settings' own options belong to their own optimizer, as in `Tuner`."""
        name = spec.optimizer
        if not isinstance(name, str):
            return replace(self.settings, optimizer_options={})
        own = self.settings.optimizer_options if name == self.settings.optimizer else {}
        return replace(self.settings, optimizer=name, optimizer_options=dict(spec.options or own))

    def _task(self, named: NamedTask, split: Split) -> Task:
        task = task_for(
            split.train,
            template=None if named.template is None else Template(named.template),
            verbalizer=None if named.labels is None else Verbalizer(named.labels),
            prompt_first=self.settings.prompt.demonstrations > 0,
            on_note=self.on_note,
        )
        for part, rows in vars(split).items():
            try:
                if rows is not None:
                    task.verbalizer.targets(rows)
                    task.template.batch(rows)
            except InputError as error:
                raise InputError(f"task {named.name!r}, {part}: {error}") from error
        return task


__all__ = [
    "BackendSpec",
    "Curve",
    "EarlyStop",
    "NamedTask",
    "OptimizerSpec",
    "Record",
    "compare",
    "read_tasks",
]
