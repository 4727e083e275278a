"""Scoring label words by the likeliest tokens that a server returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmaas_tune.backend import ScoreReply
from lmaas_tune_adapters.http import RefusedError, ServerError
from lmaas_tune_adapters.openai.endpoints import (
    INVALID,
    ONE_TOKEN,
    GenerationEndpoint,
    SamplingParams,
    TrackedEndpoint,
)
from lmaas_tune_adapters.openai.replies import Choice, IncompleteError, Token
from lmaas_tune_adapters.openai.rows import Context
from lmaas_tune_adapters.openai.scorers import PROMPTS, bounded, check_answers, reply
from lmaas_tune_adapters.openai.words import (
    exact_logprobs,
    first_token_logprobs,
    shared_beginnings,
)

_FAILURES = 2  # of a server at a larger number, before a call goes without it
_RETRIES = 4  # at once, of rows with filler


@dataclass(frozen=True)
class _Row:
    """The likeliest tokens of one row, and the scores of label words from them.

    Attributes:
        token: The first written token; None where the model wrote nothing.
        scores: Of the label words; None for a missing one.
    """

    token: Token | None
    scores: list[float | None]

    @property
    def count(self) -> int:
        """How many tokens the server returned."""
        return 0 if self.token is None else len(self.token.top)

    @property
    def incomplete(self) -> bool:
        """Whether a request for more tokens may find the missing words."""
        return self.token is not None and None in self.scores

    @property
    def has_filler(self) -> bool:
        """Whether filler stands in place of tokens that would help."""
        return self.incomplete and self.token is not None and self.token.has_filler


class TopLogprobsScorer:
    """Scores a label word by its token among the likeliest ones.

    Where a word is missing, more tokens are requested until the server refuses. A word that is
    still missing gets the upper bound of `words.upper_bound`, and is counted as a bound. A word of
    several tokens gets the likelihood of its first token.
    """

    def __init__(self, endpoint: GenerationEndpoint) -> None:
        self.endpoint = endpoint
        self._k = endpoint.request_format.top_counts[0]
        self._larger = endpoint.request_format.larger_counts
        most = f"-{self._larger[-1]}" if self._larger else ""
        self.settings = f"scores=logprobs k={self._k}{most}"
        self.rows = PROMPTS if endpoint.request_format.batched else 1
        self._failures = 0  # of the server in a row, at a larger number
        self._returned_fewer = False  # the last time that a larger number was requested
        self._several: dict[tuple[bool, str], bool] = {}

    def score(self, contexts: Sequence[Context], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        with TrackedEndpoint(self.endpoint) as endpoint:
            rows = self._rows(endpoint, contexts, words, self._k)
            while any(row.incomplete for row in rows) and self._raise_k(
                endpoint, contexts, words, rows
            ):
                pass
        scores = [bounded(row.token, row.scores) for row in rows]
        bounds = sum(count for _, count in scores)
        return reply([row for row, _ in scores], words, endpoint.usage, bounds=bounds)

    def try_out(self, contexts: Sequence[Context], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        with TrackedEndpoint(self.endpoint) as endpoint:
            choices = endpoint.ask([c.text for c in contexts], SamplingParams(top_logprobs=self._k))
            check_answers(choices)
            for choice in choices:
                _first(choice)

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        up_to = f", and up to {self._larger[-1]} where one is missing" if self._larger else ""
        return [
            f"label words are looked for among the {self._k} likeliest tokens{up_to}; a missing "
            "one gets an upper bound, and one of several tokens gets the likelihood of its first "
            "token, which was up to 9.5 too high in our tests",
            *shared_beginnings(words),
        ]

    def _raise_k(
        self,
        endpoint: TrackedEndpoint,
        contexts: Sequence[Context],
        words: Sequence[str],
        rows: list[_Row],
    ) -> bool:
        """Ask for more tokens where words are missing; False if that is over for this call."""
        larger = [k for k in self._larger if k > self._k]
        if not larger:
            return False
        indices = [i for i, row in enumerate(rows) if row.incomplete]
        try:
            more = self._rows(endpoint, [contexts[i] for i in indices], words, larger[0])
        except RefusedError as error:
            if error.status not in INVALID:
                raise
            endpoint.book(error)
            self._larger = ()
            return False
        except ServerError as error:
            if self._failures < _FAILURES:
                self._failures += 1
                raise
            endpoint.book(error)
            return False
        self._failures = 0
        before = [rows[i].count for i in indices]
        after = [row.count for row in more]
        for i, row in zip(indices, more, strict=True):
            if row.count >= rows[i].count:
                rows[i] = row
        if any(new > old for new, old in zip(after, before, strict=True)):
            self._k, self._returned_fewer = larger[0], False
            return True
        if after == before or self._returned_fewer:
            self._larger = ()  # the server accepts the number, and returns no more tokens
        self._returned_fewer = True  # one answer alone may have been cut
        return False

    def _rows(
        self, endpoint: TrackedEndpoint, contexts: Sequence[Context], words: Sequence[str], k: int
    ) -> list[_Row]:
        """The rows' likeliest tokens; rows with filler in place of missing words are asked again.

        Raises:
            IncompleteError: Some have it in every answer.
        """
        rows: dict[int, _Row] = {}
        asked = list(range(len(contexts)))
        for _ in range(1 + _RETRIES):
            texts = [contexts[i].text for i in asked]
            choices = endpoint.ask(texts, SamplingParams(top_logprobs=k))
            for i, choice in zip(asked, choices, strict=True):
                rows[i] = self._row(endpoint, contexts[i], words, choice)
            if not (asked := [i for i in asked if rows[i].has_filler]):
                return [rows[i] for i in range(len(contexts))]
        raise IncompleteError(
            f"the server returned filler in place of the likeliest tokens {1 + _RETRIES} times: "
            "vLLM does so while it answers other requests, those that ask for tokens by id"
        )

    def _row(
        self, endpoint: TrackedEndpoint, context: Context, words: Sequence[str], choice: Choice
    ) -> _Row:
        if (token := _first(choice)) is None:
            return _Row(None, [None] * len(words))
        spaced = None if self.endpoint.name == "chat" else context.spaced
        scores = exact_logprobs(token.top, words, spaced=spaced)
        begun = first_token_logprobs(token.top, words, spaced=spaced)
        for i, word in enumerate(words):
            if scores[i] is None and begun[i] is not None:
                scores[i] = begun[i] if self._has_several(endpoint, context, word) else None
        return _Row(token, scores)

    def _has_several(self, endpoint: TrackedEndpoint, context: Context, word: str) -> bool:
        """Whether a word has several tokens, by the server's counts with and without it."""
        key = context.spaced, word
        if key not in self._several:
            counts = []
            for text in (context.text, context.continued(word)):
                before = endpoint.usage.tokens
                endpoint.ask([text], ONE_TOKEN)
                counts.append(endpoint.usage.tokens - before)
            if 0 in counts and endpoint.usage.tokens:
                return False  # the server counts, but not this time
            self._several[key] = counts[1] - counts[0] > 1
        return self._several[key]


def _first(choice: Choice) -> Token | None:
    """The first written token; None where there is none.

    Raises:
        IncompleteError: The server does not return the likeliest tokens.
    """
    if not choice.tokens:
        return None
    if not choice.tokens[0].top:
        raise IncompleteError("the server names none of the likeliest tokens")
    return choice.tokens[0]
