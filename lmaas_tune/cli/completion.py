"""``lmaas-tune completion``: prints a script that completes commands, flags and names by Tab."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Mapping

from lmaas_tune.cli.arguments import Commands, Outcome, add_command
from lmaas_tune.heads import HEADS
from lmaas_tune.objectives import OBJECTIVES
from lmaas_tune.optimizers import optimizer_names
from lmaas_tune.prompts.projections import PROJECTIONS
from lmaas_tune.registry import backend_names
from lmaas_tune.settings import PRESETS

SHELLS = ("bash", "zsh")

_NAMES: Mapping[str, Callable[[], Iterable[str]]] = {
    "backend": backend_names,
    "head": lambda: HEADS,
    "objective": lambda: OBJECTIVES,
    "optimizer": optimizer_names,
    "optimizers": optimizer_names,
    "preset": lambda: PRESETS,
    "projection": lambda: PROJECTIONS,
}
"""The names that arguments take; not those of nevergrad, whose colon zsh would misread."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "completion", "Print a script for completion by Tab")
    command.add_argument(
        "shell", choices=SHELLS, help="the shell; its script says how to install it"
    )
    command.set_defaults(run=run, commands=commands)


def run(arguments: argparse.Namespace) -> Outcome:
    """Print the script, with the names of what is installed now."""
    import shtab  # only here

    for parser in arguments.commands.choices.values():
        for action in parser.flags:
            if action.dest in _NAMES:
                action.complete = shtab.cmd(shlex.join(["echo", *_NAMES[action.dest]()]))
            elif action.metavar in ("FILE", "DIR"):
                action.complete = shtab.FILE if action.metavar == "FILE" else shtab.DIRECTORY
    script = shtab.complete(arguments.parser, shell=arguments.shell)
    return Outcome({"shell": arguments.shell, "script": script}, script)
