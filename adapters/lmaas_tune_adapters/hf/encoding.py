"""Encoding rows as token ids, with the positions of prompt and label."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray, SoftPrompt
from lmaas_tune.task import Batch, Part, Slot
from lmaas_tune_adapters.hf.marks import (
    LABEL_MARK,
    PROMPT_MARK,
    add_marks,
    check_marks,
    check_unicode,
)

_MAX_BATCHES = 8  # that stay encoded
_MAX_WORDS = 4096  # label words that stay encoded
_MAX_WORD_LISTS = 64
_SEARCHED = 20_000  # tokens of the vocabulary that are searched for words
_SHORTEST = 3  # letters of a word that a head reads


@dataclass(frozen=True)
class PromptParts:
    """A prompt as rows contain it. All parts are empty for a prompt that no row can contain.

    Attributes:
        text: Of a text prompt.
        soft: What enters with the embeddings.
        above: Of a deep prompt, for each layer above the first, (L, H) vectors.
    """

    text: str | None = None
    soft: SoftPrompt | None = None
    above: Sequence[FloatArray] | None = None

    @property
    def shape(self) -> tuple[object, ...]:
        """Equal for prompts that can go through the model together."""
        if self.soft is None:
            return ()
        return self.soft.insertion, self.soft.length, self.above is not None


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row, start tokens included.

    Attributes:
        ids: All tokens. A soft prompt that takes positions among them has its anchor there, or
            zeros; the label has no tokens.
        prompt: Index where the prompt begins; the tokens before it do not depend on it.
        label: Index where the label is inserted.
        label_first: Whether the label stands before the prompt.
        spaced: Whether a label word begins with a space here.
    """

    ids: tuple[int, ...]
    prompt: int
    label: int
    label_first: bool
    spaced: bool

    def with_label(self, fill: tuple[int, ...]) -> EncodedRow:
        """Insert tokens in the label's place."""
        shift = len(fill) if self.label_first else 0
        ids = self.ids[: self.label] + fill + self.ids[self.label :]
        return replace(self, ids=ids, prompt=self.prompt + shift)


class RowEncoder:
    """Encodes rows and label words for one model.

    Args:
        tokenizer: The model's.
        label_last: Whether the model needs the label at the end of the row.
        ends: Whether the end tokens that the tokenizer adds are read (not by a causal model,
            which continues with the label word).
        label_starts_text: Whether a label word starts a new text instead of continuing the row.
    """

    def __init__(
        self, tokenizer: Any, *, label_last: bool, ends: bool, label_starts_text: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._label_starts_text = label_starts_text
        self._label_last = label_last
        self._ends = ends
        self._marking, self._glue = add_marks(tokenizer)
        # XLM-R's tokenizer and others read a line break before a word as a space
        self._breaks = self.text("a\nb") == self.text("a b")
        self._prompt_id, self._label_id = self._marking.convert_tokens_to_ids(
            [PROMPT_MARK, LABEL_MARK]
        )
        self._batches: OrderedDict[str, tuple[EncodedRow, ...]] = OrderedDict()
        self._word = lru_cache(_MAX_WORDS)(self._encode_word)
        self._words = lru_cache(_MAX_WORD_LISTS)(self._encode_words)

    def text(self, text: str) -> tuple[int, ...]:
        """Encode a text without start or end token."""
        check_unicode(text, "the text")
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(ids)

    def words(self, candidates: Sequence[str], *, spaced: bool) -> tuple[tuple[int, ...], ...]:
        """Encode label words as they follow a text, with a space before each where `spaced`."""
        return self._words(tuple(candidates), spaced)

    def _encode_words(self, words: tuple[str, ...], spaced: bool) -> tuple[tuple[int, ...], ...]:
        return tuple(self._word(word.strip(), spaced) for word in words)

    def _encode_word(self, word: str, spaced: bool) -> tuple[int, ...]:
        check_unicode(word, "a label word")
        check_marks(word, "a label word")
        text = (" " if spaced else "") + word
        return self.text(text) if self._label_starts_text else self._behind_mark(text)

    def _behind_mark(self, text: str) -> tuple[int, ...]:
        """Encode a text that follows another one."""
        marked: list[int] = self._marking(
            LABEL_MARK + self._glue + text, add_special_tokens=False, verbose=False
        )["input_ids"]
        return tuple(marked[marked.index(self._label_id) + 1 :])

    def rows(self, batch: Batch, prompt: PromptParts) -> tuple[EncodedRow, ...]:
        """Encode all rows of a batch, the prompt in its place.

        Raises:
            InputError: The model or the prompt does not fit a row, named by its number from 1.
        """
        for number, row in enumerate(batch.rows, start=1):
            if Slot.PROMPT not in row and prompt.text != "":
                raise InputError(f"row {number} has no {{prompt}} slot for the prompt to stand in")
        soft = prompt.soft
        if soft is None:
            text = prompt.text or ""
            check_unicode(text, "the prompt")
            check_marks(text, "the prompt")
            rows = self._with_text(batch, text)
        elif soft.insertion == "prepend":
            rows = self._open_rows(Batch(tuple(map(_without_prompt, batch.rows))))
            if self._label_last:  # a causal model reads the vectors as tokens
                rows = tuple(_with_soft(row, soft) for row in rows)
        else:
            rows = tuple(_with_soft(row, soft) for row in self._open_rows(batch))
        return tuple(self._started(row, number) for number, row in enumerate(rows, start=1))

    def _open_rows(self, batch: Batch) -> tuple[EncodedRow, ...]:
        """Encode rows without their prompt, which are the same for every soft prompt."""
        if batch.digest not in self._batches:
            self._batches[batch.digest] = self._encode(batch, PROMPT_MARK)
        self._batches.move_to_end(batch.digest)
        if len(self._batches) > _MAX_BATCHES:
            self._batches.popitem(last=False)
        return self._batches[batch.digest]

    def _with_text(self, batch: Batch, text: str) -> tuple[EncodedRow, ...]:
        return tuple(
            replace(row, prompt=common_length(row.ids, open_row.ids[: open_row.prompt]))
            for row, open_row in zip(self._encode(batch, text), self._open_rows(batch), strict=True)
        )

    def _started(self, row: EncodedRow, number: int) -> EncodedRow:
        """Give an empty row a start token: a model needs one token at least."""
        if row.ids:
            return row
        start = self._tokenizer.bos_token_id
        start = self._tokenizer.eos_token_id if start is None else start
        if start is None:
            raise InputError(f"row {number} is empty, and this model has no start token")
        return replace(row, ids=(start,), label=1)

    def _encode(self, batch: Batch, filling: str) -> tuple[EncodedRow, ...]:
        if not batch.rows:
            return ()
        texts = [
            self._marked(row, filling, number) for number, row in enumerate(batch.rows, start=1)
        ]
        encodings = self._marking([text for text, _ in texts], verbose=False)["input_ids"]
        return tuple(
            self._row(tuple(ids), spaced) for ids, (_, spaced) in zip(encodings, texts, strict=True)
        )

    def _marked(self, row: tuple[Part, ...], filling: str, number: int) -> tuple[str, bool]:
        """Join a row with marks for its slots; also whether a space stands before the label."""
        if Slot.LABEL not in row:
            raise InputError(f"row {number} has no {{label}} slot")
        if self._label_last and row[-1] is not Slot.LABEL:
            raise InputError(
                f"row {number} continues after {{label}}, which this model cannot read: "
                "put {label} last in the template"
            )
        text, spaced = "", False
        for part in row:
            if isinstance(part, str):
                check_unicode(part, f"row {number}")
                check_marks(part, f"row {number}")
                text += part
                continue
            fill = LABEL_MARK if part is Slot.LABEL else filling
            if part is Slot.LABEL:
                spaced = text[-1:].isspace() if self._breaks else text.endswith(" ")
            # the space before a slot belongs to its content; only a text prompt contains it
            keeps_space = part is Slot.PROMPT and fill not in ("", PROMPT_MARK)
            text = (text if keeps_space else text.removesuffix(" ")) + fill
            # behind a label, which is a token, a text begins as the tokenizer begins texts
            text += self._glue if fill == PROMPT_MARK else ""
        return text, spaced

    def _row(self, marked: tuple[int, ...], spaced: bool) -> EncodedRow:
        label = marked.index(self._label_id)
        if not self._ends:
            marked = marked[: label + 1]
        ids = tuple(i for i in marked if i not in (self._prompt_id, self._label_id))
        if self._prompt_id not in marked:
            return EncodedRow(ids, prompt=0, label=label, label_first=False, spaced=spaced)
        prompt = marked.index(self._prompt_id)
        label_first = label < prompt
        return EncodedRow(
            ids,
            prompt=prompt - label_first,
            label=label - (not label_first),
            label_first=label_first,
            spaced=spaced,
        )

    @cached_property
    def one_token_words(self) -> tuple[str, ...]:
        """Words that are one token behind a space, among the first of the vocabulary."""
        found: dict[str, None] = {}
        for token in range(min(_SEARCHED, len(self._tokenizer))):
            word = self._tokenizer.decode([token]).strip()
            if len(word) >= _SHORTEST and word.isalpha() and self._word(word, True) == (token,):
                found[word] = None
        return tuple(found)


def _with_soft(row: EncodedRow, prompt: SoftPrompt) -> EncodedRow:
    ids = prompt.anchor or (0,) * prompt.length
    return replace(
        row,
        ids=row.ids[: row.prompt] + ids + row.ids[row.prompt :],
        label=row.label if row.label_first else row.label + prompt.length,
    )


def _without_prompt(row: tuple[Part, ...]) -> tuple[Part, ...]:
    """Remove a prompt that comes before the start token, and the space behind it."""
    if row[0] is not Slot.PROMPT:
        raise InputError(
            "a soft prompt with insertion 'prepend' stands before everything: "
            "put {prompt} first in the template"
        )
    first, *rest = row[1:]
    return (first.removeprefix(" "), *rest) if isinstance(first, str) else row[1:]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the tokens that two sequences have in common at their start."""
    for length, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return length
    return min(len(first), len(second))


def word_notes(
    candidates: Sequence[str], words: Sequence[tuple[int, ...]], tokenizer: Any
) -> list[str]:
    """Note label words of several tokens, and words that begin with the same token.

    Raises:
        InputError: A word is unknown to the model, or two words have the same tokens.
    """
    same: dict[tuple[int, ...], str] = {}
    firsts: defaultdict[int, list[str]] = defaultdict(list)
    notes = []
    for candidate, ids in zip(candidates, words, strict=True):
        if not ids or tokenizer.unk_token_id in ids:
            raise InputError(
                f"the label word {candidate!r} is not in the model's vocabulary: choose another"
            )
        if ids in same:
            raise InputError(
                f"the label words {same[ids]!r} and {candidate!r} are the same tokens to the "
                "model: give each label its own word"
            )
        same[ids] = candidate
        firsts[ids[0]].append(candidate)
        if len(ids) > 1:
            pieces = [tokenizer.decode([i]).strip() for i in ids]
            notes.append(
                f"the label word {candidate!r} is {len(ids)} tokens to the model and begins with "
                f"{pieces[0]!r}; its log-probability is the sum over {pieces}"
            )
    return notes + [
        f"the label words {', '.join(map(repr, sharing))} begin with the same token"
        for sharing in firsts.values()
        if len(sharing) > 1
    ]
