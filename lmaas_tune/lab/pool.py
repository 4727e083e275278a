"""Making many runs: through joblib, on one machine or on a cluster."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import joblib
from tqdm import tqdm

from lmaas_tune.errors import PermanentError
from lmaas_tune.journal import FILE_NAME as JOURNAL
from lmaas_tune.lab.plan import Cell
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.search_run import execute, forget_backend
from lmaas_tune.lab.store import forget, keep, kept, run_folder
from lmaas_tune.plain import parse_object

_CLUSTER_DEATHS = (
    ("distributed.scheduler", "KilledWorker"),
    ("ray.exceptions", "RayError"),
)
"""What a cluster raises for a dead worker; it is imported already if one is in use."""


def run_all(cells: Sequence[Cell], out: Path, *, identity: str | None, jobs: int | None) -> None:
    """Make the runs that are not done yet, and write each down when it ends.

    A worker that dies (killed, out of memory) takes none but the runs that were under way with
    it: each of these is taken up again from its journal, by itself, and one that kills its worker
    there too is recorded as failed.

    Args:
        cells: The runs.
        out: The results folder.
        identity: Of the backend that the folder's other runs were made with; None if there
            are none.
        jobs: Processes; None takes what `joblib.parallel_config` says, else this process alone.

    Raises:
        InputError: The backend cannot be built, or is another than that of the folder.
        PermanentError: Workers die again and again before they begin.
        StorageError: The folder cannot be written.
    """
    left = [cell for cell in cells if not _done(cell, out)]
    for cell in left:
        forget(out, cell.key)  # it failed, and is tried again
    in_vain = False
    with tqdm(total=len(cells), initial=len(cells) - len(left), unit="run", disable=None) as bar:
        while left:
            try:
                _run(left, out, identity, jobs, bar)
                return
            except _deaths() as error:
                undone = [cell for cell in left if kept(out, cell.key) is None]
                suspects = [cell for cell in undone if _backend_of_journal(cell, out) is not None]
                before, in_vain = in_vain, not suspects and len(undone) == len(left)
                if before and in_vain:
                    raise PermanentError(
                        "workers died twice before they could begin a run "
                        f"({_first_sentence(error)}): perhaps the memory does not hold the model; "
                        "take fewer jobs"
                    ) from error
                left = undone
                _tell_death(error, suspects)
            for suspect in suspects:
                _run_alone(suspect, out, identity, bar)
            left = [cell for cell in left if cell not in suspects]


def _tell_death(error: BaseException, suspects: Sequence[Cell]) -> None:
    runs = ", ".join("/".join(map(str, cell.key)) for cell in suspects)
    again = f"taken up again, each by itself: {runs}" if runs else "no run was under way"
    warnings.warn(f"a worker died ({_first_sentence(error)}); {again}", stacklevel=4)


def _run(
    cells: Sequence[Cell], out: Path, identity: str | None, jobs: int | None, bar: tqdm[Any]
) -> None:
    parallel = _Watched(bar, n_jobs=jobs, batch_size=1)
    runs = (joblib.delayed(execute)(cell, out, identity) for cell in cells)
    try:
        records = cast(list[Record], parallel(runs))
    finally:
        forget_backend()
    for record in records:  # from a worker that does not share our disk
        if kept(out, record.key) is None:
            keep(out, record)


def _run_alone(cell: Cell, out: Path, identity: str | None, bar: tqdm[Any]) -> None:
    try:
        _run([cell], out, identity, 2, bar)  # joblib takes one job as this very process
    except _deaths() as error:
        record = replace(
            cell.record(_backend_of_journal(cell, out) or ""),
            reason="its worker died twice, the second time with no other run beside it "
            f"({_first_sentence(error)}): perhaps it ran out of memory",
        )
        keep(out, record)


class _Watched(joblib.Parallel):  # type: ignore[misc]
    """joblib's, with a bar of ours in place of its lines."""

    def __init__(self, bar: tqdm[Any], **settings: Any) -> None:
        super().__init__(**settings)
        self._bar, self._before = bar, bar.n

    def print_progress(self) -> None:
        """Move the bar; away from a terminal, a line for each run."""
        done = self._before + self.n_completed_tasks
        if self._bar.disable and done > self._bar.n:
            print(f"{done} of {self._bar.total} runs", file=sys.stderr, flush=True)
        self._bar.n = done
        self._bar.refresh()


def _done(cell: Cell, out: Path) -> bool:
    record = kept(out, cell.key)
    return record is not None and record.done


def _backend_of_journal(cell: Cell, out: Path) -> str | None:
    """The identity of the backend that a run was begun with; None if it was not."""
    try:
        with (run_folder(out, cell.key) / JOURNAL).open(encoding="utf-8") as file:
            return str(parse_object(file.readline()).get("backend"))
    except (OSError, ValueError):
        return None


def _deaths() -> tuple[type[BaseException], ...]:
    """What says that a worker died."""
    found = [BrokenExecutor]
    for module, name in _CLUSTER_DEATHS:
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")[:120]
