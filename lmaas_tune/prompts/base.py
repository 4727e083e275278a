"""Interfaces of a kind of prompt: the prompt, its search space, and its settings."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from lmaas_tune.capabilities import Embeds, FloatArray, Model
from lmaas_tune.task import Example, Task

Buffer: TypeAlias = bytes | memoryview

TOKEN = 4
"""Estimated characters of a token."""


class Prompt(ABC):
    """A prompt of some kind.

    Attributes:
        kind: ``soft``, ``deep``, ``text`` or ``point``, as in saved prompts.
        has_arrays: Whether `to_files` returns arrays.
    """

    kind: ClassVar[str]
    has_arrays: ClassVar[bool] = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `content`; part of every cache key."""
        sha = hashlib.sha256()
        for part in self.content():
            sha.update(part)
        return sha.hexdigest()

    @abstractmethod
    def content(self) -> Iterable[Buffer]:
        """The bytes that the digest covers."""

    @property
    @abstractmethod
    def characters(self) -> int:
        """Length in characters; a vector counts as a token of four characters."""

    @property
    def most_tokens(self) -> int:
        """Upper limit of its length in tokens."""
        return self.characters

    @property
    def prepended(self) -> bool:
        """Whether it enters before the whole input, instead of in the slot of the template."""
        return False

    @property
    def words(self) -> str | None:
        """The words of a text prompt; None for vectors."""
        return None

    @abstractmethod
    def incompatibility(self, model: Model) -> str | None:
        """The reason why a model cannot take this prompt; None if it can."""

    def for_model(self, model: Model) -> Prompt:
        """This prompt, converted to the form that the model takes."""
        return self

    @abstractmethod
    def to_files(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """The fields of ``prompt.json`` and the arrays of ``prompt.safetensors``."""

    @classmethod
    @abstractmethod
    def from_files(cls, content: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> Prompt:
        """Build a prompt from the output of `to_files`.

        Raises:
            InputError: The content is invalid.
        """


class PromptSpace(Protocol):
    """The search space R^dim, and the map from its points to prompts.

    Attributes:
        dim: Dimension d.
        blocks: Number of parts of equal dimension that are searched one after another.
        starts: Candidates for the prompt at the origin; the first, until `begin_at`.
        longest: Prompts, one of which is a longest prompt of the space; empty if all prompts are
            as long as the starts.
        digest: SHA-256 of everything that determines the prompt of a point.
    """

    @property
    def dim(self) -> int: ...

    @property
    def blocks(self) -> int: ...

    @property
    def starts(self) -> Sequence[Prompt]: ...

    @property
    def longest(self) -> Sequence[Prompt]: ...

    @property
    def digest(self) -> str: ...

    def begin_at(self, index: int) -> PromptSpace:
        """The space with one of the starts at the origin."""
        ...

    def prompts(self, points: FloatArray) -> Sequence[Prompt]:
        """The prompts of the (n, dim) points."""
        ...


@runtime_checkable
class NeedsStds(Protocol):
    """A space that needs the scale of the inputs of the model's layers.

    Attributes:
        needs_stds: Whether the scale is still unknown, see `lmaas_tune.backend.Measures`.
    """

    @property
    def needs_stds(self) -> bool: ...

    def with_stds(self, stds: FloatArray) -> PromptSpace:
        """The space, scaled by the standard deviations of the inputs of the upper layers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The inputs from which a kind of prompt builds its search space.

    Attributes:
        model: The model's name and capabilities.
        embeds: Its word embeddings; None if it does not give them.
        measures: Whether it measures the inputs of its layers.
        task: Template and label words.
        train: The scored training rows.
        shown: The training rows that are demonstrations in the prompt.
        start: The initial prompt p0, if one is given.
        seed: Seed of all random draws.
    """

    model: Model
    embeds: Embeds | None
    measures: bool
    task: Task
    train: Sequence[Example]
    shown: Sequence[Example] = ()
    start: Prompt | None = None
    seed: int = 0


class PromptKind(Protocol):
    """The settings of one kind of prompt.

    Attributes:
        kind: Name for ``--prompt``.
        starts_from: Kinds of prompts from which the search can start.
        optimizer: Name of the optimizer that serves it best.
    """

    kind: ClassVar[str]
    starts_from: ClassVar[frozenset[str]]
    optimizer: ClassVar[str]

    @property
    def given_words(self) -> tuple[str, ...]:
        """The starting words as given; of several, the search starts from the best."""
        ...

    @property
    def demonstrations(self) -> int:
        """Number of training rows that the prompt shows with their labels."""
        ...

    def check(self, model: Model, start: Prompt | None) -> None:
        """Check that the model takes this kind of prompt, and that the search can start from p0.

        Raises:
            InputError: One of the two fails.
        """
        ...

    def space(self, setup: Setup) -> PromptSpace:
        """Build the search space.

        Raises:
            InputError: The model lacks a capability that the settings need.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """The fields, named as in journals and saved prompts."""
        ...
