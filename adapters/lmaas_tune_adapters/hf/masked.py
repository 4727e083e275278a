"""Masked language models: every label word is read at masks in the label's place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf import answers
from lmaas_tune_adapters.hf.cohort import Cohort, alike, slices
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.forward import (
    embeddings_changed,
    logits_at,
    placed,
    token_ids,
    trial,
)
from lmaas_tune_adapters.hf.loading import LoadedModel
from lmaas_tune_adapters.hf.stack import deepened, plain_stack

_FEED_FORWARD_LAST = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Types whose last layer works position by position behind its attention: needed at masks only."""


class MaskedScorer:
    """A word of n tokens is read at n masks at once, so each of its tokens sees no other.

    Args:
        loaded: The model.
        max_tokens_per_pass: Most tokens that go through the model at once.

    Raises:
        InputError: The tokenizer has no mask.
    """

    label_last = False

    def __init__(self, loaded: LoadedModel, *, max_tokens_per_pass: int) -> None:
        if loaded.tokenizer.mask_token_id is None:
            raise InputError(f"the tokenizer of {loaded.name!r} has no mask token")
        self._model = loaded.model
        self.hole: answers.Word = (loaded.tokenizer.mask_token_id,)
        self._max_tokens = max_tokens_per_pass
        # BERT and its kin normalise what a token's word, place and type add up to
        embeddings = getattr(self._model.base_model, "embeddings", None)
        self._normalised: Any = embeddings if hasattr(embeddings, "LayerNorm") else None
        self._body = self._model.base_model
        if self._model.config.model_type in _FEED_FORWARD_LAST:
            self._body = self._body.encoder.layer[-1].attention
        with torch.inference_mode():
            self.layers = plain_stack(self._model.base_model, trial(self._model))
        self.insertions: frozenset[Insertion] = frozenset(
            {"concat", "add", "prepend"} if self._normalised else {"concat", "add"}
        )

    def tokens(self, row: EncodedRow) -> int:
        """How many tokens the model reads, one mask included."""
        return len(row.ids) + 1

    def places(self, row: EncodedRow, longest: int) -> int:
        """How many places a row takes, the masks of the longest label word included."""
        return len(row.ids) + longest

    def scores(self, cohort: Cohort) -> torch.Tensor:
        """(requests, rows, words) summed log-probabilities."""
        out = cohort.scores()
        for reading in answers.masks(cohort.words, self.hole[0]):
            for requests, numbers, rows in self._passes(cohort, reading.fill):
                sums = torch.zeros(len(rows), out.shape[2], dtype=torch.float64)
                reading.add_up(self._logits(rows, requests, cohort, reading.nodes), sums)
                out[requests, numbers] += sums
        return out

    def read(self, cohort: Cohort) -> None:
        """See `lmaas_tune_adapters.hf.cohort.Scorer.read`; with one mask for the label."""
        for requests, _, rows in self._passes(cohort, self.hole):
            self._logits(rows, requests, cohort, 1)

    def _passes(
        self, cohort: Cohort, fill: answers.Word
    ) -> Iterator[tuple[list[int], list[int], list[EncodedRow]]]:
        """(requests, row numbers, rows with `fill` in the label's place) of one length each."""
        items = [(r, n, row.with_label(fill)) for r, n, row in cohort.items()]
        for group in alike(items, key=lambda item: len(item[2].ids)):
            length = len(group[0][2].ids) + cohort.prompt_length
            for chunk in slices(group, self._max_tokens // length):
                requests, numbers, rows = zip(*chunk, strict=True)
                yield list(requests), list(numbers), list(rows)

    def _logits(
        self, rows: Sequence[EncodedRow], requests: Sequence[int], cohort: Cohort, count: int
    ) -> torch.Tensor:
        """(n, count, vocabulary) at the masks."""
        ids = token_ids(rows, self._model.device)
        embeddings = self._model.get_input_embeddings()(ids)
        first = torch.tensor([row.label for row in rows], device=ids.device)[:, None]
        positions = first + torch.arange(count, device=ids.device)
        starts, length = [row.prompt for row in rows], ids.shape[1]
        with contextlib.ExitStack() as stack:
            if cohort.vectors is not None:
                vectors = cohort.vectors[list(requests)]
                if cohort.insertion == "prepend":
                    positions, length = (
                        positions + cohort.prompt_length,
                        length + cohort.prompt_length,
                    )
                    change = lambda output: torch.cat([vectors, output], dim=1)  # noqa: E731
                    stack.enter_context(embeddings_changed(self._normalised, change))
                elif cohort.insertion == "add" and self._normalised:
                    change = lambda output: placed(output, starts, vectors, "add")  # noqa: E731
                    stack.enter_context(embeddings_changed(self._normalised, change))
                else:
                    embeddings = placed(embeddings, starts, vectors, cohort.insertion)
            stack.enter_context(deepened(self.layers, cohort.above, requests, starts, length))
            return logits_at(self._model, self._body, positions, inputs_embeds=embeddings)
