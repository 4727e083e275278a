"""Access to a backend's model: copies that can be differentiated or get another head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import transformers

from lmaas_tune.errors import InputError
from lmaas_tune_adapters.hf.loading import (
    Family,
    LoadedModel,
    load,
    one_sentence,
    quiet,
    source_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmaas_tune_adapters.hf.label_tokens import Word
    from lmaas_tune_adapters.hf.request_encoder import RequestEncoder
    from lmaas_tune_adapters.hf.seq2seq import Answer


@dataclass(frozen=True, kw_only=True, eq=False)
class WhiteBox:
    """A backend's model and how it reads. Changes to it do not reach the backend.

    Attributes:
        source: Name on the hub, folder, or path of a ``.gguf`` file.
        revision: Commit on the hub, if it comes from there.
        identity: The backend's.
        config: The model's.
        tokenizer: The model's.
        family: How the model answers.
        device: Where it is.
        dtype: Of its weights.
        encoder: Turns requests into tokens, as the backend does.
        answer: How a sequence-to-sequence model gives the label; ``auto`` for the other families.
        mask_token: The token in the label's place where a label is read (a mask or sentinel);
            empty where it is read at the end of the row.
        max_tokens: The longest row it reads; None if unknown.
    """

    source: str
    revision: str | None
    identity: str
    config: Any
    tokenizer: Any
    family: Family
    device: torch.device
    dtype: torch.dtype
    encoder: RequestEncoder
    answer: Answer
    mask_token: Word
    max_tokens: int | None

    @cached_property
    def loaded(self) -> LoadedModel:
        """A copy of the model, frozen and without dropout, in the backend's dtype.

        Its modules are transformers' own; the backend's may be faster ones without gradients.

        Raises:
            InputError: The weights have changed since the backend was loaded.
        """
        loaded = load(
            self.source,
            revision=self.revision,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
        )
        if f"weights={loaded.fingerprint}" not in self.identity:
            raise InputError(
                f"the model {self.source!r} is not the one that this backend loaded: it changed "
                "on disk or on the hub; load the backend again"
            )
        return loaded

    def load_classifier(self, labels: int) -> Any:
        """Load a copy of the model in float32 with a new classification head, for training.

        Args:
            labels: Outputs of the head; its weights are drawn from torch's global generator.

        Raises:
            InputError: transformers has no such head for the model, or it cannot be loaded.
        """
        source, options = source_of(self.source, self.revision)
        known: Mapping[Any, Any] = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        if type(self.config) not in known:
            raise InputError(
                f"transformers has no classification head for models of type "
                f"{self.config.model_type!r}"
            )
        with quiet(), one_sentence(self.source):
            network = transformers.AutoModelForSequenceClassification.from_pretrained(
                source, dtype=torch.float32, num_labels=labels, **options
            )
        return network.to(self.device)
