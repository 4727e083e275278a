"""Three ways to score label words: by their own tokens, the likeliest ones, or the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np

from lmaas_tune.backend import Usage
from lmaas_tune.errors import InputError, TransientError
from lmaas_tune.prompts import FloatArray
from lmaas_tune_adapters.http import paid
from lmaas_tune_adapters.openai.channels import Channel, Completions
from lmaas_tune_adapters.openai.replies import Choice, LackingError, Token
from lmaas_tune_adapters.openai.rows import Question
from lmaas_tune_adapters.openai.words import among, bound, in_answer, shared_beginnings

Tokens: TypeAlias = tuple[Token, ...]

_PROMPTS = 16  # a request; a server answers no faster for more


class Scorer(Protocol):
    """One way to score.

    Attributes:
        channel: Who is asked.
        settings: What of it changes the scores.
        rows: Most rows of one request.
    """

    @property
    def channel(self) -> Channel: ...

    @property
    def settings(self) -> str: ...

    @property
    def rows(self) -> int: ...

    def score(
        self, questions: Sequence[Question], words: Sequence[str]
    ) -> tuple[FloatArray, Usage]:
        """(rows, words) log-probabilities, and what they took.

        Raises:
            BackendError: The server failed.
            InputError: It cannot read a row.
        """
        ...

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> Usage:
        """Score once, to see whether the server gives what this way needs, and what it takes.

        Raises:
            LackingError: It does not.
            RefusedError: It says so itself.
        """
        ...

    def notes(self, words: Sequence[str]) -> list[str]:
        """What a user should know."""
        ...


class Echoed:
    """Reads the label word's own tokens, all of them: exact, at one prompt a word and row.

    How many tokens a word has is learnt from the first rows, which are sent without a word too.
    """

    def __init__(self, channel: Completions) -> None:
        self.channel = channel
        self.settings = "scores=echo"
        self.rows = _PROMPTS // 4 if channel.manner.several else 1
        self._lengths: dict[tuple[bool, str], int] = {}

    def score(
        self, questions: Sequence[Question], words: Sequence[str]
    ) -> tuple[FloatArray, Usage]:
        """See `Scorer.score`."""
        learn = any((q.spaced, word) not in self._lengths for q in questions for word in words)
        texts = [
            text
            for q in questions
            for text in [q.text] * learn + [q.answered(word) for word in words]
        ]
        choices, usage = self.channel.ask(texts, echo=True)
        each = len(words) + learn
        read = [_read(choice, text) for choice, text in zip(choices, texts, strict=True)]
        rows = [read[start : start + each] for start in range(0, len(read), each)]
        with paid(usage):
            if learn:
                for question, choice, own in zip(questions, choices[::each], rows, strict=True):
                    if not choice.text.startswith(question.text):
                        raise LackingError("the server does not echo what it read")
                    self._learn(question, words, own[0], own[1:])
                rows = [filled for _, *filled in rows]
            scores = [self._row(q, words, row) for q, row in zip(questions, rows, strict=True)]
        return np.array(scores).reshape(len(questions), len(words)), usage

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> Usage:
        """See `Scorer.try_out`."""
        try:
            _, usage = self.score(questions, words)
        except InputError as error:  # ours are common words, after a space
            raise LackingError("the tokens it gives are not those that it read") from error
        return usage

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        return [
            f"a row is sent {len(words)} times, once with each label word, and paid as often: "
            "scores=logprobs sends it once, and scores what the server names alone"
        ]

    def _learn(
        self, question: Question, words: Sequence[str], bare: Tokens, filled: Sequence[Tokens]
    ) -> None:
        before = _spelt(bare)
        for word, tokens in zip(words, filled, strict=True):
            after = _spelt(tokens)
            if after == before:
                raise LackingError("the server does not tell the tokens that it read")
            if after[: len(before)] != before:
                raise _runs_together(word)
            self._lengths[question.spaced, word] = len(after) - len(before)

    def _row(self, question: Question, words: Sequence[str], read: Sequence[Tokens]) -> list[float]:
        """Sums over the last tokens read; what stands before them is the same for all words."""
        lengths = [self._lengths[question.spaced, word] for word in words]
        spelt = [_spelt(tokens) for tokens in read]
        first = spelt[0][: -lengths[0]]
        for word, length, tokens in zip(words, lengths, spelt, strict=True):
            if tokens[:-length] != first:
                raise _runs_together(word)
        return [
            sum(map(_logprob, tokens[-length:]))
            for tokens, length in zip(read, lengths, strict=True)
        ]


class Likeliest:
    """Finds the label words' first tokens among the likeliest that the server names.

    A word that is not among them gets the most that it can have, see `words.bound`.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.settings = f"scores=logprobs k={channel.manner.tops[0]}"
        self.rows = _PROMPTS if channel.manner.several else 1

    def score(
        self, questions: Sequence[Question], words: Sequence[str]
    ) -> tuple[FloatArray, Usage]:
        """See `Scorer.score`."""
        _, scores, usage = self._ask(questions, words)
        return scores, usage

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> Usage:
        """See `Scorer.try_out`."""
        choices, _, usage = self._ask(questions, words)
        if not any(choice.tokens for choice in choices):
            raise LackingError("the model wrote nothing, and so has no likeliest tokens")
        return usage

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        k = self.channel.manner.tops[0]
        return [
            f"label words are scored by their first token among the {k} likeliest; one that is "
            "not among them gets the most that it can have",
            *shared_beginnings(words),
        ]

    def _ask(
        self, questions: Sequence[Question], words: Sequence[str]
    ) -> tuple[Sequence[Choice], FloatArray, Usage]:
        choices, usage = self.channel.ask([q.text for q in questions], logprobs=True)
        with paid(usage):
            scores = [
                self._row(question, words, choice)
                for question, choice in zip(questions, choices, strict=True)
            ]
        return choices, np.array(scores).reshape(len(questions), len(words)), usage

    def _row(self, question: Question, words: Sequence[str], choice: Choice) -> list[float]:
        if not choice.tokens:  # no answer says nothing for any label
            return list(in_answer("", words))
        token = choice.tokens[0]
        if not token.top:
            raise LackingError("the server names none of the likeliest tokens")
        spaced = None if self.channel.name == "chat" else question.spaced
        found = among(token.top, words, spaced=spaced)
        if token.cut and None in found:
            raise TransientError(
                "the server left out some of the likeliest tokens that it was asked for: vLLM does "
                "so while it answers others who ask for tokens by id"
            )
        return [bound(token.top) if score is None else score for score in found]


class Spoken:
    """Takes the answer at its word: stated pseudo-probabilities, see `words.in_answer`.

    Args:
        channel: Who is asked.
        write: Most tokens of an answer.
    """

    def __init__(self, channel: Channel, *, write: int) -> None:
        self.channel, self._write = channel, write
        self.settings = f"scores=text write={write}"
        self.rows = _PROMPTS if channel.manner.several else 1

    def score(
        self, questions: Sequence[Question], words: Sequence[str]
    ) -> tuple[FloatArray, Usage]:
        """See `Scorer.score`."""
        choices, usage = self.channel.ask([q.text for q in questions], write=self._write)
        scores = [in_answer(choice.text, words) for choice in choices]
        return np.array(scores).reshape(len(questions), len(words)), usage

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> Usage:
        """See `Scorer.try_out`."""
        choices, usage = self.channel.ask([q.text for q in questions], write=self._write)
        if not any(choice.text.strip() for choice in choices):
            raise LackingError(
                f"the model wrote nothing in {self._write} tokens: if it thinks before it "
                "answers, switch that off by extra_body, or raise answer_tokens"
            )
        return usage

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        return [
            "answers are taken at their word: the label that one names gets 0.9, the others share "
            f"0.1; up to {self._write} written tokens a row are paid, where a price counts one"
        ]


def _read(choice: Choice, text: str) -> Tokens:
    """Tokens of the text; one more was written, or the model ended there and that is not told."""
    last = choice.tokens[-1].text
    ended = choice.text == text and last != "" and text.endswith(last)
    return choice.tokens if ended else choice.tokens[:-1]


def _spelt(tokens: Tokens) -> tuple[str, ...]:
    return tuple(token.text for token in tokens)


def _logprob(token: Token) -> float:
    if token.logprob is None:
        raise LackingError("the server gives no log-probability for a token that it read")
    return token.logprob


def _runs_together(word: str) -> InputError:
    return InputError(
        f"the label word {word!r} runs together with the text before it, so that it has no tokens "
        "of its own: put a space or a line break before {label}, or take scores='logprobs'"
    )
