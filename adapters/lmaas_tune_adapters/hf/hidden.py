"""The last hidden states of rows in a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmaas_tune_adapters.hf.logits import pad_ids
from lmaas_tune_adapters.hf.request_batch import group_by, slices

if TYPE_CHECKING:
    from lmaas_tune.backend import ScoreRequest
    from lmaas_tune_adapters.hf.whitebox import WhiteBox

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
