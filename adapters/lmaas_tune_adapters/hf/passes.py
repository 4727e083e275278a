"""One pass through a causal model, behind heads that were read before."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from lmaas_tune_adapters.hf import answers
from lmaas_tune_adapters.hf.abilities import steering, try_out
from lmaas_tune_adapters.hf.answers import Reading
from lmaas_tune_adapters.hf.cohort import Cohort
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.forward import body_of, logits_at, placed, token_ids, trial
from lmaas_tune_adapters.hf.lanes import twin
from lmaas_tune_adapters.hf.last_layer import only_last
from lmaas_tune_adapters.hf.memory import (
    States,
    cached,
    compute_states,
    empty_cache,
    prefix_cache,
)
from lmaas_tune_adapters.hf.stack import deepened, plain_stack


@dataclass(frozen=True)
class Item:
    """One row of one request, cut into a head that others share and a tail of its own.

    Attributes:
        request: Index in the cohort.
        number: Index of the row.
        row: What it reads.
        head: Length of the head; at least one token is left for the tail.
        key: Items of equal key have the same head.
    """

    request: int
    number: int
    row: EncodedRow
    head: int
    key: Hashable

    @property
    def tail(self) -> int:
        """Length of the tail."""
        return len(self.row.ids) - self.head


class CausalPasses:
    """Passes of a causal model, one at a time.

    Attributes:
        abilities: What the model allows.
        layers: Of the stack that a deep prompt goes through; none where there is no plain one.
    """

    def __init__(self, network: Any, *, speedups: bool) -> None:
        self._network = network
        self._body = body_of(network, inputs_embeds=trial(network), use_cache=False)
        self.abilities = try_out(network, self._body, speedups=speedups)
        self.layers = plain_stack(self._body, trial(network))

    def twin(self) -> CausalPasses:
        """Another for the same model, to be used beside this one in a thread of its own."""
        other = copy.copy(self)
        other._network, found = twin(self._network)
        other._body = found(self._body)
        other.abilities = replace(self.abilities, last=found(self.abilities.last))
        other.layers = tuple(map(found, self.layers))
        return other

    def whole(self, items: Sequence[Item], cohort: Cohort) -> None:
        """Pass rows of one length through the layers: for what listens there."""
        embeddings = self._embed(items, cohort)
        with self._deepened(items, cohort, embeddings):
            self._body(inputs_embeds=embeddings)

    def heads(self, firsts: Sequence[Item], cohort: Cohort) -> States:
        """The states of heads of one length."""
        embeddings = self._embed(firsts, cohort)[:, : firsts[0].head]
        with self._deepened(firsts, cohort, embeddings):
            return compute_states(self._network.base_model, embeddings)

    def read(
        self,
        items: Sequence[Item],
        heads: Sequence[list[Item]],
        states: States | None,
        reading: Reading,
        cohort: Cohort,
    ) -> torch.Tensor:
        """(n, nodes, vocabulary) from the last token before the label on."""
        lengths, width = [item.head for item in items], items[0].tail + len(reading.fill)
        embeddings = stretch(self._embed(items, cohort, reading.fill), lengths, width)
        inputs: dict[str, Any] = {"use_cache": False}
        longest = 0
        if states is not None:
            counts = Counter(item.key for item in items)
            fans = [counts[head[0].key] for head in heads]
            inputs = cached(self._network, prefix_cache(states, fans))
            longest = heads[-1][0].head
        elif self.abilities.last is not None:
            inputs = cached(self._network, empty_cache(self.abilities.layers))
        if not reading.is_chain or any(length < longest for length in lengths):
            inputs |= steering(lengths, longest, reading.parents, embeddings)
        last = items[0].tail - 1
        positions = torch.arange(last, last + reading.nodes, device=embeddings.device)
        masked = states is not None or not reading.is_chain
        deepened = self._deepened(items, cohort, embeddings, behind=lengths)
        with deepened, self._narrowed(reading.nodes, masked=masked):  # narrows what was added to
            return logits_at(
                self._network,
                self._body,
                positions.expand(len(items), -1),
                inputs_embeds=embeddings,
                **inputs,
            )

    def _embed(
        self, items: Sequence[Item], cohort: Cohort, fill: answers.Word = ()
    ) -> torch.Tensor:
        """(n, longest, H) of whole rows and the fill behind each; what comes after is no matter."""
        rows = [item.row.with_label(fill) for item in items]
        embeddings: torch.Tensor = self._network.get_input_embeddings()(
            token_ids(rows, self._network.device)
        )
        if cohort.vectors is None:
            return embeddings
        vectors = cohort.vectors[[item.request for item in items]]
        return placed(embeddings, [row.prompt for row in rows], vectors, cohort.insertion)

    def _deepened(
        self,
        items: Sequence[Item],
        cohort: Cohort,
        embeddings: torch.Tensor,
        *,
        behind: Sequence[int] | None = None,
    ) -> AbstractContextManager[None]:
        """A pass of the items, (n, length, H) from their places `behind` on, with what is added."""
        places = [0] * len(items) if behind is None else behind
        return deepened(
            self.layers,
            cohort.above,
            [item.request for item in items],
            [item.row.prompt - place for item, place in zip(items, places, strict=True)],
            embeddings.shape[1],
        )

    def _narrowed(self, reads: int, *, masked: bool) -> AbstractContextManager[None]:
        """Passes of which only the last positions are read."""
        last = self.abilities.last
        if last is None or not (masked or reads == 1):
            return nullcontext()
        return only_last(last, reads)


def stretch(whole: torch.Tensor, starts: Sequence[int], width: int) -> torch.Tensor:
    """(n, width, H) of (n, length, H), from each one's start on."""
    if len(set(starts)) == 1:
        return whole[:, starts[0] : starts[0] + width]
    columns = torch.tensor(starts)[:, None] + torch.arange(width)
    return whole[torch.arange(len(whole))[:, None], columns.to(whole.device)]
