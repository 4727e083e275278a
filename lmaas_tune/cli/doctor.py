"""``lmaas-tune doctor``: shows installed packages, and tests a backend."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lmaas_tune.cli.arguments import (
    BAD_INPUT,
    FAILED,
    Commands,
    Outcome,
    add_command,
    add_connection,
    open_backend,
    parse_options,
)
from lmaas_tune.doctor import Package, Probe, packages, probe, system
from lmaas_tune.errors import InputError, LMaaSError
from lmaas_tune.exactness import describe_bounds
from lmaas_tune.registry import OURS, backend_names
from lmaas_tune.versions import versions


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands, "doctor", "Show what is installed, and whether a backend answers"
    )
    command.add_argument(
        "--backend", help="send a request to this backend, and show its capabilities"
    )
    command.add_argument("--model", help="name of the model")
    add_connection(command)
    command.add_argument(
        "--backend-options", default="", metavar="NAME=VALUE,...", help="settings of the backend"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    """Show the installation; fail if the given backend does not work."""
    about_one = ("model", "url", "api_key_file", "backend_options")
    if arguments.backend is None and any(getattr(arguments, flag) for flag in about_one):
        flags = ", ".join("--" + flag.replace("_", "-") for flag in about_one)
        raise InputError(f"{flags} need --backend: give it too")
    machine, installed = system(), packages()
    content: dict[str, Any] = {
        "version": versions()[OURS],
        **machine,
        "packages": [asdict(package) for package in installed],
        "extras": {extra: _extra(extra, installed) for extra in _extras(installed)},
        "backends": list(backend_names()),
        "probe": None,
        "error": None,
    }
    lines = _lines(content)
    if arguments.backend is None:
        return Outcome(content, "\n".join(lines))
    try:
        options = parse_options(arguments.backend_options)
        backend = open_backend(
            arguments.backend,
            arguments.model,
            options,
            url=arguments.url,
            api_key_file=arguments.api_key_file,
        )
        answer = probe(backend, on_note=arguments.on_note)
    except LMaaSError as error:
        lines.append(f"{arguments.backend} does not work: {error}")
        code = BAD_INPUT if isinstance(error, InputError) else FAILED
        return Outcome({**content, "error": str(error)}, "\n".join(lines), code=code)
    return Outcome({**content, "probe": asdict(answer)}, "\n".join([*lines, *_probed(answer)]))


def _extras(installed: Sequence[Package]) -> list[str]:
    return list(dict.fromkeys(p.extra for p in installed if p.extra is not None))


def _extra(extra: str, installed: Sequence[Package]) -> dict[str, Any]:
    missing = [p.name for p in installed if p.extra == extra and p.version is None]
    install = f"pip install '{OURS}[{extra}]'" if missing else None
    return {"missing": missing, "install": install}


def _lines(content: dict[str, Any]) -> list[str]:
    core = [f"{p['name']} {p['version']}" for p in content["packages"] if p["extra"] is None]
    lines = [
        f"{OURS} {content['version']}, Python {content['python']}, {content['platform']}, "
        f"{content['cores']} cores",
        f"packages     {', '.join(core)}",
    ]
    for extra, state in content["extras"].items():
        there = [
            f"{p['name']} {p['version']}"
            for p in content["packages"]
            if p["extra"] == extra and p["version"]
        ]
        missing = f"{', '.join(state['missing'])} missing: {state['install']}"
        message = missing if state["missing"] else ", ".join(there)
        lines.append(f"{extra:<11}  {message}")
    lines.append(f"backends     {', '.join(content['backends'])}")
    return lines


def _probed(answer: Probe) -> list[str]:
    can = answer.capabilities
    width = can["soft_prompt_width"]
    facts = [
        "no soft prompts"
        if width is None
        else f"soft prompts of width {width} by {', '.join(can['insertions'])}",
        "no deep prompts"
        if can["deep_layers"] is None
        else f"deep ones through {can['deep_layers']} layers",
        "text prompts" if can["text_prompts"] else "no text prompts",
        "{label} anywhere" if can["label_anywhere"] else "{label} last",
        "length unknown" if can["max_tokens"] is None else f"up to {can['max_tokens']:,} tokens",
        "deterministic" if can["deterministic"] else "not deterministic",
    ]
    return [
        f"identity     {answer.identity}",
        f"can do       {'; '.join(facts)}",
        *(f"speedup      {_speedup(**speedup)}" for speedup in can["speedups"]),
        f"one answer   in {answer.seconds:.3f} s",
        f"bounds       {_bounds(answer)}",
    ]


def _speedup(*, name: str, reason: str, cost: str) -> str:
    return f"{name} is off ({reason}): {cost}" if reason else f"{name} is on"


def _bounds(answer: Probe) -> str:
    total = len(answer.probabilities)
    return describe_bounds(answer.bounds / total) if answer.bounds else f"none of {total} scores"
