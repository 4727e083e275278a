"""`Dataset`: labelled rows, and the default template and label words for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lmaas_tune.columns import unread_columns
from lmaas_tune.data import Rows, labels_of, read_examples
from lmaas_tune.errors import InputError, did_you_mean, named
from lmaas_tune.notes import OnNote, warn
from lmaas_tune.task import Example, Task, Template, Verbalizer, label_name

LABEL_TYPES: Mapping[str, Callable[[str], object]] = {
    "str": str,
    "bool": lambda text: text == "True",
    "int": int,
    "float": float,
}
"""Types of labels by name, with what makes one of its text, see `type_for_all`."""

_KINDS: Mapping[str, tuple[type, ...]] = {
    "bool": (bool, np.bool_),
    "int": (int, np.integer),
    "float": (int, np.integer, float, np.floating),
}

_FEW, _ENOUGH = 4, 8  # rows of a label
_UNEVEN = 5  # times the rows of another label


def type_for_all(label_type: str, labels: Iterable[str]) -> str:
    """A type of labels if each label has a value of it, else text.

    Args:
        label_type: A name in `LABEL_TYPES`.
        labels: Names of labels.

    Raises:
        InputError: There is no such type.
    """
    typed = named("label_type", label_type, LABEL_TYPES)

    def has_value(label: str) -> bool:
        try:
            return label_name(typed(label)) == label
        except ValueError:
            return False

    return label_type if all(map(has_value, labels)) else "str"


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


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
    def label_type(self) -> str:
        """The type of all labels as they were given: a name in `LABEL_TYPES`."""
        values = [row.label if row.value is None else row.value for row in self.examples]
        for name, kinds in _KINDS.items():
            others = () if name == "bool" else _KINDS["bool"]  # True is an int to Python
            if all(isinstance(v, kinds) and not isinstance(v, others) for v in values):
                return name
        return "str"

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
                f"{self.name}: every row has the label {', '.join(self.labels)!r}, and one class "
                "leaves nothing to tell apart: add rows of another class"
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
        again = len(self.examples) - sum(map(len, self.texts.values()))
        if again:
            notes.append(
                f"{self.name}: {again} of {len(self.examples)} rows are copies of others: each "
                "call pays for them again, and losses on left-out rows look too low, because a "
                "copy stays in the head's fit; remove them"
            )
        blank = sum(not any(map(str.strip, texts)) for texts in self.texts)
        if blank:
            notes.append(f"{self.name}: a row has no text: remove it, or fill it in")
        if train is None:
            notes += self._notes_on_counts()
        seen = 0 if train is None else self.overlap(train)
        if seen:
            notes.append(
                f"{self.name}: {seen} of {len(self.examples)} rows are training rows too, so the "
                "loss of the selected prompt may be too low"
            )
        return notes

    def note_on_limits(self, template: Template) -> list[str]:
        """A note on rows whose text is longer than the template reads.

        Raises:
            InputError: A row lacks a field.
        """
        cut = template.cuts(self.examples)
        if not cut:
            return []
        return [
            f"{self.name}: {_rows(cut)} of {len(self.examples)} have more text than "
            f"{template.text!r} reads, and the rest is left out"
        ]

    def _notes_on_counts(self) -> list[str]:
        counts = Counter(row.label for row in self.examples).most_common()
        (most, many), (least, few) = counts[0], counts[-1]
        if few < _FEW:
            return [
                f"{self.name}: the label {least!r} has {_rows(few)}, and what is found for it is "
                f"left to chance: give {_ENOUGH} or more of each label"
            ]
        if many >= _UNEVEN * few:
            return [
                f"{self.name}: the label {most!r} has {_rows(many)} and {least!r} has "
                f"{_rows(few)}, so the search serves the first: lmaas_tune.few_shot_split draws "
                "equally many of each"
            ]
        return []

    def overlap(self, other: Dataset) -> int:
        """Number of rows whose text is in the other data set too."""
        return sum(tuple(row.fields.values()) in other.texts for row in self.examples)


def task_for(
    examples: Sequence[Example],
    *,
    template: Template | None = None,
    verbalizer: Verbalizer | None = None,
    fields: Sequence[str] | None = None,
    prompt_first: bool = False,
    on_note: OnNote = warn,
) -> Task:
    """The task of labelled rows, with defaults for what is not given.

    Args:
        examples: Labelled rows.
        template: None for that of `default_template`.
        verbalizer: None for that of `default_verbalizer`.
        fields: See `default_template`.
        prompt_first: See `default_template`.
        on_note: Called with notes on the defaults.

    Raises:
        InputError: A field is missing, or its name has another meaning in a template.
    """
    return Task(
        template
        or default_template(examples, fields=fields, prompt_first=prompt_first, on_note=on_note),
        verbalizer or default_verbalizer(examples, on_note=on_note),
    )


def default_template(
    examples: Sequence[Example],
    *,
    fields: Sequence[str] | None = None,
    prompt_first: bool = False,
    on_note: OnNote = warn,
) -> Template:
    """Each field on a line with its name, then the prompt and the label; for any task.

    Args:
        examples: Rows with the fields.
        fields: The fields that the model reads, in this order; None for all but those that look
            like ids, dates or addresses.
        prompt_first: Whether the prompt comes first, as demonstrations need it.
        on_note: Called with a note on the fields, if there are several.

    Raises:
        InputError: A field is missing, or its name has another meaning in a template.
    """
    known = tuple(examples[0].fields)
    for name in fields or ():
        if name not in known:
            raise InputError(f"the rows have no field {name!r}; {did_you_mean(name, known)}")
    unread = {} if fields else unread_columns(examples)
    read = tuple(fields or (name for name in known if name not in unread))
    lines = []
    for name in read:
        if not name or {"{", "}"} & set(name) or name in ("prompt", "label"):
            raise InputError(
                f"the column {name!r} cannot stand in a template, where braces and the names "
                "prompt and label mean something else: rename the column"
            )
        lines.append(f"{name.replace('_', ' ').capitalize()}: {{{name}}}\n")
    texts = "".join(lines)
    template = Template(
        f"{{prompt}}\n\n{texts}Answer: {{label}}"
        if prompt_first
        else f"{texts} {{prompt}} {{label}}"
    )
    if len(known) > 1 and not fields:
        left_out = ", ".join(
            f"{name or repr(name)} (looks like {kind})" for name, kind in unread.items()
        )
        on_note(
            f"no template is given, so the model reads {', '.join(read)}: {template.text!r}"
            + (f"; it does not read {left_out}" if left_out else "")
        )
    return template


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
