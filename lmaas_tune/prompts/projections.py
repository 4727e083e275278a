"""Kinds of random projection A, from the search space R^d to the vectors of a soft prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lmaas_tune.capabilities import Embeds, FloatArray
from lmaas_tune.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Checkpoint = Callable[[], None]
"""Called between the parts of a long draw of A; its exceptions end the draw."""

_PART = 1 << 22  # numbers drawn between two checkpoints, in some hundredths of a second


def no_checkpoint() -> None:
    """A checkpoint that does nothing."""


def _parts(rows: int, width: int, checkpoint: Checkpoint) -> Iterator[slice]:
    """Slices of the rows of a large matrix, so that temporary arrays stay small."""
    step = max(1, _PART // width)
    for start in range(0, rows, step):
        checkpoint()
        yield slice(start, min(start + step, rows))


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
    checkpoint: Checkpoint = no_checkpoint,
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
    checkpoint: Checkpoint = no_checkpoint,
) -> Projection:
    """Entries N(0, scale²/d): z ~ N(0, I) adds N(0, scale²) to each number of the prompt."""
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
        # one point at a time, because the flipped copies of a generation would be a large array
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
    checkpoint: Checkpoint = no_checkpoint,
) -> Projection:
    """Blocks of a Hadamard matrix with random column signs: entries ±scale/sqrt(d).

    It preserves distances as a dense random A does, in a few megabytes; a dense A for L=50,
    H=4096, d=1000 takes 819 MB. (Ailon and Chazelle, 2009, without the sampling.)
    """
    return _Hadamard(outputs, dim, scale, rng, checkpoint)


def vocabulary_projection(
    outputs: int,
    dim: int,
    *,
    scale: float,
    rng: np.random.Generator,
    embeds: Embeds | None,
    checkpoint: Checkpoint = no_checkpoint,
) -> Projection:
    """Each column shifts every token by the difference of two random word embeddings.

    The blocks of a column are scale * (E_i - E_j) / sqrt(2 d) for random rows of the model's
    embedding matrix E. Steps have the covariance of the word embeddings, so that prompts stay in
    the distribution of the model's inputs. Needs the backend's word embeddings.
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
