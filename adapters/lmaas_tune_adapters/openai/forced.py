"""Label words that a server is made to write, so that it tells what they were worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmaas_tune.backend import ScoreReply
from lmaas_tune_adapters.openai.endpoints import Asking, Channel
from lmaas_tune_adapters.openai.label_tokenizer import Spelling, Spelt
from lmaas_tune_adapters.openai.replies import Choice, LackingError, Token
from lmaas_tune_adapters.openai.rows import Question, alike
from lmaas_tune_adapters.openai.scorers import PROMPTS, reply, see_answers
from lmaas_tune_adapters.openai.words import bound, spaced, unspaced, whole

RAISED = 100.0
"""Added to a token's logit, so that it is written: the most that servers take."""

SAME = 0.05
"""Two answers of one server may differ so far."""

_CERTAIN = -0.01  # a probability of 1, or the sign of a server that counts the bias in


class Forced:
    """Raises a label word's tokens by `logit_bias`, and reads what they were worth without it.

    That is exact, at one request a row and word. Words that are among the likeliest tokens are
    read there, until one is missing. Of a word whose tokens do not come in order, each is forced
    by itself behind those before it; where that is not possible, the word gets the likelihood of
    its first tokens, and is counted as a bound.
    """

    def __init__(self, channel: Channel, spelling: Spelling) -> None:
        self.channel, self._spelling = channel, spelling
        self._k = channel.manner.tops[0]
        self.settings = "scores=forced"
        self.rows = PROMPTS if channel.manner.several else 1
        self._missed: set[tuple[bool, str]] = set()

    def score(self, questions: Sequence[Question], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        scores, bounds = np.full((len(questions), len(words)), np.nan), 0
        with Asking(self.channel) as asking:
            if any((q.spaced, word) not in self._missed for q in questions for word in words):
                scores[:] = self._look(asking, questions, words)
            for rows in alike(questions):
                for column, word in enumerate(words):
                    lacking = [row for row in rows if np.isnan(scores[row, column])]
                    found = self._force(asking, [questions[row] for row in lacking], word)
                    for row, (score, exact) in zip(lacking, found, strict=True):
                        scores[row, column] = score
                        bounds += not exact
        return reply(list(scores), words, asking.usage, bounds=bounds)

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        question = questions[0]
        with Asking(self.channel) as asking:
            plain = asking([question.text], top=self._k)
            see_answers(plain)
            top = plain[0].tokens[0].top
            scores = []
            for word, named in zip(words, self._named(question, plain[0], words), strict=True):
                ((score, exact),) = self._force(asking, [question], word)
                if not exact:
                    raise LackingError("logit_bias does not make the model write a word")
                if abs(score - named) > SAME if named is not None else score > bound(top) + SAME:
                    raise LackingError("logit_bias changes the log-probabilities that are told")
                scores.append(score)
            if min(scores) > _CERTAIN:
                raise LackingError("a forced word has the probability 1, whatever it is")

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        return [
            f"where label words are not among the {self._k} likeliest tokens, a row is sent "
            f"{len(words)} times, once for each, and paid as often: scores=logprobs sends it once",
        ]

    def _named(
        self, question: Question, choice: Choice, words: Sequence[str]
    ) -> list[float | None]:
        """Of the words that are tokens among the likeliest, as they would be written."""
        behind = question.spaced and self.channel.name != "chat"
        return whole(choice.tokens[0].top, words, spaced=behind)

    def _look(
        self, asking: Asking, questions: Sequence[Question], words: Sequence[str]
    ) -> list[list[float]]:
        """Scores of the words that are among the likeliest tokens; NaN for others."""
        choices = asking([q.text for q in questions], top=self._k)
        rows = []
        for question, choice in zip(questions, choices, strict=True):
            named = self._named(question, choice, words) if choice.tokens else [None] * len(words)
            missed = [word for word, score in zip(words, named, strict=True) if score is None]
            self._missed |= {(question.spaced, word) for word in missed}
            rows.append([np.nan if score is None else score for score in named])
        return rows

    def _force(
        self, asking: Asking, questions: Sequence[Question], word: str
    ) -> list[tuple[float, bool]]:
        """Of each row, the word's log-probability, and whether all of its tokens are in it."""
        if not questions:
            return []
        spelt = self._spelling.of(questions[0], word, in_chat=self.channel.name == "chat")
        bias = dict.fromkeys(spelt.keys, RAISED)
        texts = [question.text for question in questions]
        found = []
        for question, choice in zip(
            questions, asking(texts, write=spelt.count, top=1, bias=bias), strict=True
        ):
            written = _written(choice, word)
            if written is None or len(spelt.pieces) not in (0, len(written)):
                found.append(self._one_by_one(asking, question, spelt, choice))
            else:
                found.append((sum(map(_logprob, written)), True))
                self._spelling.learn(spelt, [token.text for token in written])
        return found

    def _one_by_one(
        self, asking: Asking, question: Question, spelt: Spelt, choice: Choice
    ) -> tuple[float, bool]:
        """As far as each token can be forced by itself, behind the text and those before it."""
        done: list[Token] = []
        while (text := _text(done)) != spelt.text:
            if done and self.channel.name == "chat":
                break  # nothing stands before an answer
            token = self._next(asking, Question(question.text + text, question.spaced), spelt, done)
            if token is None:
                break
            done.append(token)
        if not done:  # no less than any token has
            best = (value for token in choice.tokens[:1] for _, value in token.top)
            return max(best, default=0.0), False
        if text == spelt.text:
            self._spelling.learn(spelt, [token.text for token in done])
        return sum(map(_logprob, done)), text == spelt.text

    def _next(
        self, asking: Asking, question: Question, spelt: Spelt, done: Sequence[Token]
    ) -> Token | None:
        """The token of a word behind those before it; where it is unknown, others are lowered."""
        pieces = spelt.pieces[len(done) : len(done) + 1]
        bias = dict.fromkeys(pieces or spelt.keys, RAISED)
        for _ in range(1 if pieces else spelt.count):
            (choice,) = asking([question.text], top=1, bias=bias)
            if not choice.tokens:
                return None
            token = choice.tokens[0]
            # one without text of its own, as half a character, would be forced for ever
            if spaced(token.text) and spelt.text.startswith(_text([*done, token])):
                return token
            bias[token.text] = -RAISED
        return None


def _text(tokens: Sequence[Token]) -> str:
    return "".join(spaced(token.text) for token in tokens)


def _written(choice: Choice, word: str) -> tuple[Token, ...] | None:
    """The first tokens of an answer that make up a word, whether or not they show its space."""
    content = b""
    for count, token in enumerate(choice.tokens, start=1):
        content += token.content
        if unspaced(content.decode("utf-8", "replace")) == word:
            return choice.tokens[:count]
    return None


def _logprob(token: Token) -> float:
    if token.logprob is None:
        raise LackingError("the server gives no log-probability for a token that it wrote")
    return token.logprob
