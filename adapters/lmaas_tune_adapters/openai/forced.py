"""Scoring label words by making a server write them, so that it returns their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmaas_tune.backend import ScoreReply
from lmaas_tune_adapters.openai.endpoints import (
    GenerationEndpoint,
    SamplingParams,
    TrackedEndpoint,
)
from lmaas_tune_adapters.openai.label_tokenizer import LabelTokenizer, LabelTokens
from lmaas_tune_adapters.openai.replies import Choice, IncompleteError, Token
from lmaas_tune_adapters.openai.rows import Context, by_spacing
from lmaas_tune_adapters.openai.scorers import PROMPTS, bounded, check_answers, exact_scores, reply
from lmaas_tune_adapters.openai.words import (
    strip_space,
    with_plain_space,
)

RAISED = 100.0
"""Added to a token's logit to make the model write it; servers accept no more."""

TOLERANCE = 0.05
"""Largest difference between two answers of one server."""

_CERTAIN = -0.01  # a probability of 1, or the sign of a server that includes the bias


class ForcedScorer:
    """Raises a label word's tokens by `logit_bias`, and reads their probabilities without it.

    That is exact, at one request a row and word. Words that are among the likeliest tokens are
    read there, until one is missing. If the tokens of a word do not come in order, each one is
    forced by itself behind those before it; where that is not possible, the word gets the
    likelihood of its first tokens, and is counted as a bound.
    """

    def __init__(self, endpoint: GenerationEndpoint, tokenizer: LabelTokenizer) -> None:
        self.endpoint, self._tokenizer = endpoint, tokenizer
        self._k = endpoint.request_format.top_counts[0]
        self.settings = "scores=forced"
        self.rows = PROMPTS if endpoint.request_format.batched else 1
        self._missed: set[tuple[bool, str]] = set()

    def score(self, contexts: Sequence[Context], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        scores, bounds = np.full((len(contexts), len(words)), np.nan), 0
        with TrackedEndpoint(self.endpoint) as endpoint:
            if any((c.spaced, word) not in self._missed for c in contexts for word in words):
                scores[:] = self._look_up(endpoint, contexts, words)
            for rows in by_spacing(contexts):
                for column, word in enumerate(words):
                    missing = [row for row in rows if np.isnan(scores[row, column])]
                    found = self._force(endpoint, [contexts[row] for row in missing], word)
                    for row, (score, exact) in zip(missing, found, strict=True):
                        scores[row, column] = score
                        bounds += not exact
        return reply(list(scores), words, endpoint.usage, bounds=bounds)

    def try_out(self, contexts: Sequence[Context], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        context = contexts[0]
        with TrackedEndpoint(self.endpoint) as endpoint:
            plain = endpoint.ask([context.text], SamplingParams(top_logprobs=self._k))
            check_answers(plain)
            (most,), _ = bounded(plain[0].tokens[0], [None])
            scores = []
            named_scores = exact_scores(self.endpoint, context, plain[0], words)
            for word, named in zip(words, named_scores, strict=True):
                ((score, exact),) = self._force(endpoint, [context], word)
                if not exact:
                    raise IncompleteError("logit_bias does not make the model write a word")
                if _differs(score, named, most=most):
                    raise IncompleteError(
                        "logit_bias changes the log-probabilities that it returns"
                    )
                scores.append(score)
            if min(scores) > _CERTAIN:
                raise IncompleteError("every forced word has the probability 1")

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        return [
            f"where label words are not among the {self._k} likeliest tokens, a row is sent and "
            f"paid {len(words)} times, once for each word: scores=logprobs sends it once",
        ]

    def _look_up(
        self, endpoint: TrackedEndpoint, contexts: Sequence[Context], words: Sequence[str]
    ) -> list[list[float]]:
        """Scores of the words that are among the likeliest tokens; NaN for the others."""
        choices = endpoint.ask([c.text for c in contexts], SamplingParams(top_logprobs=self._k))
        rows = []
        for context, choice in zip(contexts, choices, strict=True):
            named = exact_scores(self.endpoint, context, choice, words)
            missed = [word for word, score in zip(words, named, strict=True) if score is None]
            self._missed |= {(context.spaced, word) for word in missed}
            rows.append([np.nan if score is None else score for score in named])
        return rows

    def _force(
        self, endpoint: TrackedEndpoint, contexts: Sequence[Context], word: str
    ) -> list[tuple[float, bool]]:
        """For each row, the word's log-probability, and whether it covers all tokens."""
        if not contexts:
            return []
        in_chat = self.endpoint.name == "chat"
        tokens = self._tokenizer.tokenize(contexts[0], word, in_chat=in_chat)
        bias = dict.fromkeys(tokens.keys, RAISED)
        params = SamplingParams(max_tokens=tokens.count, top_logprobs=1, logit_bias=bias)
        choices = endpoint.ask([context.text for context in contexts], params)
        found = []
        for context, choice in zip(contexts, choices, strict=True):
            written = _written(choice, word)
            if written is None or len(tokens.pieces) not in (0, len(written)):
                found.append(self._one_by_one(endpoint, context, tokens, choice))
            else:
                found.append((sum(token.known_logprob() for token in written), True))
                self._tokenizer.learn(tokens, [token.text for token in written])
        return found

    def _one_by_one(
        self, endpoint: TrackedEndpoint, context: Context, tokens: LabelTokens, choice: Choice
    ) -> tuple[float, bool]:
        """Force each token by itself, behind the text and the tokens before it, where possible."""
        done: list[Token] = []
        while (text := _text(done)) != tokens.text:
            if done and self.endpoint.name == "chat":
                break  # an answer cannot be continued
            behind = Context(context.text + text, context.spaced)
            token = self._next(endpoint, behind, tokens, done)
            if token is None:
                break
            done.append(token)
        if not done:  # the largest log-probability of any token is a bound
            best = (value for token in choice.tokens[:1] for _, value in token.top)
            return max(best, default=0.0), False
        if text == tokens.text:
            self._tokenizer.learn(tokens, [token.text for token in done])
        return sum(token.known_logprob() for token in done), text == tokens.text

    def _next(
        self,
        endpoint: TrackedEndpoint,
        context: Context,
        tokens: LabelTokens,
        done: Sequence[Token],
    ) -> Token | None:
        """Force a word's next token; where it is unknown, wrong ones are lowered in turn."""
        pieces = tokens.pieces[len(done) : len(done) + 1]
        bias = dict.fromkeys(pieces or tokens.keys, RAISED)
        for _ in range(1 if pieces else tokens.count):
            params = SamplingParams(top_logprobs=1, logit_bias=bias)
            (choice,) = endpoint.ask([context.text], params)
            if not choice.tokens:
                return None
            token = choice.tokens[0]
            # a token without its own text, as half a character, would be forced without end
            if with_plain_space(token.text) and tokens.text.startswith(_text([*done, token])):
                return token
            bias[token.text] = -RAISED
        return None


def _differs(score: float, named: float | None, *, most: float) -> bool:
    """Whether a forced score contradicts the score without bias, or its upper bound."""
    return score > most + TOLERANCE if named is None else abs(score - named) > TOLERANCE


def _text(tokens: Sequence[Token]) -> str:
    return "".join(with_plain_space(token.text) for token in tokens)


def _written(choice: Choice, word: str) -> tuple[Token, ...] | None:
    """The first tokens of an answer that make up a word, with or without its space."""
    content = b""
    for count, token in enumerate(choice.tokens, start=1):
        content += token.content
        if strip_space(content.decode("utf-8", "replace")) == word:
            return choice.tokens[:count]
    return None
