"""Tokens of label words, named as a server's `logit_bias` takes them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lmaas_tune.errors import InputError, TransientError
from lmaas_tune_adapters.http import Endpoint, RefusedError, ServerError
from lmaas_tune_adapters.openai.replies import IncompleteError
from lmaas_tune_adapters.openai.rows import Context

_LONGEST = 6  # tokens of a word, where the number is unknown


@dataclass(frozen=True)
class LabelTokens:
    """A label word in its place, and its tokens.

    Attributes:
        text: With the space before it, if there is one.
        keys: The ids of its tokens; or the text itself, which llama.cpp tokenizes.
        count: Most tokens that it has.
        pieces: Its tokens' texts in order; empty while they are unknown.
    """

    text: str
    keys: tuple[str, ...]
    count: int
    pieces: tuple[str, ...]


class LabelTokenizer:
    """Finds the tokens of label words: from the user, the server's tokenizer, or its answers.

    Args:
        root: The server, which may have ``/tokenize`` as llama.cpp and vLLM do.
        model: The model's name on the server.
        given: Token ids of label words.
    """

    def __init__(self, root: Endpoint, model: str, given: Mapping[str, Sequence[int]]) -> None:
        self._root, self._model, self._given = root, model, given
        self._tokenizes, self._has_tokenized, self._has_failed = True, False, False
        self._known: dict[tuple[bool, str], LabelTokens] = {}

    @property
    def given(self) -> tuple[str, ...]:
        """Words whose ids the user gave."""
        return tuple(self._given)

    def tokenize(self, context: Context, word: str, *, in_chat: bool) -> LabelTokens:
        """Tokenize a word behind a context; in a chat the answer begins with it.

        Raises:
            TransientError: The tokenizer did not answer.
            InputError: Ids were given, and none of this word.
        """
        key = context.spaced and not in_chat, word
        if key not in self._known:
            text = f" {word}" if key[0] else word
            ids = self._ids("" if in_chat else context.text, word, text)
            keys = tuple(map(str, ids))
            if self._given and not keys:
                raise InputError(f"token_ids does not have {word!r}: give its ids too")
            count = len(ids) or min(_LONGEST, len(text.encode()))
            self._known[key] = LabelTokens(text, keys or (text,), count, keys)
        return self._known[key]

    def learn(self, tokens: LabelTokens, pieces: Sequence[str]) -> None:
        """Record a word's pieces, which an answer showed."""
        if tokens.pieces:
            return
        # without half characters, which are no text
        whole = tuple(pieces) if "".join(pieces) == tokens.text else ()
        for key, known in list(self._known.items()):
            if known is tokens:
                self._known[key] = replace(tokens, count=len(pieces), pieces=whole)

    def _ids(self, before: str, word: str, text: str) -> Sequence[int]:
        """Ids of the word's tokens; empty where they are unknown."""
        if word in self._given:
            return self._given[word]
        first = self._tokens(before) if before else []
        both = self._tokens(before + text)
        if both[: len(first)] != first:  # text and word share a token: take the word alone
            return self._tokens(text)
        return both[len(first) :]

    def _tokens(self, text: str) -> list[int]:
        """Ids of a text's tokens; empty if the server has no tokenizer, which is then known.

        It has none if it refuses the first request, or fails at two before it has answered any.

        Raises:
            TransientError: It failed; it is asked again.
        """
        if not self._tokenizes:
            return []
        try:
            ids = self._ask(text)
        except (RefusedError, ServerError, IncompleteError) as error:
            refused = isinstance(error, RefusedError)
            if not self._has_tokenized and (refused or self._has_failed):
                self._tokenizes = False
                return []
            self._has_failed = True
            if not refused:
                raise
            raise TransientError(f"{error}, though it has answered before") from error
        self._has_tokenized = True
        return ids

    def _ask(self, text: str) -> list[int]:
        """Ask the server's tokenizer, in the fields of llama.cpp and of vLLM.

        Raises:
            IncompleteError: The answer has no token ids.
        """
        body = {"model": self._model, "content": text, "prompt": text}
        plain = {"add_special": False, "add_special_tokens": False}
        answer = self._root.post("/tokenize", content={**body, **plain})
        try:
            ids = [operator.index(i) for i in answer.json()["tokens"]]
        except (TransientError, KeyError, TypeError) as error:
            raise IncompleteError(f"{answer.url} did not answer with token ids") from error
        if not ids:
            raise IncompleteError(f"{answer.url} found no tokens in a text")
        return ids
