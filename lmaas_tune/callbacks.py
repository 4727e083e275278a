"""Callbacks that observe a run: progress bar, CSV and TensorBoard logs."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lmaas_tune.calls.meter import Budget, Spent
from lmaas_tune.errors import MissingExtraError, StorageError
from lmaas_tune.progress import Heartbeat, in_notebook, new_bar
from lmaas_tune.step import COLUMNS, Step, step_row

if TYPE_CHECKING:
    from lmaas_tune.result import TuneResult


class Callback:
    """Base of all callbacks; override what you need.

    An exception in a callback ends the run; the journal has all paid answers.
    """

    def on_prepared(self, origin: Mapping[str, Any]) -> None:
        """Called first, with backend, seed, settings and versions, as saved prompts have them."""

    def on_start(self, budget: Budget) -> None:
        """Called before the first paid call."""

    def on_step(self, step: Step) -> None:
        """Called after the start (generation 0) and after every generation."""

    def on_end(self, result: TuneResult) -> None:
        """Called after the run, also if an error ended it, even one before `on_start`."""


class ProgressBar(Callback):
    """A progress bar: share of the budget spent, remaining time, loss, best loss and spending.

    A notebook shows it as a widget, if the package ipywidgets is installed. Where the output is
    neither a terminal nor a notebook (a log), a line is printed every half minute instead.

    Args:
        file: Output; standard error if None.
        clock: Monotonic clock in seconds, for the lines.
    """

    def __init__(
        self, file: IO[str] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._clock = clock
        self._bar: Any = None
        self._heartbeat: Heartbeat | None = None
        self._began = 0.0
        self._now = (0.0, "")

    def on_start(self, budget: Budget) -> None:
        """Draw the empty bar."""
        bar = "|{bar}|" if in_notebook() else "|{bar:20}|"
        self._bar = new_bar(
            self._file, total=100.0, bar_format=_FORMAT.format(bar=bar), dynamic_ncols=True
        )
        if self._bar.disable:
            self._began, self._now = self._clock(), (0.0, "no prompt is scored yet")
            self._heartbeat = Heartbeat(self._print_line)

    def on_step(self, step: Step) -> None:
        """Move the bar to the share of the tightest limit."""
        best = step.best.evaluation
        kind = "val" if step.best.validation else "train"
        words = (
            f"loss {step.loss:.3f}, best {'-' if best is None else f'{best.loss:.3f}'} ({kind}), "
            + describe_spent(step.budget, step.spent)
        )
        self._now = (100 * share_spent(step.budget, step.spent), words)
        if not self._bar.disable:
            self._bar.n = self._now[0]
            self._bar.set_postfix_str(words)

    def on_end(self, result: TuneResult) -> None:
        """Fill the bar if the run is finished, else leave it where it stands."""
        if self._heartbeat is not None:
            self._heartbeat.close()
        if self._bar is not None:  # None if another callback ended the run before
            if result.finished:
                self._bar.n = self._bar.total  # a widget that is not full turns red
            self._bar.close()

    def _print_line(self) -> None:
        share, words = self._now
        line = type(self._bar).format_meter(
            share,
            100.0,
            self._clock() - self._began,
            bar_format=_FORMAT.format(bar=""),
            postfix=words,
        )
        print(line, file=self._file or sys.stderr, flush=True)


_FORMAT = "{{percentage:3.0f}}%{bar} {{elapsed}}<{{remaining}}{{postfix}}"


def share_spent(budget: Budget, spent: Spent) -> float:
    """Largest spent share among the limits, 0 to 1; 0 without limits."""
    used = spent.to_json()
    shares = [min(1.0, used[n] / limit) for n, limit in budget.limits.items() if n in used]
    return max(shares, default=0.0)


def describe_spent(budget: Budget, spent: Spent) -> str:
    """Spending for each limit, as ``120/300 calls``; calls and money also without one."""
    used = spent.to_json()
    shown = {"calls": ""} | ({"money": ""} if spent.money else {})
    shown |= {n: f"/{limit:.6g}" for n, limit in budget.limits.items() if n in used}
    return ", ".join(f"{used[n]:.6g}{limit} {n}" for n, limit in shown.items())


class CSVLogger(Callback):
    """Writes a CSV file with one line a step: generation, losses, accuracies, spending.

    Args:
        path: The file; a resumed run writes its replayed steps again, so that it is complete.

    Raises:
        StorageError: During the run: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def on_start(self, budget: Budget) -> None:
        """Truncate the file."""
        with _storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            foreign = self._path.exists() and not self._is_ours()
            if not foreign:
                self._path.write_text("")
        if foreign:
            raise StorageError(f"{self._path} is not the log of a run: name another file")

    def _is_ours(self) -> bool:
        head = ",".join(COLUMNS).encode()
        with self._path.open("rb") as file:
            return file.read(len(head)) in (b"", head)

    def on_step(self, step: Step) -> None:
        """Append the row of the step; the file is complete after each."""
        row = step_row(step)
        with (
            _storage_errors(self._path),
            self._path.open("a", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)


class TensorBoardLogger(Callback):
    """Writes the numbers of `CSVLogger` as TensorBoard scalars (extra ``tensorboard``).

    Args:
        folder: Log folder.

    Raises:
        MissingExtraError: tensorboardX is not installed.
        StorageError: The folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "TensorBoardLogger", package="tensorboardX", extra="tensorboard"
            ) from error
        with _storage_errors(folder):
            self._writer = SummaryWriter(str(folder))

    def on_step(self, step: Step) -> None:
        """Write one point of every curve; the x axis is the number of calls."""
        for name, value in step_row(step).items():
            if value is not None:
                self._writer.add_scalar(name, value, step.spent.calls)
        self._writer.flush()

    def on_end(self, result: TuneResult) -> None:
        """Close the log."""
        self._writer.close()


@contextmanager
def _storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: the log of the run cannot be written ({error})") from error
