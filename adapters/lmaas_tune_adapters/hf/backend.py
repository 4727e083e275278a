"""The backend itself: requests in, log-probabilities out."""

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
from lmaas_tune.prompts import DeepPrompt, FloatArray, Prompt, SoftPrompt
from lmaas_tune.task import Batch, Slot
from lmaas_tune_adapters.hf.answers import Word
from lmaas_tune_adapters.hf.causal import CausalScorer
from lmaas_tune_adapters.hf.cohort import Cohort, Scorer, alike
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.gguf import convert_gguf
from lmaas_tune_adapters.hf.loading import Family, LoadedModel, load
from lmaas_tune_adapters.hf.masked import MaskedScorer
from lmaas_tune_adapters.hf.peft import export_peft
from lmaas_tune_adapters.hf.reader import Reader
from lmaas_tune_adapters.hf.seq2seq import ANSWERS, Answer, Seq2SeqScorer
from lmaas_tune_adapters.hf.stack import clipped_std, inputs_kept
from lmaas_tune_adapters.hf.trials import tried
from lmaas_tune_adapters.hf.whitebox import WhiteBox

_MEASURED_BYTES = 1 << 28
"""Most memory for the states that are measured: all of 32 rows of the paper's SST-2."""


class HFBackend:
    """A language model of Hugging Face transformers on this machine.

    Causal (Llama, GPT-2, OPT, Qwen and their kin), masked (BERT, RoBERTa and theirs) and
    sequence-to-sequence (T5, BART) models, as they come, with soft and text prompts.

    Args:
        model: Name on the hub, folder that ``save_pretrained`` wrote, or path of a ``.gguf`` file.
        revision: Branch, tag or commit on the hub.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the file's own.
        answer: How a sequence-to-sequence model says the label, see `Seq2SeqScorer`.
        max_tokens_per_pass: Most tokens that go through the model in one pass, which bounds
            memory; by default 2048 on a processor, where more is slower, and 16384 elsewhere.
            On a processor a causal or masked model has as many side by side as torch has threads.
        max_kept_bytes: Most memory for what a causal model keeps of texts that come again.
        speedups: Whether to replace modules of transformers and torch by faster ones with the
            same scores. Each is tried at load; a warning says which are off, and why.

    Raises:
        InputError: The model cannot be had or is no language model, or an option is unknown.
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
        if answer not in ANSWERS:
            raise InputError(f"unknown answer {answer!r}; {did_you_mean(answer, ANSWERS)}")
        if max_tokens_per_pass is not None and max_tokens_per_pass < 1:
            raise InputError(f"max_tokens_per_pass is {max_tokens_per_pass}; it must be 1 or more")
        if max_kept_bytes < 0:
            raise InputError(f"max_kept_bytes is {max_kept_bytes}; it must be 0 or more")
        self._lock = threading.Lock()
        self._source = str(model)
        loaded = load(model, revision=revision, device=device, dtype=dtype, pack=speedups)
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self.family: Family = loaded.family
        on_cpu = self._model.device.type == "cpu"
        per_pass = max_tokens_per_pass or (2048 if on_cpu else 16384)
        self._scorer = tried(
            loaded, lambda model: _scorer(model, per_pass, max_kept_bytes, answer, speedups)
        )
        self._embeddings = self._model.get_input_embeddings()
        self.vocabulary_size: int = self._embeddings.weight.shape[0]
        self.embedding_std: float = self._std()
        self.capabilities = Capabilities(
            soft_prompt_width=int(self._embeddings.weight.shape[1]),
            insertions=self._scorer.insertions,
            deep_layers=len(self._scorer.layers) or None,
            label_anywhere=not self._scorer.label_last,
            max_tokens=_max_tokens(loaded),
            speedups=self._scorer.speedups,
        )
        if speedups:
            _warn_of_slowness(loaded.name, self._scorer.speedups)
        self._reader = Reader(
            loaded.tokenizer,
            capabilities=self.capabilities,
            vocabulary_size=self.vocabulary_size,
            ends=loaded.family != "causal",
            answers_apart=self._scorer.answers_apart,
            tokens=self._tokens,
            places=self._places,
        )
        settings = [f"weights={loaded.fingerprint}", f"dtype={str(self._model.dtype)[6:]}"]
        if isinstance(self._scorer, Seq2SeqScorer):
            settings.append(f"answer={self._scorer.answer}")
        self.identity = " ".join(["hf", loaded.name, *settings])

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        """Ids of the text's tokens, with no start or end token."""
        return self._reader.text(text)

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        """(tokens, H) float32 word embeddings, as the model takes them in place of ids."""
        self._reader.check_ids(token_ids)
        with self._lock, torch.inference_mode():
            ids = torch.tensor(list(token_ids), dtype=torch.long, device=self._model.device)
            vectors: FloatArray = self._embeddings(ids).float().cpu().numpy()
        return vectors

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """See `lmaas_tune.backend.Backend.score`."""
        with self._lock, torch.inference_mode():
            encoded = [self._reader.rows(request) for request in requests]
            logprobs = [np.zeros((len(r.batch), len(r.candidates))) for r in requests]
            groups = alike(range(len(requests)), key=lambda i: _kind(requests[i]))
            for group in groups:
                self._score_alike(group, requests, encoded, logprobs)
        return [
            ScoreReply(
                np.where(np.isfinite(values), values, np.nan), self._reader.usage(request, rows)
            )
            for request, rows, values in zip(requests, encoded, logprobs, strict=True)
        ]

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        """See `lmaas_tune.backend.Inspects.inspect`."""
        return self._reader.inspect(request)

    def measure(self, request: ScoreRequest, /) -> Spread:
        """See `lmaas_tune.backend.Measures.measure`; rows from all parts of the batch."""
        layers = self._scorer.layers[1:]
        if not layers:
            raise InputError("this model takes no deep prompts, so it has no layers to measure")
        with self._lock, torch.inference_mode():
            rows = self._measured(self._reader.rows(request), len(layers))
            cohort = self._cohort([request.prompt], [rows], self._reader.words(request, rows[0]))
            with inputs_kept(layers) as kept:
                self._scorer.read(cohort)
            stds = np.array([clipped_std(states) for states in kept])
        return Spread(stds, self._reader.usage(request, rows))

    def _measured(self, rows: Sequence[EncodedRow], layers: int) -> list[EncodedRow]:
        """As many rows as have room for their states, one at least, as far apart as can be."""
        tokens = _MEASURED_BYTES // (4 * self._embeddings.weight.shape[1] * layers)
        longest = max((self._scorer.tokens(row) for row in rows), default=0)
        if not longest:
            raise InputError("a batch of no rows has nothing to measure")
        count = min(len(rows), max(1, tokens // longest))
        return [rows[index * len(rows) // count] for index in range(count)]

    def open_box(self) -> WhiteBox:
        """What stands behind the answers, for whoever needs gradients or another head."""
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
            reader=self._reader,
            answer=scorer.answer if isinstance(scorer, Seq2SeqScorer) else "auto",
            hole=scorer.hole,
            max_tokens=self.capabilities.max_tokens,
        )

    def export_peft(self, tuned: TunedPrompt, folder: str | os.PathLike[str]) -> Path:
        """Write a prompt tuned on this model as a prompt-tuning adapter of peft.

        ``peft.PeftModel.from_pretrained`` loads the folder, with the same logits for the ids of
        the text behind the prompt without special tokens, unpadded or padded on the right.

        Raises:
            InputError: The model is not causal, or the prompt's layout has no counterpart.
            StorageError: The folder cannot be written.
        """
        if not isinstance(self._scorer, CausalScorer):
            raise InputError(
                "peft puts a prompt before what a causal model reads, and this model is not one"
            )
        empty = Batch(((Slot.PROMPT, Slot.LABEL),))
        prompt = SoftPrompt(np.zeros((1, self.capabilities.soft_prompt_width or 1)))
        (row,) = self._reader.rows(ScoreRequest(prompt, empty, ()))
        start = self.embed(row.ids[: row.prompt])
        return export_peft(tuned, folder, base_model=self._source, start=start)

    def _score_alike(
        self,
        group: Sequence[int],
        requests: Sequence[ScoreRequest],
        encoded: Sequence[Sequence[EncodedRow]],
        logprobs: Sequence[FloatArray],
    ) -> None:
        """Score requests of one kind; rows whose label word begins with a space go apart."""
        prompts = [requests[i].prompt for i in group]
        first = requests[group[0]]
        rows = encoded[group[0]]
        for numbers in alike(range(len(rows)), key=lambda number: rows[number].spaced):
            cohort = self._cohort(
                prompts,
                [[encoded[i][number] for number in numbers] for i in group],
                self._reader.words(first, rows[numbers[0]]),
            )
            for index, values in zip(group, self._scorer.scores(cohort).numpy(), strict=True):
                logprobs[index][numbers] = values

    def _cohort(
        self,
        prompts: Sequence[Prompt],
        rows: Sequence[Sequence[EncodedRow]],
        words: Sequence[Word],
    ) -> Cohort:
        """Of prompts of one kind."""
        soft = [prompt for prompt in map(_entering, prompts) if prompt is not None]
        if not soft:
            return Cohort(rows=rows, words=words)
        deep = [prompt.above for prompt in prompts if isinstance(prompt, DeepPrompt)]
        return Cohort(
            rows=rows,
            words=words,
            vectors=self._tensor([prompt.vectors for prompt in soft]),
            insertion=soft[0].insertion,
            above={
                layer: self._tensor(vectors)
                for layer, vectors in enumerate(zip(*deep, strict=True), start=1)
                if any(own.any() for own in vectors)
            },
        )

    def _tensor(self, vectors: Sequence[FloatArray]) -> torch.Tensor:
        """(requests, L, H), of one array where all requests share it."""
        shared = all(own is vectors[0] for own in vectors)
        arrays = torch.from_numpy(np.stack(vectors[:1] if shared else vectors))
        tensor = arrays.to(self._model.device, self._model.dtype)
        return tensor.expand(len(vectors), -1, -1)

    def _tokens(self, row: EncodedRow, words: Sequence[Word]) -> int:
        return self._scorer.tokens(row) + sum(len(word) - 1 for word in words)

    def _places(self, row: EncodedRow, words: Sequence[Word]) -> int:
        return self._scorer.places(row, max(map(len, words), default=1))

    def _std(self) -> float:
        with torch.inference_mode():
            ids = torch.arange(self.vocabulary_size, device=self._model.device)
            return float(self._embeddings(ids).float().std())


def _warn_of_slowness(name: str, speedups: Sequence[Speedup]) -> None:
    """Say once which speedups are off, why, and what that costs."""
    off = [f"{one.name} ({one.reason}): {one.cost}" for one in speedups if one.reason]
    if off:
        warnings.warn(
            f"the model {name!r} is slower than it could be, with the same scores. "
            f"Off: {'; '.join(off)}",
            stacklevel=3,
        )


def _scorer(
    loaded: LoadedModel,
    max_tokens_per_pass: int,
    max_kept_bytes: int,
    answer: Answer,
    speedups: bool,
) -> Scorer:
    if loaded.family == "causal":
        return CausalScorer(
            loaded,
            max_tokens_per_pass=max_tokens_per_pass,
            max_kept_bytes=max_kept_bytes,
            speedups=speedups,
        )
    if loaded.family == "masked":
        return MaskedScorer(loaded, max_tokens_per_pass=max_tokens_per_pass, speedups=speedups)
    return Seq2SeqScorer(loaded, max_tokens_per_pass=max_tokens_per_pass, answer=answer)


_LIMITS = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")
"""What models call the places that they have; the second is LED's, the third MPT's."""


def _max_tokens(loaded: LoadedModel) -> int | None:
    """Places that the model has embeddings for, or was trained on."""
    config = loaded.model.config
    limit = next(filter(None, (getattr(config, name, None) for name in _LIMITS)), None)
    if limit is None or limit < 1:  # XLNet's -1: any number
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # a pass with one longer row turns all rows otherwise
        limit = rope.get("original_max_position_embeddings", limit)
    for name, module in loaded.model.named_modules():
        # RoBERTa counts places from behind its padding token's
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(limit - padding - 1)
    return int(limit)


def _kind(request: ScoreRequest) -> tuple[object, ...]:
    """Requests of equal kind can share passes."""
    soft, deep = _entering(request.prompt), isinstance(request.prompt, DeepPrompt)
    form = ("text",) if soft is None else (soft.insertion, soft.length, deep)
    return (request.batch.digest, request.candidates, *form)


def _entering(prompt: Prompt) -> SoftPrompt | None:
    """What of a prompt enters with the embeddings."""
    if isinstance(prompt, DeepPrompt):
        return prompt.first
    return prompt if isinstance(prompt, SoftPrompt) else None
