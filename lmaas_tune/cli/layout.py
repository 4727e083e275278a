"""The flags that say how rows are laid out: the label's field and words, the template."""

from __future__ import annotations

import argparse
import json

from lmaas_tune.errors import InputError


def add_layout(group: argparse._ArgumentGroup) -> None:
    """The flags themselves; `label_words` reads the last."""
    group.add_argument(
        "--label-field", default="label", metavar="NAME", help="the field with the label (label)"
    )
    group.add_argument(
        "--template", help='where things stand, as "{sentence} {prompt} It was {label}"'
    )
    group.add_argument(
        "--labels", metavar="JSON", help='a word for each label, as {"0": "terrible", "1": "great"}'
    )


def label_words(text: str) -> dict[str, str]:
    """Read what ``--labels`` was given.

    Raises:
        InputError: It is no JSON object of words.
    """
    try:
        words = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--labels {text!r} is not JSON ({error})") from error
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        raise InputError(f'--labels {text!r}: give an object, as {{"0": "terrible", "1": "great"}}')
    return words
