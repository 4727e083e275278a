"""The front door: from a backend, a few labelled rows and settings to a better prompt."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from lmaas_tune.artifact import TunedPrompt, saved_prompt
from lmaas_tune.backend import Backend, Embeds, Measures
from lmaas_tune.calibration import calibration_named
from lmaas_tune.callbacks import Callback, ProgressBar
from lmaas_tune.calls.client import Client, warn
from lmaas_tune.calls.meter import Budget
from lmaas_tune.data import Rows
from lmaas_tune.dataset import Dataset, default_template, default_verbalizer
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.evaluator import Evaluator
from lmaas_tune.journal import FILE_NAME, Journal
from lmaas_tune.objectives import Objective, objective_named
from lmaas_tune.optimizers import make_blockwise, make_optimizer
from lmaas_tune.optimizers.base import Optimizer, OptimizerFactory
from lmaas_tune.prompts import NeedsStds, Prompt, PromptKind, PromptSpace, Setup, resolve
from lmaas_tune.prompts.text import draw_demonstrations
from lmaas_tune.registry import name_of
from lmaas_tune.result import TuneResult, result_of
from lmaas_tune.search import Search
from lmaas_tune.selection import LowestLoss, selection_named
from lmaas_tune.settings import Settings, preset
from lmaas_tune.task import Slot, Task, Template, Verbalizer
from lmaas_tune.versions import versions

_WHEN_IT_ENDS = ("budget", "allow_bounds")


class Tuner:
    """Finds a better prompt for a model that only answers.

    ::

        result = Tuner(backend, optimizer="cma").fit(train)
        result.predict(["a message", "another one"])

    Args:
        backend: The black box; or a `Client` around it, to choose cache, retries and prices.
        optimizer: A name (``lmaas-tune optimizers`` lists them), or a class or function that
            builds one; None takes the settings' own. With deep prompts, every layer has one.
        settings: How to search, or the name of a preset (``default``, ``paper-icml22``,
            ``repo-head``, ``bbtv2``).
        template: Where fields, ``{prompt}`` and ``{label}`` stand. By default the fields one
            below the other, then the prompt and the label.
        labels: The word the model is to say for each label; by default each label is its own.
        start: p0 itself, instead of the settings' starting words: a soft or deep prompt, a text
            prompt, or a saved one.
        objective: A function of (rows, labels) log-probabilities and (rows,) targets, instead
            of the settings' named one.
        budget: What ends the run, as a `Budget` or like ``"calls=300,seconds=60"``; instead of
            the settings' own.
        seed: The same seed, data, settings and answers give the same run.
        out: Folder that keeps the run, so that it can be resumed, and its prompt.
        callbacks: Watch the run; by default a progress bar; away from a terminal, a line now
            and then.
        on_note: Takes sentences for the user; by default each is a `UserWarning`.

    Raises:
        InputError: Something given cannot work; it says what and what would.
    """

    def __init__(
        self,
        backend: Backend | Client,
        optimizer: str | OptimizerFactory | None = None,
        *,
        settings: Settings | str = "default",
        template: str | Template | None = None,
        labels: Mapping[str, str] | None = None,
        start: Prompt | TunedPrompt | None = None,
        objective: Objective | None = None,
        budget: Budget | str | None = None,
        seed: int = 0,
        out: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] | None = None,
        on_note: Callable[[str], None] = warn,
    ) -> None:
        if isinstance(settings, str):
            settings = preset(settings)
        if isinstance(budget, str):
            budget = Budget.parse(budget)
        _check_kinds(backend, settings, template, labels, objective, callbacks)
        self._client = backend if isinstance(backend, Client) else Client(backend, on_note=on_note)
        self._on_note = on_note
        self._settings = settings if budget is None else replace(settings, budget=budget)
        self._optimizer = settings.optimizer if optimizer is None else optimizer
        # the settings' options are those of their own optimizer, and mean nothing to another
        own = self._optimizer == settings.optimizer
        self._optimizer_options = dict(settings.optimizer_options) if own else {}
        self._template = Template(template) if isinstance(template, str) else template
        self._labels = None if labels is None else Verbalizer(labels)
        self._start = _start_for(self._client, start)
        self._objective = objective
        self._seed = _whole(seed)
        self._out = None if out is None else Path(out)
        self._callbacks = (ProgressBar(),) if callbacks is None else tuple(callbacks)

    def fit(
        self, train: Rows, validation: Rows | None = None, *, resume: bool = False
    ) -> TuneResult:
        """Search for the prompt with the lowest loss.

        Ctrl-C ends the search and gives what it found so far (`TuneResult.finished` is False);
        with `out`, the same call with ``resume=True`` goes on from there.

        Args:
            train: Labelled rows in any form that `lmaas_tune.read_examples` takes; each call
                scores one prompt on all of them.
            validation: Other labelled rows, that choose among the candidates; without them the
                training loss chooses.
            resume: Go on from the journal in `out`.

        Raises:
            InputError: Before anything is paid: what cannot work, and what would.
            PermanentError: The backend will not answer, or a whole generation had no finite
                loss. What was paid is in the journal.
            StorageError: `out` cannot be written.
        """
        if resume and self._out is None:
            raise InputError("resume needs the folder of the run: give Tuner(..., out=...)")
        data = Dataset.read(train, "train")
        data.check_classes()
        other = None if validation is None else Dataset.read(validation, "validation")
        run = self._prepare(data, other)
        for note in run.notes:
            self._on_note(note)
        with self._journal(run, resume) as journal:
            try:
                stop_reason, finished = run.search.run(journal), True
            except KeyboardInterrupt:
                stop_reason, finished = "interrupted by the user", False
            except BaseException as error:
                result = self._result(run, f"failed: {error}", False)
                with contextlib.suppress(StorageError):  # the first error is the one to tell
                    self._end(result, keep=not journal.replaying)
                raise
            result = self._result(run, stop_reason, finished)
            # a replay that was cut short knows less than the prompt that lies there
            return self._end(result, keep=finished or not journal.replaying)

    def _prepare(self, train: Dataset, validation: Dataset | None) -> _Run:
        """All that is worked out before the first paid call."""
        client, settings = self._client, self._settings
        embeds = client.backend if isinstance(client.backend, Embeds) else None
        kind, note = resolve(settings.prompt, client, embeds, self._start)
        shown, rows = (
            draw_demonstrations(train.examples, kind.demonstrations, seed=self._seed)
            if kind.demonstrations
            else ([], train.examples)
        )
        prompt_first = kind.demonstrations > 0
        template = self._template or default_template(rows[0], prompt_first=prompt_first)
        task = Task(template, self._labels or default_verbalizer(rows))
        self._check_template(template)
        setup = Setup(
            model=client,
            embeds=embeds,
            measures=isinstance(client.backend, Measures),
            task=task,
            train=rows,
            shown=shown,
            start=self._start,
            seed=self._seed,
        )
        space = kind.space(setup)
        objective, cost = (
            self._objective or objective_named(settings.objective),
            client.new_cost_model(),
        )
        sets = {"train": rows} | ({} if validation is None else {"validation": validation.examples})
        scored = [
            Evaluator(client, task, own, objective, what=name, cost=cost)
            for name, own in sets.items()
        ]
        search = self._search(scored, space)
        notes = [note] if note else []
        if shown:
            notes.append(
                f"{len(shown)} of the training rows stand in the prompt with their answers; the "
                "others are scored"
            )
        notes += Dataset("train", rows).notes()
        if validation is not None:
            notes += validation.notes(Dataset("train", rows))
        if self._template is None and len(template.fields) > 1:
            notes.append(
                f"no template is given, so the model reads {', '.join(template.fields)}: "
                f"{template.text!r}"
            )
        return _Run(
            kind=kind,
            task=task,
            search=search,
            provenance=self._provenance(kind, space),
            digests=[evaluator.digest for evaluator in scored],
            notes=[*notes, *search.check()],
        )

    def _check_template(self, template: Template) -> None:
        if template.parts[-1] is not Slot.LABEL and not self._client.capabilities.label_anywhere:
            raise InputError(
                f"{self._client.identity} reads left to right, so {{label}} must stand last: "
                f"drop what follows it in the template {template.text!r}"
            )

    def _search(self, scored: Sequence[Evaluator], space: PromptSpace) -> Search:
        settings = self._settings
        validation = scored[1] if len(scored) > 1 else None
        return Search(
            train=scored[0],
            validation=validation,
            space=space,
            optimizer=self._optimizer_for(space),
            calibration=calibration_named(settings.calibration),
            selection=LowestLoss() if validation is None else selection_named(settings.selection),
            score_start=settings.score_start,
            budget=settings.budget,
            allow_bounds=settings.allow_bounds,
            callbacks=self._callbacks,
        )

    def _optimizer_for(self, space: PromptSpace) -> Optimizer:
        calls, seed, options = self._settings.budget.calls, self._seed, self._optimizer_options
        if space.blocks == 1:
            return make_optimizer(
                self._optimizer, space.dim, seed=seed, calls=calls, options=options
            )
        before = len(space.starts) * self._settings.score_start
        before += isinstance(space, NeedsStds) and space.needs_stds
        return make_blockwise(
            self._optimizer,
            space.dim // space.blocks,
            blocks=space.blocks,
            seed=seed,
            calls=None if calls is None else max(1, calls - before),
            options=options,
        )

    def _provenance(self, kind: PromptKind, space: PromptSpace) -> dict[str, Any]:
        settings = replace(self._settings, prompt=kind).to_json()
        settings["optimizer"] = name_of(self._optimizer)
        settings["optimizer_options"] = self._optimizer_options
        if self._start is not None:
            settings |= {"start": "given", "prompt_init": None, "prompt_length": None}
        if self._objective is not None:
            settings["objective"] = name_of(self._objective)
        return {
            "backend": self._client.identity,
            "seed": self._seed,
            "settings": settings,
            "space": space.digest,
            "versions": versions(),
        }

    def _journal(self, run: _Run, resume: bool) -> Journal:
        header = {
            **run.provenance,
            # these say when a run ends, not what it is: a resumed one may go further
            "settings": {
                name: value
                for name, value in run.provenance["settings"].items()
                if name not in _WHEN_IT_ENDS
            },
            "template": run.task.template.text,
            "label_words": dict(run.task.verbalizer.words),
            "rows": run.digests,
        }
        if self._out is None:
            return Journal(None, header)
        path = self._out / FILE_NAME
        if saved_prompt(self._out) and not path.exists():
            raise InputError(
                f"{self._out} holds a saved prompt and no run, and a run would write over it: "
                "choose another folder"
            )
        return Journal(path, header, resume=resume)

    def _result(self, run: _Run, stop_reason: str, finished: bool) -> TuneResult:
        return result_of(
            run.search,
            run.task,
            run.provenance,
            stop_reason=stop_reason,
            finished=finished,
            client=self._client,
            out=self._out,
        )

    def _end(self, result: TuneResult, *, keep: bool) -> TuneResult:
        try:
            if self._out is not None and keep:
                result.save(self._out)
        finally:
            for callback in self._callbacks:
                callback.on_end(result)
        return result


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A search that is ready to begin.

    Attributes:
        kind: The kind of prompt.
        task: Template and label words.
        search: The search.
        provenance: How its prompt comes to be, see `TunedPrompt.provenance`.
        digests: Of the rows that are scored.
        notes: Sentences for the user.
    """

    kind: PromptKind
    task: Task
    search: Search
    provenance: Mapping[str, Any]
    digests: Sequence[str]
    notes: Sequence[str]


def fit_whole(tuner: Tuner, train: Rows, validation: Rows | None, *, folder: Path) -> TuneResult:
    """One run among many: gone on with where it was cut short, and never counted before its end.

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
    most = tuner._settings.budget.calls
    if most is not None and result.spent.calls > most:
        raise InputError(
            f"its journal holds {result.spent.calls} calls, and the budget is {most}: delete "
            f"{folder}, and the same command makes the run anew"
        )
    return result


def _check_kinds(
    backend: object,
    settings: object,
    template: object,
    labels: object,
    objective: object,
    callbacks: object,
) -> None:
    """See that each thing given is of the kind that it must be.

    Raises:
        InputError: It is not.
    """
    if not hasattr(backend, "score"):
        raise InputError(
            f"backend={backend!r:.60} is no backend: give load_backend('hf')('MODEL') or another "
            "object with the methods of lmaas_tune.Backend"
        )
    if not isinstance(settings, Settings):
        raise InputError(f"settings={settings!r:.60}: give Settings(...) or the name of a preset")
    if not isinstance(template, str | Template | None):
        raise InputError(f"template={template!r:.60}: give a text with {{prompt}} and {{label}}")
    if not isinstance(labels, Mapping | None):
        raise InputError(
            f"labels={labels!r:.60}: give the word for each label, as {{'0': 'bad', '1': 'good'}}"
        )
    if objective is not None and not callable(objective):
        raise InputError(
            f"objective={objective!r:.60} is no function: a name goes into Settings(objective=...)"
        )
    if not isinstance(callbacks, Iterable | None):
        raise InputError(f"callbacks={callbacks!r:.60}: give a list of them")


def _whole(seed: object) -> int:
    """The seed as Python's own number, which a file can hold.

    Raises:
        InputError: It is none, or below 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed={seed!r}: it must be a whole number from 0 on")
    return int(seed)


def _start_for(client: Client, start: Prompt | TunedPrompt | None) -> Prompt | None:
    """p0 where one is given.

    Raises:
        InputError: It is no prompt, or has vectors only for those who have the model.
    """
    prompt = start.prompt.for_model(client.backend) if isinstance(start, TunedPrompt) else start
    if prompt is None:
        return None
    if not hasattr(prompt, "kind"):
        raise InputError(
            f"start={prompt!r:.60} is no prompt: give a SoftPrompt, a TextPrompt or a saved one; "
            "words to start from go into the settings, as Soft(prompt_init=...)"
        )
    if prompt.kind == "point":
        raise InputError(
            f"the prompt to start from is {prompt}, which has vectors only for who has the model's "
            f"word embeddings, and {client.identity} does not give them: start from words, or use "
            "the model itself"
        )
    return prompt
