"""From a name to the code behind it: tables of our own, entry points of everybody else's."""

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
"""Distribution that the names of our own tables come from."""


@dataclass(frozen=True, kw_only=True)
class PluginEntry:
    """One name that one distribution offers; nothing of it is imported yet.

    Attributes:
        name: What users type.
        target: Where the object lives, as ``module:attribute``.
        distribution: Who offers it: the name under which it was installed.
    """

    name: str
    target: str
    distribution: str


class Registry:
    """The names of one kind of plugin.

    Nothing is imported before a name is loaded, and one broken plugin spoils no other name.

    Args:
        kind: What the names stand for, in messages: ``optimizer``.
        group: Entry-point group in which distributions offer names.
        own: Our own names, each with its ``module:attribute``.
    """

    def __init__(self, kind: str, *, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group, self._builtin = kind, group, dict(builtin)

    def names(self) -> tuple[str, ...]:
        """All names on offer, ours first."""
        return tuple(
            dict.fromkeys([*self._builtin, *sorted(point.name for point in self._points())])
        )

    def entry(self, name: str) -> PluginEntry:
        """Who offers `name`, and where it lives.

        Raises:
            InputError: Nobody offers it, or two distributions do.
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
            InputError: No such name, two offers of it, or its import fails; the message then
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
        except Exception as error:  # whatever a plugin does at import, the user reads one sentence
            raise InputError(
                f"the {self.kind} {name!r}, which {entry.distribution!r} offers as "
                f"{entry.target!r}, cannot be imported ({type(error).__name__}: {error}): "
                f"reinstall or uninstall {entry.distribution!r}"
            ) from error
        return found

    def describe(self, name: str) -> str:
        """One line about `name`, for a list of all of them.

        Ours: the first line of its docstring (our modules import nothing heavy before use).
        Another's: where it comes from, as importing it may be slow, or fail. A name that cannot
        be loaded: why.
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
"""Backends; ours (``hf``) come through the same door as everybody's."""


def backend_names() -> tuple[str, ...]:
    """Names that `load_backend` takes."""
    return BACKENDS.names()


def load_backend(name: str) -> Callable[..., Backend]:
    """What builds the backend `name`: a class or function; its arguments are the adapter's own.

    Raises:
        InputError: No such name, two offers of it, not callable, or its import fails.
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
    """What a run's record calls an optimizer or an objective: its name, or where it is from."""
    if isinstance(thing, str):
        return thing
    owner: Any = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{owner.__module__}:{owner.__qualname__}"
