"""The front door: from a backend, a few labelled rows and settings to a better prompt."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.backend import Backend, Embeds
from lmaas_tune.calibration import calibration_named
from lmaas_tune.callbacks import Callback, ProgressBar
from lmaas_tune.client import Client
from lmaas_tune.data import Rows, labels_of, read_examples
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.evaluator import Evaluator
from lmaas_tune.journal import FILE_NAME, Journal
from lmaas_tune.middleware.meter import Budget
from lmaas_tune.objectives import Objective, objective_named
from lmaas_tune.optimizers import make_optimizer
from lmaas_tune.optimizers.base import Optimizer, OptimizerFactory
from lmaas_tune.prompts import SoftPrompt, Subspace
from lmaas_tune.result import TuneResult
from lmaas_tune.search import Search
from lmaas_tune.selection import LowestLoss, selection_named
from lmaas_tune.settings import Settings, preset
from lmaas_tune.spaces import PointSpace, SearchSpace, draw, drawn
from lmaas_tune.step import Candidate
from lmaas_tune.task import Example, Slot, Task, Template, Verbalizer
from lmaas_tune.versions import versions


class Tuner:
    """Finds a better prompt for a model that only answers.

    ::

        result = Tuner(backend, optimizer="cma").fit(train)
        result.predict(["a message", "another one"])

    Args:
        backend: The black box; or a `Client` around it, to choose cache, retries and prices.
        optimizer: A name (``lmaas-tune optimizers`` lists them), or a class or function that
            builds one; None takes the settings' own.
        settings: How to search, or the name of a preset (``default``, ``paper-icml22``,
            ``repo-head``).
        template: Where fields, ``{prompt}`` and ``{label}`` stand. By default the fields one
            below the other, then the prompt and the label.
        labels: The word the model is to say for each label; by default each label is its own.
        start: p0 itself, instead of the settings' starting words: a soft prompt, or a saved one.
        objective: A function of (rows, labels) log-probabilities and (rows,) targets, instead
            of the settings' named one.
        budget: What ends the run, as a `Budget` or like ``"calls=300,seconds=60"``; instead of
            the settings' own.
        seed: The same seed, data, settings and answers give the same run.
        out: Folder that keeps the run, so that it can be resumed, and its prompt.
        callbacks: Watch the run; by default a progress bar, where there is a terminal.

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
        start: SoftPrompt | TunedPrompt | None = None,
        objective: Objective | None = None,
        budget: Budget | str | None = None,
        seed: int = 0,
        out: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> None:
        if isinstance(settings, str):
            settings = preset(settings)
        if isinstance(budget, str):
            budget = Budget.parse(budget)
        if seed < 0:
            raise InputError(f"seed={seed}: it must be 0 or more")
        self._client = backend if isinstance(backend, Client) else Client(backend)
        self._settings = settings if budget is None else replace(settings, budget=budget)
        self._optimizer = settings.optimizer if optimizer is None else optimizer
        # the settings' options are those of their own optimizer, and mean nothing to another
        own = self._optimizer == settings.optimizer
        self._optimizer_options = dict(settings.optimizer_options) if own else {}
        self._template = Template(template) if isinstance(template, str) else template
        self._labels = None if labels is None else Verbalizer(labels)
        self._start = _soft(start, self._client)
        self._objective = objective
        self._seed = seed
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
        train_rows = read_examples(train, what="train")
        if len(classes := labels_of(train_rows)) < 2:
            raise InputError(
                f"train: every row has the label {', '.join(classes)!r}, which leaves nothing "
                "to tell apart: add rows of another class"
            )
        other_rows = None if validation is None else read_examples(validation, what="validation")
        task = self._task(train_rows)
        space = self._space(task.template)
        objective = self._objective or objective_named(self._settings.objective)
        scored = [
            Evaluator(self._client, task, rows, objective, what=what)
            for rows, what in ((train_rows, "train"), (other_rows, "validation"))
            if rows is not None
        ]
        search = self._search(scored, space)
        for note in search.check():
            warnings.warn(note, stacklevel=2)
        provenance = self._provenance(space)
        with self._journal(provenance, task, scored, resume) as journal:
            try:
                stop_reason, finished = search.run(journal), True
            except KeyboardInterrupt:
                stop_reason, finished = "interrupted by the user", False
            except BaseException as error:
                result = self._result(search, task, provenance, f"failed: {error}", False)
                with contextlib.suppress(StorageError):  # the first error is the one to tell
                    self._end(result, keep=not journal.replaying)
                raise
            result = self._result(search, task, provenance, stop_reason, finished)
            # a replay that was cut short knows less than the prompt that lies there
            return self._end(result, keep=finished or not journal.replaying)

    def _task(self, examples: Sequence[Example]) -> Task:
        template = self._template or default_template(examples[0])
        return Task(template, self._labels or default_verbalizer(examples))

    def _space(self, template: Template) -> SearchSpace:
        backend, can = self._client.backend, self._client.capabilities
        if can.soft_prompt_width is None and not can.point_prompts:
            raise InputError(
                f"{self._client.identity} takes text prompts only, and this search is over soft "
                "ones: use a backend that takes embeddings, such as 'hf'"
            )
        if template.parts[-1] is not Slot.LABEL and not can.label_anywhere:
            raise InputError(
                f"{self._client.identity} reads left to right, so {{label}} must stand last: "
                f"drop what follows it in the template {template.text!r}"
            )
        subspaces = self._subspaces(template)
        if can.point_prompts and not isinstance(backend, Embeds):
            return PointSpace(subspaces)
        return draw(subspaces, backend)

    def _subspaces(self, template: Template) -> list[Subspace]:
        """What is searched; one for each of the starting words."""
        settings = self._settings
        of_words = self._start is None and settings.start == "words"
        return [
            Subspace(
                start=self._start or settings.start,
                words=_space_before_prompt(template) + words if of_words else "",
                length=settings.prompt_length if self._start is None else self._start.length,
                insertion=settings.insertion if self._start is None else self._start.insertion,
                dim=settings.intrinsic_dim,
                projection=settings.projection,
                alpha=settings.alpha,
                seed=self._seed,
            )
            for words in (settings.starting_words if of_words else ("",))
        ]

    def _search(self, scored: Sequence[Evaluator], space: SearchSpace) -> Search:
        settings = self._settings
        validation = scored[1] if len(scored) > 1 else None
        return Search(
            train=scored[0],
            validation=validation,
            space=space,
            optimizer=self._optimizer_for(space.dim),
            calibration=calibration_named(settings.calibration),
            selection=LowestLoss() if validation is None else selection_named(settings.selection),
            score_start=settings.score_start,
            budget=settings.budget,
            callbacks=self._callbacks,
        )

    def _optimizer_for(self, dim: int) -> Optimizer:
        return make_optimizer(
            self._optimizer,
            dim,
            seed=self._seed,
            calls=self._settings.budget.calls,
            options=self._optimizer_options,
        )

    def _provenance(self, space: SearchSpace) -> dict[str, Any]:
        settings = self._settings.to_json()
        settings["optimizer"] = _name(self._optimizer)
        settings["optimizer_options"] = self._optimizer_options
        if self._start is not None:
            settings |= {"start": "given", "prompt_init": None, "prompt_length": None}
        if self._objective is not None:
            settings["objective"] = _name(self._objective)
        return {
            "backend": self._client.identity,
            "seed": self._seed,
            "settings": settings,
            "space": space.digest,
            "versions": versions(),
        }

    def _journal(
        self,
        provenance: Mapping[str, Any],
        task: Task,
        scored: Sequence[Evaluator],
        resume: bool,
    ) -> Journal:
        header = {
            **provenance,
            # a budget says when a run ends, not what it is: a resumed one may have more
            "settings": {k: v for k, v in provenance["settings"].items() if k != "budget"},
            "template": task.template.text,
            "label_words": dict(task.verbalizer.words),
            "rows": [evaluator.digest for evaluator in scored],
        }
        path = None if self._out is None else self._out / FILE_NAME
        return Journal(path, header, resume=resume)

    def _result(
        self,
        search: Search,
        task: Task,
        provenance: Mapping[str, Any],
        stop_reason: str,
        finished: bool,
    ) -> TuneResult:
        def tuned(candidate: Candidate, **more: Any) -> TunedPrompt:
            no_bias = np.zeros(len(task.verbalizer.labels))
            bias = no_bias if candidate.train is None else candidate.train.bias
            return TunedPrompt(candidate.prompt, task, bias, {**provenance, **more})

        best = search.best
        spent = search.meter.spent
        return TuneResult(
            prompt=tuned(
                best,
                generation=best.generation,
                train=None if best.train is None else best.train.to_json(),
                validation=None if best.validation is None else best.validation.to_json(),
                spent=spent.to_json(),
                stop_reason=stop_reason,
            ),
            start=tuned(search.start),
            best=best,
            steps=tuple(search.steps),
            spent=spent,
            stop_reason=stop_reason,
            finished=finished,
            seed=self._seed,
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


def default_template(example: Example) -> Template:
    """Each field on a line under its name, then the prompt and the label: it serves any task.

    Raises:
        InputError: A field's name means something else in a template.
    """
    lines = []
    for name in example.fields:
        if not name or {"{", "}"} & set(name) or name in ("prompt", "label"):
            raise InputError(
                f"the column {name!r} cannot stand in a template, where braces and the names "
                "prompt and label mean something else: rename the column"
            )
        lines.append(f"{name.replace('_', ' ').capitalize()}: {{{name}}}\n")
    return Template("".join(lines) + " {prompt} {label}")


def default_verbalizer(examples: Sequence[Example]) -> Verbalizer:
    """Each label is its own word."""
    words = {label: label for label in labels_of(examples)}
    if all(_is_number(word) for word in words):
        warnings.warn(
            f"the labels {', '.join(words)} are numbers, which mean little to a language model: "
            'give it words, as in labels={"0": "terrible", "1": "great"}',
            stacklevel=4,
        )
    return Verbalizer(words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _soft(start: SoftPrompt | TunedPrompt | None, client: Client) -> SoftPrompt | None:
    """p0 where one is given.

    Raises:
        InputError: It has no vectors.
    """
    prompt = drawn(start.prompt, client.backend) if isinstance(start, TunedPrompt) else start
    if prompt is None or isinstance(prompt, SoftPrompt):
        return prompt
    raise InputError(
        "the prompt to start from must be a soft one of width "
        f"{client.capabilities.soft_prompt_width} for {client.identity}"
    )


def _space_before_prompt(template: Template) -> str:
    """The space that belongs to the prompt's first word, see `Backend.score`."""
    index = template.parts.index(Slot.PROMPT)
    before = template.parts[index - 1] if index else ""
    return " " if isinstance(before, str) and before.endswith(" ") else ""


def _name(thing: object) -> str:
    """A name that a run's record can hold."""
    if isinstance(thing, str):
        return thing
    owner: Any = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{owner.__module__}:{owner.__qualname__}"
