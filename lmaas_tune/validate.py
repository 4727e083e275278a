"""Constraints of settings: declared with the field, checked when a value is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import field, fields
from numbers import Integral, Real
from typing import Any

from lmaas_tune.errors import InputError, did_you_mean

_CHECK = "check"


def whole(*, least: int, default: Any = None, optional: bool = False) -> Any:
    """A dataclass field that takes a whole number.

    Args:
        least: Smallest value.
        default: Default of the field.
        optional: Whether None is allowed.
    """

    def check(name: str, value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise InputError(f"{name}={value!r}: it takes a whole number")
        if int(value) < least:
            raise InputError(f"{name}={value}: it must be {least} or more")
        return int(value)

    return field(default=default, metadata={_CHECK: check})


def positive(*, default: float) -> Any:
    """A dataclass field that takes a positive finite number."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{name}={value!r}: it takes a number")
        if not 0 < float(value) < math.inf:
            raise InputError(f"{name}={value}: it must be positive and finite")
        return float(value)

    return field(default=default, metadata={_CHECK: check})


def nonnegative(*, default: float, below: float = math.inf, most: float = math.inf) -> Any:
    """A dataclass field that takes a finite number from 0 on.

    Args:
        default: Default of the field.
        below: It must be less than this.
        most: Largest value.
    """

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InputError(f"{name}={value!r}: it takes a finite number")
        if float(value) < 0:
            raise InputError(f"{name}={value}: it must be 0 or more")
        if float(value) > most:
            raise InputError(f"{name}={value}: it must be {most:g} at most")
        if float(value) >= below:
            raise InputError(f"{name}={value}: it must be below {below:g}")
        return float(value)

    return field(default=default, metadata={_CHECK: check})


def one_of(choices: Iterable[str], *, default: str) -> Any:
    """A dataclass field that takes one of several names."""
    known = tuple(choices)

    def check(name: str, value: Any) -> str:
        if value not in known:
            raise InputError(f"unknown {name} {value!r}; {did_you_mean(str(value), known)}")
        return str(value)

    return field(default=default, metadata={_CHECK: check})


def checked_by(check: Callable[[str, Any], Any], *, default: Any) -> Any:
    """A dataclass field with a custom check.

    Args:
        check: Takes the field's name and value, and returns the value to store, or raises an
            `InputError`.
        default: Default of the field.
    """
    return field(default=default, metadata={_CHECK: check})


def validate(settings: Any, *, of: str = "") -> None:
    """Check every field of a frozen dataclass that has a constraint.

    Args:
        settings: The dataclass.
        of: Word that messages have before the name of a field.

    Raises:
        InputError: A value is out of range; the message names the field, the value and the remedy.
    """
    for each in fields(settings):
        if (check := each.metadata.get(_CHECK)) is not None:
            value = check(f"{of} {each.name}".strip(), getattr(settings, each.name))
            object.__setattr__(settings, each.name, value)
