"""The result of `lmaas-tune tune`: the run, and its scores before and after on test rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmaas_tune.cli.arguments import INTERRUPTED, Outcome
from lmaas_tune.cli.formatting import comparison_json, format_spent, result_json
from lmaas_tune.dataset import Dataset
from lmaas_tune.errors import InputError, LMaaSError
from lmaas_tune.files import read_object, write_atomically
from lmaas_tune.notes import OnNote
from lmaas_tune.result import TuneResult
from lmaas_tune.task import Example, Task, Template

FILE_NAME = "report.json"

_TESTED = frozenset({"baseline", "start", "tuned", "verdict", "spent", "spent_on_test"})


def check_test_rows(task: Task, test: Sequence[Example]) -> str:
    """Check that rows can be tested on, before the search is paid.

    Returns:
        SHA-256 of the rows and their labels.

    Raises:
        InputError: A row lacks a field, or has a label without a word.
    """
    try:
        return task.digest(test)
    except InputError as error:
        raise InputError(f"test: {error}") from error


def note_limits(template: Template, name: str, rows: Sequence[Example], on_note: OnNote) -> None:
    """Note how many rows have more text than the template reads."""
    for note in Dataset(name, rows).note_on_limits(template):
        on_note(note)


def report(result: TuneResult, test: Sequence[Example] | None) -> dict[str, Any]:
    """The result of a finished run.

    With `out` it is stored, and a run that is resumed to the same end returns the stored one, so
    that its test is not paid again.

    Raises:
        LMaaSError: The test rows cannot be scored.
    """
    content = _without_test(result)
    if test is not None:
        content["test_rows"] = check_test_rows(result.prompt.task, test)
    stored = _load_report(result.out)
    if stored is not None and _same_run(stored, content):
        return stored
    if test is not None:
        content |= _tested(result, test)
    _save_report(result, content)
    return content


def interrupted(result: TuneResult, resume: str) -> Outcome:
    """The outcome of a run that the user stopped; the command `resume` resumes it."""
    content = {**_without_test(result), "resume": None if result.out is None else resume}
    lines = [f"Interrupted after {format_spent(result.spent)}."]
    if result.out is None:
        lines.append("Nothing is saved, because no --out was given.")
    else:
        what = "The run so far and its best prompt are" if result.steps else "The run so far is"
        lines.append(f"{what} saved in {result.out}. To resume:")
        lines.append(f"  {resume}")
    return Outcome(content, "\n".join(lines), code=INTERRUPTED)


def _without_test(result: TuneResult) -> dict[str, Any]:
    return {
        **comparison_json(None),
        **result_json(result),
        "test_rows": None,
        "spent_on_test": None,
    }


def _tested(result: TuneResult, test: Sequence[Example]) -> dict[str, Any]:
    before = result.client.spent.to_json()
    try:
        comparison = result.compare(test)
    except (LMaaSError, KeyboardInterrupt):
        if result.out is not None:
            result.client.on_note(
                f"the search is done and its prompt saved in {result.out}: --resume only tests it"
            )
        raise
    after = result.client.spent.to_json()
    return {
        **comparison_json(comparison),
        "spent_on_test": {name: after[name] - before[name] for name in after},
    }


def _same_run(stored: Mapping[str, Any], content: Mapping[str, Any]) -> bool:
    """Whether two results differ at most in time and in the scores on test rows."""

    def essence(of: Mapping[str, Any]) -> dict[str, Any]:
        spent = {name: of["spent"][name] for name in of["spent"] if name != "seconds"}
        return {**{k: v for k, v in of.items() if k not in _TESTED}, "spent": spent}

    wanted: dict[str, Any] = json.loads(json.dumps(content))
    return stored.keys() == wanted.keys() and essence(stored) == essence(wanted)


def _load_report(out: Path | None) -> dict[str, Any] | None:
    if out is None:
        return None
    try:
        content = read_object(out / FILE_NAME)
        return content if isinstance(content.get("spent"), dict) else None
    except (OSError, ValueError):  # none yet, or damaged; it can be computed again
        return None


def _save_report(result: TuneResult, content: Mapping[str, Any]) -> None:
    if result.out is None:
        return
    path = result.out / FILE_NAME
    try:
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    except OSError as error:  # the content is printed anyway
        result.client.on_note(f"{path}: the report cannot be saved ({error})")
