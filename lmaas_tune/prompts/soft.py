"""Soft prompts: vectors p = p0 + A z in the model's embedding space, searched over z."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias, cast

import numpy as np

from lmaas_tune.capabilities import INSERTIONS, Embeds, FloatArray, Insertion, Model
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.prompts.base import TOKEN, Prompt, PromptSpace, Setup
from lmaas_tune.prompts.phrases import BUILT_IN, check_words, starting_words
from lmaas_tune.prompts.projections import PROJECTIONS, Checkpoint, Projection, no_checkpoint
from lmaas_tune.reprs import short_repr
from lmaas_tune.typed_json import checked, checked_fields
from lmaas_tune.validate import checked_by, one_of, positive, validate, whole

VECTORS_KEY = (
    "prompt_embeddings"  # peft's name, so that each of the two reads the files of the other
)


@dataclass(frozen=True, eq=False)
class SoftPrompt(Prompt):
    """A continuous prompt of L vectors in the model's embedding space.

    Attributes:
        vectors: (L, H), stored as float32; H is the width of the model's word embeddings.
        insertion: How the vectors enter the input.
            ``concat``: they replace the word embeddings of L tokens in the ``{prompt}`` slot,
            before position embeddings and normalisation. For every model family.
            ``add``: the tokens of `anchor` fill the ``{prompt}`` slot, and the vectors are added
            to their embeddings; in BERT and RoBERTa after the embedding LayerNorm (the paper's
            main mode).
            ``prepend``: before the whole input, including the start token. A causal model reads
            the vectors as tokens, as in peft; BERT and RoBERTa without position embeddings and
            LayerNorm (the reference code's "cat" mode). The text behind ``{prompt}`` begins as
            texts do, without a space.
        anchor: L token ids, for ``add`` only.

    Raises:
        InputError: The vectors are not a finite (L, H) array, or `anchor` does not fit.
    """

    vectors: FloatArray
    insertion: Insertion = "concat"
    anchor: tuple[int, ...] = field(default=(), repr=False)

    kind: ClassVar[str] = "soft"
    has_arrays: ClassVar[bool] = True

    __repr__ = short_repr

    def __post_init__(self) -> None:
        vectors = read_only_vectors(self.vectors)
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

    def content(self) -> Iterator[bytes]:
        """The bytes that the digest covers."""
        yield f"soft|{self.insertion}|{self.anchor}|{self.vectors.shape}|".encode()
        yield self.vectors.astype("<f4").tobytes()

    @property
    def characters(self) -> int:
        """Estimated length of L tokens in characters."""
        return TOKEN * self.length

    @property
    def most_tokens(self) -> int:
        """Its length."""
        return self.length

    @property
    def prepended(self) -> bool:
        """See `Prompt.prepended`."""
        return self.insertion == "prepend"

    def incompatibility(self, model: Model) -> str | None:
        """The reason why the model cannot take this prompt; None if it can."""
        can = model.capabilities
        if self.width != (width := can.soft_prompt_width):
            takes = "no soft prompts" if width is None else f"width {width}"
            return f"the prompt has width {self.width}, and {model.identity} takes {takes}"
        if self.insertion not in can.insertions:
            takes = ", ".join(sorted(can.insertions))
            return (
                f"the prompt enters by insertion {self.insertion!r}, and {model.identity} takes "
                f"{takes}"
            )
        return None

    def to_files(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """The fields of ``prompt.json`` and the arrays of ``prompt.safetensors``."""
        content = {
            "insertion": self.insertion,
            "anchor": list(self.anchor),
            "shape": list(self.vectors.shape),
        }
        return content, {VECTORS_KEY: np.ascontiguousarray(self.vectors)}

    @classmethod
    def from_files(cls, content: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> SoftPrompt:
        """Build a prompt from the output of `to_files`.

        Raises:
            InputError: The content is invalid.
        """
        insertion = checked(Insertion, content.get("insertion", "concat"), "insertion")
        anchor = checked(Sequence[int], content.get("anchor", ()), "anchor")
        return cls(array_of(arrays, VECTORS_KEY), insertion, tuple(anchor))


def array_of(arrays: Mapping[str, FloatArray], key: str) -> FloatArray:
    """Look up an array of ``prompt.safetensors``.

    Raises:
        InputError: There is no array of this name.
    """
    if key not in arrays:
        raise InputError(f"prompt.safetensors has no array {key!r}")
    return arrays[key]


def read_only_vectors(vectors: FloatArray) -> FloatArray:
    """The (L, H) vectors as a read-only float32 array; a copy, unless they are one already.

    Raises:
        InputError: The vectors are not a finite (L, H) array.
    """
    try:
        result = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError from torch's parameters
        raise InputError(f"the vectors of a soft prompt are no (L, H) array: {error}") from error
    if result.ndim != 2 or 0 in result.shape:
        raise InputError(f"a soft prompt has the shape (L, H), not {result.shape}")
    if not np.isfinite(result).all():
        raise InputError("a soft prompt must be finite; these vectors hold NaN or infinity")
    if result.flags.writeable or not result.flags.owndata:  # the caller's array, or a view of it
        result = result.copy()
        result.setflags(write=False)
    return result


Start: TypeAlias = Literal["words", "vocabulary", "zero"]
"""The source of p0, see `Subspace.start`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subspace:
    """Description of a subspace p = p0 + A z; with the word embeddings, p0 and A follow from it.

    Attributes:
        start: ``words`` (p0 is the embeddings of `words`), ``vocabulary`` (embeddings of random
            tokens of the model), ``zero``, or p0 itself.
        words: The starting words, with the space before them if there is one.
        length: L, in tokens; None for the number of tokens of the words.
        insertion: How the prompt enters the input, see `SoftPrompt.insertion`.
        dim: Dimension d.
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

    @property
    def start_bytes(self) -> int:
        """Memory of a given p0."""
        return self.start.vectors.nbytes if isinstance(self.start, SoftPrompt) else 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON has them; a given p0 as base64 of little-endian float32."""
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
        """Build a description from the output of `to_json`.

        Raises:
            InputError: The content is invalid.
        """
        try:
            values = checked_fields(cls, content, name="a subspace", but=["start"])
            start = checked(Start | Mapping[str, Any], content.get("start"), "start")
            return cls(start=_start_of(start) if isinstance(start, Mapping) else start, **values)
        except ValueError as error:
            raise InputError(f"this describes no subspace ({error})") from error


_LARGEST = 1 << 16
"""The most tokens or dimensions; larger numbers would exhaust the memory."""


@dataclass(frozen=True, kw_only=True)
class _Start:
    """A given p0, as JSON has it."""

    vectors: str
    length: int
    insertion: Insertion
    anchor: Sequence[int]


def _start_of(content: Mapping[str, Any]) -> SoftPrompt:
    start: _Start = checked(_Start, content, "start")
    numbers = np.frombuffer(base64.b64decode(start.vectors, validate=True), "<f4")
    vectors = numbers.reshape(start.length, -1)
    return SoftPrompt(vectors, start.insertion, tuple(start.anchor))


class RandomEmbedding:
    """The subspace p = p0 + A z (Sun et al. 2022, section 3.2).

    Args:
        starts: Candidates for p0; the first is used, until `begin_at`.
        dim: Dimension d.
        projection: Kind of A.
        scale: Standard deviation of a number of A z for z ~ N(0, I), see the projections.
        seed: A is drawn from (seed, kind, d) when it is needed, and never stored.
        embeds: The model's word embeddings, from which ``vocabulary`` is built.
        layer: Number of the layer that the prompt enters; A differs between layers.
        checkpoint: Called between the parts of the draw of A.

    Raises:
        InputError: An unknown projection, or a size or scale that is not positive.
    """

    def __init__(
        self,
        starts: Sequence[SoftPrompt],
        *,
        dim: int,
        projection: str,
        scale: float,
        seed: int,
        embeds: Embeds | None = None,
        layer: int = 0,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        if projection not in PROJECTIONS:
            raise InputError(
                f"unknown projection {projection!r}; {did_you_mean(projection, PROJECTIONS)}"
            )
        if dim < 1:
            raise InputError(f"intrinsic_dim={dim}: the search needs one dimension or more")
        if not 0 < scale < np.inf:
            raise InputError(f"projection scale {scale}: it must be positive and finite")
        self.dim, self.blocks = dim, 1
        self.starts, self.longest = tuple(starts), ()
        self._projection, self._scale, self._seed = projection, scale, seed
        self._embeds, self._layer, self._checkpoint = embeds, layer, checkpoint

    def begin_at(self, index: int) -> RandomEmbedding:
        """The space with another start as p0; A is redrawn only if the length differs."""
        space = copy.copy(self)
        space.starts = (self.starts[index],)
        if self.starts[index].length != self.starts[0].length:
            vars(space).pop("_project", None)
        return space

    @property
    def digest(self) -> str:
        """SHA-256 of all starts, of the parameters of A, and of its last column."""
        last = np.eye(1, self.dim, self.dim - 1)  # a unit vector: gives the column exactly
        column = self._project(last).astype(np.float64) / self._scale
        drawn_from = f"{self._projection}|{self._seed}|{self.dim}|{self._scale:.4g}"
        starts = "|".join(start.digest for start in self.starts)
        sha = hashlib.sha256(f"{drawn_from}|{starts}|".encode())
        # rounded, as rare draws from the normal's tail differ in the last bits between machines
        sha.update((np.round(column, 3) + 0.0).astype("<f4").tobytes())
        return sha.hexdigest()

    def prompts(self, points: FloatArray) -> list[SoftPrompt]:
        """The prompts of the (n, dim) points."""
        start = self.starts[0]
        with np.errstate(over="ignore", invalid="ignore"):  # `SoftPrompt` rejects infinite vectors
            moved = start.vectors + self._project(points).reshape(-1, *start.vectors.shape)
        try:
            return [replace(start, vectors=vectors) for vectors in moved]
        except InputError as error:
            raise InputError(
                f"{error}: the search is {np.abs(points).max():.3g} away from its start; take "
                "smaller steps (the optimizer's option sigma0) or a smaller alpha"
            ) from error

    @cached_property
    def _project(self) -> Projection:
        kind = int.from_bytes(self._projection.encode(), "little")
        drawn_from = [self._seed, kind, self.dim] + ([self._layer] if self._layer else [])
        source = {"embeds": self._embeds} if self._projection == "vocabulary" else {}
        outputs = self.starts[0].vectors.size
        try:
            return PROJECTIONS[self._projection](
                outputs,
                self.dim,
                scale=self._scale,
                rng=np.random.Generator(np.random.PCG64(drawn_from)),
                checkpoint=self._checkpoint,
                **source,
            )
        except MemoryError as error:
            raise InputError(
                f"the projection {self._projection!r} of {self.dim} dimensions onto {outputs} "
                "numbers does not fit into memory: take fewer dimensions, a shorter prompt, or "
                "projection 'hadamard'"
            ) from error


def draw(
    subspaces: Sequence[Subspace],
    model: Model,
    embeds: Embeds | None = None,
    *,
    checkpoint: Checkpoint = no_checkpoint,
) -> RandomEmbedding:
    """Draw the search space that descriptions define.

    Args:
        subspaces: Descriptions that differ in p0 only.
        model: The model that takes the prompts.
        embeds: Its word embeddings; by default the model itself, if it gives them.
        checkpoint: Called between the parts of the draw of A, at its first use.

    Raises:
        InputError: The model lacks the word embeddings that a description needs, or does not take
            its prompts.
    """
    first = subspaces[0]
    if embeds is None and isinstance(model, Embeds):
        embeds = model
    return RandomEmbedding(
        [_checked(_start(subspace, model, embeds), model) for subspace in subspaces],
        dim=first.dim,
        projection=first.projection,
        scale=_scale(first, model, embeds),
        seed=first.seed,
        embeds=embeds,
        checkpoint=checkpoint,
    )


def _start(subspace: Subspace, model: Model, embeds: Embeds | None) -> SoftPrompt:
    """The initial prompt p0 of a description."""
    start, length, insertion = subspace.start, subspace.length, subspace.insertion
    check_length(length, model)
    if isinstance(start, SoftPrompt):
        return start
    if start == "zero" and length is not None and insertion != "add":
        width = model.capabilities.soft_prompt_width or 0
        return SoftPrompt(np.zeros((length, width), dtype=np.float32), insertion)
    if embeds is None:
        raise InputError(
            f"{model.identity} does not give word embeddings, so a prompt cannot start from "
            f"{start!r}: take start='zero' with a prompt_length, and "
            "projection='uniform', or give a start"
        )
    if start == "words":
        return start_from_words(embeds, subspace.words, insertion=insertion, length=length)
    if length is None or start == "zero":
        raise InputError(
            "insertion 'add' adds its vectors to words: start from words or vocabulary"
        )
    return start_from_vocabulary(embeds, length, insertion=insertion, seed=subspace.seed)


def _checked(start: SoftPrompt, model: Model) -> SoftPrompt:
    can = model.capabilities
    if start.width != can.soft_prompt_width:
        raise InputError(_no_start(model))
    if start.insertion not in can.insertions:
        raise InputError(
            f"{model.identity} does not take a prompt by insertion {start.insertion!r}; "
            f"it takes {', '.join(sorted(can.insertions))}"
        )
    return start


def _scale(subspace: Subspace, model: Model, embeds: Embeds | None) -> float:
    """`alpha` in the units of the projection."""
    if subspace.projection in ("uniform", "vocabulary"):
        return subspace.alpha
    if embeds is None:
        raise InputError(
            f"{model.identity} does not give the scale of its word embeddings, which projection "
            f"{subspace.projection!r} needs: take projection='uniform'"
        )
    return subspace.alpha * embeds.embedding_std


def start_from_words(
    embeds: Embeds, words: str, *, insertion: Insertion, length: int | None = None
) -> SoftPrompt:
    """p0 = the embeddings of the words' tokens; repeated or cut to the length, if one is given.

    Raises:
        InputError: The words have no token.
    """
    ids = embeds.tokenize(words)
    if not ids:
        raise InputError(f"prompt_init={words!r} has no token to start from")
    if length is not None:
        ids = (ids * -(-length // len(ids)))[:length]
    return _of_words(embeds, ids, insertion)


def start_from_vocabulary(
    embeds: Embeds, length: int, *, insertion: Insertion, seed: int
) -> SoftPrompt:
    """p0 = the embeddings of `length` random tokens of the model."""
    ids = np.random.default_rng(abs(seed)).integers(0, embeds.vocabulary_size, length)
    return _of_words(embeds, tuple(int(i) for i in ids), insertion)


def _of_words(embeds: Embeds, ids: tuple[int, ...], insertion: Insertion) -> SoftPrompt:
    vectors = embeds.embed(ids)
    if insertion == "add":  # the anchor holds the words
        return SoftPrompt(np.zeros_like(vectors), "add", ids)
    return SoftPrompt(vectors, insertion)


@dataclass(frozen=True, kw_only=True)
class Soft:
    """Settings of a search over soft prompts, p = p0 + A z.

    Attributes:
        start: Source of p0: ``words`` (the embeddings of `prompt_init`), ``vocabulary``
            (embeddings of random tokens of the model) or ``zero``.
        prompt_init: The starting words. Of several, the search starts from the best, by
            successive halving (`lmaas_tune.screening`). ``built-in`` stands for a list of
            wordings; beside others, as in ``("My words:", "built-in")``, for more of them.
        prompt_length: L, in tokens; None for the number of tokens of the words.
        insertion: How the prompt enters the input, see `SoftPrompt.insertion`.
        intrinsic_dim: Dimension d of the search.
        projection: Kind of the random matrix A: ``vocabulary``, ``normal``, ``uniform`` or
            ``hadamard``.
        alpha: Scale of A, in standard deviations of the model's word embeddings; absolute for
            ``uniform`` (1 in the paper).

    Raises:
        InputError: A value is out of range; the message names it and the remedy.
    """

    start: Start = one_of(("words", "vocabulary", "zero"), default="words")
    prompt_init: str | tuple[str, ...] = checked_by(check_words, default=BUILT_IN)
    prompt_length: int | None = whole(least=1, optional=True)
    insertion: Insertion = one_of(INSERTIONS, default="concat")
    intrinsic_dim: int = whole(least=1, default=50)
    projection: str = one_of(PROJECTIONS, default="vocabulary")
    alpha: float = positive(default=0.2)

    kind: ClassVar[str] = "soft"
    starts_from: ClassVar[frozenset[str]] = frozenset({"soft"})
    optimizer: ClassVar[str] = "gauss-newton"

    def __post_init__(self) -> None:
        validate(self)
        if self.start != "words" and self.prompt_length is None:
            raise InputError(f"start={self.start!r} needs a prompt_length")

    @property
    def given_words(self) -> tuple[str, ...]:
        """`prompt_init` as a tuple."""
        return tuple(self.prompt_init)

    @property
    def demonstrations(self) -> int:
        """0: a soft prompt holds no training rows."""
        return 0

    def check(self, model: Model, start: Prompt | None) -> None:
        """Check that the model takes soft prompts, and that p0 is one.

        Raises:
            InputError: One of the two fails, or the prompt is longer than the model's context.
        """
        can = model.capabilities
        if can.soft_prompt_width is None and not can.point_prompts:
            raise InputError(
                f"{model.identity} takes text prompts only, and this search is over soft ones: "
                "take prompt=Text() (--prompt text), or a backend that takes embeddings, such as "
                "'hf'"
            )
        if start is not None and start.kind == "deep" and "deep" not in self.starts_from:
            raise InputError(f"the start is {start}: set prompt=Deep() (--deep all)")
        if start is not None and start.kind not in self.starts_from:
            raise InputError(_no_start(model))
        check_length(self.prompt_length, model)

    def space(self, setup: Setup) -> PromptSpace:
        """See `lmaas_tune.prompts.base.PromptKind.space`."""
        return draw(self.subspaces(setup), setup.model, setup.embeds)

    def subspaces(self, setup: Setup, start: SoftPrompt | None = None) -> list[Subspace]:
        """Descriptions of the subspaces, one for each of the starting words or for a given p0."""
        start = start or cast("SoftPrompt | None", setup.start)
        of_words = start is None and self.start == "words"
        space = setup.task.template.space_before_prompt
        starts = starting_words(self.given_words, setup.task)
        return [
            Subspace(
                start=start or self.start,
                words=space + words if of_words else "",
                length=self.prompt_length if start is None else start.length,
                insertion=self.insertion if start is None else start.insertion,
                dim=self.intrinsic_dim,
                projection=self.projection,
                alpha=self.alpha,
                seed=setup.seed,
            )
            for words in (starts if of_words else ("",))
        ]

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {**asdict(self), "prompt": "soft", "prompt_init": list(self.given_words)}


def check_length(length: int | None, model: Model) -> None:
    """Check that a prompt of `length` tokens fits into the model's context.

    Raises:
        InputError: It is too long.
    """
    longest = model.capabilities.max_tokens
    if length is not None and longest is not None and length > longest:
        raise InputError(
            f"prompt_length={length}: {model.identity} reads {longest} tokens at most, the row's "
            "included"
        )


def _no_start(model: Model) -> str:
    return (
        "the prompt to start from must be a soft one of width "
        f"{model.capabilities.soft_prompt_width} for {model.identity}"
    )
