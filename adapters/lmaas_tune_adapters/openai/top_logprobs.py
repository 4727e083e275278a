"""Label words among the likeliest tokens that a server names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmaas_tune.backend import ScoreReply
from lmaas_tune_adapters.http import RefusedError, ServerError
from lmaas_tune_adapters.openai.endpoints import Asking, Channel
from lmaas_tune_adapters.openai.replies import Choice, LackingError, Token
from lmaas_tune_adapters.openai.rows import Question
from lmaas_tune_adapters.openai.scorers import PROMPTS, reply, see_answers
from lmaas_tune_adapters.openai.words import among, bound, shared_beginnings, stated, whole

_AGAIN = 4  # vLLM fills in while it answers others who ask for tokens by id


@dataclass(frozen=True)
class _Row:
    """What the likeliest tokens of one row tell.

    Attributes:
        token: The first one that was written; None where the model wrote nothing.
        scores: Of the label words; None of one that is missing.
    """

    token: Token | None
    scores: list[float | None]

    @property
    def named(self) -> int:
        """How many tokens the server named."""
        return 0 if self.token is None else len(self.token.top)

    @property
    def lacks(self) -> bool:
        """Whether more of them would help."""
        return self.token is not None and None in self.scores

    def bounded(self) -> tuple[list[float], int]:
        """The scores, with the most that it can have for a missing word, and how many are so."""
        if self.token is None:
            return list(stated(None, len(self.scores))), len(self.scores)
        most = bound(self.token.top)
        scores = [most if score is None else score for score in self.scores]
        return scores, self.scores.count(None)


class Likeliest:
    """Scores a label word by its token among the likeliest that the server names.

    Where one is missing, more are asked for, until the server refuses. A word that is missing
    from the most gets the most that it can have, see `words.bound`, and is counted as a bound. A
    word of several tokens gets the likelihood of its first one.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._k, self._more = channel.manner.tops[0], channel.manner.more
        most = f"-{self._more[-1]}" if self._more else ""
        self.settings = f"scores=logprobs k={self._k}{most}"
        self.rows = PROMPTS if channel.manner.several else 1
        self._several: dict[tuple[bool, str], bool] = {}

    def score(self, questions: Sequence[Question], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        with Asking(self.channel) as asking:
            rows = self._rows(asking, questions, words, self._k)
            while any(row.lacks for row in rows) and self._raise_k(asking, questions, words, rows):
                pass
            for _ in range(_AGAIN):
                self._ask_again(asking, questions, words, rows)
        scores = [row.bounded() for row in rows]
        bounds = sum(count for _, count in scores)
        return reply([own for own, _ in scores], words, asking.usage, bounds=bounds)

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        with Asking(self.channel) as asking:
            choices = asking([q.text for q in questions], top=self._k)
            see_answers(choices)
            for choice in choices:
                _first(choice)

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        up_to = f", and up to {self._more[-1]} where one is missing" if self._more else ""
        return [
            f"label words are looked for among the {self._k} likeliest tokens{up_to}; one that is "
            "not among them gets the most that it can have, and one of several tokens gets the "
            "likelihood of its first one, which was up to 9.5 too high in our tests",
            *shared_beginnings(words),
        ]

    def _ask_again(
        self,
        asking: Asking,
        questions: Sequence[Question],
        words: Sequence[str],
        rows: list[_Row],
    ) -> None:
        """Once more for tokens that had filler put in their place, where words are missing."""
        cut = [i for i, row in enumerate(rows) if row.lacks and row.token and row.token.cut]
        if cut:
            again = self._rows(asking, [questions[i] for i in cut], words, self._k)
            for i, row in zip(cut, again, strict=True):
                rows[i] = row

    def _raise_k(
        self,
        asking: Asking,
        questions: Sequence[Question],
        words: Sequence[str],
        rows: list[_Row],
    ) -> bool:
        """Ask for more tokens where words are missing; whether still more may be asked for."""
        larger = [k for k in self._more if k > self._k]
        if not larger:
            return False
        lacking = [i for i, row in enumerate(rows) if row.lacks]
        try:
            more = self._rows(asking, [questions[i] for i in lacking], words, larger[0])
        except (RefusedError, ServerError):
            self._more = ()
            return False
        if all(new.named <= rows[i].named for i, new in zip(lacking, more, strict=True)):
            self._more = ()  # it takes the number, and names no more
        else:
            self._k = larger[0]
        for i, row in zip(lacking, more, strict=True):
            rows[i] = row
        return bool(self._more)

    def _rows(
        self, asking: Asking, questions: Sequence[Question], words: Sequence[str], k: int
    ) -> list[_Row]:
        choices = asking([q.text for q in questions], top=k)
        return [
            self._row(asking, question, words, choice)
            for question, choice in zip(questions, choices, strict=True)
        ]

    def _row(
        self, asking: Asking, question: Question, words: Sequence[str], choice: Choice
    ) -> _Row:
        if (token := _first(choice)) is None:
            return _Row(None, [None] * len(words))
        spaced = None if self.channel.name == "chat" else question.spaced
        scores = whole(token.top, words, spaced=spaced)
        begun = among(token.top, words, spaced=spaced)
        for i, word in enumerate(words):
            if scores[i] is None and begun[i] is not None:
                scores[i] = begun[i] if self._has_several(asking, question, word) else None
        return _Row(token, scores)

    def _has_several(self, asking: Asking, question: Question, word: str) -> bool:
        """Whether a word is of several tokens, by what the server counts with and without it."""
        key = question.spaced, word
        if key not in self._several:
            read = []
            for text in (question.text, question.answered(word)):
                before = asking.usage.tokens
                asking([text])
                read.append(asking.usage.tokens - before)
            self._several[key] = read[1] - read[0] > 1
        return self._several[key]


def _first(choice: Choice) -> Token | None:
    """The first token that was written; None where there is none.

    Raises:
        LackingError: The server does not tell what else was likely there.
    """
    if not choice.tokens:
        return None
    if not choice.tokens[0].top:
        raise LackingError("the server names none of the likeliest tokens")
    return choice.tokens[0]
