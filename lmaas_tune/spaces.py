"""From a point in R^d to a prompt: the random embedding p = p0 + A z, and where p0 comes from."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lmaas_tune.backend import Backend, Embeds
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.prompts import (
    FloatArray,
    Insertion,
    PointPrompt,
    Prompt,
    SoftPrompt,
    Subspace,
)

Checkpoint = Callable[[], None]
"""Called between the parts of a long drawing; what it raises ends the drawing."""

_PART = 1 << 22  # numbers that are drawn between two checkpoints: some hundredths of a second


def _go_on() -> None:
    pass


def _parts(rows: int, width: int, checkpoint: Checkpoint) -> Iterator[slice]:
    """The rows of a large matrix, some at a time: nothing beside it takes as much memory."""
    step = max(1, _PART // width)
    for start in range(0, rows, step):
        checkpoint()
        yield slice(start, min(start + step, rows))


class SearchSpace(Protocol):
    """Where a search happens: R^dim, and what each point means.

    Attributes:
        dim: d.
        starts: Prompts that may stand at the origin; the first does until `begin_at`.
        digest: SHA-256 of all that decides which prompt a point gives.
    """

    @property
    def dim(self) -> int: ...

    @property
    def starts(self) -> Sequence[Prompt]: ...

    @property
    def digest(self) -> str: ...

    def begin_at(self, index: int) -> SearchSpace:
        """The space around one of the starts."""
        ...

    def prompts(self, points: FloatArray) -> list[Prompt]:
        """The prompts of the (n, dim) points."""
        ...


@runtime_checkable
class NeedsStds(Protocol):
    """A space that has prompts beyond its starts once the model's layers were measured.

    Attributes:
        needs_stds: Whether that is still to be done, see `lmaas_tune.backend.Measures`.
    """

    @property
    def needs_stds(self) -> bool: ...

    def with_stds(self, stds: FloatArray) -> SearchSpace:
        """The space on the scale of what enters each layer above the first."""
        ...


class Projection(Protocol):
    """A linear map A from R^d to R^(L*H); the first H outputs are the first token's."""

    def __call__(self, points: FloatArray, /) -> FloatArray:
        """(n, d) points to their (n, L*H) images."""
        ...


class _Dense:
    def __init__(self, matrix: FloatArray) -> None:
        self._matrix = matrix  # (L*H, d)

    def __call__(self, points: FloatArray, /) -> FloatArray:
        image: FloatArray = points.astype(np.float32) @ self._matrix.T
        return image


def uniform_projection(
    outputs: int,
    dim: int,
    *,
    scale: float,
    rng: np.random.Generator,
    checkpoint: Checkpoint = _go_on,
) -> Projection:
    """Entries uniform in ±scale/sqrt(d): the paper's A, with a scale of 1."""
    bound = np.float32(scale / np.sqrt(dim))
    matrix = np.empty((outputs, dim), np.float32)
    for part in _parts(outputs, dim, checkpoint):
        rng.random(out=matrix[part], dtype=np.float32)
        matrix[part] = (matrix[part] * 2 - 1) * bound
    return _Dense(matrix)


def normal_projection(
    outputs: int,
    dim: int,
    *,
    scale: float,
    rng: np.random.Generator,
    checkpoint: Checkpoint = _go_on,
) -> Projection:
    """Entries N(0, scale²/d): z ~ N(0, I) moves every number of the prompt by N(0, scale²)."""
    std = np.float32(scale / np.sqrt(dim))
    matrix = np.empty((outputs, dim), np.float32)
    for part in _parts(outputs, dim, checkpoint):
        rng.standard_normal(out=matrix[part], dtype=np.float32)
        matrix[part] *= std
    return _Dense(matrix)


class _Hadamard:
    def __init__(
        self,
        outputs: int,
        dim: int,
        scale: float,
        rng: np.random.Generator,
        checkpoint: Checkpoint,
    ) -> None:
        size = 1 << (dim - 1).bit_length()
        blocks = -(-outputs // size)
        signs: NDArray[np.int8] = np.ones((1, 1), np.int8)
        while len(signs) < size:
            checkpoint()
            signs = np.block([[signs, signs], [signs, -signs]])
        self._outputs = outputs
        order, entry = rng.permutation(size), np.float32(scale / dim**0.5)
        self._hadamard = np.empty((size, dim), np.float32)
        for part in _parts(size, dim, checkpoint):
            rows = signs[order[part], :dim]
            np.multiply(rows, entry, out=self._hadamard[part], dtype=np.float32)
        self._signs = rng.integers(0, 2, (blocks, dim), dtype=np.int8) * np.int8(2) - np.int8(1)

    def __call__(self, points: FloatArray, /) -> FloatArray:
        # one point at a time: the flipped copies of a whole generation would be the large array
        image = np.empty((len(points), self._outputs), dtype=np.float32)
        for row, point in zip(image, points.astype(np.float32), strict=True):
            flipped = self._signs * point  # (blocks, d)
            row[:] = (flipped @ self._hadamard.T).ravel()[: self._outputs]
        return image


def hadamard_projection(
    outputs: int,
    dim: int,
    *,
    scale: float,
    rng: np.random.Generator,
    checkpoint: Checkpoint = _go_on,
) -> Projection:
    """Blocks of a Hadamard matrix, each with random signs for its columns: entries ±scale/sqrt(d).

    Distances are kept as with a dense random A, in a few megabytes: a dense one for L=50,
    H=4096, d=1000 has 819 MB. (Ailon and Chazelle, 2009, without the sampling.)
    """
    return _Hadamard(outputs, dim, scale, rng, checkpoint)


def vocabulary_projection(
    outputs: int,
    dim: int,
    *,
    scale: float,
    rng: np.random.Generator,
    embeds: Embeds | None,
    checkpoint: Checkpoint = _go_on,
) -> Projection:
    """Each column moves every token from one random word of the vocabulary towards another.

    The blocks of a column are scale * (E_i - E_j) / sqrt(2 d) for random rows of the model's
    embedding matrix E: steps have the covariance of the words, and stay where the model has
    learned to read. Needs the backend's word embeddings.
    """
    if embeds is None:
        raise InputError(
            "projection 'vocabulary' is made of the model's word embeddings, which this backend "
            "does not give: take another projection"
        )
    width = embeds.embed([0]).shape[1]
    words = rng.integers(0, embeds.vocabulary_size, (2, dim * (outputs // width)))
    sources, targets = words.reshape(2, dim, -1)
    matrix = np.empty((outputs, dim), np.float32)
    for part in _parts(dim, outputs, checkpoint):
        steps = embeds.embed(sources[part].ravel().tolist())
        steps = steps - embeds.embed(targets[part].ravel().tolist())
        matrix[:, part] = steps.reshape(-1, outputs).T * np.float32(scale / np.sqrt(2 * dim))
    return _Dense(matrix)


PROJECTIONS: dict[str, Callable[..., Projection]] = {
    "vocabulary": vocabulary_projection,
    "normal": normal_projection,
    "uniform": uniform_projection,
    "hadamard": hadamard_projection,
}


class RandomEmbedding:
    """The subspace p = p0 + A z (Sun et al. 2022, section 3.2).

    Args:
        starts: What p0 may be; the first is, until `begin_at` says otherwise.
        dim: d.
        projection: Kind of A.
        scale: What z ~ N(0, I) moves each number of the prompt by, see the projections.
        seed: A is drawn anew from (seed, kind, d) whenever it is needed, and never stored.
        embeds: The model's word embeddings, which ``vocabulary`` is made of.
        layer: Number of the layer that the prompt enters; each has an A of its own.
        checkpoint: Called between the parts of the drawing of A.

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
        checkpoint: Checkpoint = _go_on,
    ) -> None:
        if projection not in PROJECTIONS:
            raise InputError(
                f"unknown projection {projection!r}; {did_you_mean(projection, PROJECTIONS)}"
            )
        if dim < 1:
            raise InputError(f"intrinsic_dim={dim}: the search needs one dimension or more")
        if not 0 < scale < np.inf:
            raise InputError(f"projection scale {scale}: it must be positive and finite")
        self.dim = dim
        self.starts = tuple(starts)
        self._projection, self._scale, self._seed = projection, scale, seed
        self._embeds, self._layer, self._checkpoint = embeds, layer, checkpoint

    def begin_at(self, index: int) -> RandomEmbedding:
        """The same, with another of the starts for p0; A is drawn again only for another size."""
        space = copy.copy(self)
        space.starts = (self.starts[index],)
        if self.starts[index].length != self.starts[0].length:
            vars(space).pop("_project", None)
        return space

    @property
    def digest(self) -> str:
        """SHA-256 of all starts, of what A is drawn from, and of A's last column."""
        last = np.eye(1, self.dim, self.dim - 1)  # times 1 and 0: the column to the last bit
        column = self._project(last).astype(np.float64) / self._scale
        drawn_from = f"{self._projection}|{self._seed}|{self.dim}|{self._scale:.4g}"
        starts = "|".join(start.digest for start in self.starts)
        sha = hashlib.sha256(f"{drawn_from}|{starts}|".encode())
        # rounded, as a rare draw from the normal's tail ends in bits of the machine's own
        sha.update((np.round(column, 3) + 0.0).astype("<f4").tobytes())
        return sha.hexdigest()

    def prompts(self, points: FloatArray) -> list[Prompt]:
        """The prompts of the (n, dim) points."""
        start = self.starts[0]
        with np.errstate(over="ignore", invalid="ignore"):  # told by the prompts, in a sentence
            moved = start.vectors + self._project(points).reshape(-1, *start.vectors.shape)
        try:
            return [replace(start, vectors=vectors) for vectors in moved]
        except InputError as error:
            raise InputError(
                f"{error}: the search has gone {np.abs(points).max():.3g} far from its start; take "
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


class PointSpace:
    """Subspaces that only the provider can draw: their points are the prompts.

    Args:
        subspaces: What the search may happen in, alike but for their p0; the first is, until
            `begin_at` says otherwise.
    """

    def __init__(self, subspaces: Sequence[Subspace]) -> None:
        self._subspaces = tuple(subspaces)
        self.dim = subspaces[0].dim
        self.starts = tuple(PointPrompt(subspace, np.zeros(self.dim)) for subspace in subspaces)

    @property
    def digest(self) -> str:
        """SHA-256 of all descriptions."""
        names = "|".join(subspace.digest for subspace in self._subspaces)
        return hashlib.sha256(names.encode()).hexdigest()

    def begin_at(self, index: int) -> PointSpace:
        """The same, in another of the subspaces."""
        return PointSpace(self._subspaces[index : index + 1])

    def prompts(self, points: FloatArray) -> list[Prompt]:
        """The prompts of the (n, dim) points."""
        return [PointPrompt(self._subspaces[0], point) for point in points]


def draw(
    subspaces: Sequence[Subspace], backend: Backend, *, checkpoint: Checkpoint = _go_on
) -> RandomEmbedding:
    """The subspaces in numbers; alike but for their p0.

    Args:
        subspaces: What to draw; the first says what A is.
        backend: Whose word embeddings they are drawn from.
        checkpoint: Called between the parts of the drawing of A, at its first use.

    Raises:
        InputError: The backend does not give the word embeddings that a description needs, or
            does not take its prompts.
    """
    first = subspaces[0]
    return RandomEmbedding(
        [_checked(_start(subspace, backend), backend) for subspace in subspaces],
        dim=first.dim,
        projection=first.projection,
        scale=_scale(first, backend),
        seed=first.seed,
        embeds=backend if isinstance(backend, Embeds) else None,
        checkpoint=checkpoint,
    )


def drawn(prompt: Prompt, backend: Backend) -> Prompt:
    """The prompt as vectors, where it is a point and the backend shows its word embeddings."""
    if not isinstance(prompt, PointPrompt) or not isinstance(backend, Embeds):
        return prompt
    return draw([prompt.subspace], backend).prompts(prompt.point[None])[0]


def _start(subspace: Subspace, backend: Backend) -> SoftPrompt:
    """p0."""
    start, length, insertion = subspace.start, subspace.length, subspace.insertion
    longest = backend.capabilities.max_tokens
    if length is not None and longest is not None and length > longest:
        raise InputError(
            f"a prompt of {length} tokens: {backend.identity} reads {longest} at most, the row's "
            "included"
        )
    if isinstance(start, SoftPrompt):
        return start
    if start == "zero" and length is not None and insertion != "add":
        width = backend.capabilities.soft_prompt_width or 0
        return SoftPrompt(np.zeros((length, width), dtype=np.float32), insertion)
    if not isinstance(backend, Embeds):
        raise InputError(
            f"{backend.identity} does not give word embeddings, so a prompt cannot start from "
            f"{start!r}: take Settings(start='zero', prompt_length=..., "
            "projection='uniform'), or give a start"
        )
    if start == "words":
        return start_from_words(backend, subspace.words, insertion=insertion, length=length)
    if length is None or start == "zero":
        raise InputError(
            "insertion 'add' puts its vectors on words: start from words or vocabulary"
        )
    return start_from_vocabulary(backend, length, insertion=insertion, seed=subspace.seed)


def _checked(start: SoftPrompt, backend: Backend) -> SoftPrompt:
    can = backend.capabilities
    if start.width != can.soft_prompt_width:
        raise InputError(
            "the prompt to start from must be a soft one of width "
            f"{can.soft_prompt_width} for {backend.identity}"
        )
    if start.insertion not in can.insertions:
        raise InputError(
            f"{backend.identity} does not take a prompt by insertion {start.insertion!r}; "
            f"it takes {', '.join(sorted(can.insertions))}"
        )
    return start


def _scale(subspace: Subspace, backend: Backend) -> float:
    """What `alpha` comes to in the units of the projection."""
    if subspace.projection in ("uniform", "vocabulary"):
        return subspace.alpha
    if not isinstance(backend, Embeds):
        raise InputError(
            f"{backend.identity} does not tell the scale of its word embeddings, which projection "
            f"{subspace.projection!r} is measured in: take projection='uniform'"
        )
    return subspace.alpha * backend.embedding_std


def start_from_words(
    embeds: Embeds, words: str, *, insertion: Insertion, length: int | None = None
) -> SoftPrompt:
    """p0 = the embeddings of the words' tokens; repeated or cut where a length is given.

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
    """p0 = the embeddings of `length` tokens drawn from the model's own vocabulary."""
    ids = np.random.default_rng(abs(seed)).integers(0, embeds.vocabulary_size, length)
    return _of_words(embeds, tuple(int(i) for i in ids), insertion)


def _of_words(embeds: Embeds, ids: tuple[int, ...], insertion: Insertion) -> SoftPrompt:
    vectors = embeds.embed(ids)
    if insertion == "add":  # the words are there already, as the anchor
        return SoftPrompt(np.zeros_like(vectors), "add", ids)
    return SoftPrompt(vectors, insertion)
