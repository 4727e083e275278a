"""Text prompts: an instruction, words behind it and examples in an order, as points of R^d."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from lmaas_tune.capabilities import FloatArray, Model
from lmaas_tune.data import labels_of
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.prompts.base import Prompt, Setup
from lmaas_tune.prompts.phrases import (
    DIRECTIONS,
    LEAD_INS,
    STARTING_WORDS,
    WORDS,
    check_words,
    distinctive_words,
)
from lmaas_tune.task import Example, Slot, Task, Template, check_text
from lmaas_tune.typed_json import checked
from lmaas_tune.validate import checked_by, validate, whole

SOURCES = ("built-in", "train")
"""Where words come from if they are not given, see `Text.words`."""


@dataclass(frozen=True)
class TextPrompt(Prompt):
    """Words that stand where the template says ``{prompt}``."""

    text: str

    kind: ClassVar[str] = "text"

    def __str__(self) -> str:
        return "a text prompt"

    def content(self) -> Iterator[bytes]:
        """The bytes that the digest covers."""
        yield b"text|" + self.text.encode("utf-8", "surrogatepass")

    @property
    def words(self) -> str:
        """The text."""
        return self.text

    @property
    def characters(self) -> int:
        """Its length."""
        return len(self.text)

    def incompatibility(self, model: Model) -> str | None:
        """Why the model cannot take this prompt; None where it can."""
        if model.capabilities.text_prompts:
            return None
        return f"the prompt is a text, and {model.identity} takes soft prompts only"

    def to_files(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """The fields of ``prompt.json``; there are no arrays."""
        return {"text": self.text}, {}

    @classmethod
    def from_files(cls, content: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> TextPrompt:
        """Read what `to_files` gave.

        Raises:
            InputError: It did not give this.
        """
        return cls(checked(str, content.get("text", ""), "text"))


def _word_list(name: str, words: Any) -> str | tuple[str, ...]:
    """A source of words, or the words, each once.

    Raises:
        InputError: They are neither.
    """
    if isinstance(words, str):
        if words not in SOURCES:
            raise InputError(f"{name}={words!r}: {did_you_mean(words, SOURCES)}; or give a list")
        return words
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise InputError(
            f"{name}={words!r:.60}: give words that are not empty, or slots=0 for none"
        )
    return tuple(dict.fromkeys(check_text(word, name).strip() for word in words))


@dataclass(frozen=True, kw_only=True)
class TextSpace:
    """Text prompts that R^d is decoded to, by random keys.

    Every choice has as many coordinates as it has entries, its keys, and takes the entry with
    the largest key; an order goes by falling keys (random keys: Bean, "Genetic algorithms and
    random keys for sequencing and optimization", ORSA Journal on Computing 6, 1994; for choices
    it is what nevergrad's deterministic `Choice` does). A choice leans to its first entry, so
    that the origin is the start, and z ~ N(0, I) leaves each choice there about half of the time.

    On made-up losses (`results/decoding.py`) CMA-ES, differential evolution, swarms and TBPSA
    found clearly lower ones so, within 200 calls, than with one coordinate a choice that a normal
    distribution cuts into bins (as nevergrad's `TransitionChoice` does), where words have
    neighbours that mean nothing. Nevergrad's DiscreteOnePlusOne, which draws a coordinate anew, is
    the exception: with bins it found the lowest of all, with keys it is worse than drawing.

    Attributes:
        instructions: What may begin the prompt; the first one does at the origin.
        starting: So many of the instructions, from the first, are scored as starts.
        words: What may stand in a slot behind the instruction; none does at the origin.
        slots: Number of slots.
        demonstrations: Worked examples behind all that, in the order they have at the origin.
        apart: Stands between the demonstrations, and before the first.

    Raises:
        InputError: There is nothing to choose.
    """

    instructions: tuple[str, ...]
    starting: int = 1
    words: tuple[str, ...] = ()
    slots: int = 0
    demonstrations: tuple[str, ...] = ()
    apart: str = "\n\n"

    def __post_init__(self) -> None:
        if self.dim == 0:
            raise InputError(
                "a text prompt of one instruction without words or an order leaves nothing to "
                "search: give several instructions, word slots, or demonstrations"
            )

    @property
    def blocks(self) -> int:
        """All dimensions are searched together."""
        return 1

    @property
    def dim(self) -> int:
        """d, the number of keys; what leaves no choice has none."""
        return sum(self._keys)

    @property
    def starts(self) -> tuple[TextPrompt, ...]:
        """The instructions that may start, with no word behind them."""
        order = range(len(self.demonstrations))
        return tuple(
            self._prompt(instruction, (), order)
            for instruction in self.instructions[: self.starting]
        )

    @property
    def longest(self) -> tuple[TextPrompt, ...]:
        """Prompts of which one is as long as any, however a model cuts words into tokens.

        Every word in all slots behind the longest instruction, every instruction with the longest
        word.
        """
        order = range(len(self.demonstrations))
        words = self.words if self.slots else ("",)
        instruction, word = max(self.instructions, key=len), max(words, key=len)
        pairs = [(instruction, w) for w in words] + [(i, word) for i in self.instructions]
        return tuple(self._prompt(i, [w] * self.slots, order) for i, w in dict.fromkeys(pairs))

    @property
    def digest(self) -> str:
        """SHA-256 of all lists."""
        content = json.dumps({"decoded by": "random keys", **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def begin_at(self, index: int) -> TextSpace:
        """The same, with another of the instructions at the origin."""
        first = self.instructions[index]
        others = self.instructions[:index] + self.instructions[index + 1 :]
        return replace(self, instructions=(first, *others), starting=1)

    def prompts(self, points: FloatArray) -> list[TextPrompt]:
        """The prompts of the (n, dim) points."""
        return [self._decoded(point) for point in points]

    @cached_property
    def _keys(self) -> tuple[int, ...]:
        """Keys of the instruction, of each slot, of the order."""
        words = 1 + len(self.words)
        entries = (len(self.instructions), *[words] * self.slots, len(self.demonstrations))
        return tuple(n if n > 1 else 0 for n in entries)

    def _decoded(self, point: FloatArray) -> TextPrompt:
        choice, *slots, order = np.split(point, np.cumsum(self._keys)[:-1])
        words = [("", *self.words)[_chosen(keys)] for keys in slots]
        return self._prompt(
            self.instructions[_chosen(choice)],
            [word for word in words if word],
            np.argsort(-order, kind="stable") if len(order) else range(len(self.demonstrations)),
        )

    def _prompt(self, instruction: str, words: Sequence[str], order: Iterable[int]) -> TextPrompt:
        phrase = " ".join(part for part in (instruction, *words) if part)
        parts = [phrase, *(self.demonstrations[i] for i in order)]
        return TextPrompt(self.apart.join(part for part in parts if part))


def _chosen(keys: FloatArray) -> int:
    """The entry that (entries,) keys choose; of no key, the only one."""
    if not len(keys):
        return 0
    leaning = keys.copy()
    # the median of the largest of the other keys
    leaning[0] += NormalDist().inv_cdf(0.5 ** (1 / (len(keys) - 1)))
    return int(leaning.argmax())


def draw_demonstrations(
    examples: Sequence[Example], count: int, *, seed: int
) -> tuple[list[Example], list[Example]]:
    """Rows to show and the rows that are left to be scored, which keep their order.

    Labels take turns, so that each is shown as often as another, give or take one.

    Raises:
        InputError: A label would have no row left.
    """
    rows = Counter(example.label for example in examples)
    labels = labels_of(examples)
    for turn, label in enumerate(labels):
        taken = len(range(turn, count, len(labels)))
        if taken >= rows[label]:
            raise InputError(
                f"demonstrations={count} takes {taken} of the {rows[label]} rows with the "
                f"label {label!r}, and one must be left to be scored: take fewer, or add rows"
            )
    shown = alternate_labels(examples, seed=seed)[:count]
    left = [example for index, example in enumerate(examples) if index not in shown]
    return [examples[index] for index in shown], left


def alternate_labels(examples: Sequence[Example], *, seed: int) -> list[int]:
    """Indices of all rows in an order that is drawn; labels take turns while they have rows."""
    by_label: defaultdict[str | None, list[int]] = defaultdict(list)
    for index in np.random.default_rng(seed).permutation(len(examples)):
        by_label[examples[index].label].append(int(index))
    turns = itertools.zip_longest(*(by_label[label] for label in labels_of(examples)))
    return [index for turn in turns for index in turn if index is not None]


def prompt_is_first(template: Template) -> bool:
    """Whether the prompt stands before all fields."""
    before = template.parts[: template.parts.index(Slot.PROMPT)]
    return not any(isinstance(part, tuple) for part in before)


def demonstration(task: Task, example: Example) -> str:
    """A row as the model reads it, with its label word and without the prompt."""
    words = task.verbalizer.words
    fills = {Slot.PROMPT: "", Slot.LABEL: words.get(example.label or "", "")}
    parts = task.template.render(example)
    return "".join(part if isinstance(part, str) else fills[part] for part in parts).strip()


def _apart(template: Template) -> str:
    """What parts the prompt from the row, and so one demonstration from the next.

    Raises:
        InputError: The prompt does not begin the template, or nothing parts it from the row.
    """
    first, *rest = template.parts
    follows = rest[0] if first is Slot.PROMPT and isinstance(rest[0], str) else ""
    if apart := follows[: len(follows) - len(follows.lstrip())]:
        return apart
    raise InputError(
        f"demonstrations stand before the text, and the template {template.text!r} does not begin "
        "with {prompt} and a line break, as '{prompt}\\n\\nText: {text}\\nAnswer: {label}' does"
    )


@dataclass(frozen=True, kw_only=True)
class Text:
    """Settings of a search over text prompts: an instruction, words behind it, training rows.

    Attributes:
        prompt_init: Instructions that the search starts from. Each of several is scored on the
            training rows at the price of one call. The search may take any of them later; where
            none are given, further built-in ones too.
        words: What may stand behind the instruction: a list, or ``built-in`` (words that serve
            any task), or ``train`` (the words of the training rows by which the labels differ
            most). A word takes one dimension a slot, so that some tens of them search best.
        slots: The most words that stand there.
        demonstrations: How many training rows stand in the prompt with their answers, as many of
            each label as of another, in an order that is searched. They are not scored, as the
            model would read the answers; the other training rows are.

    Raises:
        InputError: A value is out of range; the message names it and the remedy.
    """

    prompt_init: str | tuple[str, ...] = checked_by(check_words, default=STARTING_WORDS)
    words: str | tuple[str, ...] = checked_by(_word_list, default="built-in")
    slots: int = whole(least=0, default=3)
    demonstrations: int = whole(least=0, default=0)

    kind: ClassVar[str] = "text"
    starts_from: ClassVar[frozenset[str]] = frozenset({"text"})

    def __post_init__(self) -> None:
        validate(self)

    @property
    def starting_words(self) -> tuple[str, ...]:
        """`prompt_init` as a tuple."""
        return tuple(self.prompt_init)

    def check(self, model: Model, start: Prompt | None) -> None:
        """Check that the model takes text prompts, and that the start is one.

        Raises:
            InputError: It does not.
        """
        if not model.capabilities.text_prompts:
            raise InputError(
                f"{model.identity} takes soft prompts only: leave out what asks for a text prompt"
            )
        if start is not None and start.kind not in self.starts_from:
            raise InputError(no_soft_start(model))

    def space(self, setup: Setup) -> TextSpace:
        """See `lmaas_tune.prompts.base.PromptKind.space`."""
        instructions, starting = self._instructions(setup)
        return TextSpace(
            instructions=instructions,
            starting=starting,
            words=self.list_words([*setup.train, *setup.shown]) if self.slots else (),
            slots=self.slots,
            demonstrations=tuple(demonstration(setup.task, row) for row in setup.shown),
            apart=_apart(setup.task.template) if setup.shown else "",
        )

    def list_words(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The words themselves.

        Args:
            examples: The training rows.

        Raises:
            InputError: The training rows have none.
        """
        if self.words == "built-in":
            return WORDS
        if self.words != "train":
            return tuple(self.words)
        if found := distinctive_words(examples, len(WORDS)):
            return found
        raise InputError("words='train': the training rows have no words; give a list of them")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        words = self.words if isinstance(self.words, str) else list(self.words)
        text = {"words": words, "slots": self.slots, "demonstrations": self.demonstrations}
        return {"prompt": "text", "prompt_init": list(self.starting_words), "text": text}

    def _instructions(self, setup: Setup) -> tuple[tuple[str, ...], int]:
        """What a prompt may begin with, and how many of these are starts."""
        if setup.start is not None and setup.start.words is not None:
            return (setup.start.words,), 1
        own = tuple(words.strip() for words in self.starting_words)
        if own != STARTING_WORDS:
            return own, len(own)
        built_in = DIRECTIONS if prompt_is_first(setup.task.template) else LEAD_INS
        return built_in, len(STARTING_WORDS)


def no_soft_start(model: Model) -> str:
    """Why a search over text cannot start from vectors."""
    return (
        f"{model.identity} is asked for text prompts, and the start is a soft one: start from "
        "words, or from a text"
    )
