"""Built-in words for text prompts, and the extraction of distinctive words from rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lmaas_tune.data import labels_of
from lmaas_tune.errors import InputError
from lmaas_tune.task import Example

STARTING_WORDS = ("This is", "The topic is", "The sentiment is", "The answer is", "It was")
"""Starting words; each leads to a label in many tasks, none in all."""

LEAD_INS = (
    *STARTING_WORDS,
    "Overall, it is",
    "In short, it is",
    "In one word, it is",
    "This text is",
    "The best label is",
    "The category is",
    "Its tone is",
    "I would call it",
    "Answer:",
    "Label:",
    "Category:",
)
"""Instructions for a prompt between text and label."""

DIRECTIONS = (
    "Read the text and answer with one word.",
    "Decide which label fits the text.",
    "Say what the text expresses.",
    "Sort the texts into their categories.",
    "Below, each text is followed by its answer.",
    "Classify the text.",
    "Judge the text by what it means as a whole.",
    "Which answer describes the text best?",
)
"""Instructions for a prompt before the text."""

WORDS = (
    *("overall", "honestly", "clearly", "really", "very", "quite", "rather", "mostly"),
    *("simply", "truly", "just", "certainly", "likely", "in", "short", "summary"),
    *("fact", "all", "so", "far", "here", "above", "this", "that"),
    *("the", "text", "question", "answer", "label", "topic", "category", "kind"),
    *("tone", "opinion", "meaning", "main", "best", "right", "says", "about"),
)
"""Words that vary an instruction: intensifiers, hedges, pointers and nouns."""

_WORD = re.compile(r"[^\W\d_]{2,20}(?:['\u2019][^\W\d_]+)?")


def distinctive_words(examples: Sequence[Example], count: int) -> tuple[str, ...]:
    """The most distinctive words, equally many for each label.

    The score of a word for a label is the share of the label's rows that have it, minus the share
    of the other rows. Ties are in alphabetical order.

    Args:
        examples: Labelled rows, with two labels or more.
        count: Largest number of words.
    """
    rows = [(_words_of(example), example.label) for example in examples]
    ranked = []
    for label in labels_of(examples):
        own = [words for words, other in rows if other == label]
        rest = [words for words, other in rows if other != label]
        excess = {
            word: sum(word in words for words in own) / len(own)
            - sum(word in words for words in rest) / len(rest)
            for word in set().union(*own)
        }
        ranked.append(sorted(excess, key=lambda word: (-excess[word], word)))
    turns = max(map(len, ranked))
    in_turn = [words[turn] for turn in range(turns) for words in ranked if turn < len(words)]
    return tuple(dict.fromkeys(in_turn))[:count]


def _words_of(example: Example) -> set[str]:
    return {word.lower() for text in example.fields.values() for word in _WORD.findall(text)}


def check_words(name: str, words: Any) -> tuple[str, ...]:
    """Starting words as a tuple.

    Raises:
        InputError: The value has no words.
    """
    several = (words,) if isinstance(words, str) else words
    if not isinstance(several, Sequence) or not all(isinstance(text, str) for text in several):
        raise InputError(f"{name}={words!r:.60}: give starting words, one text or several")
    if not several or not all(text.strip() for text in several):
        raise InputError(f"{name} is empty: give words to start from, or start='zero'")
    return tuple(several)
