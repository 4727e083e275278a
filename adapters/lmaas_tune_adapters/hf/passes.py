"""One pass through a causal model, behind heads that were read before."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from lmaas_tune_adapters.hf import answers
from lmaas_tune_adapters.hf.answers import Reading
from lmaas_tune_adapters.hf.cohort import Cohort
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.forward import logits_at, placed, token_ids, trial
from lmaas_tune_adapters.hf.lanes import twin
from lmaas_tune_adapters.hf.last_layer import last_layer, only_last
from lmaas_tune_adapters.hf.stack import deepened, plain_stack

States = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (heads, attention heads, length, width)."""


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


class HeadLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values of heads that tails go on from; a pass adds nothing to it.

    Args:
        keys: (heads, attention heads, length, width).
        values: The same.
        fans: For each head, how many tails of the pass go on from it; they come in this order.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, fans: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._heads = keys, values
        self._fans = list(fans)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each tail's states behind its head's."""
        keys, values = self._heads
        return self._joint(keys, key_states), self._joint(values, value_states)

    def _joint(self, heads: torch.Tensor, tails: torch.Tensor) -> torch.Tensor:
        length = heads.shape[-2]
        joint = tails.new_empty(*tails.shape[:-2], length + tails.shape[-2], tails.shape[-1])
        joint[..., length:, :] = tails
        places = torch.split(joint[..., :length, :], self._fans)
        for head, place in zip(heads, places, strict=True):
            place[:] = head
        return joint


def _cache(states: States, fans: Sequence[int]) -> Cache:
    layers: list[Any] = [HeadLayer(keys, values, fans) for keys, values in states]
    return Cache(layers=layers)


@dataclass(frozen=True)
class Abilities:
    """What a model allows.

    Attributes:
        shares: Heads can be read once, and tails go on from them.
        steers: A pass can be told what each token sees and where it stands.
        last: The last layer, if it can be worked out in part.
    """

    shares: bool
    steers: bool
    last: Any


class CausalPasses:
    """Passes of a causal model, one at a time.

    Attributes:
        abilities: What the model allows.
        layers: Of the stack that a deep prompt goes through; none where there is no plain one.
    """

    def __init__(self, network: Any) -> None:
        self._network = network
        self.abilities = try_out(network)
        self.layers = plain_stack(network.get_decoder(), trial(network))

    def twin(self) -> CausalPasses:
        """Another for the same model, to be used beside this one in a thread of its own."""
        other = copy.copy(self)
        other._network, found = twin(self._network)
        other.abilities = replace(self.abilities, last=found(self.abilities.last))
        other.layers = tuple(map(found, self.layers))
        return other

    def whole(self, items: Sequence[Item], cohort: Cohort) -> None:
        """Pass rows of one length through the layers: for what listens there."""
        embeddings = self._embed(items, cohort)
        with self._deepened(items, cohort, embeddings):
            self._network.get_decoder()(inputs_embeds=embeddings)

    def heads(self, firsts: Sequence[Item], cohort: Cohort) -> States:
        """The states of heads of one length."""
        embeddings = self._embed(firsts, cohort)[:, : firsts[0].head]
        with self._deepened(firsts, cohort, embeddings):
            output = self._network.base_model(inputs_embeds=embeddings, use_cache=True)
        return [(layer.keys, layer.values) for layer in output.past_key_values.layers]

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
            inputs = {"use_cache": True, "past_key_values": _cache(states, fans)}
            longest = heads[-1][0].head
        if not reading.is_chain or any(length < longest for length in lengths):
            inputs |= steering(lengths, longest, reading.parents, embeddings)
        last = items[0].tail - 1
        positions = torch.arange(last, last + reading.nodes, device=embeddings.device)
        masked = states is not None or not reading.is_chain
        deepened = self._deepened(items, cohort, embeddings, behind=lengths)
        with deepened, self._narrowed(reading.nodes, masked=masked):  # narrows what was added to
            return logits_at(
                self._network,
                self._network.get_decoder(),
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


def try_out(network: Any) -> Abilities:
    """What a model allows: tried out, not assumed."""
    nothing = Abilities(shares=False, steers=False, last=None)
    if "local" in getattr(network.config, "attention_layers", ()):
        return nothing  # GPT-Neo's windows count places in memory, and are too long to try out
    whole = trial(network)
    try:
        kept = network(inputs_embeds=whole[:, :2], use_cache=True).past_key_values
    except Exception:  # no such memory at all, said in whatever way
        return nothing
    kept_layers = getattr(kept, "layers", ())
    if not kept_layers or any(type(layer) is not DynamicLayer for layer in kept_layers):
        return nothing
    states = [(layer.keys, layer.values) for layer in kept_layers]

    def logits(tails: torch.Tensor, **inputs: Any) -> torch.Tensor:
        output = network(inputs_embeds=tails, **inputs)
        logits: torch.Tensor = output.logits.float()
        return logits

    def tail_logits(tails: torch.Tensor, **inputs: Any) -> torch.Tensor:
        cache = _cache(states, [len(tails)])
        return logits(tails, past_key_values=cache, use_cache=True, **inputs)

    def agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        rough = 1e-3 if whole.dtype == torch.float32 else 0.1
        return bool((ours - theirs).abs().max() <= rough * theirs.abs().max())

    plain = logits(whole, use_cache=False)[0]
    try:
        shares = agree(tail_logits(whole[:, 2:])[0], plain[2:])
    except Exception:  # a memory that is not to be gone on from so
        return nothing
    if not shares:
        return nothing
    # behind two tokens, and behind the first of them alone: one token, and the next two twice
    forked = torch.cat([whole[:, [2, 3, 4, 3, 4]], whole[:, [1, 2, 3, 2, 3]]])
    fork = steering([2, 1], 2, (-1, 0, -1, 2), forked)
    forks = torch.stack([plain[[2, 3, 4, 3, 4]], plain[[1, 2, 3, 2, 3]]])
    steers = "position_ids" in inspect.signature(network.forward).parameters
    steers = steers and agree(tail_logits(forked, **fork), forks)

    def in_part(layer: Any) -> bool:
        try:
            with only_last(layer, 1):
                ends = [logits(whole, use_cache=False)[0, -1], tail_logits(whole[:, 2:])[0, -1]]
            with only_last(layer, 2):
                ends += tail_logits(whole[:, 2:])[0, -2:]
                ends += tail_logits(forked, **fork)[:, -2:].flatten(0, 1) if steers else []
        except Exception:  # a layer made otherwise, in whatever way
            return False
        return agree(torch.stack(ends), plain[[4, 4, 3, 4, 3, 4, 2, 3][: len(ends)]])

    last = last_layer(network.get_decoder(), len(states))
    last = last if last is not None and in_part(last) else None
    return Abilities(shares=True, steers=steers, last=last)


def stretch(whole: torch.Tensor, starts: Sequence[int], width: int) -> torch.Tensor:
    """(n, width, H) of (n, length, H), from each one's start on."""
    if len(set(starts)) == 1:
        return whole[:, starts[0] : starts[0] + width]
    columns = torch.tensor(starts)[:, None] + torch.arange(width)
    return whole[torch.arange(len(whole))[:, None], columns.to(whole.device)]


def steering(
    heads: Sequence[int], longest: int, parents: Sequence[int], embeddings: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Positions and attention for tails behind heads of several lengths, each ending in a tree.

    Args:
        heads: For each sequence, the tokens before its tail, seen by all of it.
        longest: Places that they take; a shorter head leaves the last ones empty.
        parents: For each token of the tree, the index in the tree of the one it follows, or -1
            for the last token before the tree.
        embeddings: (n, width, H) of the tails, the tree last; for their dtype and device too.
    """
    width = embeddings.shape[1]
    tail = width - len(parents)
    sees = torch.ones(width, width, dtype=torch.bool).tril()
    steps = list(range(tail))
    for index, parent in enumerate(parents):
        sees[tail + index, tail:] = False if parent < 0 else sees[tail + parent, tail:]
        sees[tail + index, tail + index] = True
        steps.append(steps[tail + parent] + 1 if parent >= 0 else tail)
    lengths = torch.tensor(heads[:1] if len(set(heads)) == 1 else heads)[:, None]
    filled = torch.arange(longest) < lengths
    seen = torch.cat(
        [filled[:, None].expand(-1, width, -1), sees.expand(len(lengths), -1, -1)], dim=2
    )
    mask = torch.zeros(seen.shape, dtype=embeddings.dtype)
    mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
    return {
        "position_ids": (lengths + torch.tensor(steps)).to(embeddings.device),
        "attention_mask": mask.to(embeddings.device)[:, None],
    }
