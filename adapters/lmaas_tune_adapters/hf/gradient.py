"""Label log-probabilities with gradients, for the white-box baselines."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Insertion
from lmaas_tune_adapters.hf import label_tokens
from lmaas_tune_adapters.hf.cpu import find_speedups
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.kv_cache import attention_window, cache_arguments, compute_states
from lmaas_tune_adapters.hf.label_tokens import Reading, Word
from lmaas_tune_adapters.hf.loading import LoadedModel
from lmaas_tune_adapters.hf.logits import add_up, find_body, insert_vectors, logits_at
from lmaas_tune_adapters.hf.masked import MaskedScorer
from lmaas_tune_adapters.hf.probe import probe_embeddings
from lmaas_tune_adapters.hf.request_batch import RequestBatch, group_by, padded_runs
from lmaas_tune_adapters.hf.request_encoder import parts_of
from lmaas_tune_adapters.hf.seq2seq import Seq2SeqScorer
from lmaas_tune_adapters.hf.whitebox import WhiteBox

_KEPT_BYTES = 1 << 30


class LabelScorer:
    """Scores one request as the backend does, with gradients.

    Args:
        box: The model.
        request: The rows and label words, and the prompt of every row. A soft prompt gives the
            number of vectors and how they are inserted; each call may replace the vectors.
        before: Positions before every row that another tuned part takes.

    Raises:
        InputError: The model cannot read the request.
    """

    def __init__(self, box: WhiteBox, request: ScoreRequest, *, before: int = 0) -> None:
        self._soft = parts_of(request.prompt).soft
        self._device, self._dtype = box.device, box.dtype
        self._columns = len(request.candidates)
        self._rows = box.encoder.rows(request)
        self._words = [box.encoder.words(request, row) for row in self._rows]
        self._check_positions(box, before)
        # the text before a soft prompt has the same states in each call, if nothing else is tuned
        self._scorer = _scorer(box, keeps=self._soft is not None and not before)

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(
        self, vectors: torch.Tensor | None = None, rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Score rows of the request.

        Args:
            vectors: (L, H) in place of the request's soft prompt, in any floating dtype.
            rows: Indices of the rows, all by default.

        Returns:
            (rows, candidates) float64 summed log-probabilities, in main memory.
        """
        numbers = list(range(len(self)) if rows is None else rows)
        vectors = self._on_device(vectors)
        insertion = "concat" if self._soft is None else self._soft.insertion
        out = torch.zeros(len(numbers), self._columns, dtype=torch.float64)
        for group in group_by(range(len(numbers)), key=lambda i: self._words[numbers[i]]):
            batch = RequestBatch(
                rows=[[self._rows[numbers[i]] for i in group]],
                words=self._words[numbers[group[0]]],
                vectors=vectors,
                insertion=insertion,
            )
            out = out.index_put((torch.tensor(group),), self._scorer.scores(batch)[0])
        return out

    def _check_positions(self, box: WhiteBox, before: int) -> None:
        for number, (row, words) in enumerate(zip(self._rows, self._words, strict=True), start=1):
            positions = before + len(row.ids) + max(map(len, words))
            if before and box.max_tokens is not None and positions > box.max_tokens:
                raise InputError(
                    f"row {number} has {positions} tokens with its label and {before} positions "
                    f"before it, more than the {box.max_tokens} that this model reads: shorten the "
                    "text or the prefix"
                )

    def _on_device(self, vectors: torch.Tensor | None) -> torch.Tensor | None:
        """The vectors, or those of the request, as (1, L, H)."""
        if vectors is None and self._soft is not None:
            vectors = torch.from_numpy(self._soft.vectors.copy())
        return None if vectors is None else vectors.to(self._device, self._dtype)[None]


def _scorer(box: WhiteBox, *, keeps: bool) -> Any:
    # more is not faster on a processor, where padding costs time
    per_pass = 512 if box.device.type == "cpu" else 16384
    if box.family == "causal":
        return CausalGradientScorer(
            box.loaded, max_tokens_per_pass=per_pass, max_kept_bytes=_KEPT_BYTES if keeps else 0
        )
    if box.family == "masked":
        speedups = find_speedups(on=True)
        return MaskedScorer(box.loaded, max_tokens_per_pass=per_pass, speedups=speedups)
    return Seq2SeqScorer(box.loaded, max_tokens_per_pass=per_pass, answer=box.answer)


class CausalGradientScorer:
    """Scores rows of all lengths together, padded on the right, where no token attends to it.

    The keys and values of the text before a soft prompt do not depend on the prompt. They are
    computed once, without gradient, and each pass continues them. A model that caches more than
    plain keys and values reads whole rows.

    Args:
        loaded: The model.
        max_tokens_per_pass: Most tokens in one pass.
        max_kept_bytes: Most memory for kept states; rows beyond it are read whole.
    """

    def __init__(
        self, loaded: LoadedModel, *, max_tokens_per_pass: int, max_kept_bytes: int
    ) -> None:
        self._model = loaded.model
        with torch.no_grad():
            self._body = find_body(
                self._model, inputs_embeds=probe_embeddings(self._model), use_cache=False
            )
        self._max_tokens = max_tokens_per_pass
        self._bytes_a_token = _kept_bytes(loaded.model) if max_kept_bytes else 0
        self._free_bytes = max_kept_bytes
        self._takes_positions = "position_ids" in inspect.signature(loaded.model.forward).parameters
        self._chosen: set[Word] = set()
        self._kept: dict[Word, torch.Tensor] = {}

    def scores(self, batch: RequestBatch) -> torch.Tensor:
        """(1, rows, words) summed log-probabilities, for a batch of one request."""
        rows = batch.rows[0]
        prefixes = [self._prefix(row) for row in rows]
        out = torch.zeros(len(rows), len(batch.words), dtype=torch.float64)
        suffixes = [len(row.ids) - prefix for row, prefix in zip(rows, prefixes, strict=True)]
        for chunk in padded_runs(range(len(rows)), suffixes.__getitem__, self._max_tokens):
            sums = torch.zeros(len(chunk), len(batch.words), dtype=torch.float64)
            for reading in label_tokens.chains(batch.words):
                logits = self._read(
                    [rows[i] for i in chunk],
                    [prefixes[i] for i in chunk],
                    reading,
                    batch.vectors,
                    batch.insertion,
                )
                add_up(reading, logits, sums)
            out = out.index_put((torch.tensor(chunk),), sums)
        return out[None]

    def _prefix(self, row: EncodedRow) -> int:
        """The number of tokens of a row whose states are stored; not for a start token alone."""
        prefix = row.ids[: row.prompt]
        if prefix not in self._chosen:
            size = len(prefix) * self._bytes_a_token
            if len(prefix) < 2 or not 0 < size <= self._free_bytes:
                return 0
            self._free_bytes -= size
            self._chosen.add(prefix)
        return len(prefix)

    def _read(
        self,
        rows: Sequence[EncodedRow],
        prefixes: Sequence[int],
        reading: Reading,
        vectors: torch.Tensor | None,
        insertion: Insertion,
    ) -> torch.Tensor:
        """Logits from the last token before the label on: (n, nodes, vocabulary)."""
        device = self._model.device
        suffixes = [
            row.with_label(reading.fill).ids[h:] for row, h in zip(rows, prefixes, strict=True)
        ]
        width = max(map(len, suffixes))
        ids = torch.tensor(
            [suffix + (0,) * (width - len(suffix)) for suffix in suffixes], device=device
        )
        embeddings = self._model.get_input_embeddings()(ids)
        if vectors is not None:
            starts = [row.prompt - h for row, h in zip(rows, prefixes, strict=True)]
            embeddings = insert_vectors(
                embeddings, starts, vectors.expand(len(rows), -1, -1), insertion
            )
        last = torch.tensor(
            [len(row.ids) - h - 1 for row, h in zip(rows, prefixes, strict=True)], device=device
        )
        return logits_at(
            self._model,
            self._body,
            last[:, None] + torch.arange(reading.nodes, device=device),
            inputs_embeds=embeddings,
            **self._behind(rows, prefixes, width),
        )

    def _behind(
        self, rows: Sequence[EncodedRow], prefixes: Sequence[int], width: int
    ) -> dict[str, Any]:
        """Arguments for `width` tokens that continue prefixes, which are padded on the left."""
        longest = max(prefixes)
        if not longest:
            return {"use_cache": False}
        device = self._model.device
        states = self._states([row.ids[:h] for row, h in zip(rows, prefixes, strict=True)], longest)
        lengths = torch.tensor(prefixes, device=device)[:, None]
        columns = torch.arange(longest + width, device=device)
        inputs: dict[str, Any] = {
            **cache_arguments(
                self._model, DynamicCache([(keys, values) for keys, values in states])
            ),
            "attention_mask": (columns >= longest - lengths).long(),
        }
        if self._takes_positions:
            inputs["position_ids"] = lengths + torch.arange(width, device=device)
        return inputs

    def _states(self, prefixes: Sequence[Word], longest: int) -> torch.Tensor:
        """Keys and values: (layers, 2, n, attention heads, longest, width)."""
        missing = {prefix for prefix in prefixes if prefix and prefix not in self._kept}
        for group in group_by(sorted(missing), key=len):
            with torch.no_grad():
                ids = torch.tensor(group, device=self._model.device)
                embeddings = self._model.get_input_embeddings()(ids)
                layers = compute_states(self._model.base_model, embeddings)
                whole = torch.stack([torch.stack(layer) for layer in layers])
            self._kept |= zip(group, whole.unbind(2), strict=True)
        some = next(iter(self._kept.values()))
        shape = (*some.shape[:2], len(prefixes), some.shape[2], longest, some.shape[4])
        states = some.new_zeros(shape)
        for i, prefix in enumerate(prefixes):
            if prefix:
                states[:, :, i, :, longest - len(prefix) :] = self._kept[prefix]
        return states


def _kept_bytes(network: Any) -> int:
    """Bytes of one token's keys and values; 0 if the model caches something else."""
    try:
        if attention_window(network.config) is not None:
            return 0
        with torch.no_grad():
            states = compute_states(network.base_model, probe_embeddings(network))
    except Exception:  # foreign model code raises any exception
        return 0
    return sum(keys.nbytes + values.nbytes for keys, values in states) // states[0][0].shape[-2]
