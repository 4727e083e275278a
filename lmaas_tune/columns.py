"""Columns that tell a model nothing and should not leave the house: ids, dates and addresses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lmaas_tune.task import Example

_ADDRESS = re.compile(
    r"""
      [^@\s]+@[^@\s]+\.[^@\s]+                       # e-mail
    | (?:https?://|www\.)\S+                         # web
    | \d{1,3}(?:\.\d{1,3}){3}                        # of a machine
    | \+?(?=(?:\D*\d){7})[\d ()./-]{7,20}            # telephone
    """,
    re.VERBOSE,
)
_DATE = re.compile(
    r"""
    (?:\d{4}[-./]\d{1,2}[-./]\d{1,2} | \d{1,2}[-./]\d{1,2}[-./](?:\d{4}|\d{2}))
    (?:[T ,]+ \d{1,2}:\d{2} .{0,20})?
    | \d{1,2}:\d{2} (?::\d{2})? (?:\ ?[AaPp]\.?[Mm]\.?)?
    """,
    re.VERBOSE,
)
_ID = re.compile(
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-f]{16,}"
    r"|(?:[A-Za-z]{1,6}[-_#]?|#)\d+(?:[-_]\d+)*"
)
_NAME_OF_ID = re.compile(
    r"(?:^|[\W_])(?:id|ids|uuid|guid|nr|no|key|index|idx|ticket)$|[a-z](?:Id|ID)$", re.IGNORECASE
)
_NAMELESS = re.compile(r"Unnamed: \d+")
"""What pandas calls a column without a name."""

_ENOUGH = 0.9
"""The share of the values that must look alike, as a cell may be odd or empty."""


def unread_columns(examples: Sequence[Example]) -> dict[str, str]:
    """The fields that look like ids, dates or addresses, with which of them, as ``"dates"``.

    A column without a name looks like an index.

    None if every field does.

    Args:
        examples: Rows of a task.
    """
    found = {}
    for name in examples[0].fields:
        if not name or _NAMELESS.fullmatch(name):
            found[name] = "an index"
            continue
        values = [row.fields[name].strip() for row in examples if row.fields.get(name, "").strip()]
        if values and (kind := _kind(name, values)) is not None:
            found[name] = kind
    return found if len(found) < len(examples[0].fields) else {}


def _kind(name: str, values: Sequence[str]) -> str | None:
    for kind, pattern in (("dates", _DATE), ("addresses", _ADDRESS)):
        if sum(bool(pattern.fullmatch(value)) for value in values) >= _ENOUGH * len(values):
            return kind
    return "ids" if _are_ids(name, values) else None


def _are_ids(name: str, values: Sequence[str]) -> bool:
    if any(" " in value for value in values):
        return False
    if _NAME_OF_ID.search(name):
        return True
    if len(set(values)) < len(values) or len(values) < 2:
        return False
    if all(value.isdecimal() for value in values):
        numbers = [int(value) for value in values]  # a count of rows, and no amounts
        return numbers == sorted(numbers)
    return sum(bool(_ID.fullmatch(value)) for value in values) >= _ENOUGH * len(values)
