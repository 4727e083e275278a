"""Prepares a search: checks arguments and builds space, evaluators and optimizer, for free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lmaas_tune.backend import Embeds, KnowsWords, Measures
from lmaas_tune.callbacks import Callback
from lmaas_tune.calls.client import Client
from lmaas_tune.dataset import Dataset, task_for
from lmaas_tune.errors import InputError
from lmaas_tune.evaluator import Evaluator, IntArray
from lmaas_tune.heads import AUTO, Head, make_head
from lmaas_tune.heads.words import head_words
from lmaas_tune.objectives import Objective, cross_entropy, objective_named
from lmaas_tune.optimizers import make_blockwise, make_optimizer
from lmaas_tune.optimizers.base import Optimizer, OptimizerFactory
from lmaas_tune.prepared_run import PreparedRun
from lmaas_tune.prompts import (
    NeedsStds,
    Prompt,
    PromptKind,
    PromptSpace,
    Setup,
    resolve,
)
from lmaas_tune.prompts.phrases import BUILT_IN
from lmaas_tune.prompts.text import draw_demonstrations
from lmaas_tune.registry import name_of
from lmaas_tune.screening import screening_calls
from lmaas_tune.search import Search
from lmaas_tune.selection import LowestLoss, selection_named
from lmaas_tune.settings import JOIN, Settings
from lmaas_tune.task import Example, Slot, Task, Template, Verbalizer
from lmaas_tune.versions import versions


@dataclass(frozen=True, kw_only=True)
class Job:
    """The checked arguments of a `Tuner`.

    Attributes:
        client: The client for all calls; notes for the user go to its `on_note`.
        settings: Settings of the search.
        optimizer: A name, or a function that builds one.
        optimizer_options: Options of the optimizer by name.
        template: None for the default template.
        verbalizer: None uses each label as its label word.
        start: The initial prompt p0, if one is given.
        objective: None for the objective of the settings.
        head: None for the head of the settings.
        seed: Seed of all random draws.
        callbacks: Observers of the run.
    """

    client: Client
    settings: Settings
    optimizer: str | OptimizerFactory
    optimizer_options: Mapping[str, Any]
    template: Template | None
    verbalizer: Verbalizer | None
    start: Prompt | None
    objective: Objective | None
    head: Head | None
    seed: int
    callbacks: Sequence[Callback]

    def prepared(self, train: Dataset, validation: Dataset | None) -> PreparedRun:
        """Build the search on these rows.

        Raises:
            InputError: An argument cannot work.
        """
        train.check_classes()
        kind, note = resolve(self.settings.prompt, self.client, self._embeds, self.start)
        if self.optimizer == AUTO:
            return replace(self, optimizer=self._optimizer_for_kind(kind)).prepared(
                train, validation
            )
        count = kind.demonstrations
        shown, rows = (
            draw_demonstrations(train.examples, count, seed=self.seed)
            if count
            else ([], train.examples)
        )
        scored = [Dataset("train", rows), *([] if validation is None else [validation])]
        task = self._task(rows, prompt_first=count > 0)
        space = kind.space(self._setup(task, rows, shown))
        head, words = self._head(task, rows)
        evaluators = self._evaluators(task, scored, head, words)  # names wrong rows
        told, digests = None, [evaluator.digest for evaluator in evaluators]
        if self.settings.validation_rows == JOIN:
            told = _told_rows(evaluators)
            if len(scored) > 1:
                evaluators = self._evaluators(task, [scored[0].joined(scored[1])], head, words)
        most_starts = self._most_starts(kind, space, evaluators[0])
        search = self._search(evaluators, told, space, most_starts)
        notes = [
            *([note] if note else []),
            *_notes_on_rows(scored, shown),
            *(note for rows in scored for note in rows.note_on_limits(task.template)),
            *search.check(),
        ]
        for note in notes:
            self.client.on_note(note)
        return PreparedRun(
            task=task,
            label_type=train.label_type,
            words=words,
            evaluator=evaluators[0],
            search=search,
            averaged=self.settings.averaged,
            provenance=self._provenance(replace(self.settings, prompt=kind), space),
            digests=digests,
        )

    @cached_property
    def _embeds(self) -> Embeds | None:
        """The model's word embeddings, where the backend gives them."""
        backend = self.client.backend
        return backend if isinstance(backend, Embeds) else None

    def _task(self, rows: Sequence[Example], *, prompt_first: bool) -> Task:
        task = task_for(
            rows,
            template=self.template,
            verbalizer=self.verbalizer,
            prompt_first=prompt_first,
            on_note=self.client.on_note,
        )
        template = task.template
        if template.parts[-1] is not Slot.LABEL and not self.client.capabilities.label_anywhere:
            raise InputError(
                f"{self.client.identity} reads left to right, so {{label}} must come last: "
                f"remove the text after it from the template {template.text!r}"
            )
        return task

    def _setup(self, task: Task, train: Sequence[Example], shown: Sequence[Example]) -> Setup:
        return Setup(
            model=self.client,
            embeds=self._embeds,
            measures=isinstance(self.client.backend, Measures),
            task=task,
            train=train,
            shown=shown,
            start=self.start,
            seed=self.seed,
        )

    def _most_starts(self, kind: PromptKind, space: PromptSpace, train: Evaluator) -> int:
        """The starts that are scored: given ones, and built-in ones for a quarter of the calls."""
        starts, words, calls = len(space.starts), kind.given_words, self.settings.budget.calls
        if not self.settings.score_start:
            return 1
        if calls is None or BUILT_IN not in words:
            return starts
        least = min(starts, max(1, len(words) - 1))
        paid = (n for n in range(starts, least, -1) if screening_calls(train, n) <= calls // 4)
        return next(paid, least)

    def _head(self, task: Task, train: Sequence[Example]) -> tuple[Head, tuple[str, ...]]:
        """The head, and the words that it reads beside the label words."""
        backend, settings = self.client.backend, self.settings
        most: int | None = 0
        if isinstance(backend, KnowsWords):
            most = self.client.capabilities.words_per_request
            if most is not None:
                most = max(0, most - self._size_of(task.verbalizer.candidates))
        head = self.head or make_head(settings.head, words=settings.head_words, most=most)
        count = head.extra_words if most is None else min(head.extra_words, most)
        if not count or not isinstance(backend, KnowsWords):
            return head, ()
        return head, head_words(task, train, backend.one_token_words(), count, seed=self.seed)

    def _size_of(self, words: Sequence[str]) -> int:
        """What label words take of the words of a request: their tokens, if these are known."""
        if self._embeds is None:
            return len(words)
        return sum(max(1, len(self._embeds.tokenize(f" {word}"))) for word in words)

    def _evaluators(
        self, task: Task, sets: Sequence[Dataset], head: Head, words: Sequence[str]
    ) -> list[Evaluator]:
        objective = self.objective or objective_named(self.settings.objective)
        cost = self.client.new_cost_model()
        return [
            Evaluator(
                self.client,
                task,
                rows.examples,
                objective,
                head,
                words=words,
                what=rows.name,
                cost=cost,
            )
            for rows in sets
        ]

    def _search(
        self,
        evaluators: Sequence[Evaluator],
        told: IntArray | None,
        space: PromptSpace,
        most_starts: int,
    ) -> Search:
        settings = self.settings
        validation = evaluators[1] if len(evaluators) > 1 else None
        return Search(
            train=evaluators[0],
            validation=validation,
            told=told,
            space=space,
            optimizer=self._optimizer_for(space, evaluators[0], most_starts),
            selection=LowestLoss() if validation is None else selection_named(settings.selection),
            score_start=settings.score_start,
            most_starts=most_starts,
            budget=settings.budget,
            allow_bounds=settings.allow_bounds,
            callbacks=self.callbacks,
            on_note=self.client.on_note,
        )

    def _optimizer_for_kind(self, kind: PromptKind) -> str:
        """The optimizer where none is named; Gauss-Newton knows the cross-entropy alone."""
        objective = self.objective or objective_named(self.settings.objective)
        return kind.optimizer if objective is cross_entropy else "cma"

    def _optimizer_for(self, space: PromptSpace, train: Evaluator, most_starts: int) -> Optimizer:
        calls, seed, options = self.settings.budget.calls, self.seed, self.optimizer_options
        if space.blocks == 1:
            return make_optimizer(
                self.optimizer, space.dim, seed=seed, calls=calls, options=options
            )
        before = screening_calls(train, most_starts) * self.settings.score_start
        before += isinstance(space, NeedsStds) and space.needs_stds
        return make_blockwise(
            self.optimizer,
            space.dim // space.blocks,
            blocks=space.blocks,
            seed=seed,
            calls=None if calls is None else max(1, calls - before),
            options=options,
        )

    def _provenance(self, settings: Settings, space: PromptSpace) -> dict[str, Any]:
        content = settings.to_json()
        content["optimizer"] = name_of(self.optimizer)
        content["optimizer_options"] = dict(self.optimizer_options)
        if self.start is not None:
            content |= {"start": "given", "prompt_init": None, "prompt_length": None}
        if self.objective is not None:
            content["objective"] = name_of(self.objective)
        if self.head is not None:
            content["head"] = name_of(self.head)
        return {
            "backend": self.client.identity,
            "seed": self.seed,
            "settings": content,
            "space": space.digest,
            "versions": versions(),
        }


_FEWEST = 8  # rows of a label in each half


def _told_rows(evaluators: Sequence[Evaluator]) -> IntArray | None:
    """The rows whose loss the optimizer is told: the training rows, if others can select.

    Without validation rows it is every other row of each label, or None if they are few.
    """
    targets = evaluators[0].targets
    if len(evaluators) > 1:
        return np.arange(len(targets))
    counts = np.bincount(targets)
    if counts[counts > 0].min() < 2 * _FEWEST:
        return None
    return np.sort(np.concatenate([np.flatnonzero(targets == each)[::2] for each in set(targets)]))


def _notes_on_rows(sets: Sequence[Dataset], shown: Sequence[Example]) -> list[str]:
    notes = []
    if shown:
        notes.append(
            f"{len(shown)} of the training rows are demonstrations in the prompt; the "
            "others are scored"
        )
    train, *others = sets
    notes += train.notes()
    for other in others:
        notes += other.notes(train)
    return notes
