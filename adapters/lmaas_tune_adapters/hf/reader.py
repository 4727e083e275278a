"""What one model is asked, in its own tokens: requests checked, encoded, and what they take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from lmaas_tune.backend import Capabilities, Inspection, ScoreRequest, Usage
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import DeepPrompt, Prompt, SoftPrompt, TextPrompt
from lmaas_tune_adapters.hf.answers import Word
from lmaas_tune_adapters.hf.encoding import EncodedRow, Encoder, word_notes

Count = Callable[[EncodedRow, Sequence[Word]], int]
"""Counts something of a row and the label words that are scored in it."""


class Reader:
    """Turns requests into rows of tokens. May be used from several threads.

    Args:
        tokenizer: The model's.
        capabilities: What the model takes.
        vocabulary_size: Token ids go from 0 to below this.
        ends: Whether the end tokens that the tokenizer adds are read, see `Encoder`.
        answers_apart: Whether a label word begins as a text does, see `Encoder`.
        tokens: What the model reads of a row, in tokens.
        places: How long a row gets with its longest label word, as `Capabilities.max_tokens`
            counts.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        capabilities: Capabilities,
        vocabulary_size: int,
        ends: bool,
        tokens: Count,
        places: Count,
        answers_apart: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(
            tokenizer,
            label_last=not capabilities.label_anywhere,
            ends=ends,
            answers_apart=answers_apart,
        )
        self._can, self._vocabulary_size = capabilities, vocabulary_size
        self._tokens, self._places = tokens, places
        self._lock = threading.Lock()

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of a text, with no start or end token."""
        with self._lock:
            return self._encoder.text(text)

    def rows(self, request: ScoreRequest) -> tuple[EncodedRow, ...]:
        """Rows of a request that this model can read.

        Raises:
            InputError: It cannot.
        """
        prompt = self._checked(request.prompt)
        with self._lock:
            rows = self._encoder.rows(request.batch, prompt)
        limit, apart = self._can.max_tokens, _tokens_apart(prompt)
        for number, row in enumerate(rows, start=1):
            words = self.words(request, row)
            if not all(words):
                empty = request.candidates[words.index(())]
                raise InputError(f"the label word {empty!r} has no tokens: choose another")
            for ids in (row.ids, *words):
                self._check_known(ids, number)
            places = self._places(row, words)
            if limit is not None and places > limit:
                raise InputError(
                    f"row {number} has {places + apart} tokens with its prompt and label, more "
                    f"than the {limit} that this model reads: shorten the text or the prompt"
                )
        return rows

    def words(self, request: ScoreRequest, row: EncodedRow) -> tuple[Word, ...]:
        """Tokens of every label word as it stands in the row."""
        with self._lock:
            return self._encoder.words(request.candidates, spaced=row.spaced)

    def usage(self, request: ScoreRequest, rows: Sequence[EncodedRow]) -> Usage:
        """What a request takes, in one call."""
        apart = _tokens_apart(request.prompt)
        tokens = sum(self._tokens(row, self.words(request, row)) + apart for row in rows)
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

    def check_ids(self, token_ids: Sequence[int], what: str = "the token id") -> None:
        """Refuse a token that the model does not have."""
        for wrong in (i for i in token_ids if not 0 <= i < self._vocabulary_size):
            raise InputError(
                f"{what} {wrong} is none of this model's, which go from 0 to "
                f"{self._vocabulary_size - 1}"
            )

    def _check_known(self, ids: Sequence[int], number: int) -> None:
        """Refuse what only the tokenizer knows: some are saved with tokens added later."""
        if max(ids, default=0) >= self._vocabulary_size:
            token = self._tokenizer.convert_ids_to_tokens(max(ids))
            raise InputError(
                f"row {number} holds {token!r}, a token that the tokenizer has and the model has "
                "no embedding for: remove it from the text, or resize the model's embeddings"
            )

    def _checked(self, prompt: Prompt) -> SoftPrompt | TextPrompt:
        """What stands in a row."""
        if isinstance(prompt, TextPrompt):
            return prompt
        if isinstance(prompt, DeepPrompt):
            if prompt.layers != self._can.deep_layers:
                raise InputError(
                    f"this model takes {_depth(self._can.deep_layers)}, and not {prompt}"
                )
            prompt = prompt.first
        if not isinstance(prompt, SoftPrompt):
            raise InputError(f"this model takes soft prompts as vectors, and not {prompt}")
        if prompt.width != self._can.soft_prompt_width:
            raise InputError(
                f"this model's embeddings are {self._can.soft_prompt_width} wide, and the "
                f"soft prompt {prompt.width}"
            )
        if prompt.insertion not in self._can.insertions:
            raise InputError(
                f"this model takes no soft prompt with insertion {prompt.insertion!r}; it takes "
                + ", ".join(sorted(self._can.insertions))
            )
        self.check_ids(prompt.anchor, "the anchor token")
        return prompt


def _depth(layers: int | None) -> str:
    return "no deep prompts" if layers is None else f"deep prompts through {layers} layers"


def _tokens_apart(prompt: Prompt) -> int:
    """Tokens of a prompt that stands outside the model's places."""
    if isinstance(prompt, DeepPrompt):
        prompt = prompt.first
    return prompt.length if isinstance(prompt, SoftPrompt) and prompt.insertion == "prepend" else 0
