"""The parts of a comparison: its optimizers, its backend, and the facts that its runs share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError, LMaaSError, MissingExtraError
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.store import Fact, Kind
from lmaas_tune.optimizers.base import OptimizerFactory
from lmaas_tune.registry import load_backend
from lmaas_tune.settings import plain_options

MakeBackend: TypeAlias = Callable[[], "Backend | Client"]
"""Builds the backend; each worker calls it once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BackendChoice:
    """How each worker builds its backend; no model is sent to it.

    Attributes:
        make: The name of a backend, or a function without arguments that builds one.
        options: The arguments of a named one.
        token: Identifies the choice, so that a worker builds it once.
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
        except Exception as error:  # of any backend
            said = ", ".join(f"{name}={value}" for name, value in self.options.items())
            raise InputError(
                f"the backend {make!r} cannot be made with {said or 'no options'} "
                f"({type(error).__name__}: {error})"
            ) from error
        return Client.of(made)


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """An optimizer in a comparison.

    Attributes:
        optimizer: A name (``lmaas-tune optimizers`` lists them), or a class or function that
            builds one.
        options: Of a named optimizer; empty for those that the settings give it.
        label: Its name in the results; by default its name and options, as
            ``cma(population=20)``.

    Raises:
        InputError: A class or function comes with options.
    """

    optimizer: str | OptimizerFactory
    options: Mapping[str, object] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", plain_options(self.options))
        name = self.optimizer
        if not isinstance(name, str):
            if self.options:
                raise InputError(
                    f"options {dict(self.options)} are for an optimizer given by name: set them "
                    "in the function that builds this one"
                )
            name = str(getattr(name, "__name__", type(name).__name__))
        if not self.label:
            options = ",".join(f"{option}={value}" for option, value in self.options.items())
            object.__setattr__(self, "label", f"{name}({options})" if options else name)


def optimizer_specs(given: Sequence[str | OptimizerSpec]) -> tuple[OptimizerSpec, ...]:
    """Names and specs as specs.

    Raises:
        InputError: There is none, or two have one label.
    """
    if isinstance(given, str) or not given:
        raise InputError(f"optimizers={given!r}: give a list of them, as ['cma', 'random']")
    found = tuple(o if isinstance(o, OptimizerSpec) else OptimizerSpec(optimizer=o) for o in given)
    labels = [spec.label for spec in found]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"the optimizer {label!r} is named twice: name each once")
    return found


PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    """The conditions that a report reads."""

    budget: str
    objective: str = ""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The settings that a report reads."""

    optimizer: str
    optimizer_options: Mapping[str, Any]


def _facts(record: Record) -> Iterator[Fact]:
    """Runs differ in task, optimizer and seed only."""
    task, method, seed = record.key
    yield (), "the backend", record.identity
    yield (), "the list of conditions", sorted(record.conditions)
    for name in sorted(record.conditions):
        yield (), name, record.conditions[name]
    yield (task,), f"the template of {task!r}", record.template
    yield (task,), f"the label words of {task!r}", record.label_words
    for part in PARTS:
        name = f"the set of {part} rows of {task!r} with seed {seed}"
        yield (task, seed), name, record.rows.get(part)
    for name in ("optimizer", "optimizer_options"):
        yield (None, method), f"the {name} of {method!r}", record.settings.get(name)


def _from_old(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "method": content.get("optimizer")}


COMPARISON = Kind(
    name="comparison",
    conditions=_Conditions,
    settings=_Settings,
    facts=_facts,
    old_name="run.json",
    from_old=_from_old,
)
