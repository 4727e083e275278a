"""The table of scores before and after tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmaas_tune.reports.html import Column, Section, Table, loss, percent

_PROMPTS = {
    "baseline": "starting prompt, as the model is",
    "start": "starting prompt with its head",
    "tuned": "tuned prompt",
}


def before_and_after(scores: Mapping[str, Any], *text: str) -> Section:
    """A section of a report.

    Args:
        scores: A `lmaas_tune.Score` for each key of `_PROMPTS`.
        text: Its paragraphs.
    """
    table = Table(
        f"On {scores['tuned'].rows} test rows",
        list(scores.items()),
        [
            Column("Prompt", lambda line: _PROMPTS[line[0]]),
            Column("Accuracy", lambda line: line[1].accuracy, percent),
            Column("from", lambda line: line[1].interval[0], percent),
            Column("to (95%)", lambda line: line[1].interval[1], percent),
            Column("Loss", lambda line: line[1].loss, loss),
            Column("Calibration error", lambda line: line[1].calibration_error, loss),
        ],
    )
    return Section(title="Before and after", text=text, tables=[table])
