"""The plan of an experiment: the runs that it consists of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lmaas_tune.errors import InputError
from lmaas_tune.lab.record import Key, Record
from lmaas_tune.lab.store import Store


class Run(Protocol):
    """A run that is to be made, in this process or in a worker."""

    @property
    def key(self) -> Key:
        """Identifies the run within its experiment."""
        ...

    def record(self, identity: str) -> Record:
        """The record of the run before it is made.

        Args:
            identity: The backend's, or "" if it is not known.
        """
        ...

    def make(self, store: Store) -> Record:
        """Make the run, or resume it from its journal.

        An error of the model or the method is in the record, so that other runs go on.

        Raises:
            InputError: No run of the experiment can be made.
            StorageError: The folder of the run cannot be written.
        """
        ...


def check_listed(what: str, names: Sequence[object]) -> None:
    """Check that names are given, each once.

    Raises:
        InputError: There is none, or one is repeated.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"{what}={list(names)}: give some, each once")
