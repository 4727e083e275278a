"""The result of a comparison: read from stores, written as a report or as plain values."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmaas_tune.lab import statistics
from lmaas_tune.lab.analysis import Analysis
from lmaas_tune.lab.comparison import COMPARISON
from lmaas_tune.lab.record import Record
from lmaas_tune.lab.report import write_comparison
from lmaas_tune.lab.store import Store, read_stores


@dataclass(frozen=True, eq=False)
class ComparisonResult(Analysis):
    """The result of a comparison, see `Analysis`."""

    @classmethod
    def of(cls, *stores: str | os.PathLike[str], target: float | None = None) -> ComparisonResult:
        """The result of all runs in some folders or files of records.

        Raises:
            InputError: There are none, they are of comparisons that differ, or all failed.
            StorageError: A file is damaged.
        """
        return cls(read_stores([Store(Path(place), COMPARISON) for place in stores]), target)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write all this as one HTML file, which needs no network.

        Raises:
            MissingExtraError: jinja2 or plotly is not installed.
            StorageError: The file cannot be written.
        """
        return write_comparison(self, Path(path))

    def to_json(self) -> dict[str, Any]:
        """All but the curves, as plain values."""
        names = ("ranking", "by_task", "calls_to_target", "times")
        return {
            "judged_on": self.judged_on,
            "tests": asdict(self.tests),
            **{name: statistics.plain(getattr(self, name)) for name in names},
            "runs": [_run_json(record) for record in self.records],
        }


_RUN = ("task", "optimizer", "seed", "status", "reason", "final", "spent", "notes")


def _run_json(record: Record) -> dict[str, Any]:
    content = {**asdict(record), "optimizer": record.method}
    return {name: content[name] for name in (*_RUN, "optimizer_seconds", "wall_seconds")}
