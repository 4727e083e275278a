"""Requests that go through the model together, the scorer interface, and batching functions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from lmaas_tune.prompts import Insertion
    from lmaas_tune_adapters.hf.encoding import EncodedRow
    from lmaas_tune_adapters.hf.label_tokens import Word

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RequestBatch:
    """Requests with the same rows and label words, whose prompts have the same shape.

    Attributes:
        rows: For each request, its encoded rows.
        words: Token ids of each label word.
        vectors: (requests, L, H) soft prompts in the model's dtype, on its device; None for text.
        insertion: How the vectors are inserted.
        above: By the number of a layer above the first, (requests, L, H) vectors that are added
            to its input, in the model's dtype, on its device.
    """

    rows: Sequence[Sequence[EncodedRow]]
    words: Sequence[Word]
    vectors: torch.Tensor | None = None
    insertion: Insertion = "concat"
    above: Mapping[int, torch.Tensor] = field(default_factory=dict)

    @property
    def prompt_length(self) -> int:
        """L; 0 for text."""
        return 0 if self.vectors is None else self.vectors.shape[1]

    def empty_scores(self) -> torch.Tensor:
        """(requests, rows, words) float64 zeros, to add log-probabilities to."""
        return torch.zeros(len(self.rows), len(self.rows[0]), len(self.words), dtype=torch.float64)

    def items(self) -> Iterator[tuple[int, int, EncodedRow]]:
        """Iterate over all (request, row number, row)."""
        for request, rows in enumerate(self.rows):
            for number, row in enumerate(rows):
                yield request, number, row


class Scorer(Protocol):
    """Scores label words with one family of models."""

    @property
    def insertions(self) -> frozenset[Insertion]:
        """The supported ways to insert a soft prompt."""
        ...

    @property
    def label_last(self) -> bool:
        """Whether the label must be the end of a row."""
        ...

    @property
    def answers_apart(self) -> bool:
        """Whether a label word starts a new text, see `RowEncoder`."""
        ...

    @property
    def mask_token(self) -> Word:
        """The mask or sentinel in the label's place; empty where labels are read at the end."""
        ...

    @property
    def layers(self) -> Sequence[Any]:
        """The layers that a deep prompt enters; empty if the model has no plain stack."""
        ...

    def tokens(self, row: EncodedRow) -> int:
        """How many tokens of a row the model reads for label words of one token."""
        ...

    def positions(self, row: EncodedRow, longest: int) -> int:
        """How many positions a row takes with a label word of `longest` tokens."""
        ...

    def scores(self, batch: RequestBatch) -> torch.Tensor:
        """(requests, rows, words) float64 summed log-probabilities."""
        ...

    def read(self, batch: RequestBatch) -> None:
        """Pass every row through the layers and share nothing, for hooks that record inputs."""
        ...


def group_by(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Group items of equal key, in the order of their first items."""
    groups: defaultdict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into runs of at most `size` items, at least one each."""
    step = max(1, size)
    for start in range(0, len(items), step):
        yield items[start : start + step]


def padded_runs(items: Iterable[T], size: Callable[[T], int], most: int) -> list[list[T]]:
    """Sort items by size and cut them into runs.

    Padded to its largest item, a run has at most `most` in total, or it is a single item.
    """
    runs: list[list[T]] = []
    for item in sorted(items, key=size):
        if not runs or (len(runs[-1]) + 1) * size(item) > most:
            runs.append([])
        runs[-1].append(item)
    return runs
