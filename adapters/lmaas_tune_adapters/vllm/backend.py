"""The backend `vllm`: a model on a vLLM server, with soft and text prompts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from ml_dtypes import bfloat16

from lmaas_tune.backend import Capabilities, Inspection, ScoreReply, ScoreRequest
from lmaas_tune.calls.retry import Retry
from lmaas_tune.errors import InputError, PermanentError, did_you_mean, named
from lmaas_tune.prompts import INSERTIONS, FloatArray, Prompt
from lmaas_tune_adapters.hf.encoding import EncodedRow
from lmaas_tune_adapters.hf.label_tokens import Reading, Word, tree
from lmaas_tune_adapters.hf.request_encoder import RequestEncoder, parts_of
from lmaas_tune_adapters.http import AT_START, Endpoint, Key, joined
from lmaas_tune_adapters.vllm.completions import MOST_TOKENS, Completions
from lmaas_tune_adapters.vllm.known_faults import known_fault
from lmaas_tune_adapters.vllm.probe import check_server, find_model
from lmaas_tune_adapters.vllm.rows import RowWriter, rounded
from lmaas_tune_adapters.vllm.vocabulary import load_vocabulary

KEY_VARIABLE = "VLLM_API_KEY"
_LEFT_FOR_LABELS = 8  # further tokens of label words that have several

_PROBE = "Three short words, then: a question? Yes or no, good or bad, 1 or 2."

Server: TypeAlias = Literal["vllm", "dynamo"]
SERVERS: tuple[Server, ...] = ("vllm", "dynamo")

WIRE_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(bfloat16),
    "float16": np.dtype(np.float16),
}


class VLLMBackend:
    """A causal language model on a vLLM server that was started with --enable-prompt-embeds.

    Text and prompt are embedded here, with the model's table of word embeddings only, and sent as
    embeddings. Two requests at the start check which model the server has, and whether it accepts
    embeddings.

    Args:
        url: Of the server, with or without ``/v1``.
        model: Folder or hub name of the model that the server serves, for its word embeddings
            (safetensors), tokenizer and configuration; its other weights are never read.
        api_key_file: Holds the server's key; by default the environment's VLLM_API_KEY, if set.
        served_model: The model's name on the server; needed where it serves several.
        revision: Branch, tag or commit on the hub.
        wire_dtype: ``float32``, ``bfloat16`` or ``float16``: the type to which embeddings are
            rounded and in which they are sent. Half precision halves the bytes; use it if the
            server computes in it.
        server: ``vllm``, or ``dynamo`` for NVIDIA Dynamo in front of it.
        rows_per_call: Most rows in one request.
        max_body_bytes: Most bytes in one request; a single longer row goes alone.
        max_kept_bytes: Most memory for encoded rows, which are sent again under other soft
            prompts; a row takes about its size on the wire. 0 keeps nothing.
        timeout: Seconds that one request may take.
        retry: How requests at the start are repeated after transient failures; later the client
            does that.

    Raises:
        InputError: The model cannot be loaded or is not causal, an option is out of range, or the
            server has other models.
        PermanentError: The server does not answer, or does not return these log-probabilities;
            the message names the setting to change.
    """

    def __init__(
        self,
        url: str,
        model: str | Path,
        *,
        api_key_file: str | os.PathLike[str] | None = None,
        served_model: str | None = None,
        revision: str | None = None,
        wire_dtype: str = "float32",
        server: Server = "vllm",
        rows_per_call: int = 16,
        max_body_bytes: int = 32 << 20,
        max_kept_bytes: int = 256 << 20,
        timeout: float = 120.0,
        retry: Retry = AT_START,
    ) -> None:
        dtype = named("wire_dtype", wire_dtype, WIRE_DTYPES)
        if server not in SERVERS:
            raise InputError(f"unknown server {server!r}; {did_you_mean(server, SERVERS)}")
        _check_sizes(rows_per_call, max_body_bytes, max_kept_bytes)
        key = Key.find(file=api_key_file, variable=KEY_VARIABLE)
        endpoint = Endpoint(url.rstrip("/").removesuffix("/v1"), key=key, timeout=timeout)
        vocabulary = load_vocabulary(model, revision=revision)
        served = retry.run(lambda: find_model(endpoint, served_model))
        self._table = vocabulary.table
        self._rows = RowWriter(self._table, dtype, max_kept_bytes=max_kept_bytes)
        self._completions = Completions(
            endpoint=endpoint,
            served_model=served.name,
            most_prompts=1 if server == "dynamo" else rows_per_call,
            max_body_bytes=max_body_bytes,
            for_dynamo=server == "dynamo",
        )
        self.vocabulary_size: int = self._table.weight.shape[0]
        longest = served.max_tokens or vocabulary.max_tokens
        self.capabilities = Capabilities(
            soft_prompt_width=self._table.weight.shape[1],
            insertions=frozenset(INSERTIONS),
            deterministic=False,  # other requests at the time change the order of sums
            max_tokens=longest and longest - 1,  # the server writes one token
            rows_per_call=self._completions.most_prompts,
            words_per_request=MOST_TOKENS - _LEFT_FOR_LABELS,
        )
        self._encoder = RequestEncoder(
            vocabulary.tokenizer,
            capabilities=self.capabilities,
            vocabulary_size=self.vocabulary_size,
            ends=False,
            tokens=_tokens,
            positions=_positions,
        )
        self.identity = (
            f"vllm {vocabulary.name} weights={vocabulary.fingerprint} served={served.name} "
            f"wire={wire_dtype}"
        )
        probe = self.tokenize(_PROBE)
        try:
            retry.run(lambda: check_server(self._completions, self._rows, probe, str(model)))
        except PermanentError as error:
            if (fault := known_fault(endpoint)) is None:
                raise
            raise PermanentError(f"{error}; {fault}") from error

    @property
    def embedding_std(self) -> float:
        """Standard deviation of all entries of the word-embedding matrix."""
        return self._table.std

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        """Encode a text without start or end token."""
        return self._encoder.text(text)

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        """(tokens, H) float32 word embeddings, as the server takes them in place of ids."""
        self._encoder.check_ids(token_ids)
        return self._table.rows(token_ids)

    def one_token_words(self) -> Sequence[str]:
        """See `lmaas_tune.capabilities.KnowsWords`."""
        return self._encoder.one_token_words()

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """See `lmaas_tune.backend.Backend.score`."""
        replies, _ = joined((reply, reply.usage) for reply in map(self._score, requests))
        return replies

    def inspect(self, request: ScoreRequest, /) -> Inspection:
        """See `lmaas_tune.backend.Inspects.inspect`."""
        self._readings(request, self._encoder.rows(request))
        return self._encoder.inspect(request)

    def _score(self, request: ScoreRequest) -> ScoreReply:
        rows = self._encoder.rows(request)
        readings, token_ids = self._readings(request, rows)
        logprobs = np.zeros((len(rows), len(request.candidates)))
        vectors, adds = _soft(request.prompt)
        if not np.isfinite(rounded(vectors, self._rows.dtype)).all():  # float16 ends at 65504
            return ScoreReply(logprobs * np.nan)
        prompts = (
            self._rows.soft(row.ids + path, row.prompt, vectors, adds=adds)
            if len(vectors)
            else self._rows.words(row.ids + path)
            for row, reading in zip(rows, readings, strict=True)
            for path in reading.paths
        )
        values, sent = self._completions.logprobs(prompts, token_ids)
        first, columns = 0, {token: index for index, token in enumerate(token_ids)}
        for number, reading in enumerate(readings):
            for node, token, word in reading.picks:
                logprobs[number, word] += values[first + node, columns[token]]
            first += len(reading.paths)
        expected = self._encoder.usage(request, rows)
        usage = replace(sent, sequences=expected.sequences, tokens=expected.tokens)
        return ScoreReply(logprobs, usage)

    def _readings(
        self, request: ScoreRequest, rows: Sequence[EncodedRow]
    ) -> tuple[list[Reading], list[int]]:
        """The reading of each row, and all tokens that any of them needs."""
        readings = [tree(self._encoder.words(request, row)) for row in rows]
        token_ids = sorted({token for reading in readings for _, token, _ in reading.picks})
        if len(token_ids) > MOST_TOKENS:
            raise InputError(
                f"{len(request.candidates)} words to score have {len(token_ids)} different tokens, "
                f"and vLLM returns {MOST_TOKENS} at once: take shorter label words, or fewer words "
                "for the head (head_words, --head-words)"
            )
        return readings, token_ids


def _check_sizes(rows_per_call: int, max_body_bytes: int, max_kept_bytes: int) -> None:
    if rows_per_call < 1 or max_body_bytes < 1:
        raise InputError(
            f"rows_per_call is {rows_per_call} and max_body_bytes {max_body_bytes}: "
            "they must be 1 or more"
        )
    if max_kept_bytes < 0:
        raise InputError(f"max_kept_bytes is {max_kept_bytes}; it must be 0 or more")


def _soft(prompt: Prompt) -> tuple[FloatArray, bool]:
    """(L, H) vectors of a prompt (L is 0 for a text), and whether they are added to words."""
    soft = parts_of(prompt).soft
    if soft is None:
        return np.zeros((0, 1), dtype=np.float32), False
    return soft.vectors, soft.insertion == "add"


def _tokens(row: EncodedRow, words: Sequence[Word]) -> int:
    """Tokens that the server reads: the whole row for each token inside a label word."""
    return sum(len(row.ids) + len(path) for path in tree(words).paths)


def _positions(row: EncodedRow, words: Sequence[Word]) -> int:
    return len(row.ids) + max(map(len, words), default=1) - 1
