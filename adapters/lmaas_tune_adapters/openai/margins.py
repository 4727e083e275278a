"""Scoring label words by raising the logits of all, where answers include `logit_bias`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmaas_tune.backend import ScoreReply
from lmaas_tune_adapters.openai.endpoints import (
    GenerationEndpoint,
    SamplingParams,
    TrackedEndpoint,
)
from lmaas_tune_adapters.openai.forced import RAISED, TOLERANCE
from lmaas_tune_adapters.openai.label_tokenizer import LabelTokenizer
from lmaas_tune_adapters.openai.replies import Choice, IncompleteError
from lmaas_tune_adapters.openai.rows import Context, by_spacing
from lmaas_tune_adapters.openai.scorers import PROMPTS, bounded, check_answers, exact_scores, reply
from lmaas_tune_adapters.openai.words import shared_beginnings

_ALL = -0.01  # log of the smallest share of raised words among all tokens


class MarginScorer:
    """Raises all label words by the same `logit_bias`: all are returned, with exact differences.

    It takes one request a row. The words' total probability is lost, which no loss over labels
    uses. A word of several tokens is not among the answers' tokens, and is counted as a bound.
    """

    def __init__(self, endpoint: GenerationEndpoint, tokenizer: LabelTokenizer) -> None:
        self.endpoint, self._tokenizer = endpoint, tokenizer
        self._k = endpoint.request_format.top_counts[0]
        self.settings = "scores=margins"
        self.rows = PROMPTS if endpoint.request_format.batched else 1

    def score(self, contexts: Sequence[Context], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        scores: list[list[float]] = [[] for _ in contexts]
        bounds = 0
        with TrackedEndpoint(self.endpoint) as endpoint:
            for rows in by_spacing(contexts):
                choices = self._raise(endpoint, [contexts[row] for row in rows], words)
                for row, choice in zip(rows, choices, strict=True):
                    scores[row], count = self._read(contexts[row], words, choice)
                    bounds += count
        return reply(scores, words, endpoint.usage, bounds=bounds)

    def try_out(self, contexts: Sequence[Context], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        with TrackedEndpoint(self.endpoint) as endpoint:
            plain = endpoint.ask([contexts[0].text], SamplingParams(top_logprobs=self._k))
            check_answers(plain)
            (raised,) = self._raise(endpoint, contexts[:1], words)
            before, count = self._read(contexts[0], words, plain[0])
            after, missing = self._read(contexts[0], words, raised)
            if missing or np.logaddexp.reduce(after) < _ALL:
                raise IncompleteError("logit_bias does not change the likeliest tokens")
            if count == 0 and np.ptp(np.subtract(after, before)) > TOLERANCE:
                raise IncompleteError("logit_bias does not raise all tokens by the same amount")

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        return [
            "label words are raised together by logit_bias: the differences of their scores are "
            "exact, and their probabilities add up to 1; a word of several tokens has no score",
            *shared_beginnings(words),
        ]

    def _raise(
        self, endpoint: TrackedEndpoint, contexts: Sequence[Context], words: Sequence[str]
    ) -> list[Choice]:
        in_chat = self.endpoint.name == "chat"
        tokens = [self._tokenizer.tokenize(contexts[0], word, in_chat=in_chat) for word in words]
        bias = {label.keys[0]: RAISED for label in tokens}
        params = SamplingParams(top_logprobs=self._k, logit_bias=bias)
        return endpoint.ask([context.text for context in contexts], params)

    def _read(
        self, context: Context, words: Sequence[str], choice: Choice
    ) -> tuple[list[float], int]:
        """Scores of the words, and how many of them are bounds."""
        token = choice.tokens[0] if choice.tokens else None
        return bounded(token, exact_scores(self.endpoint, context, choice, words))
