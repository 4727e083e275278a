"""`Registry`: plugins by name, from built-in tables and from entry points."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from lmaas_tune.backend import Backend
from lmaas_tune.errors import InputError, did_you_mean

OURS = "lmaas-tune"
"""Distribution of the built-in names."""


@dataclass(frozen=True, kw_only=True)
class PluginEntry:
    """One name of a plugin, not yet imported.

    Attributes:
        name: The name that users type.
        target: The object, as ``module:attribute``.
        distribution: Name of the distribution that provides it.
    """

    name: str
    target: str
    distribution: str


class Registry:
    """The names of one kind of plugin.

    Nothing is imported before a name is loaded; a broken plugin affects no other name.

    Args:
        kind: Kind of the plugins for messages: ``optimizer``.
        group: Entry-point group for names of other distributions.
        builtin: Built-in names, each with its ``module:attribute``.
    """

    def __init__(self, kind: str, *, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group, self._builtin = kind, group, dict(builtin)

    def names(self) -> tuple[str, ...]:
        """All names, the built-in ones first."""
        return tuple(
            dict.fromkeys([*self._builtin, *sorted(point.name for point in self._points())])
        )

    def entry(self, name: str) -> PluginEntry:
        """Look up a name.

        Raises:
            InputError: The name is unknown, or two distributions provide it.
        """
        entries = self._entries(name)
        if not entries:
            raise InputError(
                f"unknown {self.kind} {name!r}; {did_you_mean(name, self.names())} "
                f"(others can be installed: the entry points {self.group!r} add names)"
            )
        if len(entries) > 1:
            both = " and ".join(repr(entry.distribution) for entry in entries)
            raise InputError(
                f"the {self.kind} {name!r} is offered by {both}: uninstall all but one of them"
            )
        return entries[0]

    def load(self, name: str) -> object:
        """Import the object behind `name`.

        Raises:
            InputError: The name is unknown or provided twice, or its import fails; the message then
                names the distribution and the cause.
        """
        entry = self.entry(name)
        module, _, attribute = entry.target.partition(":")
        try:
            found: object = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except InputError:
            raise
        except Exception as error:  # a plugin may raise anything; the user gets one sentence
            raise InputError(
                f"the {self.kind} {name!r}, which {entry.distribution!r} offers as "
                f"{entry.target!r}, cannot be imported ({type(error).__name__}: {error}): "
                f"reinstall or uninstall {entry.distribution!r}"
            ) from error
        return found

    def describe(self, name: str) -> str:
        """One line about `name`, for a list of all names.

        For a built-in name the first line of its docstring (our modules import nothing heavy
        before use); for others their target and distribution, because an import may be slow or
        fail. For a name that cannot be loaded, the reason.
        """
        try:
            entry = self.entry(name)
        except InputError as error:
            return str(error)
        if name in self._builtin:
            return (inspect.getdoc(self.load(name)) or "").split("\n")[0]
        return f"{entry.target}, from {entry.distribution}"

    def _entries(self, name: str) -> list[PluginEntry]:
        entries = []
        if name in self._builtin:
            entries.append(PluginEntry(name=name, target=self._builtin[name], distribution=OURS))
        entries += [
            PluginEntry(name=name, target=point.value, distribution=_distribution(point))
            for point in self._points()
            if point.name == name
        ]
        return entries

    def _points(self) -> list[EntryPoint]:
        return list(entry_points(group=self.group))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "a distribution without a name"


BACKENDS = Registry("backend", group="lmaas_tune.backends", builtin={})
"""Backends; ours (``hf``) are entry points too."""


def backend_names() -> tuple[str, ...]:
    """Names that `load_backend` takes."""
    return BACKENDS.names()


def load_backend(name: str) -> Callable[..., Backend]:
    """The class or function that builds the backend `name`; its arguments depend on the adapter.

    Raises:
        InputError: The name is unknown or provided twice, not callable, or its import fails.
    """
    factory = BACKENDS.load(name)
    if not callable(factory):
        entry = BACKENDS.entry(name)
        raise InputError(
            f"the backend {name!r}, which {entry.distribution!r} offers as {entry.target!r}, "
            f"is a {type(factory).__name__} and not a class or function"
        )
    return cast("Callable[..., Backend]", factory)


def name_of(thing: object) -> str:
    """The name of an optimizer or objective in records: its name, or ``module:attribute``."""
    if isinstance(thing, str):
        return thing
    owner: Any = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{owner.__module__}:{owner.__qualname__}"
