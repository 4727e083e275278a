"""Requests that go through the model together, and the passes they are cut into."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from lmaas_tune.backend import Speedup
from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf.answers import Word
from lmaas_tune_adapters.hf.encoding import EncodedRow

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Prompts of one kind over the same rows, with the same label words.

    Attributes:
        rows: For each request, its encoded rows.
        words: Token ids of each label word.
        vectors: (requests, L, H) soft prompts in the model's dtype, on its device; None for text.
        insertion: How the vectors enter.
        above: By the number of a layer above the first, (requests, L, H) that are added to what
            enters it, in the model's dtype, on its device.
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

    def scores(self) -> torch.Tensor:
        """(requests, rows, words) float64 zeros, to add log-probabilities to."""
        return torch.zeros(len(self.rows), len(self.rows[0]), len(self.words), dtype=torch.float64)

    def items(self) -> Iterator[tuple[int, int, EncodedRow]]:
        """(request, row, what it reads) of all."""
        for request, rows in enumerate(self.rows):
            for number, row in enumerate(rows):
                yield request, number, row


class Scorer(Protocol):
    """How one family of models answers.

    Attributes:
        insertions: The ways a soft prompt may enter.
        label_last: Whether the label must be the last thing in a row.
        answers_apart: Whether a label word is an answer of its own, see `Encoder`.
        hole: What stands in the label's place where a label is read: a mask or sentinel, or
            nothing, where it is read at the end.
        layers: Of the stack that a deep prompt goes through; none where there is no plain one.
        speedups: How it saves work, and whether that is on.
    """

    @property
    def insertions(self) -> frozenset[Insertion]: ...

    @property
    def label_last(self) -> bool: ...

    @property
    def answers_apart(self) -> bool: ...

    @property
    def hole(self) -> Word: ...

    @property
    def layers(self) -> Sequence[Any]: ...

    @property
    def speedups(self) -> tuple[Speedup, ...]: ...

    def tokens(self, row: EncodedRow) -> int:
        """How many tokens of a row the model reads for label words of one token."""
        ...

    def places(self, row: EncodedRow, longest: int) -> int:
        """How many of the model's places a row takes, its longest label word of so many tokens."""
        ...

    def scores(self, cohort: Cohort) -> torch.Tensor:
        """(requests, rows, words) float64 summed log-probabilities."""
        ...

    def read(self, cohort: Cohort) -> None:
        """Pass every row through the layers, nothing shared or kept: for what listens there."""
        ...


def alike(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items of equal key together, so that no pass needs padding."""
    groups: defaultdict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive runs of at most `size` items, at least one each."""
    step = max(1, size)
    for start in range(0, len(items), step):
        yield items[start : start + step]


def fitting(items: Iterable[T], size: Callable[[T], int], most: int) -> list[list[T]]:
    """Items by size, in runs that hold at most `most` when padded to their largest, or one item."""
    runs: list[list[T]] = []
    for item in sorted(items, key=size):
        if not runs or (len(runs[-1]) + 1) * size(item) > most:
            runs.append([])
        runs[-1].append(item)
    return runs
