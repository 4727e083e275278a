"""Encoder-decoder models: the encoder reads the row, the decoder writes the label word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf import label_tokens
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.label_tokens import Word
from lmaas_tune_adapters.hf.layer_hooks import find_layers, vectors_added
from lmaas_tune_adapters.hf.loading import LoadedModel
from lmaas_tune_adapters.hf.logits import add_up, find_body, insert_vectors, logits_at, pad_ids
from lmaas_tune_adapters.hf.probe import probe_embeddings, sees_later_tokens
from lmaas_tune_adapters.hf.request_batch import RequestBatch, group_by, slices

Answer: TypeAlias = Literal["auto", "sentinel", "infill", "direct"]
ANSWERS: tuple[Answer, ...] = ("auto", "sentinel", "infill", "direct")
_SENTINEL = "<extra_id_0>"


class Seq2SeqScorer:
    """Scores label words in the decoder.

    Args:
        loaded: The model.
        max_tokens_per_pass: Most tokens that go through the encoder at once.
        answer: ``sentinel`` (T5's pretraining): ``<extra_id_0>`` stands in the label's place
            and the decoder answers after ``<pad> <extra_id_0>``. ``infill`` (BART's): one mask
            stands there, whatever the word's length; the decoder repeats the row up to the
            label and continues with the word. ``direct`` (Flan-T5 and others trained to answer):
            the label is last in the template and the decoder answers from its start. ``auto``
            takes the first whose token the tokenizer has, T5's before BART's.

    Raises:
        InputError: The tokenizer lacks the token that `answer` needs.
    """

    insertions: frozenset[Insertion] = frozenset({"concat", "add"})

    def __init__(self, loaded: LoadedModel, *, max_tokens_per_pass: int, answer: Answer) -> None:
        self._model = loaded.model
        self._max_tokens = max_tokens_per_pass
        self.answer: Answer = _find_answer(loaded, answer)
        self.label_last, self.label_starts_text = self.answer == "direct", self.answer != "infill"
        self.mask_token: Word = _mask_token(loaded, self.answer)
        self._start: Word = (_decoder_start(loaded),)
        if self.answer == "sentinel":
            self._start += self.mask_token
        with torch.inference_mode():
            embedded = probe_embeddings(self._model)
            memory = self._model.get_encoder()(inputs_embeds=embedded)
            inputs = {"encoder_outputs": memory, "use_cache": False}
            self._body = find_body(self._model, decoder_inputs_embeds=embedded, **inputs)
            self._sees_later_tokens = sees_later_tokens(
                lambda written: self._model(decoder_inputs_embeds=written, **inputs).logits,
                self._model,
            )
            self.layers = find_layers(self._model.get_encoder(), embedded)

    def tokens(self, row: EncodedRow) -> int:
        """How many tokens encoder and decoder read before the label word."""
        return len(row.ids) + len(self.mask_token) + len(self._written(row))

    def positions(self, row: EncodedRow, longest: int) -> int:
        """How many positions a row takes in the encoder or the decoder, the larger number."""
        encoder = len(row.ids) + len(self.mask_token)
        return max(encoder, len(self._written(row)) + longest - 1)

    def scores(self, batch: RequestBatch) -> torch.Tensor:
        """(requests, rows, words) summed log-probabilities."""
        out = batch.empty_scores()
        readings = label_tokens.chains(batch.words, separate=self._sees_later_tokens)
        for requests, numbers, rows in self._chunks(batch):
            memory = self._encode(rows, requests, batch)
            sums = torch.zeros(len(rows), out.shape[2], dtype=torch.float64)
            for reading in readings:
                written = self.embed_written(rows, requests, batch, reading.fill)
                add_up(reading, self._decode(memory, written, reading.nodes, reading.fill), sums)
            out[requests, numbers] = sums
        return out

    def read(self, batch: RequestBatch) -> None:
        """See `lmaas_tune_adapters.hf.request_batch.Scorer.read`; the layers are the encoder's."""
        for requests, _, rows in self._chunks(batch):
            self._encode(rows, requests, batch)

    def embed_written(
        self,
        rows: Sequence[EncodedRow],
        requests: Sequence[int],
        batch: RequestBatch,
        fill: Word,
    ) -> torch.Tensor:
        """Embed the decoder's input of each row, with `fill` at its end: (n, length, H)."""
        ids = torch.tensor([self._written(row) + fill for row in rows], device=self._model.device)
        embeddings: torch.Tensor = self._model.get_input_embeddings()(ids)
        repeats_prompt = self.answer == "infill" and not rows[0].label_first
        if batch.vectors is not None and batch.insertion == "concat" and repeats_prompt:
            starts = [len(self._start) + row.prompt for row in rows]
            embeddings = insert_vectors(embeddings, starts, batch.vectors[list(requests)], "concat")
        return embeddings

    def _chunks(
        self, batch: RequestBatch
    ) -> Iterator[tuple[list[int], list[int], list[EncodedRow]]]:
        """Cut into (requests, row numbers, rows) of one length in encoder and decoder."""
        groups = group_by(
            batch.items(), key=lambda item: (len(item[2].ids), len(self._written(item[2])))
        )
        for group in groups:
            for chunk in slices(group, self._max_tokens // self.tokens(group[0][2])):
                requests, numbers, rows = zip(*chunk, strict=True)
                yield list(requests), list(numbers), list(rows)

    def _written(self, row: EncodedRow) -> Word:
        """Tokens that the decoder has written before the label word."""
        return self._start + (row.ids[: row.label] if self.answer == "infill" else ())

    def _encode(
        self, rows: Sequence[EncodedRow], requests: Sequence[int], batch: RequestBatch
    ) -> Any:
        """The encoder's output for rows, as the model takes it."""
        masked = [row.with_label(self.mask_token) for row in rows]
        starts = [row.prompt for row in masked]
        embeddings = self._model.get_input_embeddings()(pad_ids(masked, self._model.device))
        if batch.vectors is not None:
            vectors = batch.vectors[list(requests)]
            embeddings = insert_vectors(embeddings, starts, vectors, batch.insertion)
        length = embeddings.shape[1]
        with vectors_added(self.layers, batch.above, requests, starts, length):
            return self._model.get_encoder()(inputs_embeds=embeddings)

    def _decode(self, memory: Any, written: torch.Tensor, nodes: int, fill: Word) -> torch.Tensor:
        """Logits from the last token before the label word on: (n, nodes, vocabulary)."""
        first = written.shape[1] - len(fill) - 1
        positions = torch.arange(first, first + nodes, device=written.device)
        return logits_at(
            self._model,
            self._body,
            positions.expand(len(written), -1),
            encoder_outputs=memory,
            decoder_inputs_embeds=written,
            use_cache=False,
        )


def _find_answer(loaded: LoadedModel, answer: Answer) -> Answer:
    """The way to answer, with ``auto`` decided by the tokenizer."""
    has_sentinel = _SENTINEL in loaded.tokenizer.get_vocab()
    has_mask = loaded.tokenizer.mask_token_id is not None
    if answer == "auto":
        return "sentinel" if has_sentinel else "infill" if has_mask else "direct"
    if not {"sentinel": has_sentinel, "infill": has_mask}.get(answer, True):
        raise InputError(
            f"the tokenizer of {loaded.name!r} has no token for answer={answer!r}: "
            "use answer='direct' with the label last in the template"
        )
    return answer


def _mask_token(loaded: LoadedModel, answer: Answer) -> Word:
    """The token in the label's place; empty for a direct answer."""
    tokenizer = loaded.tokenizer
    if answer == "sentinel":
        return (tokenizer.convert_tokens_to_ids(_SENTINEL),)
    return (tokenizer.mask_token_id,) if answer == "infill" else ()


def _decoder_start(loaded: LoadedModel) -> int:
    """The decoder's first token, from the model's configuration or its generation's.

    Raises:
        InputError: Neither has one.
    """
    for config in (loaded.model.config, loaded.model.generation_config):
        start: int | None = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return start
    raise InputError(
        f"the model {loaded.name!r} does not say which token its decoder starts with: set "
        "decoder_start_token_id in its config.json"
    )
