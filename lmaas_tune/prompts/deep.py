"""Deep prompts: vectors for every layer of a model, and the search over one layer at a time."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from lmaas_tune.capabilities import Embeds, FloatArray, Model
from lmaas_tune.errors import InputError
from lmaas_tune.prompts.base import Buffer, Prompt, PromptSpace, Setup
from lmaas_tune.prompts.soft import (
    RandomEmbedding,
    Soft,
    SoftPrompt,
    Subspace,
    array_of,
    draw,
    read_only_vectors,
)
from lmaas_tune.validate import checked_by

LAYERS_KEY = "layer_embeddings"


@dataclass(frozen=True, eq=False)
class DeepPrompt(Prompt):
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

    kind: ClassVar[str] = "deep"
    has_arrays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        above = tuple(read_only_vectors(vectors) for vectors in self.above)
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

    def content(self) -> Iterator[Buffer]:
        """The bytes that the digest covers."""
        yield f"deep|{self.first.digest}|{self.layers}|".encode()
        for vectors in self.above:
            yield np.ascontiguousarray(vectors, dtype="<f4").data

    @property
    def characters(self) -> int:
        """Of the vectors that enter with the embeddings: the others take no place of their own."""
        return self.first.characters

    def incompatibility(self, model: Model) -> str | None:
        """Why the model cannot take this prompt; None where it can."""
        if self.layers != (layers := model.capabilities.deep_layers):
            takes = "no deep prompts" if layers is None else f"those through {layers}"
            return (
                f"the prompt goes through {self.layers} layers, and {model.identity} takes {takes}"
            )
        return self.first.incompatibility(model)

    def to_files(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """The fields of ``prompt.json`` and the arrays of ``prompt.safetensors``."""
        content, arrays = self.first.to_files()
        above = np.array(self.above, dtype=np.float32).reshape(-1, *self.first.vectors.shape)
        return {**content, "layers": self.layers}, {**arrays, LAYERS_KEY: above}

    @classmethod
    def from_files(cls, content: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> DeepPrompt:
        """Read what `to_files` gave.

        Raises:
            InputError: It did not give this.
        """
        above = array_of(arrays, LAYERS_KEY)
        return cls(SoftPrompt.from_files(content, arrays), list(above))


Layers = Literal["all"] | Sequence[int]
"""Numbers of layers, 0 the one that the word embeddings enter; or ``all``."""


class DeepSpace:
    """p_i = p0_i + A_i z_i in every layer that is searched; z is these z_i, one after another.

    (Sun et al., EMNLP 2022, section 3.) A_0 is that of a plain soft prompt. The numbers of A_i
    follow the same rule, with the spread of what enters layer i in place of the word embeddings'.

    Args:
        first: The subspace of what enters with the embeddings.
        above: p0 of the layers above the first, (L, H) each; none stands for zeros.
        depth: How many layers the model has.
        layers: Numbers of those that are searched, rising; the others stay at their p0.
        projection: Kind of A above the first layer.
        alpha: Scale of A there: absolute for ``uniform``, else in stds of what enters the layer.
        seed: A_i is drawn from (seed, projection, d, i).

    Attributes:
        dim: d for each layer that is searched.
        blocks: How many layers that is.
        starts: p0; of several, the first is, until `begin_at` says otherwise.
    """

    def __init__(
        self,
        first: RandomEmbedding,
        *,
        above: Sequence[FloatArray] = (),
        depth: int,
        layers: Sequence[int],
        projection: str,
        alpha: float,
        seed: int,
    ) -> None:
        self._first, self._above, self._depth = first, tuple(above), depth
        self._layers = tuple(layers)
        self._projection, self._alpha, self._seed = projection, alpha, seed
        self._stds: FloatArray | None = np.ones(depth - 1) if projection == "uniform" else None
        self.blocks = len(self._layers)
        self.dim = first.dim * self.blocks
        self.starts = tuple(self._deep(start) for start in first.starts)
        self.longest = ()
        self._spaces: dict[int, RandomEmbedding] = {0: first}
        self._resting: dict[int, tuple[bytes, SoftPrompt]] = {}

    def begin_at(self, index: int) -> DeepSpace:
        """The same, with another of the starts for p0."""
        first = self._first.begin_at(index)
        return self._copy(_first=first, _spaces={0: first}, starts=(self.starts[index],))

    @property
    def needs_stds(self) -> bool:
        """Whether A is still without a scale above the first layer."""
        return self._stds is None and self._layers != (0,)

    def with_stds(self, stds: FloatArray) -> DeepSpace:
        """The same, on the scale of what enters each layer above the first.

        Args:
            stds: (depth - 1,), see `lmaas_tune.backend.Spread`.

        Raises:
            InputError: One is not positive and finite, or there are not as many.
        """
        if np.shape(stds) != (self._depth - 1,) or not all(0 < std < np.inf for std in stds):
            raise InputError(
                f"the stds of what enters {self._depth - 1} layers are {stds}: they must be as "
                "many, positive and finite"
            )
        return self._copy(_stds=np.array(stds, dtype=np.float64))

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides which prompt a point gives, but for what is measured."""
        drawn_from = f"{self._projection}|{self._seed}|{self._alpha:.4g}|{self._layers}"
        starts = "|".join(start.digest for start in self.starts)
        return hashlib.sha256(f"{drawn_from}|{starts}|{self._first.digest}".encode()).hexdigest()

    def prompts(self, points: FloatArray) -> list[DeepPrompt]:
        """The prompts of the (n, dim) points, which share what they have in common."""
        blocks = points.reshape(len(points), self.blocks, self._first.dim)
        start = self.starts[0]
        columns = [[start.first] * len(points)]
        columns += [[SoftPrompt(vectors)] * len(points) for vectors in start.above]
        for layer, block in zip(self._layers, blocks.swapaxes(0, 1), strict=True):
            columns[layer] = self._moved(layer, block)
        return [
            DeepPrompt(first, [prompt.vectors for prompt in above])
            for first, *above in zip(*columns, strict=True)
        ]

    def _moved(self, layer: int, block: FloatArray) -> list[SoftPrompt]:
        """(n, d) points of a layer to their vectors.

        Where all points are the same, the vectors are computed once and kept: layers at rest come
        again with every generation.
        """
        if (block != block[0]).any():
            return self._space(layer).prompts(block)
        point = block[0].tobytes()
        if self._resting.get(layer, (b"",))[0] != point:
            self._resting[layer] = point, self._space(layer).prompts(block[:1])[0]
        return [self._resting[layer][1]] * len(block)

    def _space(self, layer: int) -> RandomEmbedding:
        if layer not in self._spaces:
            if self._stds is None:
                raise InputError("the layers of the model have to be measured first: `with_stds`")
            self._spaces[layer] = RandomEmbedding(
                [SoftPrompt(self.starts[0].above[layer - 1])],
                dim=self._first.dim,
                projection=self._projection,
                scale=self._alpha * float(self._stds[layer - 1]),
                seed=self._seed,
                layer=layer,
            )
        return self._spaces[layer]

    def _copy(self, **changes: Any) -> DeepSpace:
        """The same with some attributes changed, and nothing worked out yet."""
        space = copy.copy(self)
        vars(space).update({"_spaces": {0: self._first}, "_resting": {}, **changes})
        return space

    def _deep(self, start: SoftPrompt) -> DeepPrompt:
        zeros = SoftPrompt(np.zeros_like(start.vectors)).vectors
        return DeepPrompt(start, self._above or (zeros,) * (self._depth - 1))


def draw_deep(
    subspaces: Sequence[Subspace],
    model: Model,
    embeds: Embeds | None = None,
    *,
    layers: Layers,
    above: Sequence[FloatArray] = (),
    measures: bool = True,
) -> DeepSpace:
    """The subspaces in numbers, alike but for their p0, and those of the layers above.

    A ``vocabulary`` A is made of word embeddings, which mean little further up: there it is
    ``normal``.

    Args:
        subspaces: Of what enters with the embeddings.
        model: Whose layers.
        embeds: Its word embeddings; by default the model itself, where it gives them.
        measures: Whether it measures its layers.
        layers: Which of them are searched.
        above: p0 of the layers above the first; none stands for zeros.

    Raises:
        InputError: The backend takes no deep prompts, or not of these layers, or does not tell
            what the projection needs.
    """
    depth, first = model.capabilities.deep_layers, subspaces[0]
    if depth is None:
        raise InputError(
            f"{model.identity} takes no deep prompts: leave out deep={layers!r}, or take a "
            "local model with a plain stack of layers (backend 'hf')"
        )
    if above and len(above) != depth - 1:
        raise InputError(
            f"the prompt to start from goes through {len(above) + 1} layers, and "
            f"{model.identity} has {depth}"
        )
    numbers = tuple(range(depth)) if isinstance(layers, str) else tuple(layers)
    if numbers[-1] >= depth:
        raise InputError(
            f"deep={layers!r}: {model.identity} has layers 0 to {depth - 1}, and no {numbers[-1]}"
        )
    projection = "normal" if first.projection == "vocabulary" else first.projection
    space = DeepSpace(
        draw(subspaces, model, embeds),
        above=above,
        depth=depth,
        layers=numbers,
        projection=projection,
        alpha=first.alpha,
        seed=first.seed,
    )
    if space.needs_stds and not measures:
        raise InputError(
            f"{model.identity} does not measure its layers, which projection "
            f"{first.projection!r} is scaled by: take projection='uniform'"
        )
    return space


def _layers(_name: str, layers: Any) -> Literal["all"] | tuple[int, ...]:
    """The layers as they were given, their numbers rising.

    Raises:
        InputError: They are neither ``all`` nor numbers.
    """
    if layers == "all":
        return "all"
    numbers = () if isinstance(layers, str) or not isinstance(layers, Sequence) else tuple(layers)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise InputError(
            f"deep={layers!r}: it takes 'all', or the numbers of layers from 0 up, once each"
        )
    return tuple(sorted(numbers))


@dataclass(frozen=True, kw_only=True)
class Deep(Soft):
    """Settings of a search over deep prompts: p_i = p0_i + A_i z_i in each layer i (BBTv2).

    Attributes:
        layers: Layers that have a prompt of their own, searched one after another: ``all``, or
            numbers, where 0 is the layer that the word embeddings enter. Where `calls` limits the
            budget, whole rounds over them are made.
        intrinsic_dim: d in each layer.
        alpha: Scale of A, in standard deviations of the inputs of the layer; for ``uniform``
            absolute.

    Raises:
        InputError: A value is out of range; the message names it and the remedy.
    """

    layers: Layers = checked_by(_layers, default="all")

    starts_from: ClassVar[frozenset[str]] = frozenset({"soft", "deep"})

    def space(self, setup: Setup) -> PromptSpace:
        """See `lmaas_tune.prompts.base.PromptKind.space`."""
        deep = setup.start if isinstance(setup.start, DeepPrompt) else None
        above: Sequence[FloatArray] = () if deep is None else deep.above
        return draw_deep(
            self.subspaces(setup, None if deep is None else deep.first),
            setup.model,
            setup.embeds,
            measures=setup.measures,
            layers=self.layers,
            above=above,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        content = super().to_json()
        layers = content.pop("layers")
        return {**content, "deep": layers if layers == "all" else list(layers)}
