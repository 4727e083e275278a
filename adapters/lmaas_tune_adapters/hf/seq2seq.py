"""Encoder-decoder models: the encoder reads the row, the decoder says the label word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf import answers
from lmaas_tune_adapters.hf.cohort import Cohort, alike, slices
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.forward import (
    body_of,
    logits_at,
    placed,
    sees_later,
    token_ids,
    trial,
)
from lmaas_tune_adapters.hf.loading import LoadedModel
from lmaas_tune_adapters.hf.stack import deepened, plain_stack

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
            stands there, whatever the word's length, and the decoder repeats the row up to the
            label and goes on with the word. ``direct`` (Flan-T5 and others trained to answer):
            the label is last in the template and the decoder answers from its start. ``auto``
            takes the first that the tokenizer has the token for, T5's before BART's.

    Raises:
        InputError: The tokenizer lacks what `answer` needs.
    """

    insertions: frozenset[Insertion] = frozenset({"concat", "add"})

    def __init__(self, loaded: LoadedModel, *, max_tokens_per_pass: int, answer: Answer) -> None:
        self._model = loaded.model
        self.speedups = loaded.speedups
        self._max_tokens = max_tokens_per_pass
        tokenizer = loaded.tokenizer
        has_sentinel = _SENTINEL in tokenizer.get_vocab()
        if answer == "auto":
            other: Answer = "direct" if tokenizer.mask_token_id is None else "infill"
            answer = "sentinel" if has_sentinel else other
        lacking = {"sentinel": not has_sentinel, "infill": tokenizer.mask_token_id is None}
        if lacking.get(answer):
            raise InputError(
                f"the tokenizer of {loaded.name!r} has no token for answer={answer!r}: "
                "use answer='direct' with the label last in the template"
            )
        self.answer: Answer = answer
        self.label_last, self.answers_apart = answer == "direct", answer != "infill"
        start = _decoder_start(self._model)
        if start is None:
            raise InputError(
                f"the model {loaded.name!r} does not say which token its decoder starts with: set "
                "decoder_start_token_id in its config.json"
            )
        self._start: tuple[int, ...] = (start,)
        hole: tuple[Any, ...] = ()
        if answer == "sentinel":
            hole = (tokenizer.convert_tokens_to_ids(_SENTINEL),)
            self._start = (start, *hole)
        elif answer == "infill":
            hole = (tokenizer.mask_token_id,)
        self.hole: answers.Word = hole
        with torch.inference_mode():
            embedded = trial(self._model)
            memory = self._model.get_encoder()(inputs_embeds=embedded)
            inputs = {"encoder_outputs": memory, "use_cache": False}
            self._body = body_of(self._model, decoder_inputs_embeds=embedded, **inputs)
            self._apart = sees_later(
                lambda said: self._model(decoder_inputs_embeds=said, **inputs).logits, self._model
            )
            self.layers = plain_stack(self._model.get_encoder(), embedded)

    def tokens(self, row: EncodedRow) -> int:
        """How many tokens encoder and decoder read before the label word."""
        return len(row.ids) + len(self.hole) + len(self._said(row))

    def places(self, row: EncodedRow, longest: int) -> int:
        """How many places a row takes, in the encoder or the decoder, whichever is longer."""
        encoder = len(row.ids) + len(self.hole)
        return max(encoder, len(self._said(row)) + longest - 1)

    def scores(self, cohort: Cohort) -> torch.Tensor:
        """(requests, rows, words) summed log-probabilities."""
        out = cohort.scores()
        readings = answers.chains(cohort.words, apart=self._apart)
        for requests, numbers, rows in self._passes(cohort):
            memory = self._encode(rows, requests, cohort)
            sums = torch.zeros(len(rows), out.shape[2], dtype=torch.float64)
            for reading in readings:
                said = self.embed_said(rows, requests, cohort, reading.fill)
                reading.add_up(self._decode(memory, said, reading.nodes, reading.fill), sums)
            out[requests, numbers] = sums
        return out

    def read(self, cohort: Cohort) -> None:
        """See `lmaas_tune_adapters.hf.cohort.Scorer.read`; the layers are the encoder's."""
        for requests, _, rows in self._passes(cohort):
            self._encode(rows, requests, cohort)

    def _passes(self, cohort: Cohort) -> Iterator[tuple[list[int], list[int], list[EncodedRow]]]:
        """(requests, row numbers, rows) that encoder and decoder read at one length each."""
        groups = alike(
            cohort.items(), key=lambda item: (len(item[2].ids), len(self._said(item[2])))
        )
        for group in groups:
            for chunk in slices(group, self._max_tokens // self.tokens(group[0][2])):
                requests, numbers, rows = zip(*chunk, strict=True)
                yield list(requests), list(numbers), list(rows)

    def _said(self, row: EncodedRow) -> answers.Word:
        """What the decoder has said before the label word."""
        return self._start + (row.ids[: row.label] if self.answer == "infill" else ())

    def _encode(self, rows: Sequence[EncodedRow], requests: Sequence[int], cohort: Cohort) -> Any:
        """What the encoder gives of the rows, as the model takes it."""
        holed = [row.with_label(self.hole) for row in rows]
        starts = [row.prompt for row in holed]
        embeddings = self._model.get_input_embeddings()(token_ids(holed, self._model.device))
        if cohort.vectors is not None:
            vectors = cohort.vectors[list(requests)]
            embeddings = placed(embeddings, starts, vectors, cohort.insertion)
        length = embeddings.shape[1]
        with deepened(self.layers, cohort.above, requests, starts, length):
            return self._model.get_encoder()(inputs_embeds=embeddings)

    def embed_said(
        self,
        rows: Sequence[EncodedRow],
        requests: Sequence[int],
        cohort: Cohort,
        fill: answers.Word,
    ) -> torch.Tensor:
        """(n, length, H) of what the decoder has said of each row, with `fill` at its end."""
        ids = torch.tensor([self._said(row) + fill for row in rows], device=self._model.device)
        embeddings: torch.Tensor = self._model.get_input_embeddings()(ids)
        repeats_prompt = self.answer == "infill" and not rows[0].label_first
        if cohort.vectors is not None and cohort.insertion == "concat" and repeats_prompt:
            starts = [len(self._start) + row.prompt for row in rows]
            embeddings = placed(embeddings, starts, cohort.vectors[list(requests)], "concat")
        return embeddings

    def _decode(
        self, memory: Any, said: torch.Tensor, nodes: int, fill: answers.Word
    ) -> torch.Tensor:
        """(n, nodes, vocabulary) from the last token before the label word on."""
        first = said.shape[1] - len(fill) - 1
        positions = torch.arange(first, first + nodes, device=said.device).expand(len(said), -1)
        return logits_at(
            self._model,
            self._body,
            positions,
            encoder_outputs=memory,
            decoder_inputs_embeds=said,
            use_cache=False,
        )


def _decoder_start(network: Any) -> int | None:
    """Token that the decoder starts with, by the model's configuration or its generation's."""
    for config in (network.config, network.generation_config):
        start: int | None = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return start
    return None
