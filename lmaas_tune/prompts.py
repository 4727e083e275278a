"""What is tuned: a soft prompt (vectors) or a text prompt (words)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lmaas_tune.errors import InputError

FloatArray: TypeAlias = npt.NDArray[np.floating]
"""Floating-point array; its shape stands in words beside each use."""

Insertion: TypeAlias = Literal["concat", "add", "prepend"]
"""How a soft prompt enters the model, see `SoftPrompt.insertion`."""

INSERTIONS: tuple[Insertion, ...] = ("concat", "add", "prepend")


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A continuous prompt of L vectors in the model's embedding space.

    Attributes:
        vectors: (L, H), kept as float32; H is the width of the model's word embeddings.
        insertion: Where the vectors go.
            ``concat``: they stand for L word embeddings where the template says ``{prompt}``,
            and pass through positions and normalisation as words do. Every model family.
            ``add``: the words of `anchor` stand at ``{prompt}`` and the vectors are added on
            top of their embeddings; in BERT and RoBERTa after the embedding LayerNorm (the
            paper's main mode).
            ``prepend``: before everything, the start token too, past positions and LayerNorm
            (BERT and RoBERTa; the reference code's "cat" mode).
        anchor: L token ids, for ``add`` only.

    Raises:
        InputError: The vectors are not a finite (L, H) array, or `anchor` does not fit.
    """

    vectors: FloatArray
    insertion: Insertion = "concat"
    anchor: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        try:
            vectors = np.array(self.vectors, dtype=np.float32)  # a copy: nobody's array is shared
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the vectors of a soft prompt are no (L, H) array: {error}"
            ) from error
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise InputError(f"a soft prompt has the shape (L, H), not {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise InputError("a soft prompt must be finite; these vectors hold NaN or infinity")
        if self.insertion not in INSERTIONS:
            raise InputError(
                f"unknown insertion {self.insertion!r}; known: {', '.join(INSERTIONS)}"
            )
        if len(self.anchor) != (len(vectors) if self.insertion == "add" else 0):
            raise InputError(
                f"insertion {self.insertion!r} with {len(vectors)} vectors and {len(self.anchor)} "
                "anchor tokens: 'add' takes one anchor token a vector, the others none"
            )
        vectors.setflags(write=False)
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "anchor", tuple(int(token) for token in self.anchor))

    @property
    def length(self) -> int:
        """L, in tokens."""
        return int(self.vectors.shape[0])

    @property
    def width(self) -> int:
        """H."""
        return int(self.vectors.shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that makes this prompt what it is; part of every cache key."""
        head = f"soft|{self.insertion}|{self.anchor}|{self.vectors.shape}|".encode()
        return hashlib.sha256(head + self.vectors.astype("<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class TextPrompt:
    """Words that stand where the template says ``{prompt}``."""

    text: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text; part of every cache key."""
        return hashlib.sha256(b"text|" + self.text.encode("utf-8", "surrogatepass")).hexdigest()


Prompt: TypeAlias = SoftPrompt | TextPrompt
