"""Encoding requests for one model: checks, token ids, label words, usage and notes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from lmaas_tune.backend import Capabilities, Inspection, ScoreRequest, Usage
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import DeepPrompt, Prompt, SoftPrompt, TextPrompt
from lmaas_tune_adapters.hf.encoding import EncodedRow, PromptParts, RowEncoder, word_notes
from lmaas_tune_adapters.hf.label_tokens import Word

Count = Callable[[EncodedRow, Sequence[Word]], int]
"""Counts tokens or positions of a row and the label words that are scored in it."""


def parts_of(prompt: Prompt) -> PromptParts:
    """Take a prompt apart; the only place where the adapters with torch ask for its kind."""
    if isinstance(prompt, TextPrompt):
        return PromptParts(text=prompt.text)
    if isinstance(prompt, DeepPrompt):
        return PromptParts(soft=prompt.first, above=prompt.above)
    return PromptParts(soft=prompt) if isinstance(prompt, SoftPrompt) else PromptParts()


class RequestEncoder:
    """Turns requests into rows of token ids. May be used from several threads.

    Args:
        tokenizer: The model's.
        capabilities: What the model takes.
        vocabulary_size: Token ids are smaller than this.
        ends: Whether the end tokens that the tokenizer adds are read, see `RowEncoder`.
        label_starts_text: Whether a label word starts a new text, see `RowEncoder`.
        tokens: Counts the tokens that the model reads for a row.
        positions: Counts the positions of a row with its longest label word, as in
            `Capabilities.max_tokens`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        capabilities: Capabilities,
        vocabulary_size: int,
        ends: bool,
        tokens: Count,
        positions: Count,
        label_starts_text: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = RowEncoder(
            tokenizer,
            label_last=not capabilities.label_anywhere,
            ends=ends,
            label_starts_text=label_starts_text,
        )
        self._capabilities, self._vocabulary_size = capabilities, vocabulary_size
        self._tokens, self._positions = tokens, positions
        self._lock = threading.Lock()

    def text(self, text: str) -> tuple[int, ...]:
        """Encode a text without start or end token."""
        with self._lock:
            return self._encoder.text(text)

    def rows(self, request: ScoreRequest) -> tuple[EncodedRow, ...]:
        """Encode the rows of a request.

        Raises:
            InputError: This model cannot read them.
        """
        prompt = self._checked(request.prompt)
        with self._lock:
            rows = self._encoder.rows(request.batch, prompt)
        for number, row in enumerate(rows, start=1):
            self._check_row(request, row, number, prompt)
        return rows

    def words(self, request: ScoreRequest, row: EncodedRow) -> tuple[Word, ...]:
        """Encode every label word as it stands in the row."""
        with self._lock:
            return self._encoder.words(request.candidates, spaced=row.spaced)

    def one_token_words(self) -> Sequence[str]:
        """See `lmaas_tune.capabilities.KnowsWords`."""
        with self._lock:
            return self._encoder.one_token_words

    def usage(self, request: ScoreRequest, rows: Sequence[EncodedRow]) -> Usage:
        """Compute the usage of a request that takes one call."""
        extra = self._extra_positions(parts_of(request.prompt))
        tokens = sum(self._tokens(row, self.words(request, row)) + extra for row in rows)
        return Usage(requests=1, sequences=len(rows), tokens=tokens)

    def inspect(self, request: ScoreRequest) -> Inspection:
        """See `lmaas_tune.backend.Inspects.inspect`."""
        rows = self.rows(request)
        notes: dict[str, None] = {}
        for row in {row.spaced: row for row in rows}.values():
            words = self.words(request, row)
            with self._lock:
                notes |= dict.fromkeys(word_notes(request.candidates, words, self._tokenizer))
        return Inspection(tuple(notes), self.usage(request, rows))

    def check_ids(self, token_ids: Sequence[int], name: str = "the token id") -> None:
        """Refuse a token id that the model does not have."""
        for wrong in (i for i in token_ids if not 0 <= i < self._vocabulary_size):
            raise InputError(
                f"{name} {wrong} is none of this model's, which go from 0 to "
                f"{self._vocabulary_size - 1}"
            )

    def _check_row(
        self, request: ScoreRequest, row: EncodedRow, number: int, prompt: PromptParts
    ) -> None:
        words = self.words(request, row)
        if not all(words):
            empty = request.candidates[words.index(())]
            raise InputError(f"the label word {empty!r} has no tokens: choose another")
        self._check_known(row.ids, number)
        self._check_known(max(words, key=max, default=()), number)
        limit, positions = self._capabilities.max_tokens, self._positions(row, words)
        if limit is not None and positions > limit:
            tokens = positions + self._extra_positions(prompt)
            characters = sum(
                len(part) for part in request.batch.rows[number - 1] if isinstance(part, str)
            )
            raise InputError(
                f"row {number} has {tokens} tokens with its prompt and label, more than the "
                f"{limit} that this model reads: shorten the text (about "
                f"{int(0.9 * characters * limit / tokens)} characters would fit; --truncate N, or "
                "{field:.N} in the template, reads the first N of a field) or the prompt"
            )

    def _extra_positions(self, prompt: PromptParts) -> int:
        """How many vectors stand outside the positions of a masked model."""
        soft = prompt.soft
        if soft is None or soft.insertion != "prepend" or not self._capabilities.label_anywhere:
            return 0
        return soft.length

    def _check_known(self, ids: Sequence[int], number: int) -> None:
        """Refuse a token that only the tokenizer has, such as one that was added later."""
        if max(ids, default=0) >= self._vocabulary_size:
            token = self._tokenizer.convert_ids_to_tokens(max(ids))
            raise InputError(
                f"row {number} holds {token!r}, a token that the tokenizer has and the model has "
                "no embedding for: remove it from the text, or resize the model's embeddings"
            )

    def _checked(self, prompt: Prompt) -> PromptParts:
        """Take apart a prompt that this model takes."""
        parts = parts_of(prompt)
        if parts.text is not None:
            return parts
        if parts.above is not None and len(parts.above) + 1 != self._capabilities.deep_layers:
            raise InputError(
                f"this model takes {_depth(self._capabilities.deep_layers)}, and not {prompt}"
            )
        soft = parts.soft
        if soft is None:
            raise InputError(f"this model takes soft prompts as vectors, and not {prompt}")
        if soft.width != self._capabilities.soft_prompt_width:
            raise InputError(
                f"this model's embeddings are {self._capabilities.soft_prompt_width} wide, and the "
                f"soft prompt {soft.width}"
            )
        if soft.insertion not in self._capabilities.insertions:
            raise InputError(
                f"this model takes no soft prompt with insertion {soft.insertion!r}; it takes "
                + ", ".join(sorted(self._capabilities.insertions))
            )
        self.check_ids(soft.anchor, "the anchor token")
        return parts


def _depth(layers: int | None) -> str:
    return "no deep prompts" if layers is None else f"deep prompts through {layers} layers"
