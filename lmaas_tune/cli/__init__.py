"""The command line. What takes time to import stands in `program`: an interrupt is taken before."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lmaas_tune.cli import interrupts


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: What was typed after ``lmaas-tune``; None takes the process's own, and its signals.

    Returns:
        The exit status: 0, 1 for a failure, 2 for input that cannot work, 130 when interrupted.
    """
    if argv is None:
        interrupts.watch()
    from lmaas_tune.cli.program import run

    return run(sys.argv[1:] if argv is None else list(argv))
