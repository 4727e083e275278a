"""Ways to score label words: by their own tokens, the likeliest ones, or the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np

from lmaas_tune.backend import ScoreReply, Usage
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import FloatArray
from lmaas_tune_adapters.openai.endpoints import Asking, Channel, Completions
from lmaas_tune_adapters.openai.replies import Choice, LackingError, Token
from lmaas_tune_adapters.openai.rows import Question
from lmaas_tune_adapters.openai.words import after_thought, named_in, stated

Tokens: TypeAlias = tuple[Token, ...]

PROMPTS = 16
"""Rows of a request; a server answers no faster for more."""

THINKS = (
    "the model thinks before it answers: switch that off by "
    """extra_body={"chat_template_kwargs": {"enable_thinking": false}} (vLLM, llama.cpp) or """
    """extra_body={"reasoning_effort": "none"} (hosted APIs)"""
)


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

    def score(self, questions: Sequence[Question], words: Sequence[str]) -> ScoreReply:
        """(rows, words) log-probabilities, what they took, and how many of them are bounds.

        Raises:
            BackendError: The server failed.
            InputError: It cannot read a row.
        """
        ...

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> None:
        """Score once, to see whether the server gives what this way needs.

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
        self.rows = PROMPTS // 4 if channel.manner.several else 1
        self._lengths: dict[tuple[bool, str], int] = {}

    def score(self, questions: Sequence[Question], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        learn = any((q.spaced, word) not in self._lengths for q in questions for word in words)
        texts = [
            text
            for q in questions
            for text in [q.text] * learn + [q.answered(word) for word in words]
        ]
        each = len(words) + learn
        with Asking(self.channel) as asking:
            choices = asking(texts, top=1, echo=True)
            read = [_read(choice, text) for choice, text in zip(choices, texts, strict=True)]
            rows = [read[start : start + each] for start in range(0, len(read), each)]
            if learn:
                for question, choice, own in zip(questions, choices[::each], rows, strict=True):
                    if not choice.text.startswith(question.text):
                        raise LackingError("the server does not echo what it read")
                    self._learn(question, words, own[0], own[1:])
                rows = [filled for _, *filled in rows]
            scores = [self._row(q, words, row) for q, row in zip(questions, rows, strict=True)]
        return reply(scores, words, asking.usage)

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        try:
            self.score(questions, words)
        except InputError as error:  # ours are common words, after a space
            raise LackingError("the tokens it gives are not those that it read") from error

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


class Spoken:
    """Takes the answer at its word: stated pseudo-probabilities, see `words.in_answer`.

    Args:
        channel: Who is asked.
        write: Most tokens of an answer.
    """

    def __init__(self, channel: Channel, *, write: int) -> None:
        self.channel, self._write = channel, write
        self.settings = f"scores=text write={write}"
        self.rows = PROMPTS if channel.manner.several else 1

    def score(self, questions: Sequence[Question], words: Sequence[str]) -> ScoreReply:
        """See `Scorer.score`."""
        choices, usage = self.channel.ask([q.text for q in questions], write=self._write)
        named = [named_in(choice.text, words) for choice in choices]
        scores = [stated(label, len(words)) for label in named]
        return reply(scores, words, usage, bounds=len(words) * named.count(None))

    def try_out(self, questions: Sequence[Question], words: Sequence[str]) -> None:
        """See `Scorer.try_out`."""
        choices, _ = self.channel.ask([q.text for q in questions], write=self._write)
        if all(choice.thinks and not after_thought(choice.text) for choice in choices):
            raise LackingError(f"{THINKS}; or raise answer_tokens, now {self._write}")
        if not any(choice.text.strip() for choice in choices):
            raise LackingError(
                f"the model wrote nothing in {self._write} tokens: if it thinks before it "
                "answers, switch that off by extra_body, or raise answer_tokens"
            )

    def notes(self, words: Sequence[str]) -> list[str]:
        """See `Scorer.notes`."""
        return [
            "answers are taken at their word: the label that one names gets 0.9, the others share "
            f"0.1; up to {self._write} written tokens a row are paid, where a price counts one"
        ]


def reply(
    scores: Sequence[Sequence[float] | FloatArray],
    words: Sequence[str],
    usage: Usage,
    *,
    bounds: int = 0,
) -> ScoreReply:
    """A reply of one row of scores for each question."""
    rows: FloatArray = np.array(scores, dtype=np.float64).reshape(len(scores), len(words))
    return ScoreReply(rows, usage, bounds)


def see_answers(choices: Sequence[Choice]) -> None:
    """See that what a model writes first can be a label word.

    Raises:
        LackingError: It cannot.
    """
    if not any(choice.tokens for choice in choices):
        raise LackingError("the model wrote nothing, and so has no likeliest tokens")
    if any(choice.thinks for choice in choices):
        raise LackingError(THINKS)


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
