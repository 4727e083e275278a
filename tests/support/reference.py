"""Reference scores by the simplest code: one row, one word, no padding, no sharing.

It uses only transformers, so that it shares no code with the code under test. It cuts a row
at its slots and tokenizes the pieces, which is right for the tokenizers of `models`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.prompts import FloatArray, SoftPrompt, TextPrompt
from lmaas_tune.task import Part, Slot


def logprobs(backend: Any, request: ScoreRequest) -> FloatArray:
    """(rows, candidates) reference scores, with the weights of the backend."""
    return plain(backend._model, backend._tokenizer, backend.family, request)


def plain(
    network: Any, tokenizer: Any, family: str, request: ScoreRequest, *, direct: bool = False
) -> FloatArray:
    """(rows, candidates) reference scores.

    Args:
        direct: Whether a sequence-to-sequence model answers from its decoder's start.
    """
    read: Any = {"causal": _causal, "masked": _masked, "seq2seq": _seq2seq}[family]
    if family == "seq2seq":
        read = partial(_seq2seq, direct=direct)
    with torch.inference_mode():
        return np.array(
            [
                [read(network, tokenizer, row, request.prompt, word) for word in request.candidates]
                for row in request.batch.rows
            ]
        )


def pieces(tokenizer: Any, row: tuple[Part, ...], prompt: Any) -> list[Any]:
    """Lists of ids and slots, without the space before a slot, without start and end tokens."""
    texts: list[Any] = []
    for part in row:
        if isinstance(part, str):
            texts.append(part)
            continue
        spaced = bool(texts) and isinstance(texts[-1], str) and texts[-1].endswith(" ")
        if spaced:
            texts[-1] = texts[-1][:-1]
        if part is Slot.PROMPT and isinstance(prompt, TextPrompt):
            texts.append((" " if spaced and prompt.text else "") + prompt.text)
        else:
            texts.append(part)
    joined: list[Any] = []
    for text in texts:
        if joined and isinstance(text, str) and isinstance(joined[-1], str):
            joined[-1] += text
        else:
            joined.append(text)
    return [
        tokenizer(part, add_special_tokens=False)["input_ids"] if isinstance(part, str) else part
        for part in joined
    ]


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The start and end tokens that a tokenizer adds."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:at], whole[at + len(inner) :]


def word_ids(tokenizer: Any, row: tuple[Part, ...], word: str) -> list[int]:
    """Ids of a label word as it stands in this row."""
    before = row[row.index(Slot.LABEL) - 1] if row.index(Slot.LABEL) else ""
    if row.index(Slot.LABEL) >= 2 and before is Slot.PROMPT:
        before = ""
    spaced = isinstance(before, str) and before.endswith(" ")
    ids: list[int] = tokenizer((" " if spaced else "") + word, add_special_tokens=False)[
        "input_ids"
    ]
    return ids


def embed(network: Any, parts: list[Any], prompt: Any, *, anchored_only: bool = False) -> Any:
    """(1, length, H): ids embedded, the soft prompt in its slot."""
    table = network.get_input_embeddings()
    found = []
    for part in parts:
        if part is Slot.PROMPT:
            vectors = torch.tensor(prompt.vectors)
            if prompt.insertion == "add":
                anchors = table(torch.tensor(prompt.anchor))
                vectors = anchors if anchored_only else anchors + vectors
            found.append(vectors)
        elif part:
            found.append(table(torch.tensor(part)))
    return torch.cat(found)[None]


def _sum(logits: Any, first: int, ids: list[int]) -> float:
    table = logits[0].double().log_softmax(-1)
    return sum(float(table[first + i, token]) for i, token in enumerate(ids))


def _causal(network: Any, tokenizer: Any, row: Any, prompt: Any, word: str) -> float:
    start, _ = around(tokenizer)
    ids = word_ids(tokenizer, row, word)
    parts = [start, *(p for p in pieces(tokenizer, row, prompt) if p is not Slot.LABEL), ids[:-1]]
    inputs = given(network, parts, prompt)
    length = next(iter(inputs.values())).shape[1]
    return _sum(network(**inputs).logits, length - len(ids), ids)


def _masked(network: Any, tokenizer: Any, row: Any, prompt: Any, word: str) -> float:
    start, end = around(tokenizer)
    ids = word_ids(tokenizer, row, word)
    masks = [tokenizer.mask_token_id] * len(ids)
    parts = [start, *pieces(tokenizer, row, prompt), end]
    parts = [masks if part is Slot.LABEL else part for part in parts]
    lengths = [len(prompt.vectors) if part is Slot.PROMPT else len(part) for part in parts]
    at = sum(lengths[: next(i for i, part in enumerate(parts) if part is masks)])
    return _sum(network(**given(network, parts, prompt)).logits, at, ids)


def _seq2seq(
    network: Any, tokenizer: Any, row: Any, prompt: Any, word: str, *, direct: bool
) -> float:
    start, end = around(tokenizer)
    ids = word_ids(tokenizer, row, word)
    body = pieces(tokenizer, row, prompt)
    hole: list[int] = []
    decoded: list[Any] = [[network.config.decoder_start_token_id]]
    if not direct and tokenizer.mask_token_id is None:
        hole = [tokenizer.convert_tokens_to_ids("<extra_id_0>")]
        decoded.append(hole)
    elif not direct:
        hole = [tokenizer.mask_token_id]
        decoded += [start, *body[: body.index(Slot.LABEL)]]
    parts = [start, *(hole if part is Slot.LABEL else part for part in body), end]
    inputs = given(network, parts, prompt)
    decoder = given(network, [*decoded, ids[:-1]], prompt, anchored_only=True)
    length = next(iter(decoder.values())).shape[1]
    logits = network(**inputs, **{f"decoder_{k}": v for k, v in decoder.items()}).logits
    return _sum(logits, length - len(ids), ids)


def given(
    network: Any, parts: list[Any], prompt: Any, *, anchored_only: bool = False
) -> dict[str, Any]:
    """The inputs of a model: ids if there are only ids, else embeddings."""
    if isinstance(prompt, SoftPrompt):
        embedded = embed(network, parts, prompt, anchored_only=anchored_only)
        return {"inputs_embeds": embedded}
    return {"input_ids": torch.tensor([[i for part in parts for i in part]])}
