"""Subspaces drawn from the model's own word embeddings: p0 and A, which never leave it."""

from __future__ import annotations

import numpy as np

from lmaas_tune.backend import Backend
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt, Subspace
from lmaas_tune.service.bounds import Bounds
from lmaas_tune.service.refusal import too_large
from lmaas_tune.service.shelf import Shelf
from lmaas_tune.spaces import Checkpoint, RandomEmbedding, draw

_FLOAT32 = 4  # bytes


class DrawnSubspaces:
    """p0 and A of the subspaces that were used last, whoever registered them.

    Keys that register the same description share one drawing. All that one learns of another by
    that is how long it took.

    Args:
        backend: Whose model they are drawn from.
        bounds: `subspace_bytes` of each, `drawn_bytes` of all.
    """

    def __init__(self, backend: Backend, bounds: Bounds) -> None:
        self._backend, self._bounds = backend, bounds
        self._drawn: Shelf[RandomEmbedding] = Shelf(count=1 << 20, size=bounds.drawn_bytes)

    @property
    def taken(self) -> int:
        """Bytes that are kept."""
        return self._drawn.taken

    def kept(self, subspace: Subspace) -> SoftPrompt | None:
        """p0 of a subspace; None if it has to be drawn."""
        space = self._drawn.get(subspace.digest)
        return None if space is None else space.starts[0]

    def draw(self, subspace: Subspace, checkpoint: Checkpoint) -> SoftPrompt:
        """p0 of a subspace, which is drawn now unless it is kept.

        Args:
            subspace: What to draw.
            checkpoint: Called between the parts of a long drawing; what it raises ends it.

        Raises:
            InputError: The model has no such subspace.
            RefusalError: It is too large.
        """
        space = self._drawn.get(subspace.digest) or self._draw(subspace, checkpoint)
        return space.starts[0]

    def prompt(self, subspace: Subspace, point: FloatArray) -> Prompt | None:
        """p0 + A z for z as (d,) float32; None if the subspace has to be registered again.

        Raises:
            InputError: The point lies so far out that the prompt is not finite.
        """
        space = self._drawn.get(subspace.digest)
        # each by itself, so that no bit of an answer depends on who asks at the same time
        return None if space is None else _prompt(space, point)

    def _draw(self, subspace: Subspace, checkpoint: Checkpoint) -> RandomEmbedding:
        if not self._backend.capabilities.soft_prompt_width:
            raise InputError("this model takes no soft prompts, so that it has no subspaces")
        self._check_length(subspace.length or 1)
        space = draw([subspace], self._backend, checkpoint=checkpoint)
        start = space.starts[0]
        self._check_length(start.length)  # of words it is known now
        size = start.vectors.nbytes + _matrix_bytes(subspace, start.vectors.size)
        if size > self._bounds.subspace_bytes:
            raise too_large(
                "bytes of p0 and A", size, self._bounds.subspace_bytes, "subspace_bytes"
            )
        _prompt(space, np.zeros(subspace.dim, np.float32))  # A is drawn at its first use
        self._drawn.put(subspace.digest, space, size)
        return space

    def _check_length(self, length: int) -> None:
        if length > self._bounds.prompt_length:
            raise too_large(
                "vectors of the prompt", length, self._bounds.prompt_length, "prompt_length"
            )


def _prompt(space: RandomEmbedding, point: FloatArray) -> Prompt:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then, is refused
        return space.prompts(point[None])[0]


def _matrix_bytes(subspace: Subspace, outputs: int) -> int:
    """What A takes, of (outputs, d)."""
    if subspace.projection != "hadamard":
        return outputs * subspace.dim * _FLOAT32
    size = 1 << (subspace.dim - 1).bit_length()
    return size * subspace.dim * _FLOAT32 + -(-outputs // size) * subspace.dim
