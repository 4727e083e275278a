"""What a frozen model makes of a row: its last hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmaas_tune.backend import ScoreRequest
from lmaas_tune_adapters.hf.cohort import alike, slices
from lmaas_tune_adapters.hf.forward import token_ids
from lmaas_tune_adapters.hf.whitebox import WhiteBox

_TOKENS_PER_PASS = 2048


@dataclass(frozen=True, eq=False)
class HiddenRow:
    """A row as the last layer has it; of the encoder, if there is a decoder too.

    Attributes:
        tokens: (tokens, H) float32, on the processor.
        label: Index of the vector where the label is read.
    """

    tokens: torch.Tensor
    label: int


def read_hidden(box: WhiteBox, request: ScoreRequest) -> list[HiddenRow]:
    """Every row of a request under its text prompt, a mask or sentinel in the label's place.

    Raises:
        InputError: The model cannot read the request.
    """
    network = box.loaded.model
    body = network.get_encoder() if box.family == "seq2seq" else network.base_model
    opened = box.reader.rows(request)
    rows = [row.with_label(box.hole) for row in opened]
    hidden: dict[int, HiddenRow] = {}
    for group in alike(range(len(rows)), key=lambda number: len(rows[number].ids)):
        for chunk in slices(group, _TOKENS_PER_PASS // len(rows[group[0]].ids)):
            ids = token_ids([rows[number] for number in chunk], network.device)
            with torch.no_grad():
                states = body(ids).last_hidden_state.float().cpu()
            for number, tokens in zip(chunk, states, strict=True):
                # behind nothing but text, a label is read off the last token of the text
                hidden[number] = HiddenRow(tokens, rows[number].label - (not box.hole))
    return [hidden[number] for number in range(len(rows))]
