"""Manual Prompt and In-Context Learning: text before or in the row, and no training."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from lmaas_tune.errors import InputError
from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import InContextSettings, ManualSettings
from lmaas_tune.prompts import FloatArray, TextPrompt
from lmaas_tune.prompts.text import alternate_labels, demonstration
from lmaas_tune.task import Example, Slot, Task, Template

_APART = "\n\n"


def fit_manual(job: Job, _settings: ManualSettings) -> FittedBaseline:
    """The template and its words as they are; there are no parameters."""
    prompt = TextPrompt(job.words)
    score = partial(job.ask, prompt)
    loss = job.validation_loss(score)
    return FittedBaseline(validation_loss=loss, prompt=prompt, score=score, score_words=score)


def fit(job: Job, settings: InContextSettings) -> FittedBaseline:
    """Choose the demonstrations before every row; there are no parameters.

    Demonstrations are drawn by the seed, labels in turn, and a row has as many of them before it,
    from the first, as the model can read with it.
    """
    shown = _Shown(job, settings)
    count = len(shown.texts)
    fits = min(map(shown.fitting, [*job.train, *job.validation]), default=count)
    return FittedBaseline(
        validation_loss=job.validation_loss(shown.score),
        notes=(f"{fits} of {len(job.train)} training rows stand before each row",),
        score=shown.score,
    )


class _Shown:
    """Demonstrations, and the rows behind them.

    Attributes:
        texts: The demonstrations, in order.
    """

    def __init__(self, job: Job, settings: InContextSettings) -> None:
        task = Task(_spelled_out(job.task.template, job.words), job.task.verbalizer)
        drawn = alternate_labels(job.train, seed=job.seed)[: settings.demonstrations]
        self.texts = [demonstration(task, job.train[index]) for index in drawn]
        self._job = replace(job, task=task)
        self._limit = settings.max_tokens

    def score(self, examples: Sequence[Example]) -> FloatArray:
        """(rows, labels) log-probabilities.

        Rows with the same demonstrations share a request, so that the backend reads these once.
        """
        scores = np.zeros((len(examples), len(self._job.task.verbalizer.labels)))
        counts = np.array([self.fitting(example) for example in examples])
        for count in set(counts.tolist()):
            rows = np.flatnonzero(counts == count)
            prompt = self._prompt(count)
            scores[rows] = self._job.ask(prompt, [examples[row] for row in rows.tolist()])
        return scores

    def fitting(self, example: Example) -> int:
        """How many demonstrations a row can have before it."""
        count = len(self.texts)
        if not self._is_too_long(count, example):
            return count
        too_long = partial(self._is_too_long, example=example)
        return bisect_left(range(1, count), True, key=too_long)

    def _is_too_long(self, count: int, example: Example) -> bool:
        try:
            request = self._job.request(self._prompt(count), [example])
            tokens = self._job.backend.inspect(request).usage.tokens
        except InputError:  # longer than the model reads
            return True
        return self._limit is not None and tokens > self._limit

    def _prompt(self, count: int) -> TextPrompt:
        return TextPrompt("".join(text + _APART for text in self.texts[:count]))


def _spelled_out(template: Template, words: str) -> Template:
    """The template with its words in it, and ``{prompt}`` before everything."""
    text = "{prompt}"
    for part in template.parts:
        if part is Slot.PROMPT:
            # without words the space before them falls away, see `Backend.score`
            text = text + _escaped(words) if words else text.removesuffix(" ")
        elif part is Slot.LABEL:
            text += "{label}"
        else:
            text += _escaped(part) if isinstance(part, str) else str(part)
    return Template(text)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
