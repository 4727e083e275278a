"""Built-in wordings, and the extraction of distinctive words from rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lmaas_tune.data import labels_of
from lmaas_tune.errors import InputError
from lmaas_tune.task import Example, Task, check_text

BUILT_IN = "built-in"
"""Stands for the built-in wordings among starting words, see `starting_words`."""

_OPTIONS = "{options}"  # replaced by the label words

WORDINGS = (
    "This is about",
    "The topic is",
    "The subject is",
    "The category is",
    "It belongs in the category",
    "Filed under",
    "In one word, it is",
    "In short, it is",
    "Overall, it is",
    "The sentiment is",
    "The tone is",
    "The author thinks it is",
    "The writer feels",
    "A reader would call this",
    "I would call it",
    "The best label is",
    "The right answer is",
    "The kind of text is",
    "This text is",
    "It describes",
    "It mentions",
    "It was",
    "The main point is",
    "In other words, it is",
    "To sum up, this is",
    "Label:",
    "Answer:",
    "Category:",
    "Topic:",
    "Tags:",
    "Keywords:",
    "Summary:",
    "Question: Which label fits? Answer:",
    "Options: {options}. The answer is",
    "Is it {options}? It is",
    "Choose one of {options}. The label is",
    "Among {options}, this is",
    "Classify the text as {options}:",
    "The text above is",
    "The text above is about",
    "The text above is an example of",
    "If I had to pick one word, I would say",
    "My verdict is",
    "People who read this would say it is",
    "Somebody asked for the category, and the answer was",
    "The label that an expert would give is",
    "Everything considered, it is",
    "So it is",
)
"""Wordings between a text and its label, for any task. They were written once, without a look at
their results on the tasks of `results/`. Only "The sentiment is" was known, to do well on SST-2."""

PAIR_WORDINGS = (
    "The answer is",
    "Answer:",
    "Label:",
    "So the answer is",
    "Is that right? The answer is",
    "Does the second follow? The answer is",
    "Does the second follow from the first? The answer is",
    "Given the first, the second is",
    "If the first is true, the second is",
    "Therefore the second is",
    "Is the second true? The answer is",
    "True or false? It is",
    "Do both say the same? The answer is",
    "Do they mean the same? The answer is",
    "Are these two alike? The answer is",
    "The two sentences are",
    "The two are",
    "They are",
    "The relation between them is",
    "Compared with the first, the second is",
    "The first sentence says that the second is",
    "Can one conclude the second from the first?",
    "Reading both, I would say",
    "My verdict is",
    "In one word, it is",
    "In short, it is",
    "Overall, it is",
    "Options: {options}. The answer is",
    "Is it {options}? It is",
    "Choose one of {options}. The answer is",
    "Among {options}, this is",
    "Question: Is the second sentence a consequence of the first? Answer:",
    "Question: Do the two sentences agree? Answer:",
    "Is there a contradiction? The answer is",
    "Is the second a paraphrase of the first? The answer is",
    "It follows that the second is",
    "An expert was asked, and the answer was",
    "The right label is",
    "Judging by the first, the second is",
    "The second repeats the first:",
    "The second can be inferred:",
    "Both are about the same:",
    "The same fact?",
    "Correct?",
    "Right?",
    "The second sentence is",
    "What the second says is",
    "So is the second",
)
"""Wordings between two texts and their label, written in the same way."""

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
"""Wordings for a prompt before the text."""

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


def starting_words(given: Sequence[str], task: Task) -> tuple[str, ...]:
    """The starting words of a search; `BUILT_IN` becomes the built-in wordings for the template.

    Args:
        given: Starting words.
        task: Its template decides between the built-in lists, and its label words fill them.
    """
    template, options = task.template, [word.strip() for word in task.verbalizer.candidates]
    built_in: Sequence[str] = PAIR_WORDINGS if len(template.fields) > 1 else WORDINGS
    if template.prompt_is_first:
        built_in = DIRECTIONS
    named = f"{', '.join(options[:-1])} or {options[-1]}"
    words = [w for one in given for w in (built_in if one == BUILT_IN else (one,))]
    return tuple(dict.fromkeys(word.replace(_OPTIONS, named) for word in words))


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
    return tuple(check_text(text, name) for text in several)
