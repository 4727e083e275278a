"""Several backends in one command: a file with a table of flags for each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lmaas_tune.cli.arguments import client_flags, open_client
from lmaas_tune.errors import InputError
from lmaas_tune.lab.comparison import BackendSpec
from lmaas_tune.lab.tasks import checked_entry, read_tables

_KINDS: Mapping[str, str] = {
    "backend": "text",
    "model": "text",
    "url": "text",
    "api_key_file": "text",
    "backend_options": "table",
    "cache": "text",
    "price_in": "number",
    "price_out": "number",
    "workers": "whole number or text",
    "requests_per_minute": "whole number",
    "tokens_per_minute": "whole number",
}
_OWN = ("model", "url", "api_key_file", "backend_options")
"""Flags that describe one backend, which a file of backends replaces."""

_PATHS = ("api_key_file", "cache")


def read_backends(path: str, arguments: argparse.Namespace) -> list[BackendSpec]:
    """Read a file of backends.

    Each is a TOML table, or a JSON object, under its label::

        [small]
        backend = "hf"
        model = "HuggingFaceTB/SmolLM2-135M-Instruct"
        price_in = 0.02

    The keys are the flags of a backend, with underscores; a path is relative to the file. Other
    flags of the command line hold for those backends that do not set them.

    Raises:
        InputError: The file cannot be read, an entry is wrong, or a flag describes one backend.
    """
    for name in _OWN:
        if getattr(arguments, name):
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"--backends and {flag} exclude each other: set it in the file for each backend"
            )
    file = Path(path)
    tables = read_tables(file, "backends")
    return [_spec(file, label, entry, arguments) for label, entry in tables.items()]


def _spec(file: Path, label: str, entry: object, arguments: argparse.Namespace) -> BackendSpec:
    where = f"{file}, backend {label!r}"
    given = checked_entry(
        where, entry, _KINDS, needs=("backend", "its name (`lmaas-tune backends`)")
    )
    given |= {name: str(file.parent / given[name]) for name in _PATHS if name in given}
    if "backend_options" in given:
        given["backend_options"] = json.dumps(given["backend_options"])
    flags = argparse.Namespace(**{**vars(client_flags(arguments)), **given})
    return BackendSpec(backend=partial(open_client, flags), label=label)
