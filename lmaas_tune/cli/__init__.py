"""The command line. Handles interrupts before `program`, whose imports are slow."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lmaas_tune.cli import interrupts


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after ``lmaas-tune``; None takes those of the process, and its signals.

    Returns:
        The exit status: 0, 1 for a failure, 2 for invalid input, 130 after an interrupt.
    """
    if argv is None:
        interrupts.watch()
    from lmaas_tune.cli.program import run

    return run(sys.argv[1:] if argv is None else list(argv))
