"""From rows to token ids: what the model reads, and where prompt and label stand in it."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Prompt, SoftPrompt, TextPrompt
from lmaas_tune.task import Batch, Part, Slot

PROMPT_MARK, LABEL_MARK = "\ufdd0", "\ufdd1"
"""Stand for the slots while a whole row is tokenized at once, as cutting it first would change
its tokens. Unicode keeps these two for such private use."""

_BATCHES_KEPT = 8


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row, start tokens included.

    Attributes:
        ids: All tokens; a soft prompt that takes places among them has 0 there (or its anchor),
            the label none.
        prompt: Index where the prompt begins; the tokens before it do not depend on it.
        label: Index before which the label belongs.
        spaced: Whether a label word here begins with a space.
    """

    ids: tuple[int, ...]
    prompt: int
    label: int
    spaced: bool

    def with_label(self, fill: tuple[int, ...]) -> EncodedRow:
        """The row with tokens in the label's place."""
        shift = len(fill) if self.prompt > self.label else 0
        ids = self.ids[: self.label] + fill + self.ids[self.label :]
        return replace(self, ids=ids, prompt=self.prompt + shift)


class Encoder:
    """Encodes rows and label words for one model.

    Args:
        tokenizer: The model's.
        label_last: Whether the model needs the label at the end of the row (causal), so that
            no end token follows either.
    """

    def __init__(self, tokenizer: Any, *, label_last: bool) -> None:
        self._tokenizer = tokenizer
        self._label_last = label_last
        self._marking = copy.deepcopy(tokenizer)
        self._marking.add_tokens(
            [AddedToken(mark, special=True, normalized=False) for mark in (PROMPT_MARK, LABEL_MARK)],
            special_tokens=True,
        )
        self._prompt_id, self._label_id = self._marking.convert_tokens_to_ids(
            [PROMPT_MARK, LABEL_MARK]
        )
        self._kept: OrderedDict[str, tuple[EncodedRow, ...]] = OrderedDict()

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of a text, with no start or end token."""
        _check_unicode(text, "the text")
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(ids)

    def words(self, candidates: Sequence[str], *, spaced: bool) -> tuple[tuple[int, ...], ...]:
        """Ids of every label word as it follows a text, with a space before it where `spaced`."""
        ids = []
        for word in candidates:
            _check_unicode(word, "a label word")
            text = LABEL_MARK + (" " if spaced else "") + word.strip()
            marked = self._marking(text, add_special_tokens=False, verbose=False)["input_ids"]
            ids.append(tuple(marked[marked.index(self._label_id) + 1 :]))
        return tuple(ids)

    def rows(self, batch: Batch, prompt: Prompt) -> tuple[EncodedRow, ...]:
        """All rows of a batch, `prompt` in its place.

        Raises:
            InputError: A row that this model or prompt cannot take, by its number from 1.
        """
        open_rows = self._open_rows(batch)
        if isinstance(prompt, TextPrompt):
            return self._with_text(batch, prompt.text, open_rows)
        return tuple(
            _with_soft(row, prompt, number) for number, row in enumerate(open_rows, start=1)
        )

    def _open_rows(self, batch: Batch) -> tuple[EncodedRow, ...]:
        """Rows with an empty place for the prompt: the same for every soft prompt."""
        if batch.digest not in self._kept:
            self._kept[batch.digest] = self._encode(batch, [PROMPT_MARK] * len(batch))
        self._kept.move_to_end(batch.digest)
        if len(self._kept) > _BATCHES_KEPT:
            self._kept.popitem(last=False)
        return self._kept[batch.digest]

    def _with_text(
        self, batch: Batch, text: str, open_rows: tuple[EncodedRow, ...]
    ) -> tuple[EncodedRow, ...]:
        _check_unicode(text, "the prompt")
        for number, row in enumerate(batch.rows, start=1):
            if text and Slot.PROMPT not in row:
                raise InputError(_NO_SLOT.format(number=number))
        rows = self._encode(batch, [text] * len(batch))
        return tuple(
            replace(row, prompt=common_length(row.ids, open_row.ids[: open_row.prompt]))
            for row, open_row in zip(rows, open_rows, strict=True)
        )

    def _encode(self, batch: Batch, fillings: list[str]) -> tuple[EncodedRow, ...]:
        if not batch.rows:
            return ()
        texts = [
            self._marked(row, filling, number)
            for number, (row, filling) in enumerate(zip(batch.rows, fillings, strict=True), start=1)
        ]
        encodings = self._marking([text for text, _ in texts], verbose=False)["input_ids"]
        return tuple(
            self._row(tuple(ids), spaced)
            for ids, (_, spaced) in zip(encodings, texts, strict=True)
        )

    def _marked(self, row: tuple[Part, ...], filling: str, number: int) -> tuple[str, bool]:
        """The row as one text with marks for slots, and whether a space stood before the label."""
        if Slot.LABEL not in row:
            raise InputError(f"row {number} has no {{label}} slot")
        if self._label_last and row[-1] is not Slot.LABEL:
            raise InputError(
                f"row {number} goes on after {{label}}, which a causal model cannot read: "
                "put {label} last in the template"
            )
        text, spaced = "", False
        for part in row:
            if isinstance(part, str):
                _check_unicode(part, f"row {number}")
                if PROMPT_MARK in part or LABEL_MARK in part:
                    raise InputError(
                        f"row {number} holds U+FDD0 or U+FDD1, which are not characters: remove them"
                    )
                text += part
                continue
            fill = LABEL_MARK if part is Slot.LABEL else filling
            if part is Slot.LABEL:
                spaced = text.endswith(" ")
            # the space before a slot belongs to what fills it: only a text prompt spells it out
            keeps_space = part is Slot.PROMPT and fill not in ("", PROMPT_MARK)
            text = (text if keeps_space else text.removesuffix(" ")) + fill
        return text, spaced

    def _row(self, marked: tuple[int, ...], spaced: bool) -> EncodedRow:
        label = marked.index(self._label_id)
        if self._label_last:
            marked = marked[: label + 1]
        ids = tuple(i for i in marked if i not in (self._prompt_id, self._label_id))
        prompt = marked.index(self._prompt_id) if self._prompt_id in marked else -1
        if prompt > label:
            prompt -= 1
        elif prompt >= 0:
            label -= 1
        return EncodedRow(ids, prompt, label, spaced)


_NO_SLOT = "row {number} has no {{prompt}} slot for the prompt to stand in"


def _with_soft(row: EncodedRow, prompt: SoftPrompt, number: int) -> EncodedRow:
    if row.prompt < 0:
        raise InputError(_NO_SLOT.format(number=number))
    if prompt.insertion == "prepend":
        return row
    places = prompt.anchor or (0,) * prompt.length
    return EncodedRow(
        ids=row.ids[: row.prompt] + places + row.ids[row.prompt :],
        prompt=row.prompt,
        label=row.label + (prompt.length if row.prompt <= row.label else 0),
        spaced=row.spaced,
    )


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their start."""
    for length, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return length
    return min(len(first), len(second))


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds {text[error.start]!r}, half of a surrogate pair, which no tokenizer "
            "reads: remove it or decode the text again"
        ) from error


def word_remarks(
    candidates: Sequence[str], words: Sequence[tuple[int, ...]], tokenizer: Any
) -> list[str]:
    """What a user should know about label words.

    Raises:
        InputError: A word is unknown to the model, or two are the same to it.
    """
    same: dict[tuple[int, ...], str] = {}
    firsts: defaultdict[int, list[str]] = defaultdict(list)
    remarks = []
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
            remarks.append(
                f"the label word {candidate!r} is {len(ids)} tokens to the model and begins with "
                f"{pieces[0]!r}; its log-probability is the sum over {pieces}"
            )
    for sharing in firsts.values():
        if len(sharing) > 1:
            listed = ", ".join(map(repr, sharing))
            remarks.append(f"the label words {listed} begin with the same token")
    return remarks
