"""Masked language models: every label word is read at masks in the label's place."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch

from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf import answers
from lmaas_tune_adapters.hf.answers import Reading
from lmaas_tune_adapters.hf.cohort import Cohort, alike, slices
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.forward import (
    close,
    embeddings_changed,
    failure,
    logits_at,
    placed,
    token_ids,
    trial,
)
from lmaas_tune_adapters.hf.lanes import Lanes, twin
from lmaas_tune_adapters.hf.loading import LoadedModel
from lmaas_tune_adapters.hf.speedups import OTHER_SCORES, SWITCHED_OFF, partial_last_layer
from lmaas_tune_adapters.hf.stack import deepened, plain_stack

_FEED_FORWARD_LAST = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Types whose last layer works position by position behind its attention: needed at masks only."""


_Pass: TypeAlias = tuple[list[int], list[int], list[EncodedRow]]
"""Requests, numbers of rows, and what they read."""


class MaskedScorer:
    """A word of n tokens is read at n masks at once, so each of its tokens sees no other.

    Args:
        loaded: The model.
        max_tokens_per_pass: Most tokens that go through the model at once.
        speedups: Whether to lean on private parts of transformers, where they work.

    Raises:
        InputError: The tokenizer has no mask.
    """

    label_last = False
    answers_apart = False

    def __init__(
        self, loaded: LoadedModel, *, max_tokens_per_pass: int, speedups: bool = True
    ) -> None:
        if loaded.tokenizer.mask_token_id is None:
            raise InputError(f"the tokenizer of {loaded.name!r} has no mask token")
        self._model = loaded.model
        self.hole: answers.Word = (loaded.tokenizer.mask_token_id,)
        self._max_tokens = max_tokens_per_pass
        # BERT and its kin normalise what a token's word, place and type add up to
        embeddings = getattr(self._model.base_model, "embeddings", None)
        self._normalised: Any = embeddings if hasattr(embeddings, "LayerNorm") else None
        if not self._changes(lambda output: placed(output, [4], output[:, :1], "add")):
            self._normalised = None
        self._body = self._model.base_model
        self.speedups = loaded.speedups
        if self._model.config.model_type in _FEED_FORWARD_LAST:
            reason = self._narrow() if speedups else SWITCHED_OFF
            self.speedups += (partial_last_layer(reason),)
        with torch.inference_mode():
            self.layers = plain_stack(self._model.base_model, trial(self._model))
        self._lanes = Lanes(self, self._twin, device=self._model.device)
        prepends = self._changes(lambda output: torch.cat([output[:, :1], output], dim=1))
        self.insertions: frozenset[Insertion] = frozenset(
            {"concat", "add", "prepend"} if prepends else {"concat", "add"}
        )

    def _narrow(self) -> str:
        """Read masks off the last layer's attention; why not, where that gives other scores."""
        whole = trial(self._model)
        position = torch.tensor([[2]], device=whole.device)
        try:
            attention = self._body.encoder.layer[-1].attention
            with torch.inference_mode():
                expected = logits_at(self._model, self._body, position, inputs_embeds=whole)
                ours = logits_at(self._model, attention, position, inputs_embeds=whole)
        except Exception as error:  # a model made otherwise raises whatever it does
            return failure(error)
        if not close(ours, expected):
            return OTHER_SCORES
        self._body = attention
        return ""

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
            passes = sorted(self._passes(cohort, reading.fill), key=_tokens, reverse=True)
            most = self._lanes.count(sum(map(_tokens, passes)))
            sums = partial(_sums, reading, cohort)
            results = self._lanes.map(sums, passes, most=most)
            for (requests, numbers, _), values in zip(passes, results, strict=True):
                out[requests, numbers] += values
        return out

    def read(self, cohort: Cohort) -> None:
        """See `lmaas_tune_adapters.hf.cohort.Scorer.read`; with one mask for the label."""
        for requests, _, rows in self._passes(cohort, self.hole):
            self._logits(rows, requests, cohort, 1)

    def _changes(self, change: Any) -> bool:
        """Whether the model goes on from changed embeddings behind their LayerNorm: tried out."""
        if self._normalised is None:
            return False
        changed = []

        def listen(output: torch.Tensor) -> torch.Tensor:
            changed.append(output.shape)
            image: torch.Tensor = change(output)
            return image

        try:
            with torch.inference_mode(), embeddings_changed(self._normalised, listen):
                whole = trial(self._model)
                self._model(inputs_embeds=whole)
        except Exception:  # whatever it raises where it counts its tokens before
            return False
        return changed == [whole.shape]  # and not of padding too

    def _twin(self) -> MaskedScorer:
        """Another for the same model, to be used beside this one in a thread of its own."""
        other = copy.copy(self)
        other._model, found = twin(self._model)
        other._normalised, other._body = found(self._normalised), found(self._body)
        other.layers = tuple(map(found, self.layers))
        return other

    def _passes(self, cohort: Cohort, fill: answers.Word) -> Iterator[_Pass]:
        """Of one length each, with `fill` in the label's place."""
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


def _tokens(one: _Pass) -> int:
    _, _, rows = one
    return len(rows) * len(rows[0].ids)


def _sums(reading: Reading, cohort: Cohort, scorer: MaskedScorer, one: _Pass) -> torch.Tensor:
    """(n, words) log-probabilities of a pass."""
    requests, _, rows = one
    sums = torch.zeros(len(rows), len(cohort.words), dtype=torch.float64)
    reading.add_up(scorer._logits(rows, requests, cohort, reading.nodes), sums)
    return sums
