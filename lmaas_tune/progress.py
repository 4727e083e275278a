"""How progress is shown: widgets in a notebook, a bar in a terminal, lines in a log."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from threading import Event, Thread
from typing import IO, Any

PAUSE = 30.0
"""Seconds between two lines of a log."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def new_bar(file: IO[str] | None = None, **settings: Any) -> Any:
    """A bar of tqdm: of widgets in a notebook that has them, else of text.

    It is disabled if there is neither a notebook nor a terminal.

    Args:
        file: Output; standard error if None. Only without one, a notebook shows the bar.
        settings: Further arguments of tqdm.
    """
    notebook = file is None and in_notebook()
    out = sys.stderr if file is None else file
    kind = tqdm_of_notebook() if notebook else _tqdm_of_text()
    return kind(file=out, disable=not (notebook or out.isatty()), **settings)


def _tqdm_of_text() -> Any:
    from tqdm import tqdm  # a tenth of the time that it takes to import `Tuner`

    return tqdm


def tqdm_of_notebook() -> Any:
    """tqdm's bar of widgets; of text if they are not installed, which tqdm tells at its import."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.auto import tqdm

        return tqdm


class Heartbeat:
    """Calls a function every half minute until it is closed.

    A thread does so, because a single call of the model may last minutes.

    Args:
        beat: The function.
    """

    def __init__(self, beat: Callable[[], None]) -> None:
        self._closed = Event()
        self._thread = Thread(target=self._run, args=(beat,), daemon=True)
        self._thread.start()

    def _run(self, beat: Callable[[], None]) -> None:
        while not self._closed.wait(PAUSE):
            beat()

    def close(self) -> None:
        """End it; no call follows."""
        self._closed.set()
        self._thread.join()
