"""Parsing of JSON from untrusted files, with a check of each value against a type."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lmaas_tune.errors import InputError

DEEPEST = 100
"""Largest depth of nested lists and objects, below Python's recursion limit."""

_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Sequence: "a list",
    Mapping: "an object",
}


def parse_json(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        InputError: It is not JSON, is nested too deeply, or holds NaN or infinity.
    """
    try:
        found = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise InputError("not JSON: nested too deeply") from None
    except ValueError as error:  # also for invalid UTF-8, and for numbers with too many digits
        raise InputError(f"not JSON: {error}") from error
    level = [found]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise InputError("not JSON: nested too deeply")
    return found


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: See `parse_json`, or it is no object.
    """
    found: dict[str, Any] = checked(Mapping[str, Any], parse_json(text), "it")
    return found


def checked(kind: Any, value: Any, name: str) -> Any:
    """The value, checked against a type.

    Args:
        kind: A type annotation: numbers, text, None, `Literal`, `Sequence`, `Mapping`, unions of
            these, and dataclasses with such fields, which are built.
        value: A value as from `parse_json`. An integer counts as a float; true is no number.
        name: Name of the value in the error message.

    Raises:
        InputError: The value has another type, a number exceeds 64 bits, or text is not UTF-8.
    """
    origin, inner = _parts(kind)
    if origin in (Union, types.UnionType):
        return _first_of(inner, value, name)
    if origin is Sequence and isinstance(value, list | tuple):
        return type(value)(checked(inner[0], one, name) for one in value)
    if origin is Mapping and isinstance(value, dict):
        return {checked(str, key, name): checked(inner[1], value[key], name) for key in value}
    if is_dataclass(kind) and isinstance(value, dict):
        return kind(**checked_fields(kind, value, name=name))  # type: ignore[operator]
    if not _is_a(origin, inner, value):
        raise InputError(f"{name} is {value!r:.60} and takes {_words(kind)}")
    return value


def checked_fields(
    kind: Any, content: Any, *, name: str = "it", but: Sequence[str] = ()
) -> dict[str, Any]:
    """Values for the fields of a dataclass, each `checked`; unknown keys are ignored.

    Args:
        kind: The dataclass.
        content: A value as from `parse_json`.
        name: Name of the value in the error message.
        but: Fields to leave out.

    Raises:
        InputError: It is no object, a field without a default is missing, or a value has a wrong
            type.
    """
    if not isinstance(content, dict):
        raise InputError(f"{name} is {content!r:.60} and takes an object")
    hints, values = _hints(kind), {}
    for field in fields(kind):
        if field.name in but:
            continue
        if field.name in content:
            values[field.name] = checked(hints[field.name], content[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{field.name} is missing in {name}")
    return values


_hints = cache(get_type_hints)


@cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """``Sequence[int]`` as Sequence and (int,); other types as themselves."""
    return get_origin(kind) or kind, get_args(kind)


def _first_of(kinds: Sequence[Any], value: Any, name: str) -> Any:
    """The value as the first type that it fits; the first error if it fits none."""
    errors = []
    for kind in kinds:
        try:
            return checked(kind, value, name)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _is_a(kind: Any, inner: Sequence[Any], value: Any) -> bool:
    if kind is Any:
        return True
    if kind is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is str and isinstance(value, str):
        return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    if kind is int or (kind is float and isinstance(value, Integral)):
        return isinstance(value, Integral) and abs(int(value)) < 2**63
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value)
    if kind is Sequence and isinstance(value, str):  # to Python a text is a sequence
        return False
    return isinstance(kind, type) and isinstance(value, kind)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return _WORDS.get(get_origin(kind) or kind, "an object")


def _finite(text: str) -> float:
    """Parse a number for `json`; NaN and infinity are errors."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _inside(value: object) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()
