"""Registered batches: their rows and label words, their memory and their tokens."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmaas_tune.errors import InputError
from lmaas_tune.task import Batch, Slot

if TYPE_CHECKING:
    from collections.abc import Iterable

OBJECT_BYTES = 1024
"""Approximate memory of a batch or a subspace without its rows, words and vectors."""

_SPECIAL_TOKENS = 4  # most tokens that a model adds to a row


@dataclass(frozen=True)
class RegisteredBatch:
    """Rows and the label words to score in them.

    Attributes:
        batch: The rows.
        candidates: The words.
        tokens: Most tokens that the model reads of them without a prompt.
    """

    batch: Batch
    candidates: tuple[str, ...]
    tokens: int

    @property
    def size(self) -> int:
        """Bytes of memory."""
        rows = self.batch.rows
        parts = [part for row in rows for part in row if isinstance(part, str)]
        objects = (rows, *rows, *parts, self.candidates, *self.candidates)
        distinct = {id(one): one for one in objects}  # equal short texts are one object
        return OBJECT_BYTES + sum(map(sys.getsizeof, distinct.values()))


def most_tokens(batch: Batch, candidates: Iterable[str]) -> int:
    """The most tokens of a batch: no tokenizer makes more tokens of a text than it has bytes."""
    texts = (part for row in batch.rows for part in row if isinstance(part, str))
    words = sum(len(word.encode()) for word in candidates)
    return sum(len(text.encode()) for text in texts) + len(batch) * (words + _SPECIAL_TOKENS)


def check_slots(batch: Batch) -> None:
    """Check that each row has one label slot and at most one prompt slot.

    Raises:
        InputError: A row has other slots.
    """
    for number, row in enumerate(batch.rows, start=1):
        if row.count(Slot.LABEL) != 1 or row.count(Slot.PROMPT) > 1:
            raise InputError(
                f"row {number} has {row.count(Slot.LABEL)} label slots and "
                f"{row.count(Slot.PROMPT)} prompt slots: it takes one label, and one prompt at most"
            )


def short_id(*parts: str) -> str:
    """16 hexadecimal digits; equal content has the same."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
