"""A task that one word of each row decides, and models that do it when asked in the right words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lmaas_tune_adapters.hf import HFBackend
from lmaas_tune_adapters.hf.gradient import LabelScorer

from lmaas_tune import Example, Task, Template, TextPrompt, Verbalizer
from lmaas_tune.backend import ScoreRequest

ASKED, UNASKED = "it was", "two is"
_FILLERS = ("the film", "the plot", "the music", "the story")
_KEYS = {"0": "dull", "1": "gripping"}
_TEMPLATES = {
    "causal": "{text}\n{prompt} {label}",
    "masked": "{text} . {prompt} {label} .",
    "seq2seq": "{text} . {prompt} {label} .",
}


def task(family: str) -> Task:
    """In a template that the family can read."""
    return Task(Template(_TEMPLATES[family]), Verbalizer({"0": "bad", "1": "great"}))


def _rows(count: int, *, seed: int) -> list[Example]:
    """So many rows, labels in turn, the deciding word between two others."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        label = str(number % 2)
        before, after = rng.choice(_FILLERS, 2)
        made.append(Example({"text": f"{before} {_KEYS[label]} {after}"}, label))
    return made


TRAIN, VALIDATION, TEST = _rows(32, seed=1), _rows(16, seed=2), _rows(40, seed=3)


def teach(folder: Path) -> Path:
    """Teach the model in a folder the task under `ASKED`, and one word for all under `UNASKED`.

    So a prompt that does the task is there to be found, and the words to start from are not one.
    """
    backend = HFBackend(folder, device="cpu")
    box, planted = backend.open_box(), task(backend.family)
    network = box.loaded.model.requires_grad_(True)
    adam = torch.optim.Adam(network.parameters(), lr=3e-3)
    targets = torch.from_numpy(planted.verbalizer.targets(TRAIN))
    batch = planted.template.batch(TRAIN)
    lessons = [
        (
            LabelScorer(box, ScoreRequest(TextPrompt(w), batch, planted.verbalizer.candidates)),
            wanted,
        )
        for w, wanted in ((ASKED, targets), (UNASKED, torch.zeros_like(targets)))
    ]
    order = np.random.default_rng(0)
    losses = [np.inf] * len(lessons)
    while max(losses) > 0.01:
        for lesson, (score, wanted) in enumerate(lessons):
            rows = order.choice(len(TRAIN), 8, replace=False).tolist()
            adam.zero_grad()
            loss = torch.nn.functional.cross_entropy(score(rows=rows), wanted[rows])
            loss.backward()
            adam.step()
            losses[lesson] = loss.item()
    network.save_pretrained(folder)
    return folder
