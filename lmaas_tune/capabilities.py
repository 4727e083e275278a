"""The facts about a model that are known before the first call: its capabilities, its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.floating]
"""Floating-point array; its shape stands in words beside each use."""

Insertion: TypeAlias = Literal["concat", "add", "prepend"]
"""How a soft prompt enters the model, see `lmaas_tune.SoftPrompt.insertion`."""

INSERTIONS: tuple[Insertion, ...] = ("concat", "add", "prepend")


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """A way in which a backend saves work. It changes how long answers take, never the answers.

    Attributes:
        name: What is saved.
        reason: Why it is off; empty where it is on.
        cost: What is done instead where it is off.
    """

    name: str
    reason: str
    cost: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can do; asked before the first paid call, so that a refusal costs nothing.

    Attributes:
        soft_prompt_width: H of the soft prompts it takes; None if it takes none.
        insertions: The ways a soft prompt may enter.
        deep_layers: How many layers a deep prompt goes through, the first included; None if it
            takes none.
        text_prompts: Whether it takes text prompts.
        point_prompts: Whether it takes points of subspaces: it draws subspaces of its own model.
        label_anywhere: Whether ``{label}`` may stand before the end of the template (a masked
            or sequence-to-sequence model); a causal model needs it last.
        deterministic: Whether a repeated request gets the same answer.
        max_tokens: The longest row it reads, prompt and label included; None if unknown.
        rows_per_call: The most rows of one request that one call of `Backend.score` takes; the
            client cuts the rest off, and sends the parts by its own number of workers, one
            request a call. None: takes any number of requests and rows at once, and can share
            work among them.
        speedups: The ways in which it saves work, on or off.
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
    speedups: tuple[Speedup, ...] = ()


@runtime_checkable
class Embeds(Protocol):
    """What a backend with soft prompts can add, so that a prompt can start from words.

    Attributes:
        embedding_std: Standard deviation of all entries of the word-embedding matrix.
        vocabulary_size: Number of rows of that matrix.
    """

    @property
    def embedding_std(self) -> float: ...

    @property
    def vocabulary_size(self) -> int: ...

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        """Ids of the text's tokens, with no start or end token."""
        ...

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        """(tokens, H) float32 word embeddings."""
        ...


class Model(Protocol):
    """A model by its name and its capabilities, as every `lmaas_tune.Backend` has them."""

    @property
    def identity(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...
