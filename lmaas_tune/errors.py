"""The exceptions of this package, and the wording that their messages share.

::

    LMaaSError
    ├── InputError (ValueError)      an argument cannot work; raised before the first paid call
    │   └── MissingExtraError        an optional package is not installed
    ├── BackendError                 the backend failed
    │   ├── TransientError           temporary: retried, after `retry_after` seconds if given
    │   └── PermanentError           lasting: the run ends, paid answers are saved
    ├── BudgetExceededError          the next request would exceed the budget
    └── StorageError (OSError)       a journal, artefact or folder cannot be read or written

An adapter translates the exceptions of its libraries into the two `BackendError`s, in one
place, with ``raise ... from error``. A message names the thing, its value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lmaas_tune.usage import Usage

T = TypeVar("T")


class LMaaSError(Exception):
    """Root of this package's errors.

    Attributes:
        usage: Usage that the provider billed although the call failed, as far as it is known;
            None if there was none.
        usage_unknown: Whether the call may have cost more than `usage`, because the reply or its
            usage is missing. Then the cost reserved for the call is booked.
    """

    usage: Usage | None = None
    usage_unknown: bool = False


class InputError(LMaaSError, ValueError):
    """An argument, a setting or a data set cannot work. Raised before the first paid call."""


class MissingExtraError(InputError):
    """A feature needs an optional package, which one of this project's extras installs."""

    def __init__(self, feature: str, *, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed: "
            f"pip install 'lmaas-tune[{extra}]'"
        )


class BackendError(LMaaSError):
    """The provider did not answer a request."""


class TransientError(BackendError):
    """A temporary failure; the client retries the call.

    Attributes:
        retry_after: Seconds that the provider asked to wait; None if it named none.
        overloaded: Whether fewer concurrent requests would help: the provider answered 429 or
            503, or timed out.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, overloaded: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.overloaded = overloaded


class PermanentError(BackendError):
    """A failure that would repeat with the same request."""


class BudgetExceededError(LMaaSError):
    """The next request would exceed the budget; it was not sent."""


class StorageError(LMaaSError, OSError):
    """A journal, a saved prompt or another file of this package cannot be read or written."""


_MANY, _NAME = 50, 100  # the most names, and characters of a name, in a message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the close matches of `name`, else the known names."""
    if not (names := sorted(map(str, known))):
        return "none is known"
    close = difflib.get_close_matches(str(name)[:_NAME], names[: 20 * _MANY], n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    more = f" and {len(names) - _MANY:,} more" if len(names) > _MANY else ""
    return "known: " + ", ".join(name[:_NAME] for name in names[:_MANY]) + more


def named(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look up a name in a table.

    Raises:
        InputError: The name is unknown; the message suggests close matches.
    """
    try:
        return table[name]
    except KeyError:
        raise InputError(f"unknown {kind} {name!r}; {did_you_mean(name, table)}") from None
