"""``lmaas-tune predict``: labels texts with a saved prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from lmaas_tune.cli.arguments import (
    Commands,
    Outcome,
    add_backend,
    add_command,
    add_encoding,
    open_client,
)
from lmaas_tune.cli.formatting import count, format_spent
from lmaas_tune.cli.saved_prompt import add_saved_prompt, load_saved_prompt
from lmaas_tune.cli.tune_report import note_limits
from lmaas_tune.data import read_examples
from lmaas_tune.errors import InputError
from lmaas_tune.labelling import OUTPUTS, label_file
from lmaas_tune.row_files import KINDS
from lmaas_tune.task import Example, Template


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "predict", "Label texts with a saved prompt")
    add_saved_prompt(command)
    rows = command.add_mutually_exclusive_group(required=True)
    rows.add_argument("--text", action="append", help="a text; may be repeated")
    rows.add_argument("--input", metavar="FILE", help=f"rows ({', '.join(KINDS)})")
    command.add_argument(
        "--output",
        metavar="FILE",
        help=f"write the rows of --input with their labels to a new file ({', '.join(OUTPUTS)}); "
        "the same command goes on where it was stopped",
    )
    command.add_argument(
        "--min-probability",
        type=float,
        default=0.0,
        metavar="P",
        help="with --output, leave out labels that are less probable (0)",
    )
    add_encoding(command)
    add_backend(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    """Label every text."""
    if arguments.output is not None:
        return _label_file(arguments)
    prompt = load_saved_prompt(arguments)
    if arguments.text is None:
        rows = read_examples(
            arguments.input,
            labelled=False,
            what="input",
            encoding=arguments.encoding,
            on_note=arguments.on_note,
        )
    else:
        rows = _examples(arguments.text, prompt.task.template)
    prompt.task.template.batch(rows)  # checks the fields before a model is loaded
    note_limits(prompt.task.template, "input", rows, arguments.on_note)
    client = open_client(arguments, arguments.on_note)
    probabilities = prompt.predict_proba(client, rows)
    labels = prompt.task.verbalizer.labels
    predictions = [
        {
            "label": labels[row.argmax()],
            "probabilities": {label: float(p) for label, p in zip(labels, row, strict=True)},
        }
        for row in probabilities
    ]
    lines = [
        f"{labels[row.argmax()]}\t{row.max():.3f}\t{_first_line(example)}"
        for row, example in zip(probabilities, rows, strict=True)
    ]
    content = {
        "predictions": predictions,
        "identity": client.identity,
        "spent": client.spent.to_json(),
    }
    return Outcome(content, "\n".join(lines))


def _label_file(arguments: argparse.Namespace) -> Outcome:
    """Label the rows of a file into another file."""
    if arguments.input is None:
        raise InputError("--output is for the rows of a file: give --input")
    prompt = load_saved_prompt(arguments)
    client = open_client(arguments, arguments.on_note)
    with tqdm(unit=" rows", disable=not sys.stderr.isatty()) as bar:
        done = label_file(
            arguments.input,
            arguments.output,
            prompt,
            client,
            min_probability=arguments.min_probability,
            encoding=arguments.encoding,
            on_rows=lambda done: bar.update(done.rows - bar.n),
            on_note=arguments.on_note,
        )
    content = {
        "rows": done.rows,
        "without_label": done.without_label,
        "truncated": done.truncated,
        "output": arguments.output,
        "identity": client.identity,
        "spent": client.spent.to_json(),
    }
    counts = [
        f", {number} of them {what}"
        for number, what in (
            (done.without_label, "without a label"),
            (done.truncated, "with more text than the prompt's template reads"),
        )
        if number
    ]
    rows = f"{count('row', done.rows)} in {arguments.output}{''.join(counts)}"
    return Outcome(content, f"{rows} ({format_spent(client.spent)})")


def _examples(texts: Sequence[str], template: Template) -> list[Example]:
    """Examples with each text as the template's only field."""
    if len(template.fields) != 1:
        raise InputError(
            f"--text needs a template with one field, and this prompt's has "
            f"{', '.join(template.fields[:50]) or 'none'}: give rows with --input"
        )
    return [Example({template.fields[0]: text}) for text in texts]


def _first_line(example: Example) -> str:
    text = " ".join(" ".join(example.fields.values()).split())
    return text if len(text) <= 80 else text[:79] + "…"
