"""The flags that name a prompt to use: one of ours, or one of peft with its task."""

from __future__ import annotations

import argparse

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.cli.arguments import Parser
from lmaas_tune.cli.search_flags import label_words
from lmaas_tune.errors import InputError
from lmaas_tune.peft import is_adapter


def add_saved_prompt(command: Parser) -> None:
    """Add the flags that `load_saved_prompt` reads."""
    command.add_argument(
        "--prompt",
        metavar="DIR",
        required=True,
        help="folder of the saved prompt, or of a prompt-tuning adapter of peft",
    )
    command.add_argument(
        "--template", help='for an adapter of peft, as "{prompt}{sentence} It was {label}"'
    )
    command.add_argument(
        "--labels",
        metavar="JSON",
        help='for an adapter of peft, as {"0": "terrible", "1": "great"}',
    )


def load_saved_prompt(arguments: argparse.Namespace) -> TunedPrompt:
    """Load the prompt.

    Raises:
        InputError: There is none, or the task is missing or given twice.
        StorageError: The files are damaged.
    """
    folder, template, labels = arguments.prompt, arguments.template, arguments.labels
    if not is_adapter(folder):
        if template is not None or labels is not None:
            raise InputError(
                f"--template and --labels are for adapters of peft, and {folder} is none: a saved "
                "prompt brings its own"
            )
        return TunedPrompt.load(folder)
    if template is None or labels is None:
        raise InputError(
            f"{folder} holds an adapter of peft, which has vectors alone: give --template and "
            "--labels"
        )
    return TunedPrompt.from_peft(folder, template=template, labels=label_words(labels))
