"""The interface of scoring modes, and two of them: echoed tokens and the generated text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np

from lmaas_tune.backend import ScoreReply, Usage
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray
from lmaas_tune_adapters.openai.endpoints import (
    Completions,
    GenerationEndpoint,
    SamplingParams,
    TrackedEndpoint,
)
from lmaas_tune_adapters.openai.replies import Choice, IncompleteError, Token
from lmaas_tune_adapters.openai.rows import Context
from lmaas_tune_adapters.openai.words import (
    exact_logprobs,
    find_word,
    stated_logprobs,
    strip_space,
    upper_bound,
    without_thoughts,
)

Tokens: TypeAlias = tuple[Token, ...]
Texts: TypeAlias = tuple[str, ...]

PROMPTS = 16
"""Rows in one request; more do not make a server faster."""

THINKS = (
    "the model thinks before it answers: switch that off by "
    """extra_body={"chat_template_kwargs": {"enable_thinking": false}} (vLLM, llama.cpp) or """
    """extra_body={"reasoning_effort": "none"} (hosted APIs)"""
)


class Scorer(Protocol):
    """Scores label words in one mode."""

    @property
    def endpoint(self) -> GenerationEndpoint:
        """Receives the requests."""
        ...

    @property
    def settings(self) -> str:
        """Settings of the mode that change scores, for the backend's identity."""
        ...

    @property
    def rows(self) -> int:
        """Most rows in one request."""
        ...

    def score(self, contexts: Sequence[Context], words: Sequence[str]) -> ScoreReply:
        """(rows, words) log-probabilities, their usage, and how many of them are bounds.

        Raises:
            BackendError: The server failed.
            InputError: The server cannot read a row.
        """
        ...

    def try_out(self, contexts: Sequence[Context], words: Sequence[str]) -> None:
        """Score once, to find out whether the server returns all that the mode needs.

        Raises:
            IncompleteError: It does not.
            RefusedError: It refuses the request.
        """
        ...

    def notes(self, words: Sequence[str]) -> list[str]:
        """Sentences about the mode that a user should read."""
        ...


class EchoScorer:
    """Reads the echoed tokens of each label word: exact, at one prompt a word and row.

    The first rows are sent without a word too, which shows the tokens of each word.
    """

    def __init__(self, endpoint: Completions) -> None:
        self.endpoint = endpoint
        self.settings = "scores=echo"
        self.rows = PROMPTS // 4 if endpoint.request_format.batched else 1
        self._learnt: dict[tuple[bool, str], Texts] = {}

    def score(self, contexts: Sequence[Context], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        learn = any((c.spaced, word) not in self._learnt for c in contexts for word in words)
        texts = [
            text
            for context in contexts
            for text in [context.text] * learn + [context.continued(word) for word in words]
        ]
        each = len(words) + learn
        with TrackedEndpoint(self.endpoint) as endpoint:
            choices = endpoint.ask(texts, SamplingParams(top_logprobs=1, echo=True))
            read = [_read(choice, text) for choice, text in zip(choices, texts, strict=True)]
            rows = [read[start : start + each] for start in range(0, len(read), each)]
            if learn:
                for context, choice, row in zip(contexts, choices[::each], rows, strict=True):
                    if not choice.text.startswith(context.text):
                        raise IncompleteError("the server does not echo the text")
                    self._learn(context, words, row[0], row[1:])
                rows = [filled for _, *filled in rows]
            scores = [self._row(c, words, row) for c, row in zip(contexts, rows, strict=True)]
        return reply(scores, words, endpoint.usage)

    def try_out(self, contexts: Sequence[Context], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        try:
            self.score(contexts, words)
        except InputError as error:  # the words of the trial are common ones, after a space
            raise IncompleteError("the tokens it gives are not those that it read") from error

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        return [
            f"each row is sent and paid {len(words)} times, once with each label word: "
            "scores=logprobs sends it once, and scores only words that the server names"
        ]

    def _learn(
        self, context: Context, words: Sequence[str], bare: Tokens, filled: Sequence[Tokens]
    ) -> None:
        """Record the tokens that each word adds to the bare text."""
        before = _texts(bare)
        for word, tokens in zip(words, filled, strict=True):
            after = _texts(tokens)
            if after == before:
                raise IncompleteError("the server does not return the tokens that it read")
            if after[: len(before)] != before:
                raise _runs_together(word)
            self._learnt[context.spaced, word] = after[len(before) :]

    def _row(self, context: Context, words: Sequence[str], read: Sequence[Tokens]) -> list[float]:
        """Sum over the last tokens; those before them must be the same for all words."""
        learnt = [self._learnt[context.spaced, word] for word in words]
        texts = [_texts(tokens) for tokens in read]
        first = texts[0][: -len(learnt[0])]
        for word, own, tokens in zip(words, learnt, texts, strict=True):
            length = len(own)
            found, expected = _spelt(tokens[-length:]), _spelt(own)
            if tokens[:-length] != first or (found != expected and found.endswith(expected)):
                raise _runs_together(word)
            if found != expected:
                raise IncompleteError(
                    f"the text does not end with the tokens of {word!r}: the server no longer "
                    "returns the tokens that it read, or has another tokenizer now"
                )
        return [
            sum(token.known_logprob() for token in tokens[-len(own) :])
            for tokens, own in zip(read, learnt, strict=True)
        ]


class GeneratedTextScorer:
    """Reads the label from the generated text, and scores it by `words.stated_logprobs`.

    Args:
        endpoint: Receives the requests.
        max_tokens: Most tokens of an answer.
    """

    def __init__(self, endpoint: GenerationEndpoint, *, max_tokens: int) -> None:
        self.endpoint, self._max_tokens = endpoint, max_tokens
        self._params = SamplingParams(max_tokens=max_tokens)
        self.settings = f"scores=text write={max_tokens}"
        self.rows = PROMPTS if endpoint.request_format.batched else 1

    def score(self, contexts: Sequence[Context], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        choices, usage = self.endpoint.ask([c.text for c in contexts], self._params)
        named = [find_word(choice.text, words) for choice in choices]
        scores = [stated_logprobs(label, len(words)) for label in named]
        return reply(scores, words, usage, bounds=len(words) * named.count(None))

    def try_out(self, contexts: Sequence[Context], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        choices, _ = self.endpoint.ask([c.text for c in contexts], self._params)
        if all(choice.thinks and not without_thoughts(choice.text) for choice in choices):
            raise IncompleteError(f"{THINKS}; or raise answer_tokens, now {self._max_tokens}")
        if not any(choice.text.strip() for choice in choices):
            raise IncompleteError(
                f"the model wrote nothing in {self._max_tokens} tokens: if it thinks before it "
                "answers, switch that off by extra_body, or raise answer_tokens"
            )

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        return [
            "only the answers' text is read: the label that an answer names gets the probability "
            "0.9, the others share 0.1; up to "
            f"{self._max_tokens} written tokens a row are paid, where a price counts one"
        ]


def reply(
    scores: Sequence[Sequence[float] | FloatArray],
    words: Sequence[str],
    usage: Usage,
    *,
    bounds: int = 0,
) -> ScoreReply:
    """Make a reply of one row of scores for each context."""
    rows: FloatArray = np.array(scores, dtype=np.float64).reshape(len(scores), len(words))
    return ScoreReply(rows, usage, bounds)


def exact_scores(
    endpoint: GenerationEndpoint, context: Context, choice: Choice, words: Sequence[str]
) -> list[float | None]:
    """Scores of the words that are one of the first likeliest tokens; None for the others."""
    if not choice.tokens:
        return [None] * len(words)
    behind_space = context.spaced and endpoint.name != "chat"
    return exact_logprobs(choice.tokens[0].top, words, spaced=behind_space)


def bounded(token: Token | None, scores: Sequence[float | None]) -> tuple[list[float], int]:
    """The scores, an upper bound for each missing one, and the number of bounds.

    Args:
        token: The first written token, with the likeliest ones; None if the model wrote nothing.
        scores: Of the label words; None for a missing one.

    Raises:
        IncompleteError: The token has none of the likeliest tokens beside it, or filler that may
            stand in place of a missing word.
    """
    if token is None:
        return list(stated_logprobs(None, len(scores))), len(scores)
    if not token.top:
        raise IncompleteError("the server names none of the likeliest tokens")
    if token.has_filler and None in scores:
        raise IncompleteError("the server returned filler in place of the likeliest tokens")
    most = upper_bound(token.top, token.text)
    return [most if score is None else score for score in scores], list(scores).count(None)


def check_answers(choices: Sequence[Choice]) -> None:
    """Check that the first written token can be a label word's.

    Raises:
        IncompleteError: The model wrote nothing, or thinks before it answers.
    """
    if not any(choice.tokens for choice in choices):
        raise IncompleteError("the model wrote nothing, and so has no likeliest tokens")
    if any(choice.thinks for choice in choices):
        raise IncompleteError(THINKS)


def _read(choice: Choice, text: str) -> Tokens:
    """The tokens of the text, without the written one; there is none if the model ended there."""
    if not choice.tokens:
        raise IncompleteError("the server does not return the tokens that it read")
    last = choice.tokens[-1].text
    ended = choice.text == text and last != "" and text.endswith(last)
    return choice.tokens if ended else choice.tokens[:-1]


def _texts(tokens: Tokens) -> Texts:
    return tuple(token.text for token in tokens)


def _spelt(texts: Texts) -> str:
    """What tokens spell: the word, or its halved characters, or ids, as the server shows them."""
    return strip_space("".join(texts))


def _runs_together(word: str) -> InputError:
    return InputError(
        f"the label word {word!r} runs together with the text before it, so that it has no tokens "
        "of its own: put a space or a line break before {label}, or take scores='logprobs'"
    )
