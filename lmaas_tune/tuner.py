"""The front door: from a backend, a few labelled rows and settings to a better prompt."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from lmaas_tune.artifact import TunedPrompt, saved_prompt
from lmaas_tune.backend import Backend, Embeds
from lmaas_tune.calibration import calibration_named
from lmaas_tune.callbacks import Callback, ProgressBar
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Budget
from lmaas_tune.data import Rows, labels_of, read_examples
from lmaas_tune.deep import DeepSpace, draw_deep
from lmaas_tune.errors import InputError, StorageError
from lmaas_tune.evaluator import Evaluator
from lmaas_tune.journal import FILE_NAME, Journal
from lmaas_tune.objectives import Objective, objective_named
from lmaas_tune.optimizers import make_blockwise, make_optimizer
from lmaas_tune.optimizers.base import Optimizer, OptimizerFactory
from lmaas_tune.phrases import DIRECTIONS, LEAD_INS, STARTING_WORDS
from lmaas_tune.prompts import DeepPrompt, PointPrompt, SoftPrompt, Subspace, TextPrompt
from lmaas_tune.registry import name_of
from lmaas_tune.result import TuneResult
from lmaas_tune.search import Search
from lmaas_tune.selection import LowestLoss, selection_named
from lmaas_tune.settings import Settings, preset
from lmaas_tune.spaces import PointSpace, SearchSpace, draw, drawn
from lmaas_tune.step import Candidate
from lmaas_tune.task import Example, Slot, Task, Template, Verbalizer
from lmaas_tune.text import TextSpace, draw_demonstrations, stands_first, text_space
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
        start: SoftPrompt | DeepPrompt | TextPrompt | TunedPrompt | None = None,
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
        _check_kinds(backend, settings, template, labels, objective, callbacks)
        self._client = backend if isinstance(backend, Client) else Client(backend)
        self._settings = settings if budget is None else replace(settings, budget=budget)
        self._optimizer = settings.optimizer if optimizer is None else optimizer
        # the settings' options are those of their own optimizer, and mean nothing to another
        own = self._optimizer == settings.optimizer
        self._optimizer_options = dict(settings.optimizer_options) if own else {}
        self._template = Template(template) if isinstance(template, str) else template
        self._labels = None if labels is None else Verbalizer(labels)
        self._start = _given(start, self._client)
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
        train_rows = read_examples(train, what="train")
        if len(classes := labels_of(train_rows)) < 2:
            raise InputError(
                f"train: every row has the label {', '.join(classes)!r}, which leaves nothing "
                "to tell apart: add rows of another class"
            )
        other_rows = None if validation is None else read_examples(validation, what="validation")
        self._check_kind()
        shown, train_rows = self._shown(train_rows)
        task = self._task(train_rows)
        space = self._space(task, train_rows, shown)
        objective = self._objective or objective_named(self._settings.objective)
        cost = self._client.new_cost_model()
        rows = {"train": train_rows, "validation": other_rows}
        scored = [
            Evaluator(self._client, task, own, objective, what=name, cost=cost)
            for name, own in rows.items()
            if own is not None
        ]
        search = self._search(scored, space)
        if isinstance(space, TextSpace):
            _inspect_longest(space, scored)
        notes = _notes_of(train_rows, other_rows or ())
        if self._template is None and len(task.template.fields) > 1:
            notes.append(
                f"no template is given, so the model reads {', '.join(task.template.fields)}: "
                f"{task.template.text!r}"
            )
        for note in [*self._notes, *notes, *search.check()]:
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

    @cached_property
    def _is_text(self) -> bool:
        """Whether the search is over text prompts."""
        if self._settings.prompt == "soft":
            return False
        if self._settings.deep is not None:
            return False
        asked = self._settings.asks_for_text or isinstance(self._start, TextPrompt)
        return asked or not self._takes_soft

    @property
    def _takes_soft(self) -> bool:
        can = self._client.capabilities
        return can.soft_prompt_width is not None or can.point_prompts

    def _check_kind(self) -> None:
        """See that the backend takes the prompts that are searched.

        Raises:
            InputError: It does not, or the start is of the other kind.
        """
        identity, settings, start = self._client.identity, self._settings, self._start
        if not self._is_text and not self._takes_soft:
            raise InputError(
                f"{identity} takes text prompts only, and this search is over soft ones: take "
                "Settings(prompt='text'), or a backend that takes embeddings, such as 'hf'"
            )
        if self._is_text and not self._client.capabilities.text_prompts:
            raise InputError(
                f"{identity} takes soft prompts only: leave out what asks for a text prompt"
            )
        given = isinstance(start, SoftPrompt | DeepPrompt)
        soft = settings.start != "words" if start is None else given
        if self._is_text and soft:
            raise InputError(
                f"{identity} is asked for text prompts, and the start is a soft one: start from "
                "words, or from a text"
            )
        if isinstance(start, DeepPrompt) and settings.deep is None:
            raise InputError(f"the start is {start}: go on from it with Settings(deep='all')")

    @property
    def _notes(self) -> list[str]:
        """What was decided for the user."""
        if not self._is_text:
            return []
        notes = []
        if not self._settings.asks_for_text and self._start is None:
            notes.append(
                f"{self._client.identity} takes no soft prompts, so the search is over words "
                "(prompt='text')"
            )
        if shown := self._settings.text.demonstrations:
            notes.append(
                f"{shown} of the training rows stand in the prompt with their answers; the others "
                "are scored"
            )
        return notes

    def _shown(self, train: list[Example]) -> tuple[list[Example], list[Example]]:
        """The rows that are demonstrated, and those that are scored."""
        count = self._settings.text.demonstrations
        return draw_demonstrations(train, count, seed=self._seed) if count else ([], train)

    def _task(self, examples: Sequence[Example]) -> Task:
        prompt_first = self._settings.text.demonstrations > 0
        template = self._template or default_template(examples[0], prompt_first=prompt_first)
        return Task(template, self._labels or default_verbalizer(examples))

    def _space(self, task: Task, train: Sequence[Example], shown: Sequence[Example]) -> SearchSpace:
        """What is searched; `train` may give it words, and `shown` is demonstrated."""
        backend, can, template = self._client.backend, self._client.capabilities, task.template
        settings = self._settings
        if template.parts[-1] is not Slot.LABEL and not can.label_anywhere:
            raise InputError(
                f"{self._client.identity} reads left to right, so {{label}} must stand last: "
                f"drop what follows it in the template {template.text!r}"
            )
        if self._is_text:
            instructions, starting = self._instructions(template)
            return text_space(
                self._settings.text,
                task,
                instructions=instructions,
                starting=starting,
                train=[*train, *shown],
                shown=shown,
            )
        subspaces = self._subspaces(template)
        if settings.deep is not None:
            above = self._start.above if isinstance(self._start, DeepPrompt) else ()
            return draw_deep(subspaces, backend, layers=settings.deep, above=above)
        if can.point_prompts and not isinstance(backend, Embeds):
            return PointSpace(subspaces)
        return draw(subspaces, backend)

    def _instructions(self, template: Template) -> tuple[tuple[str, ...], int]:
        """What a text prompt may begin with, and how many of these are starts."""
        if isinstance(self._start, TextPrompt):
            return (self._start.text,), 1
        own = tuple(words.strip() for words in self._settings.starting_words)
        if own != STARTING_WORDS:
            return own, len(own)
        return (DIRECTIONS if stands_first(template) else LEAD_INS), len(STARTING_WORDS)

    def _subspaces(self, template: Template) -> list[Subspace]:
        """What is searched; one for each of the starting words."""
        settings, given = self._settings, self._start
        if isinstance(given, DeepPrompt):
            given = given.first
        if isinstance(given, TextPrompt):
            raise InputError(_not_soft(self._client))
        longest = self._client.capabilities.max_tokens
        if longest is not None and (settings.prompt_length or 0) > longest:
            raise InputError(
                f"prompt_length={settings.prompt_length}: {self._client.identity} reads {longest} "
                "tokens at most, the row's included"
            )
        of_words = given is None and settings.start == "words"
        return [
            Subspace(
                start=given or settings.start,
                words=template.space_before_prompt + words if of_words else "",
                length=settings.prompt_length if given is None else given.length,
                insertion=settings.insertion if given is None else given.insertion,
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
            optimizer=self._optimizer_for(space),
            calibration=calibration_named(settings.calibration),
            selection=LowestLoss() if validation is None else selection_named(settings.selection),
            score_start=settings.score_start,
            budget=settings.budget,
            allow_bounds=settings.allow_bounds,
            callbacks=self._callbacks,
        )

    def _optimizer_for(self, space: SearchSpace) -> Optimizer:
        calls, seed, options = self._settings.budget.calls, self._seed, self._optimizer_options
        if not isinstance(space, DeepSpace):
            return make_optimizer(
                self._optimizer, space.dim, seed=seed, calls=calls, options=options
            )
        before = len(space.starts) * self._settings.score_start + space.needs_stds
        return make_blockwise(
            self._optimizer,
            space.dim // space.blocks,
            blocks=space.blocks,
            seed=seed,
            calls=None if calls is None else max(1, calls - before),
            options=options,
        )

    def _provenance(self, space: SearchSpace) -> dict[str, Any]:
        settings = self._settings.to_json()
        settings["optimizer"] = name_of(self._optimizer)
        settings["optimizer_options"] = self._optimizer_options
        settings["prompt"] = "text" if self._is_text else "soft"
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

    def _journal(
        self,
        provenance: Mapping[str, Any],
        task: Task,
        scored: Sequence[Evaluator],
        resume: bool,
    ) -> Journal:
        header = {
            **provenance,
            # these say when a run ends, not what it is: a resumed one may go further
            "settings": {k: v for k, v in provenance["settings"].items() if k not in _WHEN_IT_ENDS},
            "template": task.template.text,
            "label_words": dict(task.verbalizer.words),
            "rows": [evaluator.digest for evaluator in scored],
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


def _notes_of(train: Sequence[Example], validation: Sequence[Example]) -> list[str]:
    """What is odd about the rows, and may well be meant."""
    notes, labels = [], dict[tuple[str, ...], set[str | None]]()
    for row in train:
        labels.setdefault(tuple(row.fields.values()), set()).add(row.label)
    if torn := [texts for texts, given in labels.items() if len(given) > 1]:
        notes.append(
            f"train: {len(torn)} of the texts have several labels, the first is {torn[0][0]!r:.60}"
        )
    if seen := sum(tuple(row.fields.values()) in labels for row in validation):
        notes.append(
            f"validation: {seen} of {len(validation)} rows are training rows too, so what is "
            "chosen on them may suit these rows alone"
        )
    return notes


def default_template(example: Example, *, prompt_first: bool = False) -> Template:
    """Each field on a line under its name, then the prompt and the label: it serves any task.

    Args:
        example: Has the fields.
        prompt_first: Whether the prompt stands before all that, as demonstrations need it.

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
    if prompt_first:
        return Template("{prompt}\n\n" + "".join(lines) + "Answer: {label}")
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
    cased: dict[str, str] = {}
    for word in words:
        other = cased.setdefault(word.casefold(), word)
        if other != word:
            warnings.warn(
                f"the labels {other!r} and {word!r} differ in case only and are two classes: write "
                "them alike if they are one",
                stacklevel=4,
            )
    return Verbalizer(words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _given(
    start: SoftPrompt | DeepPrompt | TextPrompt | TunedPrompt | None, client: Client
) -> SoftPrompt | DeepPrompt | TextPrompt | None:
    """p0 where one is given.

    Raises:
        InputError: It is neither vectors nor text.
    """
    prompt = drawn(start.prompt, client.backend) if isinstance(start, TunedPrompt) else start
    if prompt is None or isinstance(prompt, SoftPrompt | DeepPrompt | TextPrompt):
        return prompt
    if not isinstance(prompt, PointPrompt):
        raise InputError(
            f"start={prompt!r:.60} is no prompt: give a SoftPrompt, a TextPrompt or a saved one; "
            "words to start from go into Settings(prompt_init=...)"
        )
    raise InputError(
        f"the prompt to start from is {prompt}, which has vectors only for who has the model's "
        f"word embeddings, and {client.identity} does not give them: start from words, or use the "
        "model itself"
    )


def _not_soft(client: Client) -> str:
    return (
        "the prompt to start from must be a soft one of width "
        f"{client.capabilities.soft_prompt_width} for {client.identity}"
    )


def _inspect_longest(space: TextSpace, scored: Sequence[Evaluator]) -> None:
    """See before anything is paid that no prompt of the space will be too long.

    Raises:
        InputError: One would be.
    """
    try:
        for evaluator in scored:
            for prompt in space.longest:
                evaluator.inspect(prompt)
    except InputError as error:
        raise InputError(
            f"{error} (with the longest prompt that this search could try: fewer word slots or "
            "demonstrations make it shorter)"
        ) from error
