"""The task: template, label words (verbalizer), examples, and rows rendered for a backend."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.reprs import short_repr


def check_text(text: str, what: str) -> str:
    """The text, if it can be encoded as UTF-8.

    Raises:
        InputError: It holds a lone surrogate, as text decoded with a wrong encoding does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}: {text[error.start]!r} at {error.start} is half a character, which no model "
            "reads; was the text read as UTF-8?"
        ) from None
    return text


def label_name(value: object) -> str:
    """The name of a label: 1, 1.0 and "1" are the same label."""
    if isinstance(value, Enum):  # of texts or numbers
        value = value.value
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)  # a data frame turns integer labels into floats if a cell is empty
    return str(value).strip()


class Slot(Enum):
    """A slot of a template: for the prompt, or for the label."""

    PROMPT = "prompt"
    LABEL = "label"


Part: TypeAlias = str | Slot
"""Literal text of a row, or a slot."""


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        fields: Texts by name.
        label: Its label as text, if it is known.
        value: The label as it was given, say as a whole number.
    """

    fields: Mapping[str, str]
    label: str | None = None
    value: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Batch:
    """Rows for a backend, without labels, so that none can leak.

    Attributes:
        rows: One tuple of parts a row, in reading order. Each row has `Slot.LABEL` exactly
            once and `Slot.PROMPT` at most once; neighbouring parts are never both text.
    """

    rows: tuple[tuple[Part, ...], ...]

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all rows; part of every cache key, and a key for tokenized rows."""
        sha = hashlib.sha256()
        for row in self.rows:
            for part in row:
                kind, text = ("s", part.value) if isinstance(part, Slot) else ("t", part)
                data = text.encode("utf-8", "surrogatepass")
                sha.update(f"{kind}{len(data)}:".encode() + data)
            sha.update(b"\n")
        return sha.hexdigest()

    @cached_property
    def characters(self) -> int:
        """Total length of all texts."""
        return sum(len(part) for row in self.rows for part in row if isinstance(part, str))

    def cut(self, rows: int) -> tuple[Batch, ...]:
        """Split into batches of at most `rows` rows, in order; the same objects each time."""
        if len(self) <= rows:
            return (self,)
        if rows not in self._cuts:
            starts = range(0, len(self), rows)
            self._cuts[rows] = tuple(Batch(self.rows[start : start + rows]) for start in starts)
        return self._cuts[rows]

    @cached_property
    def _cuts(self) -> dict[int, tuple[Batch, ...]]:
        return {}


_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_SLOTS = tuple(slot.value for slot in Slot)
_LIMITED = re.compile(r"(.+):\.([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Field:
    """A field of a template.

    Attributes:
        name: Its name in an example.
        limit: The number of characters that are read; None for all.
    """

    name: str
    limit: int | None = None

    @classmethod
    def parse(cls, text: str) -> Field:
        """Read what stands in braces: ``name``, or ``name:.LIMIT``."""
        match = _LIMITED.fullmatch(text)
        return cls(match[1], int(match[2])) if match else cls(text)

    def __str__(self) -> str:
        limit = "" if self.limit is None else f":.{self.limit}"
        return f"{{{self.name}{limit}}}"

    def text(self, example: Example) -> str:
        """The whole text of the field.

        Raises:
            InputError: The example lacks it.
        """
        try:
            return example.fields[self.name]
        except KeyError:
            raise InputError(
                f"no field {self.name!r}, which the template asks for, or no text in it; "
                f"{did_you_mean(self.name, example.fields)}"
            ) from None


@dataclass(frozen=True)
class Template:
    """The text that a model reads, with places for fields, prompt and label.

    ``"{sentence} {prompt} It was {label}"``: a name in braces is a field of the example, and
    ``{sentence:.2000}`` its first 2,000 characters, as in Python's format strings; ``{prompt}``
    and ``{label}`` are the slots; ``{{`` and ``}}`` are braces. The backend's `Capabilities`
    restrict the order.

    Raises:
        InputError: A slot is missing or repeated, or the braces do not match.
    """

    text: str

    def __post_init__(self) -> None:
        check_text(self.text, "template")
        for slot in Slot:
            count = self.parts.count(slot)
            if count != 1:
                raise InputError(
                    f"template {self.text!r} has {{{slot.value}}} {count} times; it needs it once"
                )

    @cached_property
    def parts(self) -> tuple[str | Slot | Field, ...]:
        """Literal text, slots and fields."""
        parts: list[str | Slot | Field] = []
        end = 0
        for match in _PLACEHOLDER.finditer(self.text):
            literal = self.text[end : match.start()]
            end = match.end()
            if match.group() in ("{{", "}}"):
                parts.append(literal + match.group()[0])
                continue
            name = match.group(1)
            if not name:
                raise InputError(f"template {self.text!r} has a lone brace at {match.start()}")
            parts += [literal, Slot(name) if name in _SLOTS else Field.parse(name)]
        parts.append(self.text[end:])
        return tuple(part for part in parts if part != "")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in reading order."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def prompt_is_first(self) -> bool:
        """Whether the prompt slot precedes all fields."""
        before = self.parts[: self.parts.index(Slot.PROMPT)]
        return not any(isinstance(part, Field) for part in before)

    @property
    def space_before_prompt(self) -> str:
        """The space before the prompt, which belongs to its first word (`Backend.score`), or ""."""
        index = self.parts.index(Slot.PROMPT)
        before = self.parts[index - 1] if index else ""
        return " " if isinstance(before, str) and before.endswith(" ") else ""

    def truncated(self, limit: int) -> Template:
        """The template with a limit on the characters of each field that has none.

        Args:
            limit: Characters that are read of a field, from 1 on.

        Raises:
            InputError: The limit is smaller.
        """
        if limit < 1:
            raise InputError(f"truncate={limit}: a field needs 1 character or more")

        def limited(match: re.Match[str]) -> str:
            name = match.group(1)
            free = name and name not in _SLOTS and Field.parse(name).limit is None
            return str(Field(name, limit)) if free else match.group()

        return Template(_PLACEHOLDER.sub(limited, self.text))

    def cuts(self, examples: Iterable[Example]) -> int:
        """Number of examples with text beyond a limit.

        Raises:
            InputError: An example lacks a field.
        """
        limits = [(part, part.limit) for part in self.parts if isinstance(part, Field)]
        return sum(
            any(limit is not None and len(part.text(row)) > limit for part, limit in limits)
            for row in examples
        )

    def render(self, example: Example) -> tuple[Part, ...]:
        """The parts of one row, with adjacent texts joined.

        Raises:
            InputError: The example lacks a field.
        """
        pieces = [
            part.text(example)[: part.limit] if isinstance(part, Field) else part
            for part in self.parts
        ]
        row: list[Part] = []
        for is_slot, group in itertools.groupby(pieces, lambda piece: isinstance(piece, Slot)):
            same = list(group)
            row += same if is_slot else ["".join(map(str, same))]
        return tuple(part for part in row if part != "")

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Render all examples; an error names the row, counted from 1."""
        rows = []
        for number, example in enumerate(examples, start=1):
            try:
                rows.append(self.render(example))
            except InputError as error:
                raise InputError(f"row {number}: {error}") from error
        return Batch(tuple(rows))


@dataclass(frozen=True)
class Verbalizer:
    """Label words: the word whose probability is the score of each label.

    Attributes:
        words: One word (or short phrase) a label, in the order of the columns of all scores.

    Raises:
        InputError: Fewer than two labels, an empty word, or one word for two labels.
    """

    words: Mapping[str, str]

    def __post_init__(self) -> None:
        if len(self.words) < 2:
            raise InputError(
                f"a task needs two labels or more, and it has only {list(self.words)}: "
                "add rows of another class, or give the labels"
            )
        seen: dict[str, str] = {}
        words: dict[str, str] = {}
        for key, word in self.words.items():
            label = label_name(key)
            if label in words:
                raise InputError(f"the label {label!r} is given twice")
            words[label] = word
            if not isinstance(word, str) or not word.strip():
                raise InputError(f"label {label!r} has the label word {word!r}: give it a word")
            check_text(label + word, f"label {label!r}")
            if word.strip() in seen:
                raise InputError(
                    f"labels {seen[word.strip()]!r} and {label!r} share the word {word!r}: "
                    "the model cannot tell them apart; give each its own"
                )
            seen[word.strip()] = label
        object.__setattr__(self, "words", words)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels, in the order of the score columns."""
        return tuple(self.words)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Label words, in the order of the score columns."""
        return tuple(self.words.values())

    def targets(self, examples: Iterable[Example]) -> npt.NDArray[np.intp]:
        """(rows,) the column of each example's label.

        Raises:
            InputError: A row has no label, or a label without a word; the message names the row.
        """
        columns = {label: column for column, label in enumerate(self.words)}
        targets = []
        for number, example in enumerate(examples, start=1):
            if example.label is None:
                raise InputError(f"row {number} has no label")
            if example.label not in columns:
                raise InputError(
                    f"row {number} has the label {example.label!r}, which has no label word; "
                    f"{did_you_mean(example.label, columns)}"
                )
            targets.append(columns[example.label])
        return np.array(targets, dtype=np.intp)


@dataclass(frozen=True)
class Task:
    """A template and its label words, which turn examples into requests."""

    template: Template
    verbalizer: Verbalizer

    def digest(self, examples: Sequence[Example]) -> str:
        """SHA-256 of the rows and their targets.

        Raises:
            InputError: A row lacks a field, or its label has no word.
        """
        targets = self.verbalizer.targets(examples).astype("<i8").tobytes()
        rows = self.template.batch(examples).digest.encode()
        return hashlib.sha256(rows + targets).hexdigest()
