"""Finding label words among a server's tokens, and in its answers.

Only the text of a server's tokens is known. A token stands for a label word if it is the word or
begins it; of several that begin it, the longest one counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from lmaas_tune.prompts import FloatArray

RIGHT = 0.9
"""Stated probability of the label that an answer names; the others share the rest."""

_SPACES = " ▁Ġ"  # a space before a word, as servers and vocabularies write it
_THOUGHT_BEGINS = re.compile(r"\s*<think", re.IGNORECASE)
_THOUGHT = re.compile(r"\A\s*<think\w*>.*?</think\w*>", re.IGNORECASE | re.DOTALL)
_ROUNDING = 1e-6  # of a sum of probabilities in float32


def upper_bound(top: Sequence[tuple[str, float]], written: str | None = None) -> float:
    """Upper bound of the log-probability of a token outside the likeliest ones.

    It is at most that of the last of them, and at most the probability that they leave. If they
    add up to more than 1, the excess shows how coarsely they are rounded, and is the bound.

    Args:
        top: The likeliest ones, and the written one, which a server that samples may list though
            it is none of them.
        written: The written one.
    """
    rest = 1.0 - math.fsum(math.exp(logprob) for _, logprob in top)
    likeliest = [logprob for text, logprob in top if text != written] or [0.0]
    return min(min(likeliest), math.log(abs(rest) + _ROUNDING))


def strip_space(piece: str) -> str:
    """Remove the space before a token."""
    return piece.lstrip(_SPACES)


def with_plain_space(piece: str) -> str:
    """Write the space before a token, if there is one, as a plain space."""
    return f" {piece[1:]}" if piece[:1] in _SPACES and piece else piece


def exact_logprobs(
    top: Sequence[tuple[str, float]], words: Sequence[str], *, spaced: bool | None
) -> list[float | None]:
    """As `first_token_logprobs`, for words that are a whole token only."""
    pieces = _pieces(top, spaced)
    fold = str.casefold if spaced is None else str
    found = [[v for piece, v in pieces if fold(piece) == fold(word)] for word in words]
    return [_added_up(same) if same else None for same in found]


def first_token_logprobs(
    top: Sequence[tuple[str, float]], words: Sequence[str], *, spaced: bool | None
) -> list[float | None]:
    """Log-probabilities of label words' first tokens; None for a word without one here.

    Args:
        top: The likeliest tokens and their log-probabilities.
        words: Label words, without a space before them.
        spaced: Whether the word follows a space, which then is part of its first token. None
            for the answers of a chat: spaces and capitals do not matter, and the probabilities
            of all spellings of a word are added.
    """
    pieces = _pieces(top, spaced)
    return [_likelihood(pieces, word, any_case=spaced is None) for word in words]


def _pieces(top: Sequence[tuple[str, float]], spaced: bool | None) -> list[tuple[str, float]]:
    """Tokens that can begin a word, without the space before them."""
    shows_spaces = any(piece[:1] in _SPACES for piece, _ in top if piece)
    return [
        (strip_space(piece), logprob)
        for piece, logprob in top
        if spaced is None or not shows_spaces or (piece[:1] in _SPACES) == spaced
    ]


def _likelihood(pieces: Sequence[tuple[str, float]], word: str, *, any_case: bool) -> float | None:
    fold = str.casefold if any_case else str
    begun = [(len(p), v) for p, v in pieces if p and fold(word).startswith(fold(p))]
    longest = max((length for length, _ in begun), default=0)
    if longest < min(2, len(word) / 2):  # one letter begins too many words
        return None
    return _added_up([value for length, value in begun if length == longest])


def _added_up(same: Sequence[float]) -> float:
    """Add the probabilities of several spellings of one word."""
    return min(0.0, float(np.logaddexp.reduce(same)))


def without_thoughts(answer: str) -> str:
    """Remove the thoughts from an answer; empty where it was cut within them."""
    return "" if re.match(_THOUGHT_BEGINS, rest := re.sub(_THOUGHT, "", answer)) else rest


def find_word(answer: str, words: Sequence[str]) -> int | None:
    """Find the word that an answer begins with, or else the only one that it contains.

    Returns:
        The word's index; None where the answer contains none of them, or several.
    """
    text = without_thoughts(answer).strip().lstrip("\"'`*«“([").casefold()
    longest_first = sorted(range(len(words)), key=lambda i: -len(words[i]))
    found = [i for i in longest_first if re.match(_whole(words[i]), text)][:1]
    for i in () if found else longest_first:
        text, times = re.subn(_whole(words[i]), "\n", text)  # "not bad" is no "bad"
        found += [i] * (times > 0)
    return found[0] if len(found) == 1 else None


def stated_logprobs(label: int | None, labels: int) -> FloatArray:
    """(labels,) stated log-probabilities for the label of an answer; all equal for None."""
    if label is None:
        return np.full(labels, -math.log(labels))
    others = (1.0 - RIGHT) / max(1, labels - 1)
    return np.log([RIGHT if i == label else others for i in range(labels)])


def _whole(word: str) -> str:
    """Pattern of a whole word, in scripts that separate words by spaces."""
    folded = word.casefold()
    before, after = (r"\b" if _is_letter(end) else "" for end in (folded[0], folded[-1]))
    return before + re.escape(folded) + after


def _is_letter(character: str) -> bool:
    return character.isdigit() or character.upper() != character.lower()


def shared_beginnings(words: Sequence[str]) -> list[str]:
    """Make a note for every label word that begins another one."""
    return [
        f"the label word {word!r} begins {other!r}: if both begin with one token, they get "
        "the same score"
        for word in words
        for other in words
        if word != other and other.startswith(word)
    ]
