"""Causal language models: prefixes that many sequences have in common are computed once."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

import torch

from lmaas_tune.prompts import INSERTIONS, Insertion
from lmaas_tune_adapters.hf import label_tokens
from lmaas_tune_adapters.hf.encoding import EncodedRow, common_length
from lmaas_tune_adapters.hf.forward_pass import CausalForwardPass, Item
from lmaas_tune_adapters.hf.kv_cache import States
from lmaas_tune_adapters.hf.label_tokens import Reading, Word
from lmaas_tune_adapters.hf.logits import add_up
from lmaas_tune_adapters.hf.request_batch import RequestBatch, group_by, padded_runs, slices
from lmaas_tune_adapters.hf.speedups import Workers


class PrefixStore:
    """Keeps keys and values of prefixes between calls; drops the least recently used ones.

    Args:
        max_bytes: Most memory for the stored states.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._states: OrderedDict[tuple[Word, ...], tuple[int, States]] = OrderedDict()

    def get(self, prefixes: tuple[Word, ...], compute: Callable[[], States]) -> States:
        """Return the states of these prefixes, computed unless they are stored."""
        if prefixes in self._states:
            self._states.move_to_end(prefixes)
            return self._states[prefixes][1]
        states = compute()
        size = sum(k.nbytes + v.nbytes for k, v in states)
        if size <= self._max_bytes:
            self._states[prefixes] = (size, states)
            self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._states.popitem(last=False)[1][0]
        return states


def by_row(batch: RequestBatch) -> list[Item]:
    """Share the text before the prompt, which is the same under every prompt of a search."""
    return [
        Item(request, number, row, cut := min(row.prompt, len(row.ids) - 1), row.ids[:cut])
        for request, number, row in batch.items()
    ]


def by_request(batch: RequestBatch) -> list[Item]:
    """Share the start that all rows of a request have in common, usually the prompt."""
    prefixes = [_common_prefix(rows, soft=batch.vectors is not None) for rows in batch.rows]
    return [
        Item(request, number, row, prefixes[request], request)
        for request, number, row in batch.items()
    ]


def whole_rows(batch: RequestBatch) -> list[Item]:
    """Share nothing."""
    return [Item(request, number, row, 0, ()) for request, number, row in batch.items()]


def _common_prefix(rows: Sequence[EncodedRow], *, soft: bool) -> int:
    first = rows[0]
    length = min(common_length(first.ids, row.ids) for row in rows)
    if soft and any(row.prompt != first.prompt for row in rows):
        # the ids of a soft prompt's positions say nothing about its vectors
        length = min(length, *(row.prompt for row in rows))
    return min(length, min(len(row.ids) for row in rows) - 1)


def by_suffix(items: Sequence[Item], least: int) -> list[list[Item]]:
    """Group items by the length of their suffixes; small groups join those of the next length.

    Args:
        items: In any order.
        least: A group of fewer tokens is small.
    """
    groups: list[list[Item]] = []
    for group in sorted(group_by(items, key=lambda item: item.suffix), key=lambda g: g[0].suffix):
        if groups and sum(item.suffix for item in groups[-1]) < least:
            groups[-1] += group
        else:
            groups.append(list(group))
    return groups


class CausalScorer:
    """Scores label words with a causal model.

    In each generation it shares the part that saves more tokens: the prompt among the rows (where
    the prompt comes first), or the rows' texts among the prompts (where the text comes first; its
    keys and values are cached between calls). A model that caches more than plain keys and values
    (sliding windows, recurrent states) reads every row whole.

    Args:
        forward_pass: Runs the model.
        workers: Call `forward_pass` or copies of it.
        max_tokens_per_pass: Most tokens in one pass, shared ones included.
        max_kept_bytes: Most memory for keys and values that are cached between calls.
        least_tokens: A pass takes suffixes of one length, unless these are fewer tokens: then it
            takes longer ones too, and pads. 0 never pads, as on a processor, where small passes
            cost no more than their tokens.
    """

    label_last = True
    label_starts_text = False
    mask_token: Word = ()
    insertions: frozenset[Insertion] = frozenset(INSERTIONS)

    def __init__(
        self,
        forward_pass: CausalForwardPass,
        workers: Workers[CausalForwardPass],
        *,
        max_tokens_per_pass: int,
        max_kept_bytes: int,
        least_tokens: int = 0,
    ) -> None:
        self._max_tokens, self._least_tokens = max_tokens_per_pass, least_tokens
        self._store = PrefixStore(max_kept_bytes)
        self._forward_pass, self._workers = forward_pass, workers
        self.layers = forward_pass.layers

    def tokens(self, row: EncodedRow) -> int:
        """How many tokens the model reads before the label word."""
        return len(row.ids)

    def positions(self, row: EncodedRow, longest: int) -> int:
        """How many positions a row takes: the last token of its label word needs none."""
        return len(row.ids) + longest - 1

    def scores(self, batch: RequestBatch) -> torch.Tensor:
        """(requests, rows, words) summed log-probabilities."""
        out = batch.empty_scores()
        can = self._forward_pass.abilities
        tree, chains = label_tokens.tree(batch.words), label_tokens.chains(batch.words)
        longest = None if can.window is None else can.window - len(tree.fill) - 1
        shared, whole = self._items(batch, longest)
        joint = [tree] if can.takes_masks or tree.is_chain else chains
        for items, readings in ((shared, joint), (whole, chains)):
            for prefixes in self._slices(items):
                self._score(prefixes, readings, batch, out)
        return out

    def read(self, batch: RequestBatch) -> None:
        """See `lmaas_tune_adapters.hf.request_batch.Scorer.read`."""
        for group in group_by(whole_rows(batch), key=lambda item: item.suffix):
            for chunk in slices(group, self._max_tokens // group[0].suffix):
                self._forward_pass.whole(chunk, batch)

    def _score(
        self,
        prefixes: Sequence[list[Item]],
        readings: Sequence[Reading],
        batch: RequestBatch,
        out: torch.Tensor,
    ) -> None:
        """Fill in the scores of items whose prefixes fit into one pass."""
        states = self._states(prefixes, batch)
        work = partial(_sum_logprobs, readings, prefixes, states, batch)
        behind = max(len(reading.fill) for reading in readings)
        # a tree of label words is read at the end of a pass, so its rows must end together
        least = self._least_tokens if all(reading.is_chain for reading in readings) else 0
        items = [item for group in prefixes for item in group]
        most, chunks = self._chunks(items, behind, least)
        results = self._workers.map(work, chunks, most=most)
        for chunk, values in zip(chunks, results, strict=True):
            out[[item.request for item in chunk], [item.number for item in chunk]] = values

    def _chunks(
        self, items: Sequence[Item], behind: int, least: int
    ) -> tuple[int, list[list[Item]]]:
        """Cut items into passes, the largest first, with `behind` label tokens each.

        A pass of less than `least` tokens takes suffixes of the next length too.

        Returns:
            How many workers to use, and the items of each pass.
        """
        workers, most = self._workers.count(sum(item.suffix for item in items)), self._max_tokens
        if workers > 1:  # passes of equal size, so that the workers end together
            sizes = [len(item.row.ids) + behind for item in items]
            rounds = math.ceil(sum(sizes) / (workers * most))
            most = min(most, sum(sizes) // (workers * rounds) + max(sizes))
        chunks = [
            chunk
            for group in by_suffix(items, least)
            for chunk in padded_runs(group, lambda item: len(item.row.ids) + behind, most)
        ]
        if least:  # states come in the order of their prefixes
            place = {id(item): number for number, item in enumerate(items)}
            chunks = [sorted(chunk, key=lambda item: place[id(item)]) for chunk in chunks]
        return workers, sorted(chunks, key=lambda chunk: -len(chunk) * chunk[0].suffix)

    def _items(self, batch: RequestBatch, longest: int | None) -> tuple[list[Item], list[Item]]:
        """Rows that share prefixes, and rows of more than `longest` tokens, which do not."""
        whole = whole_rows(batch)
        if not self._forward_pass.abilities.shares_prefixes:
            return [], whole
        rows, requests = by_row(batch), by_request(batch)
        rows_cost = sum(item.suffix for item in rows)
        prefixes = {item.request: item.prefix for item in requests}
        requests_cost = sum(item.suffix for item in requests) + sum(prefixes.values())
        shared = rows if rows_cost < requests_cost else requests
        if longest is None:
            return shared, []
        return (
            [item for item in shared if len(item.row.ids) <= longest],
            [item for item in whole if len(item.row.ids) > longest],
        )

    def _slices(self, items: list[Item]) -> Iterator[Sequence[list[Item]]]:
        """Group items by prefix, and prefixes into passes, the shortest first.

        Prefixes of one pass have one length where the model takes no attention mask.
        """
        prefixes = group_by(items, key=lambda item: item.key)
        for group in group_by(prefixes, key=lambda prefix: self._joint_key(prefix[0].prefix)):
            yield from padded_runs(group, lambda prefix: prefix[0].prefix, self._max_tokens)

    def _joint_key(self, length: int) -> Hashable:
        return length > 0 if self._forward_pass.abilities.takes_masks else length

    def _states(self, prefixes: Sequence[list[Item]], batch: RequestBatch) -> States | None:
        """Keys and values of prefixes in order of length, shorter ones padded with zeros."""
        firsts = [prefix[0] for prefix in prefixes]
        if not firsts[-1].prefix:
            return None

        def compute() -> States:
            groups = group_by(firsts, lambda item: item.prefix)
            parts = [self._forward_pass.prefix_states(group, batch) for group in groups]
            return [
                (padded([keys for keys, _ in layer]), padded([values for _, values in layer]))
                for layer in zip(*parts, strict=True)
            ]

        if isinstance(firsts[0].key, tuple):  # text, which later calls have too
            return self._store.get(tuple(item.row.ids[: item.prefix] for item in firsts), compute)
        return compute()


def _sum_logprobs(
    readings: Sequence[Reading],
    prefixes: Sequence[list[Item]],
    states: States | None,
    batch: RequestBatch,
    forward_pass: CausalForwardPass,
    items: Sequence[Item],
) -> torch.Tensor:
    """(n, words) log-probabilities of items that are read in one pass."""
    sums = torch.zeros(len(items), len(batch.words), dtype=torch.float64)
    for reading in readings:
        add_up(reading, forward_pass.read(items, prefixes, states, reading, batch), sums)
    return sums


def padded(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join (n, attention heads, length, width) of several lengths, the longest last."""
    longest = parts[-1].shape[-2]
    return torch.cat(
        [torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[-2])) for part in parts]
    )
