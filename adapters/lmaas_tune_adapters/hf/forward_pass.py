"""One forward pass of a causal model, over rows that continue cached prefixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from lmaas_tune_adapters.hf.abilities import Abilities
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.kv_cache import (
    States,
    cache_arguments,
    compute_states,
    empty_cache,
    positions_and_mask,
    prefix_cache,
)
from lmaas_tune_adapters.hf.label_tokens import Reading, Word
from lmaas_tune_adapters.hf.layer_hooks import vectors_added
from lmaas_tune_adapters.hf.logits import insert_vectors, logits_at, pad_ids
from lmaas_tune_adapters.hf.request_batch import RequestBatch


@dataclass(frozen=True)
class Item:
    """One row of one request, cut into a prefix that others share and its own suffix.

    Attributes:
        request: Index in the batch.
        number: Index of the row.
        row: Its tokens.
        prefix: Length of the prefix; at least one token remains for the suffix.
        key: Items of equal key have the same prefix.
    """

    request: int
    number: int
    row: EncodedRow
    prefix: int
    key: Hashable

    @property
    def suffix(self) -> int:
        """Length of the suffix."""
        return len(self.row.ids) - self.prefix


class CausalForwardPass:
    """Runs forward passes of a causal model, one at a time.

    Args:
        network: The model with its head.
        body: See `lmaas_tune_adapters.hf.logits.find_body`.
        abilities: What the model supports.
        layers: The layers that a deep prompt enters; empty if the model has no plain stack.

    Attributes:
        abilities: As given.
        layers: As given.
    """

    def __init__(
        self, network: Any, body: Any, abilities: Abilities, layers: Sequence[Any]
    ) -> None:
        self._network, self._body = network, body
        self.abilities, self.layers = abilities, layers

    def on_copy(self, network: Any, find: Callable[[Any], Any]) -> CausalForwardPass:
        """Make a second one, for another thread.

        Args:
            network: A copy of the model.
            find: Finds the copy of any of its modules.
        """
        last = self.abilities.last
        return CausalForwardPass(
            network,
            find(self._body),
            replace(self.abilities, last=last and replace(last, module=find(last.module))),
            [find(layer) for layer in self.layers],
        )

    def whole(self, items: Sequence[Item], batch: RequestBatch) -> None:
        """Pass rows of one length through the layers, for hooks that record inputs."""
        embeddings = self._embed(items, batch)
        with self._deep_vectors(items, batch, embeddings):
            self._body(inputs_embeds=embeddings)

    def prefix_states(self, firsts: Sequence[Item], batch: RequestBatch) -> States:
        """Compute the keys and values of prefixes of one length."""
        embeddings = self._embed(firsts, batch)[:, : firsts[0].prefix]
        with self._deep_vectors(firsts, batch, embeddings):
            return compute_states(self._network.base_model, embeddings)

    def read(
        self,
        items: Sequence[Item],
        prefixes: Sequence[list[Item]],
        states: States | None,
        reading: Reading,
        batch: RequestBatch,
    ) -> torch.Tensor:
        """Compute logits from the last token before the label on.

        Args:
            items: Rows; if their suffixes differ in length, the reading is a chain.
            prefixes: For each prefix in `states`, the items that continue it.
            states: Keys and values of the prefixes, shorter ones padded at the end; None where
                the rows are read whole.
            reading: What to put in the label's place and to read there.
            batch: The requests of the items.

        Returns:
            (n, nodes, vocabulary)
        """
        suffixes = [item.suffix for item in items]
        lengths, width = [item.prefix for item in items], max(suffixes) + len(reading.fill)
        embeddings = take_from(self._embed(items, batch, reading.fill), lengths, width)
        firsts = torch.tensor(suffixes, device=embeddings.device) - 1
        positions = firsts[:, None] + torch.arange(reading.nodes, device=embeddings.device)
        masked = states is not None or not reading.is_chain
        deep_vectors = self._deep_vectors(items, batch, embeddings, starts=lengths)
        # the last layer is cut after the vectors were added to its input
        last_layer: AbstractContextManager[None] = nullcontext()
        if len(set(suffixes)) == 1:
            last_layer = self._last_layer(reading.nodes, masked=masked)
        with deep_vectors, last_layer:
            return logits_at(
                self._network,
                self._body,
                positions,
                inputs_embeds=embeddings,
                **self._cache(items, prefixes, states, reading, embeddings),
            )

    def _cache(
        self,
        items: Sequence[Item],
        prefixes: Sequence[list[Item]],
        states: States | None,
        reading: Reading,
        embeddings: torch.Tensor,
    ) -> dict[str, Any]:
        """Arguments that make a pass continue prefixes, with positions and mask if needed."""
        lengths, longest = [item.prefix for item in items], 0
        inputs: dict[str, Any] = {"use_cache": False}
        if states is not None:
            counts = Counter(item.key for item in items)
            rows_per_prefix = [counts[group[0].key] for group in prefixes]
            inputs = cache_arguments(self._network, prefix_cache(states, rows_per_prefix))
            longest = prefixes[-1][0].prefix
        elif self.abilities.last is not None:
            inputs = cache_arguments(self._network, empty_cache(self.abilities.layers))
        if not reading.is_chain or any(length < longest for length in lengths):
            inputs |= positions_and_mask(lengths, longest, reading.parents, embeddings)
        return inputs

    def _embed(self, items: Sequence[Item], batch: RequestBatch, fill: Word = ()) -> torch.Tensor:
        """Embed whole rows with `fill` behind each: (n, longest, H); the padding is not read."""
        rows = [item.row.with_label(fill) for item in items]
        embeddings: torch.Tensor = self._network.get_input_embeddings()(
            pad_ids(rows, self._network.device)
        )
        if batch.vectors is None:
            return embeddings
        vectors = batch.vectors[[item.request for item in items]]
        return insert_vectors(embeddings, [row.prompt for row in rows], vectors, batch.insertion)

    def _deep_vectors(
        self,
        items: Sequence[Item],
        batch: RequestBatch,
        embeddings: torch.Tensor,
        *,
        starts: Sequence[int] | None = None,
    ) -> AbstractContextManager[None]:
        """Add deep prompts in a pass over (n, length, H), which begins at positions `starts`."""
        firsts = [0] * len(items) if starts is None else starts
        return vectors_added(
            self.layers,
            batch.above,
            [item.request for item in items],
            [item.row.prompt - first for item, first in zip(items, firsts, strict=True)],
            embeddings.shape[1],
        )

    def _last_layer(self, reads: int, *, masked: bool) -> AbstractContextManager[None]:
        """Compute the last layer at the last positions only, where that is possible."""
        last = self.abilities.last
        if last is None or not (masked or reads == 1):
            return nullcontext()
        return last.last(reads)


def take_from(whole: torch.Tensor, starts: Sequence[int], width: int) -> torch.Tensor:
    """Take `width` positions of each sequence, from its own start on: (n, width, H)."""
    if len(set(starts)) == 1:
        return whole[:, starts[0] : starts[0] + width]
    columns = torch.tensor(starts)[:, None] + torch.arange(width)
    return whole[torch.arange(len(whole))[:, None], columns.to(whole.device)]
