"""`Tuner`: searches for a better prompt, given a backend, a few labelled rows and settings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from lmaas_tune.arguments import check_types, checked_seed, initial_prompt
from lmaas_tune.artifact import TunedPrompt, saved_prompt
from lmaas_tune.backend import Backend
from lmaas_tune.callbacks import Callback, ProgressBar
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Budget
from lmaas_tune.data import Rows, are_labels, paired
from lmaas_tune.dataset import Dataset
from lmaas_tune.errors import InputError
from lmaas_tune.heads import AUTO, Head
from lmaas_tune.journal import FILE_NAME, Journal
from lmaas_tune.notes import OnNote
from lmaas_tune.objectives import Objective
from lmaas_tune.optimizers.base import OptimizerFactory
from lmaas_tune.peft import PeftPrompt
from lmaas_tune.plan import Plan
from lmaas_tune.preparation import Job
from lmaas_tune.prepared_run import PreparedRun
from lmaas_tune.prompts import Prompt
from lmaas_tune.registry import name_of
from lmaas_tune.reprs import call_repr
from lmaas_tune.result import TuneResult
from lmaas_tune.settings import Settings, preset
from lmaas_tune.task import Template, Verbalizer


class Tuner:
    """Tunes a prompt for a remote model that returns scores only.

        result = Tuner(backend, optimizer="cma").fit(train)
        result.predict(["a message", "another one"])

    Args:
        backend: The model; or a `Client` around it, which sets cache, retries and prices.
        optimizer: A name (``lmaas-tune optimizers`` lists them), or a class or function that
            builds one; None takes the optimizer of the settings. With deep prompts, every layer
            has an optimizer.
        settings: Settings of the search, or the name of a preset (``default``, ``paper-icml22``,
            ``repo-head``, ``bbtv2``).
        template: Text with the fields, ``{prompt}`` and ``{label}``. By default each field on a
            line, then the prompt and the label.
        labels: The label word of each label; by default the label itself.
        start: The initial prompt p0, instead of the starting words of the settings: a soft, deep
            or text prompt, a saved one, or one of peft.
        objective: A function of (rows, labels) log-probabilities and (rows,) targets, instead
            of the objective that the settings name.
        head: A `lmaas_tune.heads.Head` of your own, instead of the head that the settings name.
        budget: The limits that end the run, as a `Budget` or as text,
            ``"calls=300,seconds=60"``; instead of the budget of the settings.
        seed: Random seed; the same seed, data, settings and answers give the same run.
        out: Folder for the journal, from which a run is resumed, and for the tuned prompt.
        callbacks: Observers of the run; by default a progress bar, or a line every half minute
            where the output is no terminal.
        on_note: Called with each note for the user; by default the client's, which issues a
            `UserWarning`.

    Raises:
        InputError: An argument cannot work; the message names it and a remedy.
    """

    def __init__(
        self,
        backend: Backend | Client,
        optimizer: str | OptimizerFactory | None = None,
        *,
        settings: Settings | str = "default",
        template: str | Template | None = None,
        labels: Mapping[str, str] | None = None,
        start: Prompt | TunedPrompt | PeftPrompt | None = None,
        objective: Objective | None = None,
        head: Head | None = None,
        budget: Budget | str | None = None,
        seed: int = 0,
        out: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] | None = None,
        on_note: OnNote | None = None,
    ) -> None:
        if isinstance(settings, str):
            settings = preset(settings)
        if isinstance(budget, str):
            budget = Budget.parse(budget)
        check_types(backend, settings, template, labels, objective, head, callbacks)
        client = Client.of(backend)
        if on_note is not None:
            client = client.with_notes(on_note)
        # the options of the settings belong to the optimizer of the settings, if they name one
        uses_settings = optimizer is None or settings.optimizer in (AUTO, optimizer)
        self._job = Job(
            client=client,
            settings=settings if budget is None else replace(settings, budget=budget),
            optimizer=settings.optimizer if optimizer is None else optimizer,
            optimizer_options=dict(settings.optimizer_options) if uses_settings else {},
            template=Template(template) if isinstance(template, str) else template,
            verbalizer=None if labels is None else Verbalizer(labels),
            start=initial_prompt(client, start),
            objective=objective,
            head=head,
            seed=checked_seed(seed),
            callbacks=(ProgressBar(),) if callbacks is None else tuple(callbacks),
        )
        self._out = None if out is None else Path(out)

    def __repr__(self) -> str:
        job = self._job
        return call_repr(
            self,
            backend=job.client.identity,
            optimizer=name_of(job.optimizer),
            budget=str(job.settings.budget),
            seed=job.seed,
        )

    @property
    def settings(self) -> Settings:
        """The settings, with the budget passed to the tuner."""
        return self._job.settings

    def fit(
        self,
        train: Rows,
        validation: Rows | None = None,
        *,
        labels: Sequence[Any] | None = None,
        resume: bool = False,
    ) -> TuneResult:
        """Search for the prompt with the lowest loss.

        Ctrl-C ends the search and returns the best prompt so far (`TuneResult.finished` is False);
        with `out`, the same call with ``resume=True`` resumes the search.

        Args:
            train: Labelled rows in any form that `lmaas_tune.read_examples` takes; each call
                scores one prompt on all of them.
            validation: Other labelled rows, see `Settings.validation_rows`.
            labels: The label of each row, if `train` is a sequence of bare texts. ``fit(texts,
                labels)`` is the same.
            resume: Resume the run whose journal is in `out`.

        Raises:
            InputError: An argument cannot work. Raised before the first paid call.
            BudgetExceededError: The budget ended before one prompt was scored on all rows.
            PermanentError: The backend failed for good, or a whole generation had no finite
                loss. The journal has all paid answers.
            StorageError: `out` cannot be written.
        """
        if resume and self._out is None:
            raise InputError("resume needs the folder of the run: give Tuner(..., out=...)")
        run = self._prepared(train, validation, labels)
        with self._journal(run, resume) as journal:
            try:
                for callback in self._job.callbacks:
                    callback.on_prepared(run.provenance)
                stop_reason, finished = run.search.run(journal), True
            except KeyboardInterrupt:
                stop_reason, finished = "interrupted by the user", False
            except BaseException as error:
                with contextlib.suppress(Exception):  # the first error is the one to report
                    result = self._result(run, f"failed: {error}", False)
                    self._finish(result, keep=not journal.replaying)
                raise
            result = self._result(run, stop_reason, finished)
            if finished and (note := run.note_on_guessing()):
                self._job.client.on_note(note)
            # the prompt saved before an interrupted replay may be better than its result
            return self._finish(result, keep=finished or not journal.replaying)

    def plan(
        self,
        train: Rows,
        validation: Rows | None = None,
        *,
        labels: Sequence[Any] | None = None,
    ) -> Plan:
        """What `fit` with the same arguments would cost, by one call, paid with a cache too.

        Raises:
            InputError: An argument cannot work.
            BackendError: The call failed.
        """
        return self._prepared(train, validation, labels).search.plan()

    def _prepared(
        self, train: Rows, validation: Rows | None, labels: Sequence[Any] | None
    ) -> PreparedRun:
        if labels is None and are_labels(train, validation):
            labels = cast("Sequence[Any]", validation)
            validation = None
        read = partial(Dataset.read, on_note=self._job.client.on_note)
        other = None if validation is None else read(validation, "validation")
        return self._job.prepared(read(paired(train, labels), "train"), other)

    def _journal(self, run: PreparedRun, resume: bool) -> Journal:
        if self._out is None:
            return Journal(None, run.header)
        path = self._out / FILE_NAME
        if saved_prompt(self._out) and not path.exists():
            raise InputError(
                f"{self._out} holds a saved prompt and no run, and a run would write over it: "
                "choose another folder"
            )
        return Journal(path, run.header, resume=resume, on_note=self._job.client.on_note)

    def _result(self, run: PreparedRun, stop_reason: str, finished: bool) -> TuneResult:
        return run.result(stop_reason, finished=finished, client=self._job.client, out=self._out)

    def _finish(self, result: TuneResult, *, keep: bool) -> TuneResult:
        try:
            if self._out is not None and keep and result.steps:  # else nothing was scored
                result.save(self._out)
        finally:
            for callback in self._job.callbacks:
                callback.on_end(result)
        return result
