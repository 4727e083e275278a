"""Model Tuning: all weights and a classification head, on a copy of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lmaas_tune_adapters.hf.request_batch import slices

from lmaas_tune.errors import InputError
from lmaas_tune.lab.baselines.fitted import FittedBaseline, Job
from lmaas_tune.lab.baselines.settings import ModelTuningSettings
from lmaas_tune.lab.baselines.training import Logits, seeded, train_on
from lmaas_tune.prompts import FloatArray
from lmaas_tune.task import Example

if TYPE_CHECKING:
    from lmaas_tune_adapters.hf.whitebox import WhiteBox

_ROWS = 16  # read at once for scores


def fit(job: Job, settings: ModelTuningSettings) -> FittedBaseline:
    """Fine-tune in the standard way: a head on the row's text, neither prompt nor label words.

    It has the parameters of the model without its language-model head, and of the new head.
    """
    box = job.backend.open_box()
    with seeded(job.seed):
        classifier = _Classifier(box, len(job.task.verbalizer.labels))

        def read(examples: Sequence[Example]) -> Logits:
            ids = classifier.encode(job.texts(examples))
            return lambda numbers: classifier([ids[number] for number in numbers])

        trained = train_on(
            job, settings, classifier.parameters, read, mode=classifier.network.train
        )

    def score(examples: Sequence[Example]) -> FloatArray:
        ids = classifier.encode(job.texts(examples))
        with torch.no_grad():
            parts = [classifier(chunk) for chunk in slices(ids, _ROWS)]
        return torch.cat(parts).double().cpu().numpy()

    return FittedBaseline(**vars(trained), score=score)


class _Classifier:
    """A copy of a model with a classification head.

    Attributes:
        network: All of it.
        parameters: Its weights.
    """

    def __init__(self, box: WhiteBox, labels: int) -> None:
        self._box = box
        self.network = box.load_classifier(labels)
        self.parameters = list(self.network.parameters())
        tokenizer = box.tokenizer
        pad = tokenizer.pad_token_id
        self._pad: int = tokenizer.eos_token_id or 0 if pad is None else pad
        # a decoder's head reads the last token that is not this
        self.network.config.pad_token_id = self._pad

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, with start and end tokens as the model has them.

        Raises:
            InputError: A text is longer than the model reads; it names the row.
        """
        rows: list[list[int]] = self._box.tokenizer(list(texts), verbose=False)["input_ids"]
        limit = self._box.max_tokens
        for number, ids in enumerate(rows, start=1):
            if limit is not None and len(ids) > limit:
                raise InputError(
                    f"row {number} has {len(ids)} tokens, more than the {limit} that this model "
                    "reads: shorten the text"
                )
        return [ids or [self._pad] for ids in rows]

    def __call__(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """(rows, labels) float32; rows are padded on the right."""
        longest = max(map(len, rows))
        device = self._box.device
        ids = [row + [self._pad] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }
        # where the backend computes in bfloat16, so do passes; the weights stay float32 for Adam
        half = self._box.dtype == torch.bfloat16
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            logits: torch.Tensor = self.network(**inputs).logits
        return logits.float()
