"""Imports point one way: along the order of the modules, and in no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lmaas_tune_adapters
import pytest

import lmaas_tune

PACKAGE = Path(lmaas_tune.__file__).parent
ADAPTERS = Path(lmaas_tune_adapters.__file__).parent
ORDER = (
    "errors",
    "task",
    "prompts",
    "backend",
    "calls",
    "evaluator",
    "search",
    "preparation",
    "tuner",
    "lab",
    "cli",
)
"""The order of CONTRIBUTING.md: a module imports only those before it."""


def imports(path: Path) -> Iterator[str]:
    """The names of ours that a file imports, anywhere in it, each with its module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lmaas_tune"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_the_command_line_and_the_table_of_public_names_import_the_lab() -> None:
    outside = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if not {"lab", "cli"} & set(path.relative_to(PACKAGE).parts)
        and any(name.startswith("lmaas_tune.lab") for name in imports(path))
    ]
    assert outside == ["api.py"]  # `lmaas_tune.compare`, imported when it is used


@pytest.fixture(scope="module")
def needs() -> dict[str, set[str]]:
    """The modules of ours that each one imports, also for types only."""
    files = [(root.parent, path) for root in (PACKAGE, ADAPTERS) for path in root.rglob("*.py")]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for root, path in files}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    modules = set(names.values())
    return {
        name: {i if i in modules else i.rpartition(".")[0] for i in imports(path)} - {name}
        for path, name in names.items()
    }


def test_no_modules_import_each_other_in_a_circle(needs: dict[str, set[str]]) -> None:
    left = needs
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


def test_no_module_needs_a_later_one_also_through_other_modules(needs: dict[str, set[str]]) -> None:
    for number, module in enumerate(ORDER):
        reached = {name for name in needs if name.startswith(f"lmaas_tune.{module}")}
        assert reached
        while more := {other for name in reached for other in needs[name]} - reached:
            reached |= more
        assert not {name.split(".")[1] for name in reached} & set(ORDER[number + 1 :])
