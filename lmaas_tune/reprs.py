"""Short representations of values, as the last line of a notebook's cell shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

import numpy as np

_DIGITS = 4  # of a number
_ITEMS = 8  # of a collection
_CHARACTERS = 120  # of a text


def short_repr(self: Any) -> str:
    """A dataclass without the fields that have their defaults, see `call_repr`; a method of it."""
    shown = [field for field in fields(self) if field.repr and not _is_default(self, field)]
    return call_repr(self, **{field.name: getattr(self, field.name) for field in shown})


def call_repr(value: object, /, **content: object) -> str:
    """``Name(key=value, ...)`` with the name of the class of `value`.

    Numbers have four digits; arrays, long texts and long collections are cut.
    """
    items = ", ".join(f"{name}={_short(own)}" for name, own in content.items())
    return f"{type(value).__qualname__}({items})"


def _is_default(value: Any, field: Field[Any]) -> bool:
    own = getattr(value, field.name)
    if isinstance(own, np.ndarray):
        return False
    if field.default_factory is not MISSING:
        return bool(own == field.default_factory())
    return field.default is not MISSING and bool(own == field.default)


def _short(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"<array {value.shape}>"
    if isinstance(value, (float, np.floating)):
        return repr(float(f"{value:.{_DIGITS}g}"))
    if isinstance(value, (Mapping, list, tuple)) and len(value) > _ITEMS:
        return f"<{len(value)} items>"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_short, value))}]"
    if isinstance(value, str) and len(value) > _CHARACTERS:
        return f"{value[:_CHARACTERS]!r}..."
    return repr(value)
