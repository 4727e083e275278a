"""Manual Prompt: the template and its words, as they are."""

from __future__ import annotations

import time
from functools import partial

from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import ManualSettings
from lmaas_tune.prompts import TextPrompt


def fit(job: Job, _settings: ManualSettings) -> FittedBaseline:
    """Nothing is fitted, so there are no parameters; validation says what the words are worth."""
    began = time.perf_counter()
    prompt = TextPrompt(job.words)
    score = partial(job.ask, prompt)
    return FittedBaseline(
        name="manual",
        validation_loss=job.validation_loss(score),
        seconds=time.perf_counter() - began,
        prompt=prompt,
        score=score,
    )
