"""Heads: maps from the log-probabilities of words to labels, fitted to a few rows."""

from __future__ import annotations

from lmaas_tune.errors import InputError, named
from lmaas_tune.heads.base import Fit, FittedHead, Head
from lmaas_tune.heads.linear import BiasHead, LinearHead, NoHead

AUTO = "auto"
HEADS = (AUTO, "none", "bias", "affine", "words")
"""Names of the heads, see `lmaas_tune.Settings`."""


def make_head(name: str, *, words: int, most: int | None) -> Head:
    """Build a head.

    Args:
        name: One of `HEADS`.
        words: The number of words that ``words`` reads beside the label words.
        most: The most of them that one request may name; None: any number.

    Raises:
        InputError: The name is unknown, or the model scores no further words.
    """
    count = words if most is None else min(words, most)
    if name == "words" and count == 0:
        raise InputError(
            "head='words': this backend scores the label words only; take head='affine'"
        )
    heads: dict[str, Head] = {
        AUTO: LinearHead(count),
        "none": NoHead(),
        "bias": BiasHead(),
        "affine": LinearHead(),
        "words": LinearHead(count),
    }
    return named("head", name, heads)


__all__ = [
    "AUTO",
    "HEADS",
    "BiasHead",
    "Fit",
    "FittedHead",
    "Head",
    "LinearHead",
    "NoHead",
    "make_head",
]
