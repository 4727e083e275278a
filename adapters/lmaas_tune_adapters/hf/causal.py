"""Causal language models: what many sequences begin with is read once and shared."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

import torch

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf import answers
from lmaas_tune_adapters.hf.answers import Reading
from lmaas_tune_adapters.hf.cohort import Cohort, alike, fitting, slices
from lmaas_tune_adapters.hf.encoding import EncodedRow, common_length
from lmaas_tune_adapters.hf.forward import sees_later
from lmaas_tune_adapters.hf.lanes import Lanes
from lmaas_tune_adapters.hf.loading import LoadedModel
from lmaas_tune_adapters.hf.memory import States
from lmaas_tune_adapters.hf.passes import CausalPasses, Item


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
        speedups: Whether to lean on private parts of transformers, where they work.
    """

    label_last = True
    answers_apart = False
    hole: answers.Word = ()
    insertions: frozenset[Insertion] = frozenset({"concat", "add"})

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_tokens_per_pass: int,
        max_kept_bytes: int,
        speedups: bool = True,
    ) -> None:
        self._max_tokens = max_tokens_per_pass
        self._store = HeadStore(max_kept_bytes)
        with torch.inference_mode():
            _check_order(loaded)
            self._passes = CausalPasses(loaded.model, speedups=speedups)
        self.speedups = loaded.speedups + self._passes.abilities.speedups
        self._lanes = Lanes(self._passes, self._passes.twin, device=loaded.model.device)
        self.layers = self._passes.layers

    def tokens(self, row: EncodedRow) -> int:
        """How many tokens the model reads before the label word."""
        return len(row.ids)

    def places(self, row: EncodedRow, longest: int) -> int:
        """How many places a row takes, the longest label word less its last token included."""
        return len(row.ids) + longest - 1

    def scores(self, cohort: Cohort) -> torch.Tensor:
        """(requests, rows, words) summed log-probabilities."""
        out = cohort.scores()
        can = self._passes.abilities
        tree, chains = [answers.tree(cohort.words)], answers.chains(cohort.words)
        longest = None if can.window is None else can.window - len(tree[0].fill) - 1
        shared, whole = self._items(cohort, longest)
        steered = tree if can.steers or tree[0].is_chain else chains
        for items, readings in ((shared, steered), (whole, chains)):
            for heads in self._slices(items):
                self._score(heads, readings, cohort, out)
        return out

    def _score(
        self,
        heads: Sequence[list[Item]],
        readings: Sequence[Reading],
        cohort: Cohort,
        out: torch.Tensor,
    ) -> None:
        """Fill in the scores of items behind heads that fit in a pass."""
        states = self._states(heads, cohort)
        sums = partial(_sums, readings, heads, states, cohort)
        behind = max(len(reading.fill) for reading in readings)
        lanes, chunks = self._chunks([item for head in heads for item in head], behind)
        results = self._lanes.map(sums, chunks, most=lanes)
        for chunk, values in zip(chunks, results, strict=True):
            out[[item.request for item in chunk], [item.number for item in chunk]] = values

    def read(self, cohort: Cohort) -> None:
        """See `lmaas_tune_adapters.hf.cohort.Scorer.read`."""
        items = [Item(request, number, row, 0, ()) for request, number, row in cohort.items()]
        for group in alike(items, key=lambda item: item.tail):
            for chunk in slices(group, self._max_tokens // group[0].tail):
                self._passes.whole(chunk, cohort)

    def _chunks(self, items: Sequence[Item], behind: int) -> tuple[int, list[list[Item]]]:
        """How many lanes the items are worth, and what is read at once, the most work first;
        behind each item stand so many tokens of label words."""
        lanes, most = self._lanes.count(sum(item.tail for item in items)), self._max_tokens
        if lanes > 1:  # so many that they end together, as far as rows can be dealt out
            sizes = [len(item.row.ids) + behind for item in items]
            rounds = math.ceil(sum(sizes) / (lanes * most))
            most = min(most, sum(sizes) // (lanes * rounds) + max(sizes))
        chunks = [
            chunk
            for group in alike(items, key=lambda item: item.tail)
            for chunk in fitting(group, lambda item: len(item.row.ids) + behind, most)
        ]
        return lanes, sorted(chunks, key=lambda chunk: -len(chunk) * chunk[0].tail)

    def _items(self, cohort: Cohort, longest: int | None) -> tuple[list[Item], list[Item]]:
        """Those that share their heads, and those that do not: of more tokens than `longest`."""
        whole = [Item(request, number, row, 0, ()) for request, number, row in cohort.items()]
        if not self._passes.abilities.shares:
            return [], whole
        rows, requests = by_row(cohort), by_request(cohort)
        rows_cost = sum(item.tail for item in rows)
        heads = {item.request: item.head for item in requests}
        requests_cost = sum(item.tail for item in requests) + sum(heads.values())
        shared = rows if rows_cost < requests_cost else requests
        if longest is None:
            return shared, []
        return (
            [item for item in shared if len(item.row.ids) <= longest],
            [item for item in whole if len(item.row.ids) > longest],
        )

    def _slices(self, items: list[Item]) -> Iterator[Sequence[list[Item]]]:
        """Items by head, as many heads at once as fit in a pass, the shortest first.

        They are of one length where the model cannot be told what to see.
        """
        heads = alike(items, key=lambda item: item.key)
        for group in alike(heads, key=lambda head: self._alike_by(head[0].head)):
            yield from fitting(group, lambda head: head[0].head, self._max_tokens)

    def _alike_by(self, head: int) -> Hashable:
        return head > 0 if self._passes.abilities.steers else head

    def _states(self, heads: Sequence[list[Item]], cohort: Cohort) -> States | None:
        """Those of the heads, which come by length, with zeros behind the shorter ones."""
        firsts = [head[0] for head in heads]
        longest = firsts[-1].head
        if not longest:
            return None

        def compute() -> States:
            parts = [self._passes.heads(group, cohort) for group in alike(firsts, lambda i: i.head)]
            return [
                (padded([keys for keys, _ in layer]), padded([values for _, values in layer]))
                for layer in zip(*parts, strict=True)
            ]

        if isinstance(firsts[0].key, tuple):
            return self._store.get(tuple(first.row.ids[: first.head] for first in firsts), compute)
        return compute()


def _check_order(loaded: LoadedModel) -> None:
    """Refuse a model that is saved as a causal one and sees what comes later."""
    network = loaded.model
    if sees_later(lambda x: network(inputs_embeds=x, use_cache=False).logits, network):
        raise InputError(
            f"the model {loaded.name!r} is saved as a causal language model, and its tokens see "
            "later ones: choose another model; an encoder such as BERT needs is_decoder=true in "
            "its config.json"
        )


def _sums(
    readings: Sequence[Reading],
    heads: Sequence[list[Item]],
    states: States | None,
    cohort: Cohort,
    passes: CausalPasses,
    items: Sequence[Item],
) -> torch.Tensor:
    """(n, words) log-probabilities of items that are read at once."""
    sums = torch.zeros(len(items), len(cohort.words), dtype=torch.float64)
    for reading in readings:
        reading.add_up(passes.read(items, heads, states, reading, cohort), sums)
    return sums


def padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(n, attention heads, length, width) of several lengths, the longest last, as one."""
    longest = parts[-1].shape[-2]
    return torch.cat(
        [torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[-2])) for part in parts]
    )
