"""Flags for template, label words and label field."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from lmaas_tune.errors import InputError
from lmaas_tune.typed_json import checked, parse_json


def add_template_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags; `label_words` parses ``--labels``."""
    group.add_argument(
        "--label-field", default="label", metavar="NAME", help="the field with the label (label)"
    )
    group.add_argument(
        "--template", help='text with fields and slots, as "{sentence} {prompt} It was {label}"'
    )
    group.add_argument(
        "--labels", metavar="JSON", help='a word for each label, as {"0": "terrible", "1": "great"}'
    )


def label_words(text: str) -> dict[str, str]:
    """Parse the value of ``--labels``.

    Raises:
        InputError: It is no JSON object of words.
    """
    try:
        words: dict[str, str] = checked(Mapping[str, str], parse_json(text), "it")
    except InputError as error:
        raise InputError(
            f"--labels {text!r:.80} is {error}; "
            'give an object, as {"0": "terrible", "1": "great"}'
        ) from error
    return words
