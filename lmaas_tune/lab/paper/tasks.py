"""The paper's seven tasks: fields, templates and label words, for each family of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lmaas_tune.errors import InputError, named
from lmaas_tune.task import Task, Template, Verbalizer

Layout: TypeAlias = Literal["paper", "text-first"]
"""``paper``: the prompt before the text, the reference code's templates. ``text-first``: the
text, then a short prompt, our own wording; on a processor many times faster with a causal model,
which reads each text once for all prompts."""

LAYOUTS: tuple[Layout, ...] = ("paper", "text-first")

Metric: TypeAlias = Literal["accuracy", "f1"]


@dataclass(frozen=True)
class Wording:
    """The words around the rows of a task, for a kind of model.

    Attributes:
        template: Of methods that tune a prompt.
        label_words: One a label, in the order of the labels.
        words: A manual prompt at ``{prompt}``, from which a soft prompt starts; empty if the prompt
            starts from random tokens.
        manual: The template of methods without a tuned prompt; None for `template`.
    """

    template: str
    label_words: tuple[str, ...]
    words: str = ""
    manual: str | None = None

    @property
    def task(self) -> Task:
        """The task of methods that tune a prompt."""
        return self._task(self.template)

    @property
    def manual_task(self) -> Task:
        """The task of the other methods."""
        return self._task(self.manual or self.template)

    def _task(self, template: str) -> Task:
        labels = {str(number): word for number, word in enumerate(self.label_words)}
        return Task(Template(template), Verbalizer(labels))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public data set on the hub, its configuration, and the split that the paper tests on."""

    path: str
    name: str | None = None
    test: str = "test"


@dataclass(frozen=True, kw_only=True)
class PaperTask:
    """One of the seven tasks, with the paper's metric, loss and budget.

    Attributes:
        fields: Of a row, beside ``label``, a whole number from 0 on.
        wordings: By ``masked``, ``causal``, ``seq2seq`` (layout ``paper``) and ``text-first``.
    """

    name: str
    fields: tuple[str, ...]
    source: Source
    wordings: Mapping[str, Wording] = field(repr=False)
    metric: Metric = "accuracy"
    objective: str = "cross_entropy"
    calls: int = 8000

    @property
    def is_pair(self) -> bool:
        """Whether a row has two sentences; only such tasks start from a pre-trained prompt."""
        return len(self.fields) == 2

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in order."""
        return tuple(self.wordings["text-first"].task.verbalizer.labels)

    def wording(self, layout: Layout, family: str) -> Wording:
        """The wording for a family of models (``causal``, ``masked``, ``seq2seq``).

        Raises:
            InputError: The reference code has no template for the family.
        """
        key = "text-first" if layout == "text-first" else family
        if key not in self.wordings:
            raise InputError(
                f"task {self.name!r}: the paper's code has no template for {family} models; take "
                "the layout 'text-first'"
            )
        return self.wordings[key]


def _low(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.lower() for word in words)


def _paper(bare: str, label_words: tuple[str, ...], *, joint: str = " . ") -> Wording:
    """A template of the paper: the prompt, a separator, and the text."""
    return Wording("{prompt}" + joint + bare, label_words, manual="{prompt}" + bare)


def _opinion(name: str, causal_end: str) -> dict[str, Wording]:
    """The wordings of a task about opinions."""
    text = f"{{{name}}}"
    first = Wording(f"Review: {text}\n {{prompt}} {{label}}", _SIGNS, "The sentiment is")
    return {
        "masked": _paper(f"{text} . It was {{label}} .", ("bad", "great")),
        "causal": _paper(f"{text} . {causal_end} {{label}}", _SIGNS),
        "seq2seq": _paper(f"{text} . It was {{label}}", _SIGNS, joint=" "),
        "text-first": first,
    }


def _topic(
    masked: Wording, name: str, causal_end: str, first_words: tuple[str, ...], words: str
) -> dict[str, Wording]:
    """The wordings of a task about topics; masked and sequence-to-sequence are alike."""
    text, joint = f"{{{name}}}", " . " if masked.template.startswith("{prompt} . ") else " "
    seq2seq = _paper((masked.manual or "").removeprefix("{prompt}"), masked.label_words, joint=" ")
    causal = _paper(f"{text} {causal_end} {{label}}", _low(masked.label_words), joint=joint)
    first = Wording(f"Text: {text}\n {{prompt}} {{label}}", first_words, words)
    return {"masked": masked, "causal": causal, "seq2seq": seq2seq, "text-first": first}


def _pair(
    fields: tuple[str, str], label_words: tuple[str, ...], question: str
) -> dict[str, Wording]:
    """The wordings of a task with two sentences; the reference code has none for causal models."""
    one, two = (f"{{{name}}}" for name in fields)
    paper = _paper(f"{one} ? {{label}} , {two}", label_words)
    template = f"First: {one}\nSecond: {two}\n {{prompt}} {{label}}"
    first = Wording(template, label_words, f"{question} The answer is")
    return {"masked": paper, "seq2seq": paper, "text-first": first}


_SIGNS = ("negative", "positive")
_NEWS = ("World", "Sports", "Business", "Tech")
_KINDS = (
    "Company",
    "Education",
    "Artist",
    "Athlete",
    "Office",
    "Transportation",
    "Building",
    "Natural",
    "Village",
    "Animal",
    "Plant",
    "Album",
    "Film",
    "Written",
)
_SAME = ("sentence1", "sentence2")
_SNLI = ("premise", "hypothesis")
_FOLLOWS = "Does the second follow?"

PAPER_TASKS: Mapping[str, PaperTask] = {
    task.name: task
    for task in (
        PaperTask(
            name="sst2",
            fields=("sentence",),
            source=Source(path="nyu-mll/glue", name="sst2", test="validation"),
            wordings=_opinion("sentence", "The sentiment is"),
        ),
        PaperTask(
            name="yelpp",
            fields=("text",),
            source=Source(path="fancyzhx/yelp_polarity"),
            wordings=_opinion("text", "It is"),
        ),
        PaperTask(
            name="agnews",
            fields=("text",),
            source=Source(path="fancyzhx/ag_news"),
            wordings=_topic(
                _paper("{label} News: {text}", _NEWS),
                "text",
                "The news above is about",
                (*_NEWS[:3], "Technology"),
                "The topic is",
            ),
        ),
        PaperTask(
            name="dbpedia",
            fields=("content",),
            source=Source(path="fancyzhx/dbpedia_14"),
            calls=20000,
            wordings=_topic(
                _paper("[ Category: {label} ] {content}", _KINDS, joint=" "),
                "content",
                "The text above is about",
                _low(_KINDS),
                "The text above is about",
            ),
        ),
        PaperTask(
            name="mrpc",
            fields=_SAME,
            source=Source(path="nyu-mll/glue", name="mrpc", test="validation"),
            metric="f1",
            objective="hinge",
            wordings=_pair(_SAME, ("No", "Yes"), "Do both say the same?"),
        ),
        PaperTask(
            name="snli",
            fields=_SNLI,
            source=Source(path="stanfordnlp/snli"),
            objective="hinge",
            wordings=_pair(_SNLI, ("Yes", "Maybe", "No"), _FOLLOWS),
        ),
        PaperTask(
            name="rte",
            fields=_SAME,
            source=Source(path="nyu-mll/glue", name="rte", test="validation"),
            objective="hinge",
            wordings=_pair(_SAME, ("Yes", "No"), _FOLLOWS),
        ),
    )
}


def paper_task(name: str) -> PaperTask:
    """A task by name.

    Raises:
        InputError: No task has this name.
    """
    return named("task", name, PAPER_TASKS)
