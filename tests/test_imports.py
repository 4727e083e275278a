"""Imports point one way: the core does not import the lab, whose modules form no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lmaas_tune

PACKAGE = Path(lmaas_tune.__file__).parent


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lmaas_tune"):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_the_command_line_and_the_table_of_public_names_import_the_lab() -> None:
    outside = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if not {"lab", "cli"} & set(path.relative_to(PACKAGE).parts)
        and any(name.startswith("lmaas_tune.lab") for name in imports(path))
    ]
    assert outside == ["api.py"]  # `lmaas_tune.compare`, imported when it is used


def test_no_modules_of_the_lab_import_each_other_in_a_circle() -> None:
    names = {
        path: ".".join(("lmaas_tune", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in (PACKAGE / "lab").rglob("*.py")
    }
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    left = {name: set(imports(path)) & set(names.values()) - {name} for path, name in names.items()}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left
