"""``lmaas-tune evaluate``: scores a saved prompt on labelled rows."""

from __future__ import annotations

import argparse

from lmaas_tune.cli.arguments import (
    Commands,
    Outcome,
    add_backend,
    add_command,
    add_encoding,
    open_client,
    read_rows,
)
from lmaas_tune.cli.formatting import count, format_spent, number
from lmaas_tune.cli.saved_prompt import add_saved_prompt, load_saved_prompt
from lmaas_tune.cli.tune_report import check_test_rows, note_limits


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "evaluate", "Score a saved prompt on labelled rows")
    add_saved_prompt(command)
    command.add_argument("--test", metavar="FILE", required=True, help="labelled rows")
    command.add_argument(
        "--label-field", default="label", metavar="NAME", help="the field with the label (label)"
    )
    add_encoding(command)
    add_backend(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    """Score every row."""
    prompt = load_saved_prompt(arguments)
    test = read_rows(arguments, "test")
    check_test_rows(prompt.task, test)
    note_limits(prompt.task.template, "test", test, arguments.on_note)
    client = open_client(arguments, arguments.on_note)
    score = prompt.score(client, test).to_json()
    low, high = score["interval"]
    content = {**score, "identity": client.identity, "spent": client.spent.to_json()}
    text = (
        f"{score['accuracy']:.1%} of {count('row', score['rows'])} right (95% interval "
        f"{low:.1%} to {high:.1%}), loss {number(score['loss'])}, calibration error "
        f"{number(score['calibration_error'])} ({format_spent(client.spent)})"
    )
    return Outcome(content, text)
