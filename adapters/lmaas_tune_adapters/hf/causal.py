"""Causal language models: what many sequences begin with is read once and shared."""

from __future__ import annotations

import inspect
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf import answers
from lmaas_tune_adapters.hf.answers import Reading
from lmaas_tune_adapters.hf.cohort import Cohort, alike, fitting, slices
from lmaas_tune_adapters.hf.encoding import EncodedRow, common_length
from lmaas_tune_adapters.hf.forward import logits_at, placed, token_ids, trial
from lmaas_tune_adapters.hf.last_layer import last_layer, only_last
from lmaas_tune_adapters.hf.loading import LoadedModel
from lmaas_tune_adapters.hf.stack import deepened, plain_stack

States = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (heads, attention heads, length, width)."""


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


class HeadStore:
    """Keeps the states of heads between calls, the last used longest, within a bound of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[answers.Word, ...], tuple[int, States]] = OrderedDict()

    def get(self, heads: tuple[answers.Word, ...], compute: Callable[[], States]) -> States:
        """States of these heads, computed unless they are kept."""
        if heads in self._kept:
            self._kept.move_to_end(heads)
            return self._kept[heads][1]
        states = compute()
        size = sum(k.nbytes + v.nbytes for k, v in states)
        if size <= self._max_bytes:
            self._kept[heads] = (size, states)
            self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._kept.popitem(last=False)[1][0]
        return states


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


def by_row(cohort: Cohort) -> list[Item]:
    """Heads are the texts before the prompt: the same under every prompt, for the whole run."""
    return [
        Item(request, number, row, head := min(row.prompt, len(row.ids) - 1), row.ids[:head])
        for request, number, row in cohort.items()
    ]


def by_request(cohort: Cohort) -> list[Item]:
    """Heads are what all rows of a request begin with, the prompt as a rule."""
    heads = [_common_head(rows, soft=cohort.vectors is not None) for rows in cohort.rows]
    return [
        Item(request, number, row, heads[request], request)
        for request, number, row in cohort.items()
    ]


def _common_head(rows: Sequence[EncodedRow], *, soft: bool) -> int:
    first = rows[0]
    length = min(common_length(first.ids, row.ids) for row in rows)
    if soft and any(row.prompt != first.prompt for row in rows):
        length = min(length, *(row.prompt for row in rows))  # equal ids there are no equal vectors
    return min(length, min(len(row.ids) for row in rows) - 1)


class CausalScorer:
    """Reads shared beginnings once, and the head of the vocabulary only where a label is read.

    Of each generation it shares whichever saves more: the prompt over the rows (where the prompt
    comes first) or the rows over the prompts (where the text does; kept between calls). A model
    whose memory is not plain keys and values (sliding windows, states) reads every row whole.

    Args:
        loaded: The model.
        max_tokens_per_pass: Most tokens in one pass, shared ones included.
        max_kept_bytes: Most memory for what is kept between calls.
    """

    label_last = True
    hole: answers.Word = ()
    insertions: frozenset[Insertion] = frozenset({"concat", "add"})

    def __init__(
        self, loaded: LoadedModel, *, max_tokens_per_pass: int, max_kept_bytes: int
    ) -> None:
        self._model = loaded.model
        self._max_tokens = max_tokens_per_pass
        self._store = HeadStore(max_kept_bytes)
        with torch.inference_mode():
            self._shares, self._steers, self._last = self._abilities()
            self.layers = plain_stack(self._model.get_decoder(), trial(self._model))

    def tokens(self, row: EncodedRow) -> int:
        """How many tokens the model reads before the label word."""
        return len(row.ids)

    def places(self, row: EncodedRow, longest: int) -> int:
        """How many places a row takes, the longest label word less its last token included."""
        return len(row.ids) + longest - 1

    def scores(self, cohort: Cohort) -> torch.Tensor:
        """(requests, rows, words) summed log-probabilities."""
        out = cohort.scores()
        readings = [answers.tree(cohort.words)]
        if not (self._steers or readings[0].is_chain):
            readings = answers.chains(cohort.words)
        for heads in self._slices(self._items(cohort)):
            items = [item for head in heads for item in head]
            states = self._states(heads, cohort)
            for group in alike(items, key=lambda item: item.tail):
                for chunk in fitting(group, lambda item: len(item.row.ids), self._max_tokens):
                    sums = torch.zeros(len(chunk), out.shape[2], dtype=torch.float64)
                    for reading in readings:
                        reading.add_up(self._read(chunk, heads, states, reading, cohort), sums)
                    out[[i.request for i in chunk], [i.number for i in chunk]] = sums
        return out

    def read(self, cohort: Cohort) -> None:
        """See `lmaas_tune_adapters.hf.cohort.Scorer.read`."""
        items = [Item(request, number, row, 0, ()) for request, number, row in cohort.items()]
        for group in alike(items, key=lambda item: item.tail):
            for chunk in slices(group, self._max_tokens // group[0].tail):
                embeddings = self._embed(chunk, cohort)
                with self._deepened(chunk, cohort, embeddings):
                    self._model.get_decoder()(inputs_embeds=embeddings)

    def _items(self, cohort: Cohort) -> list[Item]:
        if not self._shares:
            return [Item(request, number, row, 0, ()) for request, number, row in cohort.items()]
        rows, requests = by_row(cohort), by_request(cohort)
        rows_cost = sum(item.tail for item in rows)
        heads = {item.request: item.head for item in requests}
        requests_cost = sum(item.tail for item in requests) + sum(heads.values())
        return rows if rows_cost < requests_cost else requests

    def _slices(self, items: list[Item]) -> Iterator[Sequence[list[Item]]]:
        """Items by head, as many heads at once as fit in a pass, the shortest first.

        They are of one length where the model cannot be told what to see.
        """
        heads = alike(items, key=lambda item: item.key)
        for group in alike(heads, key=lambda head: self._alike_by(head[0].head)):
            yield from fitting(group, lambda head: head[0].head, self._max_tokens)

    def _alike_by(self, head: int) -> Hashable:
        return head > 0 if self._steers else head

    def _states(self, heads: Sequence[list[Item]], cohort: Cohort) -> States | None:
        """Those of the heads, which come by length, with zeros behind the shorter ones."""
        firsts = [head[0] for head in heads]
        longest = firsts[-1].head
        if not longest:
            return None

        def compute() -> States:
            parts = [self._read_heads(group, cohort) for group in alike(firsts, lambda i: i.head)]
            return [
                (padded([keys for keys, _ in layer]), padded([values for _, values in layer]))
                for layer in zip(*parts, strict=True)
            ]

        if isinstance(firsts[0].key, tuple):
            return self._store.get(tuple(first.row.ids[: first.head] for first in firsts), compute)
        return compute()

    def _read_heads(self, firsts: Sequence[Item], cohort: Cohort) -> States:
        """The states of heads of one length."""
        embeddings = self._embed(firsts, cohort)[:, : firsts[0].head]
        with self._deepened(firsts, cohort, embeddings):
            output = self._model.base_model(inputs_embeds=embeddings, use_cache=True)
        return [(layer.keys, layer.values) for layer in output.past_key_values.layers]

    def _embed(
        self, items: Sequence[Item], cohort: Cohort, fill: answers.Word = ()
    ) -> torch.Tensor:
        """(n, longest, H) of whole rows and the fill behind each; what comes after is no matter."""
        rows = [item.row.with_label(fill) for item in items]
        embeddings: torch.Tensor = self._model.get_input_embeddings()(
            token_ids(rows, self._model.device)
        )
        if cohort.vectors is None:
            return embeddings
        vectors = cohort.vectors[[item.request for item in items]]
        return placed(embeddings, [row.prompt for row in rows], vectors, cohort.insertion)

    def _read(
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
                self._model,
                self._model.get_decoder(),
                positions.expand(len(items), -1),
                inputs_embeds=embeddings,
                **inputs,
            )

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
        if self._last is None or not (masked or reads == 1):
            return nullcontext()
        return only_last(self._last, reads)

    def _abilities(self) -> tuple[bool, bool, Any]:
        """What the model allows: tried out, not assumed.

        Returns:
            Whether heads can be shared, whether a pass can be told what each token sees and where
            it stands, and the last layer if it can be worked out in part.
        """
        whole = trial(self._model)
        try:
            kept = self._model(inputs_embeds=whole[:, :2], use_cache=True).past_key_values
        except TypeError:  # no such memory at all
            return False, False, None
        kept_layers = getattr(kept, "layers", ())
        if not kept_layers or any(type(layer) is not DynamicLayer for layer in kept_layers):
            return False, False, None
        states = [(layer.keys, layer.values) for layer in kept_layers]

        def logits(tails: torch.Tensor, **inputs: Any) -> torch.Tensor:
            output = self._model(inputs_embeds=tails, **inputs)
            logits: torch.Tensor = output.logits.float()
            return logits

        def tail_logits(tails: torch.Tensor, **inputs: Any) -> torch.Tensor:
            cache = _cache(states, [len(tails)])
            return logits(tails, past_key_values=cache, use_cache=True, **inputs)

        def agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
            rough = 1e-3 if whole.dtype == torch.float32 else 0.1
            return bool((ours - theirs).abs().max() <= rough * theirs.abs().max())

        plain = logits(whole, use_cache=False)[0]
        if not agree(tail_logits(whole[:, 2:])[0], plain[2:]):
            return False, False, None
        # behind two tokens, and behind the first of them alone: one token, and the next two twice
        forked = torch.cat([whole[:, [2, 3, 4, 3, 4]], whole[:, [1, 2, 3, 2, 3]]])
        fork = steering([2, 1], 2, (-1, 0, -1, 2), forked)
        forks = torch.stack([plain[[2, 3, 4, 3, 4]], plain[[1, 2, 3, 2, 3]]])
        steers = "position_ids" in inspect.signature(self._model.forward).parameters
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

        last = last_layer(self._model.get_decoder(), len(states))
        return True, steers, last if last is not None and in_part(last) else None


def padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(n, attention heads, length, width) of several lengths, the longest last, as one."""
    longest = parts[-1].shape[-2]
    return torch.cat(
        [torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[-2])) for part in parts]
    )


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
