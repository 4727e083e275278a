"""What every kind of prompt has: a value, a search space, and settings."""

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
"""Characters of a token, as an estimate."""


class Prompt(ABC):
    """A prompt of some kind.

    Attributes:
        kind: ``soft``, ``deep``, ``text`` or ``point``, as a saved prompt says it.
        has_arrays: Whether `to_files` gives arrays.
    """

    kind: ClassVar[str]
    has_arrays: ClassVar[bool] = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that makes this prompt what it is; part of every cache key."""
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
        """Its length; a token counts as four characters."""

    @property
    def words(self) -> str | None:
        """The words of a text prompt; None for vectors."""
        return None

    @abstractmethod
    def incompatibility(self, model: Model) -> str | None:
        """Why a model cannot take this prompt, as a sentence; None where it can."""

    def for_model(self, model: Model) -> Prompt:
        """This prompt in the form that the model takes, where there is another one."""
        return self

    @abstractmethod
    def to_files(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """The fields of ``prompt.json`` and the arrays of ``prompt.safetensors``."""

    @classmethod
    @abstractmethod
    def from_files(cls, content: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> Prompt:
        """Read what `to_files` gave.

        Raises:
            InputError: It did not give this.
        """


class PromptSpace(Protocol):
    """The space that is searched: R^dim, and the prompt of each point.

    Attributes:
        dim: d.
        blocks: How many parts of equal dimension are searched one after another.
        starts: Prompts that may stand at the origin; the first does until `begin_at`.
        longest: Prompts of which one is as long as any of the space; none where all are as long
            as the starts.
        digest: SHA-256 of all that decides which prompt a point gives.
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
        """The space around one of the starts."""
        ...

    def prompts(self, points: FloatArray) -> Sequence[Prompt]:
        """The prompts of the (n, dim) points."""
        ...


@runtime_checkable
class NeedsStds(Protocol):
    """A space that needs the scale of the inputs of the model's layers before its first prompt.

    Attributes:
        needs_stds: Whether they are still unknown, see `lmaas_tune.backend.Measures`.
    """

    @property
    def needs_stds(self) -> bool: ...

    def with_stds(self, stds: FloatArray) -> PromptSpace:
        """The space on the scale of the inputs of each layer above the first."""
        ...


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a kind of prompt builds its search space from.

    Attributes:
        model: The model's name and capabilities.
        embeds: Its word embeddings, where it gives them.
        measures: Whether it measures its layers.
        task: Template and label words.
        train: The training rows that are scored.
        shown: The training rows that stand in the prompt.
        start: p0, where it is given.
        seed: Decides all that is drawn.
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
        kind: Its name in ``--prompt``.
        starts_from: Kinds of prompts that the search can start from.
    """

    kind: ClassVar[str]
    starts_from: ClassVar[frozenset[str]]

    @property
    def starting_words(self) -> tuple[str, ...]:
        """Words that the search starts from; the best of several is taken."""
        ...

    @property
    def demonstrations(self) -> int:
        """How many training rows stand in the prompt with their answers."""
        ...

    def check(self, model: Model, start: Prompt | None) -> None:
        """Check that the model takes this kind, and that the start is of a fitting one.

        Raises:
            InputError: It does not.
        """
        ...

    def space(self, setup: Setup) -> PromptSpace:
        """What is searched.

        Raises:
            InputError: The model lacks something that the settings need.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values, under the names that settings have in journals and saved prompts."""
        ...
