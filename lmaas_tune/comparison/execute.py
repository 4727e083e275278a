"""One run, made by a worker: searched, tested, written down."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmaas_tune.callbacks import Callback
from lmaas_tune.calls.client import Client
from lmaas_tune.comparison.early import FallenBehindError, Judge
from lmaas_tune.comparison.folder import keep, rivals, run_folder
from lmaas_tune.comparison.plan import BackendChoice, Cell
from lmaas_tune.comparison.record import Curve, Record, Status, final_json
from lmaas_tune.errors import InputError, LMaaSError, StorageError
from lmaas_tune.optimizers.base import Ends, Optimizer
from lmaas_tune.prompts import FloatArray, TextPrompt
from lmaas_tune.result import TuneResult
from lmaas_tune.spaces import SearchSpace
from lmaas_tune.tuner import Tuner, fit_whole

_TURN = threading.Lock()
"""Runs of one process take turns: they share a backend and the global random generators, which
some optimizers borrow."""

_opened: dict[str, Client] = {}


def execute(cell: Cell, out: Path, identity: str | None) -> Record:
    """Make a run, or go on with it from its journal, and write it down.

    What the model's side or an optimizer does wrong ends up in the record, so that other runs go
    on. What is wrong for all of them is raised.

    Args:
        cell: The run.
        out: The results folder.
        identity: Of the backend that the folder's other runs were made with; None if there
            are none.

    Raises:
        InputError: The backend cannot be built, or is another one.
        StorageError: The folder cannot be written, or another process makes this very run.
        KeyboardInterrupt: The user ends the comparison; the journal keeps what was paid.
    """
    with _TURN, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        client = _client(cell.backend)
        if identity is not None and client.identity != identity:
            raise InputError(
                f"{out} holds runs with the backend {identity!r}, and this one is "
                f"{client.identity!r}: write to another folder"
            )
        record = _Attempt(cell, client, run_folder(out, cell.key)).record(said)
    keep(out, record)
    return record


def _client(choice: BackendChoice) -> Client:
    """The process's own; built with the first run that needs it."""
    if choice.token not in _opened:
        forget_backend()  # a worker that outlives a comparison has no use for the last one's
        _opened[choice.token] = choice.open()
    return _opened[choice.token]


def forget_backend() -> None:
    """Let go of the backend of this process."""
    _opened.clear()


class _Attempt(Callback):
    """One attempt at a run; watches its own search, for what a failing one leaves behind."""

    def __init__(self, cell: Cell, client: Client, folder: Path) -> None:
        self._cell, self._client, self._folder = cell, client, folder
        self._tuner = self._make_tuner()
        self._result: TuneResult | None = None
        self._began = time.perf_counter()

    def on_end(self, result: TuneResult) -> None:
        """Take what the search came to, however it ended."""
        self._result = result

    def record(self, said: Sequence[warnings.WarningMessage]) -> Record:
        """Search and test."""
        status: Status = "finished"
        final: dict[str, Any] = {}
        try:
            reason, stopped = self._search()
            status = "stopped early" if stopped else "finished"
            final = self._final()
        except (StorageError, KeyboardInterrupt):
            raise
        except LMaaSError as error:
            status, reason = "failed", str(error)
        except Exception as error:  # whatever an optimizer raises, the others go on
            status, reason = "failed", f"{type(error).__name__}: {error}"
        notes = [str(note.message) for note in said if note.category is UserWarning]
        return self._record(status, reason, final, list(dict.fromkeys(notes)))

    def _make_tuner(self) -> _TimedTuner:
        cell = self._cell
        callbacks: list[Callback] = [self]
        rule, calls = cell.early_stop, cell.settings.budget.calls
        if rule is not None and calls is not None:
            callbacks.append(Judge(rule, calls, lambda: rivals(self._folder)))
        named = isinstance(cell.contender.optimizer, str)
        return _TimedTuner(
            self._client,
            None if named else cell.contender.optimizer,
            settings=cell.settings,
            template=cell.template,
            labels=cell.label_words,
            seed=cell.seed,
            out=self._folder,
            callbacks=callbacks,
        )

    def _search(self) -> tuple[str, bool]:
        """Why the search ended, and whether that was early."""
        split = self._cell.split
        try:
            result = fit_whole(self._tuner, split.train, split.validation, folder=self._folder)
        except FallenBehindError as error:
            return str(error), True
        return result.stop_reason, False

    def _final(self) -> dict[str, Any]:
        if self._result is None:
            return {}
        best, test = self._result.best, self._cell.split.test
        return {
            "train": final_json(best.train),
            "validation": final_json(best.validation),
            "test": None if test is None else final_json(self._result.score(test)),
        }

    def _record(
        self, status: Status, reason: str, final: dict[str, Any], notes: list[str]
    ) -> Record:
        record = replace(
            self._cell.record(self._client.identity),
            status=status,
            reason=" ".join(reason.split()),
            final=final,
            optimizer_seconds=self._tuner.optimizer_seconds,
            wall_seconds=time.perf_counter() - self._began,
            notes=notes,
        )
        if self._result is None:
            return record
        prompt = self._result.prompt
        return replace(
            record,
            settings=prompt.provenance["settings"],
            spent=self._result.spent.to_json(),
            curve=Curve.of(self._result.steps),
            prompt_text=prompt.prompt.text if isinstance(prompt.prompt, TextPrompt) else None,
        )


class _TimedTuner(Tuner):
    """A tuner that knows how long its optimizer took.

    It is the tuner's own optimizer that is timed, and not a factory of one, so that the journal
    and the saved prompt name the optimizer as ever.
    """

    _timed: _Timed | None = None

    @property
    def optimizer_seconds(self) -> float:
        """In ask and tell, replayed ones included: as if the run had been made at one go."""
        return 0.0 if self._timed is None else self._timed.seconds

    def _optimizer_for(self, space: SearchSpace) -> Optimizer:
        self._timed = _Timed(super()._optimizer_for(space))
        return self._timed


class _Timed:
    """An optimizer with a clock."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.seconds = 0.0

    @property
    def population(self) -> int:
        """The optimizer's."""
        return self._optimizer.population

    @property
    def ended(self) -> str | None:
        """The optimizer's, if it ever ends."""
        return self._optimizer.ended if isinstance(self._optimizer, Ends) else None

    def ask(self) -> FloatArray:
        """The optimizer's."""
        began = time.perf_counter()
        points = self._optimizer.ask()
        self.seconds += time.perf_counter() - began
        return points

    def tell(self, points: FloatArray, losses: FloatArray, /) -> None:
        """The optimizer's."""
        began = time.perf_counter()
        self._optimizer.tell(points, losses)
        self.seconds += time.perf_counter() - began
