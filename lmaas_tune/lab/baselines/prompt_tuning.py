"""Prompt Tuning: the vectors at ``{prompt}``, by gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from lmaas_tune_adapters.hf.gradient import LabelScorer

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import PromptTuningSettings
from lmaas_tune.lab.baselines.training import Logits, seeded, train_on
from lmaas_tune.prompts import SoftPrompt
from lmaas_tune.prompts.soft import start_from_vocabulary, start_from_words
from lmaas_tune.task import Example, Task

if TYPE_CHECKING:
    from lmaas_tune_adapters.hf import HFBackend


class PromptScorer(LabelScorer):
    """The scores of a soft prompt on fixed rows, as a differentiable function.

    It returns the same as `HFBackend.score`: (rows, labels) log-probabilities of the label words,
    normalised over the model's whole vocabulary. The model is a copy of the backend's.

    peft puts a soft prompt before the whole row, and reads the row again in each step. Here the
    prompt has its position in the template, and a causal model reads the text before it once.

    Args:
        backend: The model.
        task: Template and label words.
        examples: The rows.
        like: A prompt of the length and insertion of those that will be scored.

    Raises:
        InputError: The model cannot read the rows with this prompt.
    """

    def __init__(
        self, backend: HFBackend, task: Task, examples: Sequence[Example], like: SoftPrompt
    ) -> None:
        batch = task.template.batch(examples)
        request = ScoreRequest(like, batch, task.verbalizer.candidates)
        super().__init__(backend.open_box(), request)


def fit(job: Job, settings: PromptTuningSettings) -> FittedBaseline:
    """Tune a soft prompt; it has L x H parameters."""
    start = job.start or starting_prompt(job, settings.length)
    if settings.length not in (None, start.length):
        raise InputError(
            f"length={settings.length}, and the prompt to start from has {start.length} tokens: "
            "leave the length out"
        )
    box = job.backend.open_box()
    vectors = torch.nn.Parameter(torch.tensor(start.vectors, device=box.loaded.model.device))

    def read(examples: Sequence[Example]) -> Logits:
        return partial(LabelScorer(box, job.request(start, examples)), vectors)

    with seeded(job.seed):
        trained = train_on(job, settings, [vectors], read)
    prompt = SoftPrompt(vectors.detach().cpu().numpy(), start.insertion, start.anchor)
    ask = partial(job.ask, prompt)
    return FittedBaseline(**vars(trained), prompt=prompt, score=ask, score_words=ask)


def starting_prompt(job: Job, length: int | None) -> SoftPrompt:
    """The embeddings of the words, or of `length` random tokens without words.

    Raises:
        InputError: There are neither words nor a length.
    """
    if job.words:
        words = job.task.template.space_before_prompt + job.words
        return start_from_words(job.backend, words, insertion="concat", length=length)
    if length is None:
        raise InputError(
            "prompt-tuning has neither words to start from nor a length: give "
            "PromptTuningSettings(length=...)"
        )
    return start_from_vocabulary(job.backend, length, insertion="concat", seed=job.seed)
