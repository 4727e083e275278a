"""One run of a comparison, as a worker makes it: search, test, record."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lmaas_tune.callbacks import Callback
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.lab.comparison import BackendSpec, OptimizerSpec
from lmaas_tune.lab.early_stopping import EarlyStop, FallenBehindError, Judge
from lmaas_tune.lab.pool import fit_whole
from lmaas_tune.lab.record import Curve, FinalScore, Key, Record, Status, failure, run_key
from lmaas_tune.lab.store import Store
from lmaas_tune.lab.tasks import Split
from lmaas_tune.registry import name_of
from lmaas_tune.result import TuneResult
from lmaas_tune.settings import Settings
from lmaas_tune.tuner import Tuner
from lmaas_tune.versions import versions

_TURN = threading.Lock()
"""Runs of one process take turns: they share a backend and the global random generators, which
some optimizers borrow."""

_opened: dict[str, Client] = {}
"""The client of this process, by the token of its backend."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchRun:
    """A run that is to be made, with everything that a worker needs for it.

    Attributes:
        identity: Of the backend of the stored runs; None if there are none.
        command: The command line that repeats the comparison; empty if there is none.
    """

    task: str
    spec: OptimizerSpec
    seed: int
    template: str
    label_words: Mapping[str, str]
    split: Split
    settings: Settings
    early_stop: EarlyStop | None
    backend: BackendSpec
    identity: str | None = None
    command: str = ""

    @property
    def key(self) -> Key:
        """Identifies the run within the comparison."""
        return run_key(self.backend.label, self.task, self.spec.label, self.seed)

    def record(self, identity: str) -> Record:
        """See `lmaas_tune.lab.pool.Run`."""
        settings = self.settings.to_json()
        settings["optimizer"] = name_of(self.spec.optimizer)
        rule = self.early_stop
        conditions = {
            **{name: settings[name] for name in settings if not name.startswith("optimizer")},
            "early_stop": None if rule is None else vars(rule),
        }
        return Record(
            task=self.task,
            method=self.spec.label,
            seed=self.seed,
            identity=identity,
            backend=self.backend.label,
            conditions=json.loads(json.dumps(conditions)),  # as a file gives them back
            template=self.template,
            label_words=self.label_words,
            rows=self.split.row_sets,
            settings=settings,
            versions=versions(),
            command=self.command,
        )

    def make(self, store: Store) -> Record:
        """See `lmaas_tune.lab.pool.Run`."""
        with _TURN:
            client = _client(self.backend)
            if self.identity is not None and client.identity != self.identity:
                raise InputError(
                    f"{store.place} holds runs with the backend {self.identity!r}, and this one is "
                    f"{client.identity!r}: write to another folder"
                )
            return _Attempt(self, client, store).record()


def _client(choice: BackendSpec) -> Client:
    """The client of this process; built with the first run that needs it."""
    if choice.token not in _opened:
        close_backend()  # a worker may outlive a comparison, and holds one model only
        _opened[choice.token] = choice.open()
    return _opened[choice.token]


def close_backend() -> None:
    """Release the backend of this process."""
    _opened.clear()


class _Attempt(Callback):
    """One attempt at a run; it keeps its notes, and its result, of a failed search too."""

    def __init__(self, run: SearchRun, client: Client, store: Store) -> None:
        self._run, self._client, self._store = run, client, store
        self._folder = store.folder(run.key)
        self._notes: list[str] = []
        self._tuner = self._make_tuner()
        self._result: TuneResult | None = None
        self._began = time.perf_counter()

    def on_end(self, result: TuneResult) -> None:
        """Keep the result, however the search ended."""
        self._result = result

    def record(self) -> Record:
        """Search, test, and describe both."""
        status: Status
        final: dict[str, FinalScore | None] = {}
        try:
            status, reason = self._search()
            final = self._final()
        except StorageError:
            raise
        except Exception as error:  # also those of an optimizer
            status, reason = "failed", failure(error)
        record = replace(
            self._run.record(self._client.identity),
            status=status,
            reason=" ".join(reason.split()),
            final=final,
            wall_seconds=time.perf_counter() - self._began,
            notes=list(dict.fromkeys(self._notes)),
        )
        if self._result is None:
            return record
        prompt = self._result.prompt
        return replace(
            record,
            optimizer_seconds=self._result.optimizer_seconds,
            settings=prompt.provenance["settings"],
            spent=self._result.spent.to_json(),
            curve=Curve.of(self._result.steps),
            prompt_text=prompt.prompt.words,
        )

    def _make_tuner(self) -> Tuner:
        run = self._run
        callbacks: list[Callback] = [self]
        rule, calls = run.early_stop, run.settings.budget.calls
        if rule is not None and calls is not None:
            callbacks.append(Judge(rule, calls, lambda: self._store.finished_rivals(run.key)))
        named = isinstance(run.spec.optimizer, str)
        return Tuner(
            self._client,
            None if named else run.spec.optimizer,
            settings=run.settings,
            template=run.template,
            labels=run.label_words,
            seed=run.seed,
            out=self._folder,
            callbacks=callbacks,
            on_note=self._notes.append,
        )

    def _search(self) -> tuple[Status, str]:
        split = self._run.split
        try:
            result = fit_whole(self._tuner, split.train, split.validation, folder=self._folder)
        except FallenBehindError as error:
            return "stopped early", str(error)
        return "finished", result.stop_reason

    def _final(self) -> dict[str, FinalScore | None]:
        if self._result is None:
            return {}
        best, test = self._result.best, self._run.split.test
        return {
            "train": FinalScore.of(best.train),
            "validation": FinalScore.of(best.validation),
            "test": None if test is None else FinalScore.of(self._result.score(test)),
        }
