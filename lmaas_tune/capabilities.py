"""Capabilities of a model, and the interface to its word embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.floating]
"""Floating-point array; each use documents its shape."""

Insertion: TypeAlias = Literal["concat", "add", "prepend"]
"""How a soft prompt enters the model, see `lmaas_tune.SoftPrompt.insertion`."""

INSERTIONS: tuple[Insertion, ...] = ("concat", "add", "prepend")


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """An optimization of a backend. It changes the time of answers, never the answers.

    Attributes:
        name: Name of the optimization.
        reason: Why it is off; empty if it is on.
        cost: The slower method that replaces it while it is off.
    """

    name: str
    reason: str
    cost: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Capabilities of a backend; checked before the first paid call, so that errors are free.

    Attributes:
        soft_prompt_width: H of the soft prompts it takes; None if it takes none.
        insertions: The ways a soft prompt may enter.
        deep_layers: Number of layers of its deep prompts, including the first; None if it takes
            none.
        text_prompts: Whether it takes text prompts.
        point_prompts: Whether it takes points of subspaces, which it draws itself.
        label_anywhere: Whether ``{label}`` may stand before the end of the template (a masked
            or sequence-to-sequence model); a causal model needs it last.
        deterministic: Whether a repeated request gets the same answer.
        max_tokens: The longest row in tokens, including prompt and label; None if unknown.
        rows_per_call: The most rows that one call of `Backend.score` takes; the client splits
            larger requests and sends the parts with several workers, one request a call. None:
            takes any number of requests and rows at once, and can share work between them.
        words_per_request: The most words that a request may name, label words and those that a
            head reads together, at no cost but bytes; None: any number. 0 if each word costs
            tokens or requests, so that requests name the label words only.
        speedups: Its optimizations, on or off.
    """

    soft_prompt_width: int | None = None
    insertions: frozenset[Insertion] = frozenset({"concat"})
    deep_layers: int | None = None
    text_prompts: bool = True
    point_prompts: bool = False
    label_anywhere: bool = False
    deterministic: bool = True
    max_tokens: int | None = None
    rows_per_call: int | None = None
    words_per_request: int | None = 0
    speedups: tuple[Speedup, ...] = ()


@runtime_checkable
class Embeds(Protocol):
    """Optional interface of a backend with soft prompts: its word embeddings.

    Attributes:
        embedding_std: Standard deviation of all entries of the word-embedding matrix.
        vocabulary_size: Number of rows of that matrix.
    """

    @property
    def embedding_std(self) -> float: ...

    @property
    def vocabulary_size(self) -> int: ...

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        """Token ids of a text, without start or end token."""
        ...

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        """(tokens, H) float32 word embeddings."""
        ...


@runtime_checkable
class KnowsWords(Protocol):
    """Optional interface of a backend that scores words for a head: the words of its model."""

    def one_token_words(self) -> Sequence[str]:
        """Words that the model reads as one token behind a space, some thousands.

        The most common ones come first, as far as the tokenizer's order tells.
        """
        ...


class Model(Protocol):
    """Name and capabilities of a model, which every `lmaas_tune.Backend` has."""

    @property
    def identity(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...
