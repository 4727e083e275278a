"""Text prompts as points of R^d: an instruction, words behind it, examples in an order."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np

from lmaas_tune.data import labels_of
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.phrases import WORDS, telling_words
from lmaas_tune.prompts import FloatArray, Prompt, TextPrompt
from lmaas_tune.task import Example, Slot, Task, Template, check_text

SOURCES = ("built-in", "train")
"""Where words come from if they are not given, see `TextSettings.words`."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What a text prompt is made of beside its instruction.

    Attributes:
        words: What may stand behind the instruction: a list, or ``built-in`` (words that serve
            any task), or ``train`` (the words of the training rows by which the labels differ
            most). A word takes one dimension a slot, so that some tens of them search best.
        slots: At most so many words stand there.
        demonstrations: So many training rows stand in the prompt with their answers, as many of
            each label as of another, in an order that is searched. They are not scored, as the
            model would read the answers; the other training rows are.

    Raises:
        InputError: A value that cannot be, named with its remedy.
    """

    words: str | tuple[str, ...] = "built-in"
    slots: int = 3
    demonstrations: int = 0

    def __post_init__(self) -> None:
        for name in ("slots", "demonstrations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise InputError(f"{name}={value!r}: it takes a whole number")
            if value < 0:
                raise InputError(f"{name}={value}: it must be 0 or more")
        if isinstance(self.words, str):
            if self.words not in SOURCES:
                raise InputError(
                    f"words={self.words!r}: {did_you_mean(self.words, SOURCES)}; or give a list"
                )
            return
        if not self.words or not all(isinstance(w, str) and w.strip() for w in self.words):
            raise InputError(
                f"words={self.words!r:.60}: give words that are not empty, or slots=0 for none"
            )
        words = dict.fromkeys(check_text(word, "words").strip() for word in self.words)
        object.__setattr__(self, "words", tuple(words))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        words = self.words if isinstance(self.words, str) else list(self.words)
        return {**asdict(self), "words": words}

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
        if found := telling_words(examples, len(WORDS)):
            return found
        raise InputError("words='train': the training rows have no words; give a list of them")


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
        """Prompts that are as long as any, however a model cuts words into tokens: every word in
        all slots behind the longest instruction, every instruction with the longest word."""
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

    def prompts(self, points: FloatArray) -> list[Prompt]:
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


def text_space(
    settings: TextSettings,
    task: Task,
    *,
    instructions: Sequence[str],
    starting: int,
    train: Sequence[Example],
    shown: Sequence[Example],
) -> TextSpace:
    """The space of the prompts of a task.

    Args:
        settings: What the prompts are made of.
        task: Says how a demonstration reads.
        instructions: What may begin a prompt.
        starting: So many of them, from the first, are scored as starts.
        train: The training rows, which may give the words.
        shown: The rows to demonstrate.

    Raises:
        InputError: There is nothing to choose, no words where they are to come from, or the
            template has no room for demonstrations.
    """
    return TextSpace(
        instructions=tuple(instructions),
        starting=starting,
        words=settings.list_words(train) if settings.slots else (),
        slots=settings.slots,
        demonstrations=tuple(demonstration(task, row) for row in shown),
        apart=_apart(task.template) if shown else "",
    )


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
    shown = in_turns(examples, seed=seed)[:count]
    left = [example for index, example in enumerate(examples) if index not in shown]
    return [examples[index] for index in shown], left


def in_turns(examples: Sequence[Example], *, seed: int) -> list[int]:
    """Indices of all rows in an order that is drawn; labels take turns while they have rows."""
    by_label: defaultdict[str | None, list[int]] = defaultdict(list)
    for index in np.random.default_rng(seed).permutation(len(examples)):
        by_label[examples[index].label].append(int(index))
    turns = itertools.zip_longest(*(by_label[label] for label in labels_of(examples)))
    return [index for turn in turns for index in turn if index is not None]


def stands_first(template: Template) -> bool:
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
