"""The parts of a comparison: its backends, its optimizers, and the facts that its runs share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client
from lmaas_tune.calls.meter import Price
from lmaas_tune.errors import InputError, LMaaSError, MissingExtraError
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.store import Fact, Kind
from lmaas_tune.optimizers.base import OptimizerFactory
from lmaas_tune.registry import load_backend
from lmaas_tune.settings import plain_options

MakeBackend: TypeAlias = Callable[[], "Backend | Client"]
"""Builds the backend; each worker calls it once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BackendSpec:
    """A backend in a comparison. Each worker builds its own; no model is sent to it.

    Attributes:
        backend: The name of a backend, or a function without arguments that builds one (or a
            `lmaas_tune.Client` around one).
        options: The arguments of a named one.
        price: Of its usage; None if it has none, or if the function sets it.
        label: Its name in the results of several backends; by default its name and options, as
            ``hf(model=gpt2)``.
        token: Identifies the choice, so that a worker builds it once.

    Raises:
        InputError: A name is unknown, a backend is given that is built already, or a function
            comes with options.
    """

    backend: str | MakeBackend
    options: Mapping[str, object] = field(default_factory=dict)
    price: Price | None = None
    label: str = ""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        if hasattr(self.backend, "score") and not isinstance(self.backend, type):
            raise InputError(
                f"backend={self.backend!r:.60} is a backend, and each worker builds its own: give "
                "its name with backend_options, or a function without arguments that builds it"
            )
        if not isinstance(self.backend, str) and self.options:
            raise InputError(
                f"backend_options {dict(self.options)} are for a backend given by name: set them "
                "in the function that builds this one"
            )
        if isinstance(self.backend, str):
            load_backend(self.backend)  # a wrong name shows here, and not in every worker

    def open(self) -> Client:
        """Build it.

        Raises:
            InputError: It cannot be built with these options.
        """
        make = self.backend
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
        if self.price is None:
            return Client.of(made)
        if isinstance(made, Client):
            raise InputError(f"the backend {make!r} is a client: give the price to that")
        return Client(made, price=self.price)


GivenBackend: TypeAlias = "str | MakeBackend | BackendSpec"


def backend_specs(
    given: GivenBackend | Sequence[GivenBackend], options: Mapping[str, object] | None = None
) -> tuple[BackendSpec, ...]:
    """One backend, or several with a label each.

    Args:
        given: The backends; one that is not in a list needs no label.
        options: The arguments of one backend that is given by name.

    Raises:
        InputError: There is none, two have one label, or options come with several.
    """
    if isinstance(given, BackendSpec):
        given = [given]
    if isinstance(given, str) or not isinstance(given, Sequence):
        return (BackendSpec(backend=given, options=dict(options or {})),)
    if not given:
        raise InputError("there is no backend: give at least one")
    if options:
        raise InputError(
            f"backend_options {dict(options)} are for one backend given by name: give each its own,"
            " as BackendSpec(backend='hf', options={...})"
        )
    specs = [each if isinstance(each, BackendSpec) else BackendSpec(backend=each) for each in given]
    specs = [
        replace(each, label=each.label or _label(each.backend, each.options)) for each in specs
    ]
    _check_labels("backend", specs)
    return tuple(specs)


def _label(made: object, options: Mapping[str, object]) -> str:
    """A name with its options, as ``cma(population=20)``."""
    name = made if isinstance(made, str) else getattr(made, "__name__", type(made).__name__)
    said = ",".join(f"{option}={value}" for option, value in options.items())
    return f"{name}({said})" if said else str(name)


def _check_labels(what: str, specs: Sequence[BackendSpec] | Sequence[OptimizerSpec]) -> None:
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"the {what} {label!r} is named twice: name each once")


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
        if not isinstance(self.optimizer, str) and self.options:
            raise InputError(
                f"options {dict(self.options)} are for an optimizer given by name: set them in the "
                "function that builds this one"
            )
        if not self.label:
            object.__setattr__(self, "label", _label(self.optimizer, self.options))


def optimizer_specs(given: Sequence[str | OptimizerSpec]) -> tuple[OptimizerSpec, ...]:
    """Names and specs as specs.

    Raises:
        InputError: There is none, or two have one label.
    """
    if isinstance(given, str) or not given:
        raise InputError(f"optimizers={given!r}: give a list of them, as ['cma', 'random']")
    found = tuple(o if isinstance(o, OptimizerSpec) else OptimizerSpec(optimizer=o) for o in given)
    _check_labels("optimizer", found)
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
    """Runs differ in backend, task, optimizer and seed only."""
    task, method, seed = record.task, record.method, record.seed
    yield (), "whether the backend has a label", bool(record.backend)
    named = f" {record.backend!r}" if record.backend else ""
    yield (record.backend,), f"the backend{named}", record.identity
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
