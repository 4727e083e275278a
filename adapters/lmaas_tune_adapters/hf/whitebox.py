"""Access to a backend's model: copies with gradients or another head, and hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune_adapters.hf.label_tokens import Word
from lmaas_tune_adapters.hf.loading import Family, LoadedModel, load
from lmaas_tune_adapters.hf.logits import pad_ids
from lmaas_tune_adapters.hf.request_batch import group_by, slices
from lmaas_tune_adapters.hf.request_encoder import RequestEncoder
from lmaas_tune_adapters.hf.seq2seq import Answer
from lmaas_tune_adapters.hf.source import errors_translated, quiet, source_of


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
        with quiet(), errors_translated(self.source):
            network = transformers.AutoModelForSequenceClassification.from_pretrained(
                source, dtype=torch.float32, num_labels=labels, **options
            )
        return network.to(self.device)


_TOKENS_PER_PASS = 2048


@dataclass(frozen=True, eq=False)
class HiddenRow:
    """Hidden states of a row after the last layer; the encoder's, if there is a decoder too.

    Attributes:
        tokens: (tokens, H) float32, in main memory.
        label: Index of the position where the label is read.
    """

    tokens: torch.Tensor
    label: int


def read_hidden(box: WhiteBox, request: ScoreRequest) -> list[HiddenRow]:
    """Compute the hidden states of every row of a request, with its text prompt and mask token.

    Raises:
        InputError: The model cannot read the request.
    """
    network = box.loaded.model
    body = network.get_encoder() if box.family == "seq2seq" else network.base_model
    opened = box.encoder.rows(request)
    rows = [row.with_label(box.mask_token) for row in opened]
    hidden: dict[int, HiddenRow] = {}
    for group in group_by(range(len(rows)), key=lambda number: len(rows[number].ids)):
        for chunk in slices(group, _TOKENS_PER_PASS // len(rows[group[0]].ids)):
            ids = pad_ids([rows[number] for number in chunk], network.device)
            with torch.no_grad():
                states = body(ids).last_hidden_state.float().cpu()
            for number, tokens in zip(chunk, states, strict=True):
                # without a mask token, a label is read at the token before it
                hidden[number] = HiddenRow(tokens, rows[number].label - (not box.mask_token))
    return [hidden[number] for number in range(len(rows))]
