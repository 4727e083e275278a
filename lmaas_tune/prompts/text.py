"""Text prompts: an instruction, further words and ordered demonstrations, searched in R^d."""

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
    BUILT_IN,
    WORDS,
    check_words,
    distinctive_words,
    starting_words,
)
from lmaas_tune.reprs import short_repr
from lmaas_tune.task import Example, Slot, Task, Template, check_text
from lmaas_tune.typed_json import checked
from lmaas_tune.validate import checked_by, validate, whole

SOURCES = (BUILT_IN, "train")
"""Named word lists, see `Text.words`."""


@dataclass(frozen=True)
class TextPrompt(Prompt):
    """A text for the ``{prompt}`` slot of the template."""

    text: str

    kind: ClassVar[str] = "text"

    __repr__ = short_repr

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
        """Length in characters."""
        return len(self.text)

    @property
    def most_tokens(self) -> int:
        """Its bytes: no tokenizer makes more tokens of a text."""
        return len(self.text.encode())

    def incompatibility(self, model: Model) -> str | None:
        """The reason why the model cannot take this prompt; None if it can."""
        if model.capabilities.text_prompts:
            return None
        return f"the prompt is a text, and {model.identity} takes soft prompts only"

    def to_files(self) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        """The fields of ``prompt.json``; there are no arrays."""
        return {"text": self.text}, {}

    @classmethod
    def from_files(cls, content: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> TextPrompt:
        """Build a prompt from the output of `to_files`.

        Raises:
            InputError: The content is invalid.
        """
        return cls(checked(str, content.get("text", ""), "text"))


def _word_list(name: str, words: Any) -> str | tuple[str, ...]:
    """The name of a word list, or the given words without duplicates.

    Raises:
        InputError: The value is neither.
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
    """Text prompts, decoded from points of R^d by random keys.

    A choice among n entries has n coordinates, its keys; the entry with the largest key is chosen.
    An order sorts its entries by descending key. (Random keys: Bean, "Genetic algorithms and
    random keys for sequencing and optimization", ORSA Journal on Computing 6, 1994; for choices
    equal to nevergrad's deterministic `Choice`.) The first entry of a choice has a bonus: the
    origin is the start, and z ~ N(0, I) keeps the first entry with probability about 1/2.

    On synthetic losses (`results/decoding.py`), within 200 calls, CMA-ES, differential evolution,
    swarms and TBPSA found clearly lower losses with keys than with one coordinate a choice, cut
    into bins by a normal distribution (nevergrad's `TransitionChoice`). Bins make unrelated words
    neighbours. The exception is nevergrad's DiscreteOnePlusOne, which redraws a coordinate: with
    bins it found the lowest losses of all, with keys it is worse than random search.

    Attributes:
        instructions: Choices for the instruction; the first is at the origin.
        starting: Number of instructions, from the first, that are scored as starts.
        words: Choices for a word slot; at the origin all slots are empty.
        slots: Number of word slots after the instruction.
        demonstrations: Demonstrations after the words, in their order at the origin.
        apart: Separator before each demonstration.

    Raises:
        InputError: The space has no dimension.
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
        """1: all dimensions are searched together."""
        return 1

    @property
    def dim(self) -> int:
        """d, the number of keys; a choice among one entry has none."""
        return sum(self._keys)

    @property
    def starts(self) -> tuple[TextPrompt, ...]:
        """The starting instructions, with empty word slots."""
        order = range(len(self.demonstrations))
        return tuple(
            self._prompt(instruction, (), order)
            for instruction in self.instructions[: self.starting]
        )

    @property
    def longest(self) -> tuple[TextPrompt, ...]:
        """Prompts, one of which is a longest prompt for most tokenizers.

        Each word in all slots after the longest instruction, and each instruction with the longest
        word.
        """
        order = range(len(self.demonstrations))
        words = self.words if self.slots else ("",)
        instruction, word = max(self.instructions, key=len), max(words, key=len)
        pairs = [(instruction, w) for w in words] + [(i, word) for i in self.instructions]
        return tuple(self._prompt(i, [w] * self.slots, order) for i, w in dict.fromkeys(pairs))

    @property
    def digest(self) -> str:
        """SHA-256 of all fields."""
        content = json.dumps({"decoded by": "random keys", **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def begin_at(self, index: int) -> TextSpace:
        """The space with another instruction at the origin."""
        first = self.instructions[index]
        others = self.instructions[:index] + self.instructions[index + 1 :]
        return replace(self, instructions=(first, *others), starting=1)

    def prompts(self, points: FloatArray) -> list[TextPrompt]:
        """The prompts of the (n, dim) points."""
        return [self._decoded(point) for point in points]

    @cached_property
    def _keys(self) -> tuple[int, ...]:
        """Number of keys of the instruction, of each slot and of the order."""
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
    """Index of the entry that (entries,) keys choose; 0 without keys."""
    if not len(keys):
        return 0
    biased = keys.copy()
    # the median of the largest of the other keys
    biased[0] += NormalDist().inv_cdf(0.5 ** (1 / (len(keys) - 1)))
    return int(biased.argmax())


def draw_demonstrations(
    examples: Sequence[Example], count: int, *, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split the rows into demonstrations and scored rows, which keep their order.

    Labels alternate, so that their numbers of demonstrations differ by at most one.

    Raises:
        InputError: A label would have no scored row.
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
    """Indices of all rows in random order; labels alternate while they have rows."""
    by_label: defaultdict[str | None, list[int]] = defaultdict(list)
    for index in np.random.default_rng(seed).permutation(len(examples)):
        by_label[examples[index].label].append(int(index))
    turns = itertools.zip_longest(*(by_label[label] for label in labels_of(examples)))
    return [index for turn in turns for index in turn if index is not None]


def demonstration(task: Task, example: Example) -> str:
    """The text of a row with its label word and without the prompt."""
    word = task.verbalizer.words.get(example.label or "", "")
    fills = {Slot.PROMPT: "", Slot.LABEL: word.strip()}
    parts = task.template.render(example)
    return "".join(part if isinstance(part, str) else fills[part] for part in parts).strip()


def _apart(template: Template) -> str:
    """The whitespace between prompt and row, which also separates demonstrations.

    Raises:
        InputError: The template does not begin with the prompt, or has no whitespace after it.
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
    """Settings of a search over text prompts: an instruction, further words, demonstrations.

    Attributes:
        prompt_init: Starting instructions, see `Soft.prompt_init`. The search may choose any of
            them.
        words: Words for the slots after the instruction: a list, ``built-in`` (words for any
            task), or ``train`` (the most distinctive words of the training rows). A word adds one
            dimension a slot; some tens of words work best.
        slots: Largest number of words after the instruction.
        demonstrations: Number of training rows that the prompt shows with their labels, equally
            many of each label, in an order that is searched. They are not scored, because the
            prompt holds their labels.

    Raises:
        InputError: A value is out of range; the message names it and the remedy.
    """

    prompt_init: str | tuple[str, ...] = checked_by(check_words, default=BUILT_IN)
    words: str | tuple[str, ...] = checked_by(_word_list, default=BUILT_IN)
    slots: int = whole(least=0, default=3)
    demonstrations: int = whole(least=0, default=0)

    kind: ClassVar[str] = "text"
    starts_from: ClassVar[frozenset[str]] = frozenset({"text"})
    optimizer: ClassVar[str] = "cma"

    def __post_init__(self) -> None:
        validate(self)

    @property
    def given_words(self) -> tuple[str, ...]:
        """`prompt_init` as a tuple."""
        return tuple(self.prompt_init)

    def check(self, model: Model, start: Prompt | None) -> None:
        """Check that the model takes text prompts, and that p0 is one.

        Raises:
            InputError: One of the two fails.
        """
        if not model.capabilities.text_prompts:
            raise InputError(
                f"{model.identity} takes soft prompts only: leave out prompt=Text() (--prompt text)"
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
        """The words for the slots.

        Args:
            examples: The training rows.

        Raises:
            InputError: ``train`` is set, and the training rows have no words.
        """
        if self.words == BUILT_IN:
            return WORDS
        if self.words != "train":
            return tuple(self.words)
        if found := distinctive_words(examples, len(WORDS)):
            return found
        raise InputError("words='train': the training rows have no words; give a list of them")

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        words = self.words if isinstance(self.words, str) else list(self.words)
        text = {"words": words, "slots": self.slots, "demonstrations": self.demonstrations}
        return {"prompt": "text", "prompt_init": list(self.given_words), "text": text}

    def _instructions(self, setup: Setup) -> tuple[tuple[str, ...], int]:
        """The choices for the instruction, and how many of them are starts."""
        if setup.start is not None and setup.start.words is not None:
            return (setup.start.words,), 1
        words = starting_words(self.given_words, setup.task)
        stripped = tuple(dict.fromkeys(text.strip() for text in words))
        return stripped, len(stripped)


def no_soft_start(model: Model) -> str:
    """The message that a search over text prompts cannot start from a soft prompt."""
    return (
        f"{model.identity} is asked for text prompts, and the start is a soft one: start from "
        "words, or from a text"
    )
