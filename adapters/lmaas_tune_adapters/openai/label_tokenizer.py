"""Names of a label word's tokens, as a server's `logit_bias` takes them."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lmaas_tune.errors import InputError
from lmaas_tune_adapters.http import Endpoint, RefusedError, ServerError
from lmaas_tune_adapters.openai.rows import Question

_LONGEST = 6  # tokens of a word, where nothing tells how many


@dataclass(frozen=True)
class Spelt:
    """A label word as it is written in its place, and its tokens.

    Attributes:
        text: With the space before it, where it has one.
        keys: Its tokens' ids; or the text itself, which llama.cpp takes apart by itself.
        count: How many tokens it has at most.
        pieces: Its tokens one by one, in order; none where they are not known yet.
    """

    text: str
    keys: tuple[str, ...]
    count: int
    pieces: tuple[str, ...]


class Spelling:
    """Learns the tokens of label words: from the user, from the server's tokenizer, or not.

    Args:
        root: Server that may have ``/tokenize``, as llama.cpp and vLLM have.
        model: As the server calls it.
        given: Token ids of label words.
    """

    def __init__(self, root: Endpoint, model: str, given: Mapping[str, Sequence[int]]) -> None:
        self._root, self._model, self._given = root, model, given
        self._tokenizes = True
        self._known: dict[tuple[bool, str], Spelt] = {}

    @property
    def given(self) -> tuple[str, ...]:
        """Words whose ids the user gave."""
        return tuple(self._given)

    def of(self, question: Question, word: str, *, in_chat: bool) -> Spelt:
        """A word behind a text; an answer of a chat begins with it.

        Raises:
            TransientError: The tokenizer did not answer.
            InputError: Ids were given, and none of this word.
        """
        key = question.spaced and not in_chat, word
        if key not in self._known:
            text = f" {word}" if key[0] else word
            ids = self._ids("" if in_chat else question.text, word, text)
            keys = tuple(map(str, ids))
            if self._given and not keys:
                raise InputError(f"token_ids does not have {word!r}: give its ids too")
            count = len(ids) or min(_LONGEST, len(text.encode()))
            self._known[key] = Spelt(text, keys or (text,), count, keys)
        return self._known[key]

    def learn(self, spelt: Spelt, pieces: Sequence[str]) -> None:
        """Take note of a word's tokens, which an answer showed."""
        if spelt.pieces:
            return
        told = tuple(pieces) if "".join(pieces) == spelt.text else ()  # half characters are none
        for key, known in list(self._known.items()):
            if known is spelt:
                self._known[key] = replace(spelt, count=len(pieces), pieces=told)

    def _ids(self, before: str, word: str, text: str) -> Sequence[int]:
        """Ids of the word's tokens; none where nobody tells them."""
        if word in self._given:
            return self._given[word]
        first = self._tokens(before) if before else []
        both = self._tokens(before + text)
        if both[: len(first)] != first:  # it runs together with the text: take it by itself
            return self._tokens(text)
        return both[len(first) :]

    def _tokens(self, text: str) -> list[int]:
        """What the server's tokenizer says, in the words of llama.cpp and of vLLM."""
        if not self._tokenizes:
            return []
        asked = {"model": self._model, "content": text, "prompt": text}
        plain = {"add_special": False, "add_special_tokens": False}
        try:
            answer = self._root.post("/tokenize", content={**asked, **plain})
            return [operator.index(i) for i in json.loads(answer.content)["tokens"]]
        except (RefusedError, ServerError, ValueError, KeyError, TypeError):
            self._tokenizes = False
            return []
