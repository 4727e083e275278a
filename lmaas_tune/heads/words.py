"""The choice of the words that a head reads beside the label words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmaas_tune.prompts.phrases import distinctive_words
from lmaas_tune.task import Example, Task

_COMMON = 5000  # of the model's words, from the most common on
_OF_ROWS = 4  # one word in four is distinctive of a label's rows


def head_words(
    task: Task, examples: Sequence[Example], known: Sequence[str], count: int, *, seed: int
) -> tuple[str, ...]:
    """Draw the words: some that are distinctive of the labels' rows, the others at random.

    The state of the model at the answer has some hundred numbers, and the log-probability of a
    word is a linear map of it. So the choice matters little, and the number does.

    Args:
        task: Its label words are left out.
        examples: Labelled rows.
        known: Words that are one token to the model, the most common ones first.
        count: The number of words; fewer if `known` has fewer.
        seed: Of the draw.
    """
    taken = {word.strip() for word in task.verbalizer.candidates}
    one_token = set(known) - taken
    telling = [word for word in distinctive_words(examples, 4 * count) if word in one_token][
        : count // _OF_ROWS
    ]
    common = [word for word in known[:_COMMON] if word not in taken.union(telling)]
    drawn = np.random.default_rng(seed).permutation(len(common))[: count - len(telling)]
    return (*telling, *(common[index] for index in drawn))
