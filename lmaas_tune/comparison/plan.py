"""What is to be run: optimizers by tasks by seeds, everything else the same."""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client
from lmaas_tune.comparison.contender import Contender
from lmaas_tune.comparison.early import EarlyStop
from lmaas_tune.comparison.record import Key, Record
from lmaas_tune.comparison.tasks import NamedTask, Split
from lmaas_tune.errors import InputError, LMaaSError, MissingExtraError
from lmaas_tune.optimizers import make_optimizer
from lmaas_tune.registry import load_backend, name_of
from lmaas_tune.settings import Settings
from lmaas_tune.task import Task, Template, Verbalizer
from lmaas_tune.tuner import default_template, default_verbalizer
from lmaas_tune.versions import versions

MakeBackend: TypeAlias = Callable[[], "Backend | Client"]
"""Builds the black box anew: each worker calls it once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BackendChoice:
    """How each worker comes by its backend: what travels is the recipe, and no model.

    Attributes:
        make: The name of a backend, or a function without arguments that builds one.
        options: The arguments of a named one.
        token: Tells a worker that it has built this one already.
    """

    make: str | MakeBackend
    options: Mapping[str, object] = field(default_factory=dict)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        if hasattr(self.make, "score") and not isinstance(self.make, type):
            raise InputError(
                f"backend={self.make!r:.60} is a backend, and each worker builds its own: give its "
                "name with backend_options, or a function without arguments that builds it"
            )
        if not isinstance(self.make, str) and self.options:
            raise InputError(
                f"backend_options {dict(self.options)} are for a backend given by name: set them "
                "in the function that builds this one"
            )
        if isinstance(self.make, str):
            load_backend(self.make)  # a wrong name shows here, and not in every worker

    def open(self) -> Client:
        """Build it.

        Raises:
            InputError: It cannot be built with these options.
        """
        make = self.make
        try:
            made = load_backend(make)(**self.options) if isinstance(make, str) else make()
        except MissingExtraError as error:
            raise InputError(str(error)) from error  # which can be sent from a worker
        except LMaaSError:
            raise
        except Exception as error:  # whatever a backend raises while it is built
            said = ", ".join(f"{name}={value}" for name, value in self.options.items())
            raise InputError(
                f"the backend {make!r} cannot be made with {said or 'no options'} "
                f"({type(error).__name__}: {error})"
            ) from error
        return made if isinstance(made, Client) else Client(made)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One run that is to be made, with all that a worker needs for it.

    Attributes:
        task: Its name.
        contender: Who searches.
        seed: Of the run.
        template: Where things stand.
        label_words: The word for each label.
        split: The rows.
        settings: How to search; the budget is in it.
        early_stop: The rule by which it may be ended early; None lets it go on.
        backend: How to come by the backend.
    """

    task: str
    contender: Contender
    seed: int
    template: str
    label_words: Mapping[str, str]
    split: Split
    settings: Settings
    early_stop: EarlyStop | None
    backend: BackendChoice

    @property
    def key(self) -> Key:
        """What the run is called."""
        return self.task, self.contender.label, self.seed

    def record(self, identity: str) -> Record:
        """The record of this run before it is made.

        Args:
            identity: The backend's.
        """
        settings = self.settings.to_json()
        settings["optimizer"] = name_of(self.contender.optimizer)
        rule = self.early_stop
        conditions = {
            **{name: settings[name] for name in settings if not name.startswith("optimizer")},
            "early_stop": None if rule is None else vars(rule),
        }
        return Record(
            task=self.task,
            optimizer=self.contender.label,
            seed=self.seed,
            status="failed",
            reason="not made yet",
            identity=identity,
            conditions=json.loads(json.dumps(conditions)),  # as a file gives it back
            template=self.template,
            label_words=self.label_words,
            rows=self.split.to_json(),
            settings=settings,
            versions=versions(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A comparison.

    Attributes:
        backend: The black box.
        tasks: What is tuned for.
        contenders: Who takes part.
        seeds: Each decides the rows, where a task draws them, the subspace and the search.
        settings: How to search, the same for all but the optimizer.
        early_stop: Whether runs that have fallen behind are ended; None lets all go on.

    Raises:
        InputError: Something given cannot work.
    """

    backend: BackendChoice
    tasks: Sequence[NamedTask]
    contenders: Sequence[Contender]
    seeds: Sequence[int]
    settings: Settings
    early_stop: EarlyStop | None

    def __post_init__(self) -> None:
        budget = self.settings.budget
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds={list(self.seeds)}: give some, each once")
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                raise InputError(f"seed {seed!r}: it must be a whole number from 0 on")
        if not {"calls", "sequences", "tokens", "seconds", "money"} & budget.limits.keys():
            raise InputError(
                f"budget={budget}: runs are compared at equal budgets; give one, as calls=200"
            )
        if self.early_stop is not None and budget.calls is None:
            raise InputError(
                f"budget={budget}: runs are ended early by their calls, so limit these: calls=200"
            )
        rule = self.early_stop
        if rule is not None and len(self.contenders) <= rule.rivals:
            warnings.warn(
                f"a run is ended early by {rule.rivals} finished runs of other optimizers, and "
                f"{len(self.contenders)} take part here: none is ended, unless the folder has more",
                stacklevel=2,
            )
        for contender in self.contenders:
            make_optimizer(
                contender.optimizer,
                self.settings.intrinsic_dim,
                seed=self.seeds[0],
                calls=budget.calls,
                options=self._settings_of(contender).optimizer_options,
            )

    def cells(self) -> list[Cell]:
        """All runs; those of one task and seed stand together, so that they can soon be compared.

        Raises:
            InputError: The rows of a task cannot be read, or do not fit its template.
        """
        cells = []
        for seed in self.seeds:
            for named in self.tasks:
                split = named.split(seed)
                task = self._task(named, split)
                cells += [
                    Cell(
                        task=named.name,
                        contender=contender,
                        seed=seed,
                        template=task.template.text,
                        label_words=dict(task.verbalizer.words),
                        split=split,
                        settings=self._settings_of(contender),
                        early_stop=self.early_stop,
                        backend=self.backend,
                    )
                    for contender in self.contenders
                ]
        return cells

    def _settings_of(self, contender: Contender) -> Settings:
        """The settings' own options are those of their own optimizer, as in `Tuner`."""
        name = contender.optimizer
        if not isinstance(name, str):
            return replace(self.settings, optimizer_options={})
        own = self.settings.optimizer_options if name == self.settings.optimizer else {}
        return replace(
            self.settings, optimizer=name, optimizer_options=dict(contender.options or own)
        )

    def _task(self, named: NamedTask, split: Split) -> Task:
        first = self.settings.text.demonstrations > 0
        task = Task(
            default_template(split.train[0], prompt_first=first)
            if named.template is None
            else Template(named.template),
            default_verbalizer(split.train) if named.labels is None else Verbalizer(named.labels),
        )
        for part, rows in vars(split).items():
            try:
                if rows is not None:
                    task.verbalizer.targets(rows)
                    task.template.batch(rows)
            except InputError as error:
                raise InputError(f"task {named.name!r}, {part}: {error}") from error
        return task
