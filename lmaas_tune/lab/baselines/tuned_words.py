"""Tuning weights that peft added to a model, on the scores of label words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lmaas_tune_adapters.hf.gradient import LabelScorer

from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import GradientSettings
from lmaas_tune.lab.baselines.training import Logits, seeded, train_on
from lmaas_tune.prompts import FloatArray, TextPrompt
from lmaas_tune.task import Example

if TYPE_CHECKING:
    from lmaas_tune_adapters.hf.whitebox import WhiteBox


def tune_on_words(
    job: Job, settings: GradientSettings, box: WhiteBox, tuned: Any, *, before: int = 0
) -> FittedBaseline:
    """Tune the weights of a model that have a gradient, with the job's words at ``{prompt}``.

    Args:
        job: The rows and words.
        settings: Of the training.
        box: Its model is the one that peft changed.
        tuned: That model as peft returns it.
        before: Positions before every row that peft's part takes.
    """
    prompt = TextPrompt(job.words)
    parameters = [weight for weight in tuned.parameters() if weight.requires_grad]

    def read(examples: Sequence[Example], words: Sequence[str] = ()) -> Logits:
        scorer = LabelScorer(box, job.request(prompt, examples, words), before=before)
        return partial(scorer, None)

    with seeded(job.seed):
        trained = train_on(job, settings, parameters, read)

    def score(examples: Sequence[Example], words: Sequence[str] = ()) -> FloatArray:
        with torch.no_grad():
            return read(examples, words)(range(len(examples))).numpy()

    return FittedBaseline(**vars(trained), score=score, score_words=score)
