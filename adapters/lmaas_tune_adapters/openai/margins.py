"""Label words raised together, at a server that tells log-probabilities with the bias in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmaas_tune.backend import ScoreReply
from lmaas_tune_adapters.openai.endpoints import Asking, Channel
from lmaas_tune_adapters.openai.forced import RAISED, SAME
from lmaas_tune_adapters.openai.label_tokenizer import Spelling
from lmaas_tune_adapters.openai.replies import Choice, LackingError
from lmaas_tune_adapters.openai.rows import Question, alike
from lmaas_tune_adapters.openai.scorers import PROMPTS, reply, see_answers
from lmaas_tune_adapters.openai.words import bound, shared_beginnings, stated, whole

_ALL = -0.01  # log of the least that raised words have among all tokens


class Margins:
    """Raises all label words by the same `logit_bias`: all are told, their differences as they are.

    One request a row. What the words have together is lost; no loss over the labels looks at it.
    A word of several tokens is not among the answers' tokens, and is counted as a bound.
    """

    def __init__(self, channel: Channel, spelling: Spelling) -> None:
        self.channel, self._spelling = channel, spelling
        self._k = channel.manner.tops[0]
        self.settings = "scores=margins"
        self.rows = PROMPTS if channel.manner.several else 1

    def score(self, questions: Sequence[Question], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        scores: list[list[float]] = [[] for _ in questions]
        bounds = 0
        with Asking(self.channel) as asking:
            for rows in alike(questions):
                choices = self._raise(asking, [questions[row] for row in rows], words)
                for row, choice in zip(rows, choices, strict=True):
                    scores[row], count = self._read(questions[row], words, choice)
                    bounds += count
        return reply(scores, words, asking.usage, bounds=bounds)

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        with Asking(self.channel) as asking:
            plain = asking([questions[0].text], top=self._k)
            see_answers(plain)
            (raised,) = self._raise(asking, questions[:1], words)
            before, count = self._read(questions[0], words, plain[0])
            after, missing = self._read(questions[0], words, raised)
            if missing or np.logaddexp.reduce(after) < _ALL:
                raise LackingError("logit_bias does not raise what the likeliest tokens are")
            if count == 0 and np.ptp(np.subtract(after, before)) > SAME:
                raise LackingError("logit_bias does not raise all tokens alike")

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        return [
            "label words are raised together by logit_bias: their scores differ as they should, "
            "and add up to 1; a word of several tokens has none",
            *shared_beginnings(words),
        ]

    def _raise(
        self, asking: Asking, questions: Sequence[Question], words: Sequence[str]
    ) -> list[Choice]:
        in_chat = self.channel.name == "chat"
        spelt = [self._spelling.of(questions[0], word, in_chat=in_chat) for word in words]
        bias = {own.keys[0]: RAISED for own in spelt}
        return asking([question.text for question in questions], top=self._k, bias=bias)

    def _read(
        self, question: Question, words: Sequence[str], choice: Choice
    ) -> tuple[list[float], int]:
        """Scores of the words, and how many of them are bounds."""
        if not choice.tokens:
            return list(stated(None, len(words))), len(words)
        top = choice.tokens[0].top
        behind = question.spaced and self.channel.name != "chat"
        scores = whole(top, words, spaced=behind)
        most = bound(top)
        return [most if score is None else score for score in scores], scores.count(None)
