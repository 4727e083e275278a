"""Settings that are whole numbers from 1 up, given by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

from lmaas_tune.errors import InputError, did_you_mean

T = TypeVar("T", bound="WholeNumbers")


@dataclass(frozen=True, kw_only=True)
class WholeNumbers:
    """What `Bounds` and `Limits` have in common.

    Attributes:
        kind: What one of them is called in a message.
        may_be_none: Whether None stands for no limit.

    Raises:
        InputError: One is no whole number from 1 up.
    """

    kind: ClassVar[str]
    may_be_none: ClassVar[bool]

    def __post_init__(self) -> None:
        for number in fields(self):
            value = getattr(self, number.name)
            if value is None and self.may_be_none:
                continue
            if type(value) is not int or value < 1:
                raise InputError(
                    f"the {self.kind} {number.name} is {value!r}: give a whole number from 1"
                )

    @classmethod
    def of(cls: type[T], given: Mapping[str, object]) -> T:
        """The usual ones, but for those given by name.

        Raises:
            InputError: There is none of this name, or it takes no such value.
        """
        known = [number.name for number in fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"there is no {cls.kind} {name!r}; {did_you_mean(name, known)}")
        return cls(**given)
