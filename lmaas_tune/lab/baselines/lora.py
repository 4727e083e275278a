"""LoRA: low-rank changes of all linear layers, by gradient, through peft."""

from __future__ import annotations

from typing import Any

import peft
from lmaas_tune_adapters.hf.source import quiet

from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import LoraSettings
from lmaas_tune.lab.baselines.training import seeded
from lmaas_tune.lab.baselines.tuned_words import tune_on_words


def fit(job: Job, settings: LoraSettings) -> FittedBaseline:
    """Tune two thin matrices for each linear layer; label words are scored as before.

    It has rank x (inputs + outputs) parameters for each of them, but for the head that says words.
    """
    box = job.backend.open_box()
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear"
    )
    with seeded(job.seed), quiet():
        tuned: Any = peft.get_peft_model(box.loaded.model, config)
    return tune_on_words(job, settings, box, tuned)
