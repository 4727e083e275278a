"""Points of a subspace: soft prompts for a model whose provider draws p0 and A."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lmaas_tune.capabilities import Embeds, FloatArray, Model
from lmaas_tune.errors import InputError
from lmaas_tune.prompts.base import TOKEN, Prompt, PromptSpace, Setup
from lmaas_tune.prompts.soft import Soft, SoftPrompt, Subspace, draw
from lmaas_tune.reprs import short_repr
from lmaas_tune.typed_json import checked


@dataclass(frozen=True, eq=False)
class PointPrompt(Prompt):
    """A soft prompt given by a point z of a subspace, for a provider that hides its embeddings.

    Attributes:
        subspace: Description from which the provider draws p0 and A.
        point: z, stored as (d,) float32.

    Raises:
        InputError: The point is not a finite (d,) array.
    """

    subspace: Subspace
    point: FloatArray

    kind: ClassVar[str] = "point"

    __repr__ = short_repr

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # infinite values are rejected below
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

    def content(self) -> Iterator[bytes]:
        """The bytes that the digest covers."""
        yield f"point|{self.subspace.digest}|".encode()
        yield self.point.astype("<f4").tobytes()

    @property
    def characters(self) -> int:
        """Length of the starting words, or of the tokens of the prompt as an estimate."""
        return len(self.subspace.words) or TOKEN * (self.subspace.length or 0)

    def incompatibility(self, model: Model) -> str | None:
        """The reason why the model cannot take this prompt; None if it can."""
        if model.capabilities.point_prompts:
            return None
        return (
            f"the prompt is a point of a subspace, and {model.identity} can neither draw it nor "
            "shows the word embeddings it is made of"
        )

    def for_model(self, model: Model) -> SoftPrompt | PointPrompt:
        """The prompt as vectors if the model gives its word embeddings, else unchanged."""
        if not isinstance(model, Embeds):
            return self
        return draw([self.subspace], model).prompts(self.point[None])[0]

    def to_files(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """The fields of ``prompt.json``; there are no arrays."""
        point = [float(number) for number in self.point]
        return {"subspace": self.subspace.to_json(), "point": point}, {}

    @classmethod
    def from_files(
        cls, content: Mapping[str, Any], arrays: Mapping[str, FloatArray]
    ) -> PointPrompt:
        """Build a prompt from the output of `to_files`.

        Raises:
            InputError: The content is invalid.
        """
        subspace = checked(Mapping[str, Any], content.get("subspace", {}), "subspace")
        point = checked(Sequence[float], content.get("point", ()), "point")
        return cls(Subspace.from_json(subspace), np.array(point))


class PointSpace:
    """Search space of `PointPrompt`: subspaces that only the provider can draw.

    Args:
        subspaces: Descriptions that differ in p0 only; the first is searched, until `begin_at`.
    """

    def __init__(self, subspaces: Sequence[Subspace]) -> None:
        self._subspaces = tuple(subspaces)
        self.dim, self.blocks, self.longest = subspaces[0].dim, 1, ()
        self.starts = tuple(PointPrompt(subspace, np.zeros(self.dim)) for subspace in subspaces)

    @property
    def digest(self) -> str:
        """SHA-256 of all descriptions."""
        names = "|".join(subspace.digest for subspace in self._subspaces)
        return hashlib.sha256(names.encode()).hexdigest()

    def begin_at(self, index: int) -> PointSpace:
        """The space of another subspace."""
        return PointSpace(self._subspaces[index : index + 1])

    def prompts(self, points: FloatArray) -> list[PointPrompt]:
        """The prompts of the (n, dim) points."""
        return [PointPrompt(self._subspaces[0], point) for point in points]


@dataclass(frozen=True, kw_only=True)
class ProviderDrawn(Soft):
    """Settings of a search over soft prompts whose p0 and A the provider draws."""

    def space(self, setup: Setup) -> PromptSpace:
        """See `lmaas_tune.prompts.base.PromptKind.space`."""
        return PointSpace(self.subspaces(setup))
