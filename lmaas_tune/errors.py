"""Everything this package raises on purpose.

::

    LMaaSError
    ├── InputError (ValueError)      what the user gave cannot work; told before it is paid for
    │   └── MissingExtraError        a package that an extra installs is not there
    ├── BackendError                 the provider's side
    │   ├── TransientError           may pass: tried again, after `retry_after` seconds where given
    │   └── PermanentError           will not pass: the run ends, what was paid is kept
    ├── BudgetExceededError             the next request would go past the budget
    └── StorageError (OSError)       a journal, artefact or folder cannot be read or written

An adapter translates every foreign exception into one of the two `BackendError`s, in one
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
        usage: What was taken all the same, as far as the provider's side told it: a reply that was
            paid, and is of no use. None where nothing was.
        usage_unknown: Whether more may have been taken than `usage` says, because the reply, or
            what it says of its cost, is missing: then what was reserved for the call is booked.
    """

    usage: Usage | None = None
    usage_unknown: bool = False


class InputError(LMaaSError, ValueError):
    """What the user gave cannot work. Raised before anything is paid for it."""


class MissingExtraError(InputError):
    """A feature needs a package that one of this project's extras installs."""

    def __init__(self, feature: str, *, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed: "
            f"pip install 'lmaas-tune[{extra}]'"
        )


class BackendError(LMaaSError):
    """The provider did not answer a request."""


class TransientError(BackendError):
    """A failure that may pass by itself.

    Attributes:
        retry_after: Seconds the provider asked to wait, or None where it named none.
        overloaded: Whether fewer requests at once would help: the provider said so (429, 503),
            or did not answer in time.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, overloaded: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.overloaded = overloaded


class PermanentError(BackendError):
    """A failure that the same request will meet again."""


class BudgetExceededError(LMaaSError):
    """The next request would go past the budget; it was not sent."""


class StorageError(LMaaSError, OSError):
    """A file of ours cannot be read or written."""


_MANY, _NAME = 50, 100  # names, and characters of one, that a message can hold


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A half-sentence for messages: the close matches of `name`, else what is known."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(str(name)[:_NAME], names[: 20 * _MANY], n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    more = f" and {len(names) - _MANY:,} more" if len(names) > _MANY else ""
    return "known: " + ", ".join(name[:_NAME] for name in names[:_MANY]) + more


def named(kind: str, name: str, table: Mapping[str, T]) -> T:
    """What stands in a table under a name.

    Raises:
        InputError: Nothing does; it says what is meant perhaps.
    """
    try:
        return table[name]
    except KeyError:
        raise InputError(f"unknown {kind} {name!r}; {did_you_mean(name, table)}") from None
