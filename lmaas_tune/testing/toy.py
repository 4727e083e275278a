"""`ToyBackend`: a small synthetic language model for examples and tests, fast and exact."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lmaas_tune.backend import Capabilities, ScoreReply, ScoreRequest, Spread, Usage
from lmaas_tune.errors import InputError
from lmaas_tune.prompts import DeepPrompt, FloatArray, Prompt, SoftPrompt, TextPrompt
from lmaas_tune.task import Part, Slot

_SHARPNESS = 10.0


@lru_cache(maxsize=10_000)
def _word_vector(word: str, width: int) -> FloatArray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(width)
    unit: FloatArray = vector / np.linalg.norm(vector)
    unit.flags.writeable = False
    return unit


class ToyBackend:
    """Scores a word by its similarity to the words of the row, weighted by the prompt.

    A row is the direction x of the sum of its words' fixed random vectors; a prompt is the mean m
    of its vectors (for a deep prompt, the sum of its layers' means). The prompt acts as an
    attention gain: far from an optimum m* the model ignores the row and prefers words by a bias;
    at m* it uses the row in full. The loss is thus smooth in `rank` dimensions, with its minimum
    near m*; the exact place depends on the rows. A word is scored against the rest of the
    vocabulary, whose logits sum to 0.

    Args:
        width: Width H of word embeddings and soft prompts.
        rank: Number of dimensions of m that affect the loss.
        seed: Seed of m*; part of the identity.
        max_tokens: The longest row in tokens.
        layers: Number of layers of deep prompts; None takes no deep prompts.
    """

    def __init__(
        self,
        *,
        width: int = 16,
        rank: int = 4,
        seed: int = 0,
        max_tokens: int = 512,
        layers: int | None = None,
    ) -> None:
        if rank < 1 or width < rank:
            raise InputError(f"width={width}, rank={rank}: width must be at least rank, rank 1")
        rng = np.random.default_rng(seed)
        self._width, self._max_tokens = width, max_tokens
        self._basis = np.linalg.qr(rng.standard_normal((width, rank)))[0]  # (H, rank)
        self.optimum: FloatArray = rng.standard_normal(rank)
        self.identity = f"toy width={width} rank={rank} seed={seed} max_tokens={max_tokens}"
        if layers is not None:
            self.identity += f" layers={layers}"
        self.capabilities = Capabilities(
            soft_prompt_width=width,
            deep_layers=layers,
            text_prompts=True,
            label_anywhere=True,
            max_tokens=max_tokens,
        )
        self.embedding_std = 1.0
        self.vocabulary_size = 1000

    def tokenize(self, text: str, /) -> tuple[int, ...]:
        """One token a word: a hash of it."""
        return tuple(
            int(hashlib.sha256(w.encode()).hexdigest()[:8], 16) % self.vocabulary_size
            for w in text.split()
        )

    def embed(self, token_ids: Sequence[int], /) -> FloatArray:
        """(tokens, H) word embeddings."""
        scale = self._width**0.5  # so that the entries have a standard deviation of 1
        vectors = [scale * _word_vector(f"token {i}", self._width) for i in token_ids]
        return np.array(vectors, dtype=np.float32).reshape(-1, self._width)

    def score(self, requests: Sequence[ScoreRequest], /) -> list[ScoreReply]:
        """See `lmaas_tune.backend.Backend.score`."""
        return [self._score(request) for request in requests]

    def measure(self, request: ScoreRequest, /) -> Spread:
        """See `lmaas_tune.backend.Measures.measure`: the input of layer i has a std of i."""
        (reply,) = self.score([request])
        return Spread(np.arange(1.0, self.capabilities.deep_layers or 1), reply.usage)

    def _score(self, request: ScoreRequest) -> ScoreReply:
        prompt = self._vectors(request.prompt)
        m = prompt.mean(axis=0) @ self._basis if len(prompt) else np.zeros_like(self.optimum)
        gain = 1.0 / (1.0 + ((m - self.optimum) ** 2).sum())
        words = np.array([_word_vector(word.strip(), self._width) for word in request.candidates])
        bias = np.array([-0.01 * sum(word.strip().encode()[:1]) for word in request.candidates])
        rows, tokens = [], 0
        for row in request.batch.rows:
            texts = [word for part in row if isinstance(part, str) for word in part.split()]
            tokens += self._length(row, len(texts) + len(prompt))
            rows.append(
                sum((_word_vector(word, self._width) for word in texts), np.zeros(self._width))
            )
        directions = np.array(rows).reshape(-1, self._width)
        norms = np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1.0)
        logits = gain * _SHARPNESS * (directions / norms) @ words.T + (1 - gain) * bias
        logprobs = -np.logaddexp(0.0, -logits)
        return ScoreReply(logprobs, Usage(requests=1, sequences=len(rows), tokens=tokens))

    def _vectors(self, prompt: Prompt) -> FloatArray:
        if isinstance(prompt, TextPrompt):
            return self.embed(self.tokenize(prompt.text))
        if isinstance(prompt, DeepPrompt):
            if prompt.layers != self.capabilities.deep_layers:
                raise InputError(
                    f"toy takes deep prompts through {self.capabilities.deep_layers or 'no'} "
                    f"layers, not {prompt}"
                )
            return self._vectors(prompt.first) + np.sum(prompt.above, axis=0, dtype=np.float64)
        takes = (self._width, "concat")
        if not isinstance(prompt, SoftPrompt) or (prompt.width, prompt.insertion) != takes:
            raise InputError(
                f"toy takes soft prompts of width {self._width}, inserted by 'concat', not {prompt}"
            )
        return np.asarray(prompt.vectors, dtype=np.float64)

    def _length(self, row: tuple[Part, ...], tokens: int) -> int:
        if tokens > self._max_tokens:
            raise InputError(
                f"a row of {tokens} tokens with its prompt is longer than the {self._max_tokens} "
                "that toy reads: shorten the text (--truncate N) or the prompt"
            )
        if Slot.LABEL not in row:
            raise InputError("a row has no {label} slot")
        return tokens
