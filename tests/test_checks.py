"""The table of checks in docs/checks.md names tests that exist, and all that it should."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TABLE = (TESTS.parent / "docs" / "checks.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| (C\d+) \|.*\|(.*)\|$", TABLE, flags=re.MULTILINE))
"""The last cell of each row, by its id."""


def named(row: str) -> list[tuple[str, str]]:
    """(file, name) of the tests in a cell."""
    return re.findall(r"`([\w/]+\.py)::(\w+)`", row)


@cache
def defined(file: str) -> set[str]:
    """What a file of tests defines at its top."""
    content = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in content.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_check_has_a_row() -> None:
    assert list(ROWS) == [f"C{number}" for number in range(1, 25)]


@pytest.mark.parametrize("check", ROWS)
def test_a_row_names_tests_that_exist(check: str) -> None:
    assert named(ROWS[check])
    for file, name in named(ROWS[check]):
        assert name in defined(file), f"{file} has no {name}"


def test_a_test_with_the_id_of_a_check_stands_in_its_row() -> None:
    for path in TESTS.rglob("test_*.py"):
        file = path.relative_to(TESTS).as_posix()
        for name in defined(file):
            if match := re.match(r"test_(c\d+)_", name):
                assert (file, name) in named(ROWS[match.group(1).upper()])
