"""``lmaas-tune optimizers`` and ``lmaas-tune backends``: list optimizers and backends."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lmaas_tune.cli.arguments import Commands, Outcome, add_command
from lmaas_tune.errors import InputError
from lmaas_tune.optimizers import NEVERGRAD, describe_optimizer, optimizer_names
from lmaas_tune.registry import backend_names, load_backend


def add_to(commands: Commands) -> None:
    """Add both commands."""
    optimizers = add_command(commands, "optimizers", "List the optimizers")
    optimizers.set_defaults(run=list_optimizers)
    backends = add_command(commands, "backends", "List the backends, and try to load each")
    backends.set_defaults(run=list_backends)


def list_optimizers(_: argparse.Namespace) -> Outcome:
    """List all optimizers without loading them."""
    rows = [{"name": name, "description": describe_optimizer(name)} for name in optimizer_names()]
    rows.append(
        {
            "name": f"{NEVERGRAD}<Name>",
            "description": "Any optimizer of nevergrad (extra nevergrad).",
        }
    )
    return Outcome({"optimizers": rows}, _table(rows))


def list_backends(_: argparse.Namespace) -> Outcome:
    """List all backends, with the reason for those that cannot be used."""
    rows = [_backend(name) for name in backend_names()]
    return Outcome({"backends": rows}, _table(rows))


def _backend(name: str) -> dict[str, Any]:
    try:
        factory = load_backend(name)
    except InputError as error:
        return {"name": name, "description": f"Cannot be used: {error}", "usable": False}
    description = (inspect.getdoc(factory) or "").split("\n")[0]
    return {"name": name, "description": description, "usable": True}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    width = max(len(row["name"]) for row in rows)
    return "\n".join(f"{row['name']:{width}}  {row['description']}" for row in rows)
