"""Settings of a service: whole numbers, given by name on the command line or in a file of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmaas_tune.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T", bound="WholeNumbers")

Count = Annotated[int, Field(ge=1)]
"""A whole number from 1 up."""


class WholeNumbers(BaseModel):
    """A set of numbers; each field states its constraint and its default."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    kind: ClassVar[str]
    """A message calls one of the numbers by this word."""

    @classmethod
    def of(cls: type[T], given: Mapping[str, object]) -> T:
        """The defaults, except for the numbers given by name.

        Raises:
            InputError: A name is unknown, or a value is no whole number from 1 up.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            fault = error.errors()[0]
        name = str(fault["loc"][0])
        if fault["type"] == "extra_forbidden":
            known = did_you_mean(name, list(cls.model_fields))
            raise InputError(f"there is no {cls.kind} {name!r}; {known}")
        raise InputError(f"the {cls.kind} {name} is {fault['input']!r}: give a whole number from 1")
