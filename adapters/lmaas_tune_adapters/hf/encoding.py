"""From rows to token ids: what the model reads, and where prompt and label stand in it."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import SoftPrompt, TextPrompt
from lmaas_tune.task import Batch, Part, Slot

PROMPT_MARK, LABEL_MARK = "\ufdd0", "\ufdd1"
"""Stand for the slots while a whole row is tokenized at once, as cutting it first would change
its tokens. Unicode keeps these two for such private use."""

_GLUE = "\ufdd2"
"""Stands behind a mark where the tokenizer would put a space before whatever follows it."""

_BATCHES_KEPT = 8


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row, start tokens included.

    Attributes:
        ids: All tokens; a soft prompt that takes places among them has 0 there (or its anchor),
            the label none.
        prompt: Index where the prompt begins; the tokens before it do not depend on it.
        label: Index before which the label belongs.
        label_first: Whether the label stands before the prompt.
        spaced: Whether a label word here begins with a space.
    """

    ids: tuple[int, ...]
    prompt: int
    label: int
    label_first: bool
    spaced: bool

    def with_label(self, fill: tuple[int, ...]) -> EncodedRow:
        """The row with tokens in the label's place."""
        shift = len(fill) if self.label_first else 0
        ids = self.ids[: self.label] + fill + self.ids[self.label :]
        return replace(self, ids=ids, prompt=self.prompt + shift)


class Encoder:
    """Encodes rows and label words for one model.

    Args:
        tokenizer: The model's.
        label_last: Whether the model needs the label at the end of the row.
        ends: Whether the end tokens that the tokenizer adds are read (not by a causal model,
            which goes on with the label word).
        answers_apart: Whether a label word is an answer of its own, which begins as a text does,
            and does not go on with the row.
    """

    def __init__(
        self, tokenizer: Any, *, label_last: bool, ends: bool, answers_apart: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._answers_apart = answers_apart
        self._label_last = label_last
        self._ends = ends
        self._marking = copy.deepcopy(tokenizer)
        self._marking.add_tokens(
            [
                AddedToken(mark, special=True, normalized=False)
                for mark in (PROMPT_MARK, LABEL_MARK)
            ],
            special_tokens=True,
        )
        self._glue = _GLUE if _joins(self._marking) else ""
        # XLM-R's and others take a line break before a word for a space
        self._breaks = self.text("a\nb") == self.text("a b")
        self._prompt_id, self._label_id = self._marking.convert_tokens_to_ids(
            [PROMPT_MARK, LABEL_MARK]
        )
        self._kept: OrderedDict[str, tuple[EncodedRow, ...]] = OrderedDict()
        self._words: dict[tuple[str, bool], tuple[int, ...]] = {}

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of a text, with no start or end token."""
        _check_unicode(text, "the text")
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(ids)

    def words(self, candidates: Sequence[str], *, spaced: bool) -> tuple[tuple[int, ...], ...]:
        """Ids of every label word as it follows a text, with a space before it where `spaced`."""
        return tuple(self._word(candidate.strip(), spaced) for candidate in candidates)

    def _word(self, word: str, spaced: bool) -> tuple[int, ...]:
        if (word, spaced) not in self._words:
            _check_unicode(word, "a label word")
            _check_marks(word, "a label word")
            text = (" " if spaced else "") + word
            self._words[word, spaced] = (
                self.text(text) if self._answers_apart else self._behind_mark(text)
            )
        return self._words[word, spaced]

    def _behind_mark(self, text: str) -> tuple[int, ...]:
        """Ids of a text that another one goes before."""
        marked: list[int] = self._marking(
            LABEL_MARK + self._glue + text, add_special_tokens=False, verbose=False
        )["input_ids"]
        return tuple(marked[marked.index(self._label_id) + 1 :])

    def rows(self, batch: Batch, prompt: SoftPrompt | TextPrompt) -> tuple[EncodedRow, ...]:
        """All rows of a batch, `prompt` in its place.

        Raises:
            InputError: A row that this model or prompt cannot take, by its number from 1.
        """
        for number, row in enumerate(batch.rows, start=1):
            if Slot.PROMPT not in row and prompt != TextPrompt(""):
                raise InputError(f"row {number} has no {{prompt}} slot for the prompt to stand in")
        if isinstance(prompt, TextPrompt):
            _check_unicode(prompt.text, "the prompt")
            _check_marks(prompt.text, "the prompt")
            rows = self._with_text(batch, prompt.text)
        elif prompt.insertion == "prepend":
            rows = self._open_rows(Batch(tuple(map(_without_prompt, batch.rows))))
        else:
            rows = tuple(_with_soft(row, prompt) for row in self._open_rows(batch))
        return tuple(self._started(row, number) for number, row in enumerate(rows, start=1))

    def _open_rows(self, batch: Batch) -> tuple[EncodedRow, ...]:
        """Rows with an empty place for the prompt: the same for every soft prompt."""
        if batch.digest not in self._kept:
            self._kept[batch.digest] = self._encode(batch, PROMPT_MARK)
        self._kept.move_to_end(batch.digest)
        if len(self._kept) > _BATCHES_KEPT:
            self._kept.popitem(last=False)
        return self._kept[batch.digest]

    def _with_text(self, batch: Batch, text: str) -> tuple[EncodedRow, ...]:
        return tuple(
            replace(row, prompt=common_length(row.ids, open_row.ids[: open_row.prompt]))
            for row, open_row in zip(self._encode(batch, text), self._open_rows(batch), strict=True)
        )

    def _started(self, row: EncodedRow, number: int) -> EncodedRow:
        """An empty row gets a start token: a model that reads nothing says nothing."""
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
        """The row as one text with marks for slots, and whether a space stood before the label."""
        if Slot.LABEL not in row:
            raise InputError(f"row {number} has no {{label}} slot")
        if self._label_last and row[-1] is not Slot.LABEL:
            raise InputError(
                f"row {number} goes on after {{label}}, which this model cannot read: "
                "put {label} last in the template"
            )
        text, spaced = "", False
        for part in row:
            if isinstance(part, str):
                _check_unicode(part, f"row {number}")
                _check_marks(part, f"row {number}")
                text += part
                continue
            fill = LABEL_MARK if part is Slot.LABEL else filling
            if part is Slot.LABEL:
                spaced = text[-1:].isspace() if self._breaks else text.endswith(" ")
            # the space before a slot belongs to what fills it: only a text prompt spells it out
            keeps_space = part is Slot.PROMPT and fill not in ("", PROMPT_MARK)
            text = (text if keeps_space else text.removesuffix(" ")) + fill
            # a label's place is a token, behind which a text begins as the tokenizer has it begin
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


def _joins(tokenizer: Any) -> bool:
    """Let `_GLUE` undo the space that a tokenizer begins every stretch of a text with.

    A stretch is what stands between added tokens, so also what stands behind a mark. Tokenizers
    made of SentencePiece's files begin it with a space in the normalizer (Llama 2, Phi-3, GGUF) or
    in the pre-tokenizer (T5, XLM-R, Llama with ``legacy``), byte-level ones with
    ``add_prefix_space``. False for all others.
    """
    if not tokenizer.is_fast:
        return False
    backend = tokenizer.backend_tokenizer
    return _joins_in_normalizer(backend) or _joins_in_pre_tokenizer(backend)


def _joins_in_normalizer(backend: Any) -> bool:
    steps = _steps(backend.normalizer)
    for place, step in enumerate(steps, start=1):
        if isinstance(step, normalizers.Prepend):
            steps.insert(place, normalizers.Replace(step.prepend + _GLUE, ""))
            backend.normalizer = normalizers.Sequence(steps)
            return True
    return False


def _joins_in_pre_tokenizer(backend: Any) -> bool:
    steps = _steps(backend.pre_tokenizer)
    for step in steps:
        if isinstance(step, pre_tokenizers.Metaspace) and step.prepend_scheme == "always":
            glued = pre_tokenizers.Split(step.replacement + _GLUE, "removed")
            backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, glued])
            return True
    first = steps[0] if steps else None
    if not (isinstance(first, pre_tokenizers.ByteLevel) and first.add_prefix_space):
        return False
    # its pattern would join the glue to what follows: the normalizer puts the space there instead
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=first.use_regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([plain, *steps[1:]])
    backend.normalizer = normalizers.Sequence(
        [
            *_steps(backend.normalizer),
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(rf"\A (?=[\s{_GLUE}])"), ""),
            normalizers.Replace(_GLUE, ""),
        ]
    )
    return True


def _steps(part: Any) -> list[Any]:
    """The steps of a tokenizer's part, which may be one or none."""
    if part is None:
        return []
    return list(part) if hasattr(part, "__getitem__") else [part]


def _with_soft(row: EncodedRow, prompt: SoftPrompt) -> EncodedRow:
    places = prompt.anchor or (0,) * prompt.length
    return replace(
        row,
        ids=row.ids[: row.prompt] + places + row.ids[row.prompt :],
        label=row.label if row.label_first else row.label + prompt.length,
    )


def _without_prompt(row: tuple[Part, ...]) -> tuple[Part, ...]:
    """The row that follows a prompt before the start token, less the space between them."""
    if row[0] is not Slot.PROMPT:
        raise InputError(
            "a soft prompt with insertion 'prepend' stands before everything: "
            "put {prompt} first in the template"
        )
    head, *rest = row[1:]
    return (head.removeprefix(" "), *rest) if isinstance(head, str) else row[1:]


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


def _check_marks(text: str, what: str) -> None:
    if any(mark in text for mark in (PROMPT_MARK, LABEL_MARK, _GLUE)):
        raise InputError(f"{what} holds U+FDD0 to U+FDD2, which are no characters: remove them")


def word_notes(
    candidates: Sequence[str], words: Sequence[tuple[int, ...]], tokenizer: Any
) -> list[str]:
    """What a user should know about label words.

    Raises:
        InputError: A word is unknown to the model, or two are the same to it.
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
    for sharing in firsts.values():
        if len(sharing) > 1:
            listed = ", ".join(map(repr, sharing))
            notes.append(f"the label words {listed} begin with the same token")
    return notes
