"""Registered batches: what they hold, and what they cost."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from lmaas_tune.errors import InputError
from lmaas_tune.task import Batch, Slot

OBJECT = 1024
"""Bytes of memory of a batch or a subspace beside its rows, words and vectors, about."""

_MARKS = 4  # tokens that a model may add to a row, at most


@dataclass(frozen=True)
class Registered:
    """Rows and the label words to score in them.

    Attributes:
        batch: The rows.
        candidates: The words.
        tokens: What the model reads of them without a prompt, at most.
    """

    batch: Batch
    candidates: tuple[str, ...]
    tokens: int

    @property
    def size(self) -> int:
        """Bytes of memory."""
        rows = self.batch.rows
        parts = [part for row in rows for part in row if isinstance(part, str)]
        things = (rows, *rows, *parts, self.candidates, *self.candidates)
        apart = {id(thing): thing for thing in things}  # equal short texts are one
        return OBJECT + sum(map(sys.getsizeof, apart.values()))


def most_tokens(batch: Batch, candidates: Iterable[str]) -> int:
    """No tokenizer makes more tokens of a text than it has bytes."""
    texts = (part for row in batch.rows for part in row if isinstance(part, str))
    words = sum(len(word.encode()) for word in candidates)
    return sum(len(text.encode()) for text in texts) + len(batch) * (words + _MARKS)


def check_slots(batch: Batch) -> None:
    """Each row has one label, and one prompt at most.

    Raises:
        InputError: One has not.
    """
    for number, row in enumerate(batch.rows, start=1):
        if row.count(Slot.LABEL) != 1 or row.count(Slot.PROMPT) > 1:
            raise InputError(
                f"row {number} has {row.count(Slot.LABEL)} label slots and "
                f"{row.count(Slot.PROMPT)} prompt slots: it takes one label, and one prompt at most"
            )
