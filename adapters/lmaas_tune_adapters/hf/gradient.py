"""Label log-probabilities as a function that can be differentiated."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from lmaas_tune.backend import ScoreRequest
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import Insertion, SoftPrompt
from lmaas_tune_adapters.hf import answers
from lmaas_tune_adapters.hf.answers import Reading
from lmaas_tune_adapters.hf.cohort import Cohort, alike, fitting
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.forward import body_of, logits_at, placed, trial
from lmaas_tune_adapters.hf.loading import LoadedModel
from lmaas_tune_adapters.hf.masked import MaskedScorer
from lmaas_tune_adapters.hf.memory import attention_window, cached, compute_states
from lmaas_tune_adapters.hf.seq2seq import Seq2SeqScorer
from lmaas_tune_adapters.hf.whitebox import WhiteBox

_KEPT_BYTES = 1 << 30


class LabelScorer:
    """What a backend answers to one request, with a gradient.

    Args:
        box: The model.
        request: The rows and label words; its prompt stands in every row. A soft one says
            how many vectors there are and how they enter, and may be replaced in each call.
        before: Places that something else that is tuned takes before every row.

    Raises:
        InputError: The model cannot read the request.
    """

    def __init__(self, box: WhiteBox, request: ScoreRequest, *, before: int = 0) -> None:
        self._prompt = request.prompt
        self._device, self._dtype = box.device, box.dtype
        self._columns = len(request.candidates)
        self._rows = box.reader.rows(request)
        self._words = [box.reader.words(request, row) for row in self._rows]
        self._check_places(box, before)
        # what stands before a soft prompt is read the same in each call, if nothing else is tuned
        self._scorer = _scorer(box, keeps=isinstance(request.prompt, SoftPrompt) and not before)

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
            (rows, candidates) float64 summed log-probabilities, on the processor.
        """
        numbers = list(range(len(self)) if rows is None else rows)
        vectors = self._placed(vectors)
        insertion = self._prompt.insertion if isinstance(self._prompt, SoftPrompt) else "concat"
        out = torch.zeros(len(numbers), self._columns, dtype=torch.float64)
        for group in alike(range(len(numbers)), key=lambda i: self._words[numbers[i]]):
            cohort = Cohort(
                rows=[[self._rows[numbers[i]] for i in group]],
                words=self._words[numbers[group[0]]],
                vectors=vectors,
                insertion=insertion,
            )
            out = out.index_put((torch.tensor(group),), self._scorer.scores(cohort)[0])
        return out

    def _check_places(self, box: WhiteBox, before: int) -> None:
        for number, (row, words) in enumerate(zip(self._rows, self._words, strict=True), start=1):
            places = before + len(row.ids) + max(map(len, words))
            if before and box.max_tokens is not None and places > box.max_tokens:
                raise InputError(
                    f"row {number} has {places} tokens with its label and {before} places before "
                    f"it, more than the {box.max_tokens} that this model reads: shorten the text "
                    "or the prefix"
                )

    def _placed(self, vectors: torch.Tensor | None) -> torch.Tensor | None:
        if vectors is None and isinstance(self._prompt, SoftPrompt):
            vectors = torch.from_numpy(self._prompt.vectors.copy())
        return None if vectors is None else vectors.to(self._device, self._dtype)[None]


def _scorer(box: WhiteBox, *, keeps: bool) -> Any:
    # on a processor more is not faster, and rows of one pass are padded to the longest
    per_pass = 512 if box.device.type == "cpu" else 16384
    if box.family == "causal":
        return CausalGradientScorer(
            box.loaded, max_tokens_per_pass=per_pass, max_kept_bytes=_KEPT_BYTES if keeps else 0
        )
    if box.family == "masked":
        return MaskedScorer(box.loaded, max_tokens_per_pass=per_pass)
    return Seq2SeqScorer(box.loaded, max_tokens_per_pass=per_pass, answer=box.answer)


class CausalGradientScorer:
    """Rows of all lengths together, padded on the right, which a causal model cannot see.

    The keys and values of what stands before a soft prompt do not depend on it: they are worked
    out once, without gradient, and each pass goes on from them. A model whose memory is not plain
    keys and values reads whole rows.

    Args:
        loaded: The model.
        max_tokens_per_pass: Most tokens in one pass.
        max_kept_bytes: Most memory for what is kept; rows that find no room are read whole.
    """

    def __init__(
        self, loaded: LoadedModel, *, max_tokens_per_pass: int, max_kept_bytes: int
    ) -> None:
        self._model = loaded.model
        with torch.no_grad():
            self._body = body_of(self._model, inputs_embeds=trial(self._model), use_cache=False)
        self._max_tokens = max_tokens_per_pass
        self._bytes_a_token = _kept_bytes(loaded.model) if max_kept_bytes else 0
        self._room = max_kept_bytes
        self._counts_places = "position_ids" in inspect.signature(loaded.model.forward).parameters
        self._chosen: set[answers.Word] = set()
        self._kept: dict[answers.Word, torch.Tensor] = {}

    def scores(self, cohort: Cohort) -> torch.Tensor:
        """(1, rows, words) summed log-probabilities of a cohort of one request."""
        rows = cohort.rows[0]
        heads = [self._head(row) for row in rows]
        out = torch.zeros(len(rows), len(cohort.words), dtype=torch.float64)
        tails = [len(row.ids) - head for row, head in zip(rows, heads, strict=True)]
        for chunk in fitting(range(len(rows)), tails.__getitem__, self._max_tokens):
            sums = torch.zeros(len(chunk), len(cohort.words), dtype=torch.float64)
            for reading in answers.chains(cohort.words):
                logits = self._read(
                    [rows[i] for i in chunk],
                    [heads[i] for i in chunk],
                    reading,
                    cohort.vectors,
                    cohort.insertion,
                )
                reading.add_up(logits, sums)
            out = out.index_put((torch.tensor(chunk),), sums)
        return out[None]

    def _head(self, row: EncodedRow) -> int:
        """How many tokens of a row are read once and kept; a start token alone is not worth it."""
        head = row.ids[: row.prompt]
        if head not in self._chosen:
            size = len(head) * self._bytes_a_token
            if len(head) < 2 or not 0 < size <= self._room:
                return 0
            self._room -= size
            self._chosen.add(head)
        return len(head)

    def _read(
        self,
        rows: Sequence[EncodedRow],
        heads: Sequence[int],
        reading: Reading,
        vectors: torch.Tensor | None,
        insertion: Insertion,
    ) -> torch.Tensor:
        """(n, nodes, vocabulary) from the last token before the label on."""
        device = self._model.device
        tails = [row.with_label(reading.fill).ids[h:] for row, h in zip(rows, heads, strict=True)]
        width = max(map(len, tails))
        ids = torch.tensor([tail + (0,) * (width - len(tail)) for tail in tails], device=device)
        embeddings = self._model.get_input_embeddings()(ids)
        if vectors is not None:
            starts = [row.prompt - h for row, h in zip(rows, heads, strict=True)]
            embeddings = placed(embeddings, starts, vectors.expand(len(rows), -1, -1), insertion)
        last = torch.tensor(
            [len(row.ids) - h - 1 for row, h in zip(rows, heads, strict=True)], device=device
        )
        return logits_at(
            self._model,
            self._body,
            last[:, None] + torch.arange(reading.nodes, device=device),
            inputs_embeds=embeddings,
            **self._behind(rows, heads, width),
        )

    def _behind(
        self, rows: Sequence[EncodedRow], heads: Sequence[int], width: int
    ) -> dict[str, Any]:
        """What makes `width` tokens go on from heads, which are padded on the left."""
        longest = max(heads)
        if not longest:
            return {"use_cache": False}
        device = self._model.device
        states = self._states([row.ids[:h] for row, h in zip(rows, heads, strict=True)], longest)
        lengths = torch.tensor(heads, device=device)[:, None]
        columns = torch.arange(longest + width, device=device)
        inputs: dict[str, Any] = {
            **cached(self._model, DynamicCache([(keys, values) for keys, values in states])),
            "attention_mask": (columns >= longest - lengths).long(),
        }
        if self._counts_places:
            inputs["position_ids"] = lengths + torch.arange(width, device=device)
        return inputs

    def _states(self, heads: Sequence[answers.Word], longest: int) -> torch.Tensor:
        """(layers, 2, n, attention heads, longest, width) keys and values."""
        missing = {head for head in heads if head and head not in self._kept}
        for group in alike(sorted(missing), key=len):
            with torch.no_grad():
                ids = torch.tensor(group, device=self._model.device)
                embeddings = self._model.get_input_embeddings()(ids)
                layers = compute_states(self._model.base_model, embeddings)
                whole = torch.stack([torch.stack(layer) for layer in layers])
            self._kept |= zip(group, whole.unbind(2), strict=True)
        some = next(iter(self._kept.values()))
        shape = (*some.shape[:2], len(heads), some.shape[2], longest, some.shape[4])
        states = some.new_zeros(shape)
        for i, head in enumerate(heads):
            if head:
                states[:, :, i, :, longest - len(head) :] = self._kept[head]
        return states


def _kept_bytes(network: Any) -> int:
    """Bytes of a token's keys and values; 0 if the model keeps something else."""
    try:
        if attention_window(network.config) is not None:
            return 0
        with torch.no_grad():
            states = compute_states(network.base_model, trial(network))
    except Exception:  # a model made otherwise raises whatever it does
        return 0
    return sum(keys.nbytes + values.nbytes for keys, values in states) // states[0][0].shape[-2]
