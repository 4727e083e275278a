"""A prompt tuned by gradient on one task, from which others start (the paper, section 3.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.calls.client import Client
from lmaas_tune.errors import InputError
from lmaas_tune.lab.baselines import fit_baseline
from lmaas_tune.lab.paper.methods import family_of, gradient_start
from lmaas_tune.lab.paper.rows import DataSource
from lmaas_tune.lab.paper.setup import Setup
from lmaas_tune.lab.paper.tasks import PaperTask
from lmaas_tune.task import Example
from lmaas_tune.versions import versions

VALIDATION_SHARE = 0.2


def pretrain(
    client: Client, task: PaperTask, source: DataSource, setup: Setup, *, seed: int
) -> TunedPrompt:
    """Tune a prompt by gradient on all training rows of a task.

    Args:
        client: Around the local model, a backend ``hf``.
        task: The source task; in the paper MNLI, for the three tasks with two sentences.
        source: Of its rows; its test rows are not read.
        setup: Gives layout and start of the prompt, the same as for the methods that start here.
        seed: Of the order of the rows, and of those that are held out.

    Raises:
        InputError: The rows cannot be read or are too few, or the model is behind an API.
    """
    rows = source.all_training_rows(task)
    train, validation = _held_out(rows, seed)
    wording = task.wording(setup.layout, family_of(client))
    backend: Any = client.backend
    fitted = fit_baseline(
        "prompt-tuning",
        backend,
        wording.task,
        train,
        validation,
        words=wording.words,
        seed=seed,
        start=gradient_start(client, setup.bbt(task, wording), wording, seed),
    )
    provenance = {
        "backend": client.identity,
        "seed": seed,
        "source_task": task.name,
        "source_rows": len(train),
        "steps": fitted.steps,
        "validation_loss": fitted.validation_loss,
        "versions": versions(),
    }
    if fitted.prompt is None:
        raise TypeError("prompt tuning gave no prompt")
    plain = TunedPrompt.without_head(fitted.prompt, wording.task)
    return replace(plain, provenance=provenance)


def _held_out(rows: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Training rows, and validation rows: the same share of each class."""
    counts = Counter(row.label for row in rows)
    if min(counts.values()) < 2:
        raise InputError(f"a class has fewer than 2 rows: {dict(counts)}; none could be held out")
    left = {label: max(1, round(VALIDATION_SHARE * count)) for label, count in counts.items()}
    train: list[Example] = []
    validation: list[Example] = []
    for index in np.random.default_rng(seed).permutation(len(rows)):
        row = rows[index]
        left[row.label] -= 1
        (validation if left[row.label] >= 0 else train).append(row)
    return train, validation
