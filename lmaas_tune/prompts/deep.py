"""Deep prompts: vectors for every layer of a model, searched one layer after another."""

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
from lmaas_tune.reprs import short_repr
from lmaas_tune.validate import checked_by

LAYERS_KEY = "layer_embeddings"


@dataclass(frozen=True, eq=False)
class DeepPrompt(Prompt):
    """A soft prompt with further vectors for every layer of the model.

    Attributes:
        first: The prompt that enters with the word embeddings, below the first layer.
        above: For each further layer from the bottom, (L, H) vectors that are added to its inputs
            at the prompt's positions; stored as float32. Prompts may share these arrays.

    Raises:
        InputError: The vectors of a layer are not finite, or of another shape than the first's.
    """

    first: SoftPrompt
    above: Sequence[FloatArray]

    kind: ClassVar[str] = "deep"
    has_arrays: ClassVar[bool] = True

    __repr__ = short_repr

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
        """Number of layers, including the first."""
        return 1 + len(self.above)

    def content(self) -> Iterator[Buffer]:
        """The bytes that the digest covers."""
        yield f"deep|{self.first.digest}|{self.layers}|".encode()
        for vectors in self.above:
            yield np.ascontiguousarray(vectors, dtype="<f4").data

    @property
    def characters(self) -> int:
        """Length of the first layer's prompt; the other layers add no positions."""
        return self.first.characters

    @property
    def most_tokens(self) -> int:
        """Its length."""
        return self.first.length

    @property
    def prepended(self) -> bool:
        """See `Prompt.prepended`."""
        return self.first.prepended

    def incompatibility(self, model: Model) -> str | None:
        """The reason why the model cannot take this prompt; None if it can."""
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
        """Build a prompt from the output of `to_files`.

        Raises:
            InputError: The content is invalid.
        """
        above = array_of(arrays, LAYERS_KEY)
        return cls(SoftPrompt.from_files(content, arrays), list(above))


Layers = Literal["all"] | Sequence[int]
"""Layer numbers, from 0 for the layer that takes the word embeddings; or ``all``."""


class DeepSpace:
    """Subspaces p_i = p0_i + A_i z_i of the searched layers; z concatenates the z_i.

    (Sun et al., EMNLP 2022, section 3.) A_0 equals A of a soft prompt. A_i has the same
    distribution, scaled by the standard deviation of the inputs of layer i instead of that of the
    word embeddings.

    Args:
        first: The subspace of the first layer.
        above: p0 of the layers above the first, (L, H) each; empty for zeros.
        depth: Number of layers of the model.
        layers: Numbers of the searched layers, ascending; the others keep their p0.
        projection: Kind of A above the first layer.
        alpha: Scale of A there: absolute for ``uniform``, else in standard deviations of the
            layer's inputs.
        seed: A_i is drawn from (seed, projection, d, i).

    Attributes:
        dim: d times the number of searched layers.
        blocks: Number of searched layers.
        starts: Candidates for p0; the first is used, until `begin_at`.
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
        """The space with another start as p0."""
        first = self._first.begin_at(index)
        return self._copy(_first=first, _spaces={0: first}, starts=(self.starts[index],))

    @property
    def needs_stds(self) -> bool:
        """Whether the scale of A above the first layer is still unknown."""
        return self._stds is None and self._layers != (0,)

    def with_stds(self, stds: FloatArray) -> DeepSpace:
        """The space, scaled by the standard deviations of the inputs of each layer above the first.

        Args:
            stds: (depth - 1,), see `lmaas_tune.backend.Spread`.

        Raises:
            InputError: One is not positive and finite, or their number is wrong.
        """
        if np.shape(stds) != (self._depth - 1,) or not all(0 < std < np.inf for std in stds):
            raise InputError(
                f"the stds of the inputs of {self._depth - 1} layers are {stds}: give one for "
                "each, positive and finite"
            )
        return self._copy(_stds=np.array(stds, dtype=np.float64))

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the prompt of a point, without measured stds."""
        drawn_from = f"{self._projection}|{self._seed}|{self._alpha:.4g}|{self._layers}"
        starts = "|".join(start.digest for start in self.starts)
        return hashlib.sha256(f"{drawn_from}|{starts}|{self._first.digest}".encode()).hexdigest()

    def prompts(self, points: FloatArray) -> list[DeepPrompt]:
        """The prompts of the (n, dim) points; they share the arrays of equal layers."""
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
        """The vectors of (n, d) points of one layer.

        Equal points share one prompt, which is cached: layers that are not being searched have
        equal points in every generation.
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
                raise InputError("the scale of the layers is unknown: call `with_stds` first")
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
        """A copy with some attributes changed and empty caches."""
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
    """Draw the search space of deep prompts that descriptions define.

    Word embeddings mean little to higher layers: with projection ``vocabulary``, A is ``normal``
    above the first layer.

    Args:
        subspaces: Descriptions of the first layer's subspace, which differ in p0 only.
        model: The model that takes the prompts.
        embeds: Its word embeddings; by default the model itself, if it gives them.
        measures: Whether it measures the inputs of its layers.
        layers: The searched layers.
        above: p0 of the layers above the first; empty for zeros.

    Raises:
        InputError: The model takes no deep prompts, lacks one of these layers, or does not give
            the scale that the projection needs.
    """
    depth, first = model.capabilities.deep_layers, subspaces[0]
    if depth is None:
        raise InputError(
            f"{model.identity} takes no deep prompts: leave out deep={layers!r}, or take a "
            "local model with a plain stack of layers (backend 'hf')"
        )
    if above and len(above) != depth - 1:
        raise InputError(
            f"the prompt to start from has {len(above) + 1} layers, and "
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
            f"{first.projection!r} needs: take projection='uniform'"
        )
    return space


def _layers(_name: str, layers: Any) -> Literal["all"] | tuple[int, ...]:
    """The layers, in ascending order.

    Raises:
        InputError: The value is neither ``all`` nor layer numbers.
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
        layers: The searched layers, one after another: ``all``, or numbers, where 0 is the layer
            that takes the word embeddings. If the budget limits `calls`, the search makes whole
            rounds over them.
        intrinsic_dim: Dimension d in each layer.
        alpha: Scale of A, in standard deviations of the layer's inputs; absolute for
            ``uniform``.

    Raises:
        InputError: A value is out of range; the message names it and the remedy.
    """

    layers: Layers = checked_by(_layers, default="all")

    starts_from: ClassVar[frozenset[str]] = frozenset({"soft", "deep"})
    optimizer: ClassVar[str] = "cma"

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
        """The fields, as JSON has them."""
        content = super().to_json()
        layers = content.pop("layers")
        return {**content, "deep": layers if layers == "all" else list(layers)}
