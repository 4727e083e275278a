"""The backend of a comparison, as a recipe that each worker follows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from lmaas_tune.backend import Backend
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError, LMaaSError, MissingExtraError
from lmaas_tune.registry import load_backend

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
