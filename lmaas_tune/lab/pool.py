"""The runs of an experiment, made one after the other, or through joblib in processes or a cluster.

A run that was cut short is resumed, and counts only once it has ended.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from lmaas_tune.data import Rows
from lmaas_tune.errors import InputError, PermanentError
from lmaas_tune.journal import FILE_NAME as JOURNAL
from lmaas_tune.lab.record import Key, Record
from lmaas_tune.lab.store import Store
from lmaas_tune.notes import OnNote
from lmaas_tune.progress import new_bar
from lmaas_tune.result import TuneResult
from lmaas_tune.tuner import Tuner
from lmaas_tune.typed_json import parse_object


class Run(Protocol):
    """A run that is to be made, in this process or in a worker."""

    @property
    def key(self) -> Key:
        """Identifies the run within its experiment."""
        ...

    def record(self, identity: str) -> Record:
        """The record of the run before it is made.

        Args:
            identity: The backend's, or "" if it is not known.
        """
        ...

    def make(self, store: Store) -> Record:
        """Make the run, or resume it from its journal.

        An error of the model or the method is in the record, so that other runs go on.

        Raises:
            InputError: No run of the experiment can be made.
            StorageError: The folder of the run cannot be written.
        """
        ...


def check_listed(what: str, names: Sequence[object]) -> None:
    """Check that names are given, each once.

    Raises:
        InputError: There is none, or one is repeated.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"{what}={list(names)}: give some, each once")


def fit_whole(tuner: Tuner, train: Rows, validation: Rows | None, *, folder: Path) -> TuneResult:
    """The result of a run, which goes on where it was cut short.

    Args:
        tuner: With its `out`.
        train: See `Tuner.fit`.
        validation: See `Tuner.fit`.
        folder: That `out`.

    Raises:
        KeyboardInterrupt: The user ended the run; it can go on.
        InputError: It was begun under a larger budget, and spent more than this one.
    """
    journal = folder / JOURNAL
    resume = journal.exists() and journal.stat().st_size > 0
    result = tuner.fit(train, validation, resume=resume)
    if not result.finished:
        raise KeyboardInterrupt
    most = tuner.settings.budget.calls
    if most is not None and result.spent.calls > most:
        raise InputError(
            f"its journal holds {result.spent.calls} calls, and the budget is {most}: delete "
            f"{folder}, and the same command makes the run anew"
        )
    return result


Bar: TypeAlias = Any
"""A bar of tqdm."""

_CLUSTER_DEATHS = (
    ("distributed.scheduler", "KilledWorker"),
    ("ray.exceptions", "RayError"),
)
"""What a cluster raises for a dead worker; its module is imported already if it is in use."""


def run_serially(runs: Sequence[Run], store: Store, say: Callable[[Record], None]) -> None:
    """Make the runs that are not done, in this process, and store each when it ends.

    Args:
        runs: The runs.
        store: Where their records go.
        say: Called with each record.

    Raises:
        StorageError: The store cannot be written.
    """
    for run in _undone(runs, store):
        say(execute(run, store))


def run_in_workers(runs: Sequence[Run], store: Store, jobs: int | None, on_note: OnNote) -> None:
    """Make the runs that are not done through joblib, and store each when it ends.

    If a worker dies (killed, out of memory), only the runs that were under way are affected: each
    is resumed from its journal, alone, and is recorded as failed if its worker dies again.

    Args:
        runs: The runs.
        store: Where their records go.
        jobs: Number of processes; None takes that of `joblib.parallel_config`, else 1.
        on_note: Called with a note on each death of a worker.

    Raises:
        InputError: The backend cannot be built, or is not that of the store's runs.
        PermanentError: Workers die again and again before they begin.
        StorageError: The store cannot be written.
    """
    left = _undone(runs, store)
    in_vain = False
    with new_bar(total=len(runs), initial=len(runs) - len(left), unit="run") as bar:
        while left:
            try:
                _run_parallel(left, store, jobs, bar)
                return
            except _deaths() as error:
                undone = [run for run in left if store.get(run.key) is None]
                suspects = [run for run in undone if _backend_of_journal(run, store) is not None]
                before, in_vain = in_vain, not suspects and len(undone) == len(left)
                if before and in_vain:
                    raise PermanentError(
                        "workers died twice before they could begin a run "
                        f"({_first_sentence(error)}): perhaps the memory does not hold the model; "
                        "take fewer jobs"
                    ) from error
                on_note(_death_note(error, suspects))
            for suspect in suspects:
                _run_alone(suspect, store, bar)
            left = [run for run in undone if run not in suspects]


def execute(run: Run, store: Store) -> Record:
    """Make a run and store its record; called in a worker."""
    record = run.make(store)
    store.put(record)
    return record


def _undone(runs: Sequence[Run], store: Store) -> list[Run]:
    """The runs without a record; failed ones lose theirs."""
    records = [store.get(run.key) for run in runs]
    undone = [run for run, own in zip(runs, records, strict=True) if own is None or not own.done]
    for run in undone:
        store.delete(run.key)
    return undone


def _run_parallel(runs: Sequence[Run], store: Store, jobs: int | None, bar: Bar) -> None:
    import joblib

    class Parallel(joblib.Parallel):  # type: ignore[misc]
        """joblib's, with our progress bar instead of its lines."""

        def print_progress(self) -> None:
            """Move the bar; away from a terminal, print a line for each run."""
            done = before + self.n_completed_tasks
            if bar.disable and done > bar.n:
                print(f"{done} of {bar.total} runs", file=sys.stderr, flush=True)
            bar.n = done
            bar.refresh()

    before = bar.n
    if jobs is not None:  # no idle process; but one job would make the runs in this very process
        jobs = min(jobs, max(2, len(runs)))
    tasks = (joblib.delayed(execute)(run, store) for run in runs)
    records: Any = Parallel(n_jobs=jobs, batch_size=1)(tasks)  # type: ignore[arg-type, unused-ignore]  # pyright: ignore
    for record in records:  # of a worker that does not share our disk
        if store.get(record.key) is None:
            store.put(record)


def _run_alone(run: Run, store: Store, bar: Bar) -> None:
    try:
        _run_parallel([run], store, 2, bar)  # joblib runs a single job in this very process
    except _deaths() as error:
        reason = (
            "its worker died twice, the second time with no other run beside it "
            f"({_first_sentence(error)}): perhaps it ran out of memory"
        )
        store.put(replace(run.record(_backend_of_journal(run, store) or ""), reason=reason))


def _death_note(error: BaseException, suspects: Sequence[Run]) -> str:
    runs = ", ".join("/".join(map(str, run.key)) for run in suspects)
    again = f"resumed one by one: {runs}" if runs else "no run was under way"
    return f"a worker died ({_first_sentence(error)}); {again}"


def _backend_of_journal(run: Run, store: Store) -> str | None:
    """Identity of the backend that a run was begun with; None if it was not begun."""
    try:
        with (store.folder(run.key) / JOURNAL).open(encoding="utf-8") as file:
            return str(parse_object(file.readline()).get("backend"))
    except (OSError, ValueError):
        return None


def _deaths() -> tuple[type[BaseException], ...]:
    """The exceptions that mean a dead worker."""
    found = [BrokenExecutor]
    for module, name in _CLUSTER_DEATHS:
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")[:120]
