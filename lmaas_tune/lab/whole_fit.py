"""One run of many: a run that was cut short goes on, and counts only once it has ended."""

from __future__ import annotations

from pathlib import Path

from lmaas_tune.data import Rows
from lmaas_tune.errors import InputError
from lmaas_tune.journal import FILE_NAME
from lmaas_tune.result import TuneResult
from lmaas_tune.tuner import Tuner


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
    journal = folder / FILE_NAME
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
