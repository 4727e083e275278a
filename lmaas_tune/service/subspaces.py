"""Subspaces drawn from the model's own word embeddings: p0 and A, which never leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lmaas_tune.errors import InputError
from lmaas_tune.prompts.projections import Checkpoint
from lmaas_tune.prompts.soft import RandomEmbedding, draw
from lmaas_tune.service.errors import too_large
from lmaas_tune.service.lru_cache import LRUStore

if TYPE_CHECKING:
    from lmaas_tune.backend import Backend
    from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt, Subspace
    from lmaas_tune.service.server_limits import ServerLimits

_FLOAT32 = 4  # bytes


class DrawnSubspaces:
    """p0 and A of the subspaces used last, of all keys.

    Keys that register the same description share one drawing. The time of a registration shows a
    key whether another key has the same description, and nothing else.

    Args:
        backend: The model from which they are drawn.
        limits: `subspace_bytes` of each, `drawn_bytes` of all.
    """

    def __init__(self, backend: Backend, limits: ServerLimits) -> None:
        self._backend, self._limits = backend, limits
        self._drawn: LRUStore[RandomEmbedding] = LRUStore(count=1 << 20, size=limits.drawn_bytes)

    @property
    def taken(self) -> int:
        """Bytes of all p0 and A."""
        return self._drawn.taken

    def start(self, subspace: Subspace) -> SoftPrompt | None:
        """p0 of a subspace; None if it is not drawn."""
        space = self._drawn.get(subspace.digest)
        return None if space is None else space.starts[0]

    def draw(self, subspace: Subspace, checkpoint: Checkpoint) -> SoftPrompt:
        """p0 of a subspace, which is drawn now if it is not stored.

        Args:
            subspace: Its description.
            checkpoint: Called between the parts of a long drawing; an exception ends it.

        Raises:
            InputError: The model has no subspaces of this kind.
            ApiError: It is too large.
        """
        space = self._drawn.get(subspace.digest) or self._draw(subspace, checkpoint)
        return space.starts[0]

    def prompt(self, subspace: Subspace, point: FloatArray) -> Prompt | None:
        """p0 + A z for z as (d,) float32; None if the subspace has to be registered again.

        Raises:
            InputError: The point is so large that the prompt is not finite.
        """
        space = self._drawn.get(subspace.digest)
        # one at a time, so that no bit of an answer depends on concurrent requests
        return None if space is None else _prompt(space, point)

    def _draw(self, subspace: Subspace, checkpoint: Checkpoint) -> RandomEmbedding:
        if not self._backend.capabilities.soft_prompt_width:
            raise InputError("this model takes no soft prompts, and therefore has no subspaces")
        self._check_length(subspace.length or 1)
        space = draw([subspace], self._backend, checkpoint=checkpoint)
        start = space.starts[0]
        self._check_length(start.length)  # known now for a start of words
        size = start.vectors.nbytes + _matrix_bytes(subspace, start.vectors.size)
        if size > self._limits.subspace_bytes:
            raise too_large(
                "bytes of p0 and A", size, self._limits.subspace_bytes, "subspace_bytes"
            )
        _prompt(space, np.zeros(subspace.dim, np.float32))  # A is drawn at its first use
        self._drawn.put(subspace.digest, space, size)
        return space

    def _check_length(self, length: int) -> None:
        if length > self._limits.prompt_length:
            raise too_large(
                "vectors of the prompt", length, self._limits.prompt_length, "prompt_length"
            )


def _prompt(space: RandomEmbedding, point: FloatArray) -> Prompt:
    with np.errstate(over="ignore", invalid="ignore"):  # a prompt that is not finite is refused
        return space.prompts(point[None])[0]


def _matrix_bytes(subspace: Subspace, outputs: int) -> int:
    """Bytes of A, (outputs, d)."""
    if subspace.projection != "hadamard":
        return outputs * subspace.dim * _FLOAT32
    size = 1 << (subspace.dim - 1).bit_length()
    return size * subspace.dim * _FLOAT32 + -(-outputs // size) * subspace.dim
