"""`Dataset`: labelled rows, and the default template and label words for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lmaas_tune.data import Rows, labels_of, read_examples
from lmaas_tune.errors import InputError
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.task import Example, Template, Verbalizer


@dataclass(frozen=True)
class Dataset:
    """Labelled rows.

    Attributes:
        name: Name of the rows in messages ("train").
        examples: The rows.
    """

    name: str
    examples: Sequence[Example] = field(repr=False)

    @classmethod
    def read(cls, rows: Rows, name: str, *, on_note: OnNote = warn) -> Dataset:
        """Read rows in any form that `lmaas_tune.read_examples` takes.

        Raises:
            InputError: The rows cannot be read.
        """
        return cls(name, read_examples(rows, what=name, on_note=on_note))

    def joined(self, other: Dataset) -> Dataset:
        """The rows of both, in order."""
        return Dataset(f"{self.name} and {other.name}", [*self.examples, *other.examples])

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The distinct labels, in a fixed order."""
        return tuple(labels_of(self.examples))

    @cached_property
    def texts(self) -> dict[tuple[str, ...], set[str | None]]:
        """The labels of each distinct text."""
        labels: dict[tuple[str, ...], set[str | None]] = {}
        for row in self.examples:
            labels.setdefault(tuple(row.fields.values()), set()).add(row.label)
        return labels

    def check_classes(self) -> None:
        """Check that there are two labels or more.

        Raises:
            InputError: All rows have one label.
        """
        if len(self.labels) < 2:
            raise InputError(
                f"{self.name}: every row has the label {', '.join(self.labels)!r}, which leaves "
                "nothing to tell apart: add rows of another class"
            )

    def notes(self, train: Dataset | None = None) -> list[str]:
        """Notes on unusual rows, which may be intended.

        Args:
            train: The training rows, if these are other rows.
        """
        notes = []
        if train is None and (torn := [t for t, given in self.texts.items() if len(given) > 1]):
            notes.append(
                f"{self.name}: {len(torn)} of the texts have several labels, the first is "
                f"{torn[0][0]!r:.60}"
            )
        seen = 0 if train is None else self.overlap(train)
        if seen:
            notes.append(
                f"{self.name}: {seen} of {len(self.examples)} rows are training rows too, so the "
                "loss of the selected prompt may be too low"
            )
        return notes

    def overlap(self, other: Dataset) -> int:
        """Number of rows whose text is in the other data set too."""
        return sum(tuple(row.fields.values()) in other.texts for row in self.examples)


def default_template(example: Example, *, prompt_first: bool = False) -> Template:
    """Each field on a line with its name, then the prompt and the label; for any task.

    Args:
        example: An example with the fields.
        prompt_first: Whether the prompt comes first, as demonstrations need it.

    Raises:
        InputError: The name of a field has another meaning in a template.
    """
    lines = []
    for name in example.fields:
        if not name or {"{", "}"} & set(name) or name in ("prompt", "label"):
            raise InputError(
                f"the column {name!r} cannot stand in a template, where braces and the names "
                "prompt and label mean something else: rename the column"
            )
        lines.append(f"{name.replace('_', ' ').capitalize()}: {{{name}}}\n")
    if prompt_first:
        return Template("{prompt}\n\n" + "".join(lines) + "Answer: {label}")
    return Template("".join(lines) + " {prompt} {label}")


def default_verbalizer(examples: Sequence[Example], *, on_note: OnNote = warn) -> Verbalizer:
    """Use each label as its label word.

    Args:
        examples: Labelled rows.
        on_note: Called with a note on labels that are numbers, or that differ in case only.
    """
    words = {label: label for label in labels_of(examples)}
    if all(_is_number(word) for word in words):
        on_note(
            f"the labels {', '.join(words)} are numbers, which mean little to a language model: "
            'give it words, as in labels={"0": "terrible", "1": "great"}'
        )
    cased: dict[str, str] = {}
    for word in words:
        other = cased.setdefault(word.casefold(), word)
        if other != word:
            on_note(
                f"the labels {other!r} and {word!r} differ in case only and are two classes: write "
                "them alike if they are one"
            )
    return Verbalizer(words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
