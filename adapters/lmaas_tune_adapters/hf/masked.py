"""Masked language models: label words are read at masks in the label's place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf import label_tokens
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.label_tokens import Reading, Word
from lmaas_tune_adapters.hf.layer_hooks import find_layers, vectors_added
from lmaas_tune_adapters.hf.loading import LoadedModel
from lmaas_tune_adapters.hf.logits import (
    add_up,
    insert_vectors,
    logits_at,
    output_replaced,
    pad_ids,
)
from lmaas_tune_adapters.hf.probe import probe_embeddings
from lmaas_tune_adapters.hf.request_batch import RequestBatch, group_by, slices
from lmaas_tune_adapters.hf.speedups import Speedups

_Chunk: TypeAlias = tuple[list[int], list[int], list[EncodedRow]]
"""Requests, row numbers and rows of one forward pass."""


class MaskedForwardPass:
    """Runs forward passes of a masked model, one at a time.

    Args:
        network: The model with its head.
        body: See `lmaas_tune_adapters.hf.logits.find_body`.
        normalised: The embedding module that adds up word, position and type and normalises the
            sum, if the model has one whose output may be changed; else None.
        layers: The layers that a deep prompt enters; empty if the model has no plain stack.

    Attributes:
        layers: As given.
    """

    def __init__(
        self, network: Any, body: Any, normalised: Any | None, layers: Sequence[Any]
    ) -> None:
        self._network, self._body, self._normalised = network, body, normalised
        self.layers = layers

    def on_copy(self, network: Any, find: Callable[[Any], Any]) -> MaskedForwardPass:
        """Make a second one, for another thread.

        Args:
            network: A copy of the model.
            find: Finds the copy of any of its modules.
        """
        layers = [find(layer) for layer in self.layers]
        return MaskedForwardPass(network, find(self._body), find(self._normalised), layers)

    def read(
        self, rows: Sequence[EncodedRow], requests: Sequence[int], batch: RequestBatch, count: int
    ) -> torch.Tensor:
        """Compute logits at the masks of rows of one length: (n, count, vocabulary)."""
        ids = pad_ids(rows, self._network.device)
        embeddings = self._network.get_input_embeddings()(ids)
        first = torch.tensor([row.label for row in rows], device=ids.device)[:, None]
        positions = first + torch.arange(count, device=ids.device)
        starts, length = [row.prompt for row in rows], ids.shape[1]
        with contextlib.ExitStack() as hooks:
            if batch.vectors is not None:
                vectors = batch.vectors[list(requests)]
                if batch.insertion == "prepend":
                    positions, length = positions + vectors.shape[1], length + vectors.shape[1]
                    change = partial(_prepend, vectors=vectors)
                    hooks.enter_context(output_replaced(self._normalised, change))
                elif batch.insertion == "add" and self._normalised:
                    change = partial(
                        insert_vectors, starts=starts, vectors=vectors, insertion="add"
                    )
                    hooks.enter_context(output_replaced(self._normalised, change))
                else:
                    embeddings = insert_vectors(embeddings, starts, vectors, batch.insertion)
            hooks.enter_context(vectors_added(self.layers, batch.above, requests, starts, length))
            return logits_at(self._network, self._body, positions, inputs_embeds=embeddings)


def _prepend(output: torch.Tensor, *, vectors: torch.Tensor) -> torch.Tensor:
    return torch.cat([vectors, output], dim=1)


class MaskedScorer:
    """Scores label words with a masked model.

    A word of n tokens is read at n masks at once, so that no token of it sees another.

    Args:
        loaded: The model.
        max_tokens_per_pass: Most tokens that go through the model at once.
        speedups: What may be replaced by faster code.

    Raises:
        InputError: The tokenizer has no mask.
    """

    label_last = False
    label_starts_text = False

    def __init__(
        self, loaded: LoadedModel, *, max_tokens_per_pass: int, speedups: Speedups
    ) -> None:
        if loaded.tokenizer.mask_token_id is None:
            raise InputError(f"the tokenizer of {loaded.name!r} has no mask token")
        self.mask_token: Word = (loaded.tokenizer.mask_token_id,)
        self._max_tokens = max_tokens_per_pass
        network = loaded.model
        normalised = _find_normalised(network)
        body = speedups.masked_body(network, network.base_model)
        with torch.inference_mode():
            self.layers = find_layers(network.base_model, probe_embeddings(network))
        self._forward_pass = MaskedForwardPass(network, body, normalised, self.layers)
        self._workers = speedups.workers(self._forward_pass, network, self._forward_pass.on_copy)
        prepends = normalised is not None and _may_change(
            network, normalised, lambda output: torch.cat([output[:, :1], output], dim=1)
        )
        self.insertions: frozenset[Insertion] = frozenset(
            {"concat", "add", "prepend"} if prepends else {"concat", "add"}
        )

    def tokens(self, row: EncodedRow) -> int:
        """How many tokens the model reads, one mask included."""
        return len(row.ids) + 1

    def positions(self, row: EncodedRow, longest: int) -> int:
        """How many positions a row takes, the masks of its longest label word included."""
        return len(row.ids) + longest

    def scores(self, batch: RequestBatch) -> torch.Tensor:
        """(requests, rows, words) summed log-probabilities."""
        out = batch.empty_scores()
        for reading in label_tokens.masks(batch.words, self.mask_token[0]):
            chunks = sorted(self._chunks(batch, reading.fill), key=_tokens, reverse=True)
            most = self._workers.count(sum(map(_tokens, chunks)))
            results = self._workers.map(partial(_sum_logprobs, reading, batch), chunks, most=most)
            for (requests, numbers, _), values in zip(chunks, results, strict=True):
                out[requests, numbers] += values
        return out

    def read(self, batch: RequestBatch) -> None:
        """See `lmaas_tune_adapters.hf.request_batch.Scorer.read`; the label is one mask."""
        for requests, _, rows in self._chunks(batch, self.mask_token):
            self._forward_pass.read(rows, requests, batch, 1)

    def _chunks(self, batch: RequestBatch, fill: Word) -> Iterator[_Chunk]:
        """Cut the rows into passes of one length, with `fill` in the label's place."""
        items = [(r, n, row.with_label(fill)) for r, n, row in batch.items()]
        for group in group_by(items, key=lambda item: len(item[2].ids)):
            length = len(group[0][2].ids) + batch.prompt_length
            for chunk in slices(group, self._max_tokens // length):
                requests, numbers, rows = zip(*chunk, strict=True)
                yield list(requests), list(numbers), list(rows)


def _find_normalised(network: Any) -> Any | None:
    """The embedding module of BERT and similar models, whose output is normalised."""
    embeddings = getattr(network.base_model, "embeddings", None)
    if not hasattr(embeddings, "LayerNorm"):
        return None
    added = partial(_add_first, starts=[4])
    return embeddings if _may_change(network, embeddings, added) else None


def _add_first(output: torch.Tensor, *, starts: Sequence[int]) -> torch.Tensor:
    return insert_vectors(output, starts, output[:, :1], "add")


def _may_change(
    network: Any, embeddings: Any, change: Callable[[torch.Tensor], torch.Tensor]
) -> bool:
    """Find out by a trial whether a model accepts a changed output of its embedding module."""
    shapes = []

    def record(output: torch.Tensor) -> torch.Tensor:
        shapes.append(output.shape)
        return change(output)

    try:
        with torch.inference_mode(), output_replaced(embeddings, record):
            whole = probe_embeddings(network)
            network(inputs_embeds=whole)
    except Exception:  # a model that counted its tokens before raises any exception
        return False
    return shapes == [whole.shape]  # without padding


def _tokens(chunk: _Chunk) -> int:
    _, _, rows = chunk
    return len(rows) * len(rows[0].ids)


def _sum_logprobs(
    reading: Reading, batch: RequestBatch, forward_pass: MaskedForwardPass, chunk: _Chunk
) -> torch.Tensor:
    """(n, words) log-probabilities of one pass."""
    requests, _, rows = chunk
    sums = torch.zeros(len(rows), len(batch.words), dtype=torch.float64)
    add_up(reading, forward_pass.read(rows, requests, batch, reading.nodes), sums)
    return sums
