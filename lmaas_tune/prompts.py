"""What is tuned: soft prompts (vectors), deep ones, text prompts, and points of subspaces."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lmaas_tune.errors import InputError
from lmaas_tune.plain import checked, checked_fields

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

    vectors: FloatArray = field(repr=False)
    insertion: Insertion = "concat"
    anchor: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        vectors = _kept(self.vectors)
        if self.insertion not in INSERTIONS:
            raise InputError(
                f"unknown insertion {self.insertion!r}; known: {', '.join(INSERTIONS)}"
            )
        if len(self.anchor) != (len(vectors) if self.insertion == "add" else 0):
            raise InputError(
                f"insertion {self.insertion!r} with {len(vectors)} vectors and {len(self.anchor)} "
                "anchor tokens: 'add' takes one anchor token a vector, the others none"
            )
        if any(token < 0 for token in self.anchor):
            raise InputError(f"anchor {self.anchor!r:.60}: token ids are whole numbers from 0 on")
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "anchor", tuple(int(token) for token in self.anchor))

    def __str__(self) -> str:
        return f"a soft prompt of width {self.width}, inserted by {self.insertion!r}"

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


@dataclass(frozen=True, eq=False)
class DeepPrompt:
    """A soft prompt that goes on through the model: every layer has vectors of its own.

    Attributes:
        first: What enters with the word embeddings, below the first layer.
        above: For each further layer from the bottom, (L, H) vectors that are added to what
            enters it at the prompt's places; kept as float32. Prompts may share these arrays.

    Raises:
        InputError: The vectors of a layer are not finite, or of another shape than the first's.
    """

    first: SoftPrompt
    above: Sequence[FloatArray]

    def __post_init__(self) -> None:
        above = tuple(_kept(vectors) for vectors in self.above)
        for layer, vectors in enumerate(above, start=1):
            if vectors.shape != self.first.vectors.shape:
                raise InputError(
                    f"layer {layer} of a deep prompt has the shape {vectors.shape}, and the first "
                    f"{self.first.vectors.shape}: all layers have one shape (L, H)"
                )
        object.__setattr__(self, "above", above)

    def __str__(self) -> str:
        return f"{self.first}, through {self.layers} layers"

    @property
    def layers(self) -> int:
        """How many layers it enters, the first included."""
        return 1 + len(self.above)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that makes this prompt what it is; part of every cache key."""
        sha = hashlib.sha256(f"deep|{self.first.digest}|{self.layers}|".encode())
        for vectors in self.above:
            sha.update(np.ascontiguousarray(vectors, dtype="<f4").data)
        return sha.hexdigest()


def _kept(vectors: FloatArray) -> FloatArray:
    """The (L, H) vectors as float32 that nobody writes into: a copy, unless they are that already.

    Raises:
        InputError: They are not a finite (L, H) array.
    """
    try:
        kept = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # the last from torch's parameters
        raise InputError(f"the vectors of a soft prompt are no (L, H) array: {error}") from error
    if kept.ndim != 2 or 0 in kept.shape:
        raise InputError(f"a soft prompt has the shape (L, H), not {kept.shape}")
    if not np.isfinite(kept).all():
        raise InputError("a soft prompt must be finite; these vectors hold NaN or infinity")
    if kept.flags.writeable or not kept.flags.owndata:  # somebody's own, or part of it
        kept = kept.copy()
        kept.setflags(write=False)
    return kept


@dataclass(frozen=True)
class TextPrompt:
    """Words that stand where the template says ``{prompt}``."""

    text: str

    def __str__(self) -> str:
        return "a text prompt"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text; part of every cache key."""
        return hashlib.sha256(b"text|" + self.text.encode("utf-8", "surrogatepass")).hexdigest()


Start: TypeAlias = Literal["words", "vocabulary", "zero"]
"""Where p0 comes from, see `Subspace.start`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subspace:
    """p = p0 + A z in words: who has the model's word embeddings can draw p0 and A from it.

    Attributes:
        start: ``words`` (p0 is the embeddings of `words`), ``vocabulary`` (of tokens drawn from
            the model's own vocabulary), ``zero``, or p0 itself.
        words: The starting words, with the space before them where there is one.
        length: L, in tokens; None takes as many as the words have.
        insertion: How the prompt enters, see `SoftPrompt.insertion`.
        dim: d.
        projection: Kind of A.
        alpha: Scale of A, see `lmaas_tune.Settings.alpha`.
        seed: A is drawn from (seed, projection, d).

    Raises:
        InputError: A number is out of its range, or `start` or `insertion` unknown.
    """

    start: Start | SoftPrompt
    words: str = ""
    length: int | None = None
    insertion: Insertion = "concat"
    dim: int
    projection: str
    alpha: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("length", "dim"):
            if (number := getattr(self, name)) is not None and not 1 <= number <= _LARGEST:
                raise InputError(f"{name}={number!r} of a subspace: it takes 1 to {_LARGEST}")
        if self.seed < 0:
            raise InputError(f"seed={self.seed!r} of a subspace: it must be 0 or more")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"alpha={self.alpha!r} of a subspace: it must be positive and finite")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values; a p0 of its own as base64 of little-endian float32."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        content["alpha"] = float(self.alpha)  # 1 and 1.0 are one subspace
        if isinstance(self.start, SoftPrompt):
            content["start"] = {
                "vectors": base64.b64encode(self.start.vectors.astype("<f4").tobytes()).decode(),
                "length": self.start.length,
                "insertion": self.start.insertion,
                "anchor": list(self.start.anchor),
            }
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Subspace:
        """Read what `to_json` gave.

        Raises:
            InputError: It did not give this.
        """
        try:
            values = checked_fields(cls, content, name="a subspace", but=["start"])
            start = checked(Start | Mapping[str, Any], content.get("start"), "start")
            return cls(start=_start_of(start) if isinstance(start, Mapping) else start, **values)
        except ValueError as error:
            raise InputError(f"this describes no subspace ({error})") from error


_LARGEST = 1 << 16
"""More tokens or dimensions than any search has: what is larger would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class _Start:
    """A p0 of its own, as JSON has it."""

    vectors: str
    length: int
    insertion: Insertion
    anchor: Sequence[int]


def _start_of(content: Mapping[str, Any]) -> SoftPrompt:
    start: _Start = checked(_Start, content, "start")
    numbers = np.frombuffer(base64.b64decode(start.vectors, validate=True), "<f4")
    vectors = numbers.reshape(start.length, -1)
    return SoftPrompt(vectors, start.insertion, tuple(start.anchor))


@dataclass(frozen=True, eq=False)
class PointPrompt:
    """A soft prompt by its place in a subspace: for a model whose embeddings nobody may see.

    Attributes:
        subspace: What the provider draws p0 and A from.
        point: z, kept as (d,) float32.

    Raises:
        InputError: The point is not a finite (d,) array.
    """

    subspace: Subspace
    point: FloatArray

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # infinite then, which is told
            point = np.array(self.point, dtype=np.float32)
        if point.shape != (self.subspace.dim,) or not np.isfinite(point).all():
            raise InputError(
                f"a point of shape {point.shape} for a subspace of {self.subspace.dim} dimensions: "
                "it takes as many finite numbers"
            )
        point.setflags(write=False)
        object.__setattr__(self, "point", point)

    def __str__(self) -> str:
        return "a point of a subspace"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that makes this prompt what it is; part of every cache key."""
        head = f"point|{self.subspace.digest}|".encode()
        return hashlib.sha256(head + self.point.astype("<f4").tobytes()).hexdigest()


Prompt: TypeAlias = SoftPrompt | DeepPrompt | TextPrompt | PointPrompt
