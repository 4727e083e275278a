"""The backend `hf`: models of Hugging Face transformers on this machine."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lmaas_tune.artifact import TunedPrompt
from lmaas_tune.backend import Capabilities, Inspection, ScoreReply, ScoreRequest, Speedup, Spread
from lmaas_tune.errors import InputError, did_you_mean
from lmaas_tune.prompts import FloatArray, Prompt, SoftPrompt
from lmaas_tune.task import Batch, Slot
from lmaas_tune_adapters.hf.causal import CausalScorer
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.gguf import convert_gguf
from lmaas_tune_adapters.hf.label_tokens import Word
from lmaas_tune_adapters.hf.layer_hooks import clipped_std, inputs_recorded
from lmaas_tune_adapters.hf.loading import Family, load, max_tokens
from lmaas_tune_adapters.hf.peft import export_peft
from lmaas_tune_adapters.hf.request_batch import RequestBatch, group_by
from lmaas_tune_adapters.hf.request_encoder import RequestEncoder, parts_of
from lmaas_tune_adapters.hf.seq2seq import ANSWERS, Answer, Seq2SeqScorer
from lmaas_tune_adapters.hf.trials import ScorerOptions, prepare
from lmaas_tune_adapters.hf.whitebox import WhiteBox

_MEASURED_BYTES = 1 << 28
"""Most memory for the measured inputs of layers: enough for 32 rows of the paper's SST-2."""


class HFBackend:
    """A language model of Hugging Face transformers on this machine.

    Takes causal (Llama, GPT-2, OPT, Qwen), masked (BERT, RoBERTa) and sequence-to-sequence (T5,
    BART) models as they are, with soft, deep and text prompts.

    Args:
        model: Name on the hub, folder that ``save_pretrained`` wrote, or path of a ``.gguf`` file.
        revision: Branch, tag or commit on the hub.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the file's own.
        answer: How a sequence-to-sequence model gives the label, see `Seq2SeqScorer`.
        max_tokens_per_pass: Most tokens in one forward pass, which bounds memory; by default 2048
            on a processor, where more is slower, and 16384 elsewhere. On a processor, a causal or
            masked model runs as many passes side by side as torch has threads.
        max_kept_bytes: Most memory for keys and values of texts that a causal model caches between
            calls.
        speedups: Whether faster code with the same scores may replace parts of the model (see
            `lmaas_tune_adapters.hf.cpu`). Each speedup is tried when the model is loaded; a
            warning names those that are off, with the reason.

    Raises:
        InputError: The model cannot be loaded or is no language model, or an option is unknown.
    """

    convert_gguf = staticmethod(convert_gguf)

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        answer: Answer = "auto",
        max_tokens_per_pass: int | None = None,
        max_kept_bytes: int = 1 << 30,
        speedups: bool = True,
    ) -> None:
        options = ScorerOptions(
            max_tokens_per_pass=max_tokens_per_pass,
            max_kept_bytes=max_kept_bytes,
            answer=answer,
            speedups=speedups,
        )
        _check_options(options)
        self._lock = threading.Lock()
        self._source = str(model)
        ready = prepare(lambda: load(model, revision=revision, device=device, dtype=dtype), options)
        loaded, self._scorer = ready.loaded, ready.scorer
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self.family: Family = loaded.family
        self._embeddings = self._model.get_input_embeddings()
        self.vocabulary_size: int = self._embeddings.weight.shape[0]
        self.embedding_std: float = self._std()
        self.capabilities = Capabilities(
            soft_prompt_width=int(self._embeddings.weight.shape[1]),
            insertions=self._scorer.insertions,
            deep_layers=len(self._scorer.layers) or None,
            label_anywhere=not self._scorer.label_last,
            max_tokens=max_tokens(self._model),
            words_per_request=None,
            speedups=ready.speedups,
        )
        if speedups:
            _warn_of_slowness(loaded.name, ready.speedups)
        self._encoder = RequestEncoder(
            loaded.tokenizer,
            capabilities=self.capabilities,
            vocabulary_size=self.vocabulary_size,
            ends=loaded.family != "causal",
            label_starts_text=self._scorer.label_starts_text,
            tokens=self._tokens,
            positions=self._positions,
        )
        settings = [f"weights={loaded.fingerprint}", f"dtype={str(self._model.dtype)[6:]}"]
        if isinstance(self._scorer, Seq2SeqScorer):
            settings.append(f"answer={self._scorer.answer}")
        self.identity = " ".join(["hf", loaded.name, *settings])

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        """Encode a text without start or end token."""
        return self._encoder.text(text)

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        """(tokens, H) float32 word embeddings, as the model takes them in place of ids."""
        self._encoder.check_ids(token_ids)
        with self._lock, torch.inference_mode():
            ids = torch.tensor(list(token_ids), dtype=torch.long, device=self._model.device)
            vectors: FloatArray = self._embeddings(ids).float().cpu().numpy()
        return vectors

    def one_token_words(self) -> Sequence[str]:
        """See `lmaas_tune.capabilities.KnowsWords`."""
        return self._encoder.one_token_words()

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """See `lmaas_tune.backend.Backend.score`."""
        with self._lock, torch.inference_mode():
            encoded = [self._encoder.rows(request) for request in requests]
            logprobs = [np.zeros((len(r.batch), len(r.candidates))) for r in requests]
            for group in group_by(range(len(requests)), key=lambda i: _shape(requests[i])):
                self._score_group(group, requests, encoded, logprobs)
        return [
            ScoreReply(
                np.where(np.isfinite(values), values, np.nan), self._encoder.usage(request, rows)
            )
            for request, rows, values in zip(requests, encoded, logprobs, strict=True)
        ]

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        """See `lmaas_tune.backend.Inspects.inspect`."""
        return self._encoder.inspect(request)

    def measure(self, request: ScoreRequest, /) -> Spread:
        """See `lmaas_tune.backend.Measures.measure`; rows come from all parts of the batch."""
        layers = self._scorer.layers[1:]
        if not layers:
            raise InputError("this model takes no deep prompts, so it has no layers to measure")
        with self._lock, torch.inference_mode():
            rows = self._measured_rows(self._encoder.rows(request), len(layers))
            batch = self._batch([request.prompt], [rows], self._encoder.words(request, rows[0]))
            with inputs_recorded(layers) as inputs:
                self._scorer.read(batch)
            stds = np.array([clipped_std(states) for states in inputs])
        return Spread(stds, self._encoder.usage(request, rows))

    def open_box(self) -> WhiteBox:
        """Open the model, for methods that need gradients or another head."""
        scorer, config = self._scorer, self._model.config
        return WhiteBox(
            source=self._source,
            revision=getattr(config, "_commit_hash", None),
            identity=self.identity,
            config=config,
            tokenizer=self._tokenizer,
            family=self.family,
            device=self._model.device,
            dtype=self._model.dtype,
            encoder=self._encoder,
            answer=scorer.answer if isinstance(scorer, Seq2SeqScorer) else "auto",
            mask_token=scorer.mask_token,
            max_tokens=self.capabilities.max_tokens,
        )

    def export_peft(self, tuned: TunedPrompt, folder: str | os.PathLike[str]) -> Path:
        """Write a prompt tuned on this model as a prompt-tuning adapter of peft.

        ``peft.PeftModel.from_pretrained`` loads the folder. It gives the same logits for the ids
        of the text behind the prompt, unpadded or padded on the right: without special tokens if
        the prompt is inserted by ``concat``, with them if by ``prepend``.

        Raises:
            InputError: The model is not causal, or peft does not support the prompt.
            StorageError: The folder cannot be written.
        """
        if not isinstance(self._scorer, CausalScorer):
            raise InputError(
                "peft puts a prompt before what a causal model reads, and this model is not one"
            )
        empty = Batch(((Slot.PROMPT, Slot.LABEL),))
        prompt = SoftPrompt(np.zeros((1, self.capabilities.soft_prompt_width or 1)))
        (row,) = self._encoder.rows(ScoreRequest(prompt, empty, ()))
        start = self.embed(row.ids[: row.prompt])
        return export_peft(tuned, folder, base_model=self._source, start=start)

    def _score_group(
        self,
        group: Sequence[int],
        requests: Sequence[ScoreRequest],
        encoded: Sequence[Sequence[EncodedRow]],
        logprobs: Sequence[FloatArray],
    ) -> None:
        """Score requests of one shape; rows whose label word begins with a space go apart."""
        prompts = [requests[i].prompt for i in group]
        first = requests[group[0]]
        rows = encoded[group[0]]
        for numbers in group_by(range(len(rows)), key=lambda number: rows[number].spaced):
            batch = self._batch(
                prompts,
                [[encoded[i][number] for number in numbers] for i in group],
                self._encoder.words(first, rows[numbers[0]]),
            )
            for index, values in zip(group, self._scorer.scores(batch).numpy(), strict=True):
                logprobs[index][numbers] = values

    def _batch(
        self,
        prompts: Sequence[Prompt],
        rows: Sequence[Sequence[EncodedRow]],
        words: Sequence[Word],
    ) -> RequestBatch:
        """Join requests whose prompts have one shape."""
        parts = [parts_of(prompt) for prompt in prompts]
        soft = [part.soft for part in parts if part.soft is not None]
        if not soft:
            return RequestBatch(rows=rows, words=words)
        above = [part.above for part in parts if part.above is not None]
        return RequestBatch(
            rows=rows,
            words=words,
            vectors=self._tensor([prompt.vectors for prompt in soft]),
            insertion=soft[0].insertion,
            above={
                layer: self._tensor(vectors)
                for layer, vectors in enumerate(zip(*above, strict=True), start=1)
                if any(array.any() for array in vectors)
            },
        )

    def _tensor(self, vectors: Sequence[FloatArray]) -> torch.Tensor:
        """Stack arrays to (requests, L, H), without copies where all requests share one."""
        shared = all(array is vectors[0] for array in vectors)
        arrays = torch.from_numpy(np.stack(vectors[:1] if shared else vectors))
        tensor = arrays.to(self._model.device, self._model.dtype)
        return tensor.expand(len(vectors), -1, -1)

    def _measured_rows(self, rows: Sequence[EncodedRow], layers: int) -> list[EncodedRow]:
        """Choose rows at equal distances, as many as fit into `_MEASURED_BYTES`, one at least."""
        tokens = _MEASURED_BYTES // (4 * self._embeddings.weight.shape[1] * layers)
        longest = max((self._scorer.tokens(row) for row in rows), default=0)
        if not longest:
            raise InputError("a batch of no rows has nothing to measure")
        count = min(len(rows), max(1, tokens // longest))
        return [rows[index * len(rows) // count] for index in range(count)]

    def _tokens(self, row: EncodedRow, words: Sequence[Word]) -> int:
        return self._scorer.tokens(row) + sum(len(word) - 1 for word in words)

    def _positions(self, row: EncodedRow, words: Sequence[Word]) -> int:
        return self._scorer.positions(row, max(map(len, words), default=1))

    def _std(self) -> float:
        with torch.inference_mode():
            ids = torch.arange(self.vocabulary_size, device=self._model.device)
            return float(self._embeddings(ids).float().std())


def _check_options(options: ScorerOptions) -> None:
    if options.answer not in ANSWERS:
        raise InputError(
            f"unknown answer {options.answer!r}; {did_you_mean(options.answer, ANSWERS)}"
        )
    if options.max_tokens_per_pass is not None and options.max_tokens_per_pass < 1:
        raise InputError(
            f"max_tokens_per_pass is {options.max_tokens_per_pass}; it must be 1 or more"
        )
    if options.max_kept_bytes < 0:
        raise InputError(f"max_kept_bytes is {options.max_kept_bytes}; it must be 0 or more")


def _warn_of_slowness(name: str, speedups: Sequence[Speedup]) -> None:
    """Warn once of the speedups that are off, with their reasons and costs."""
    off = [f"{one.name} ({one.reason}): {one.cost}" for one in speedups if one.reason]
    if off:
        warnings.warn(
            f"the model {name!r} is slower than it could be, with the same scores. "
            f"Off: {'; '.join(off)}",
            stacklevel=3,
        )


def _shape(request: ScoreRequest) -> tuple[object, ...]:
    """Equal for requests that can go through the model together."""
    return (request.batch.digest, request.candidates, *parts_of(request.prompt).shape)
